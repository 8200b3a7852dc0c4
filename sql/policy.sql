--
-- Policies: their values and checks.
--
-- The shipped values are those of a new policy, and of "default" with no row.
SELECT count(*) AS rows FROM idempotency_policies WHERE name = 'default';
SELECT * FROM idem_policy_list WHERE name = 'default' \gx
SELECT idem_policy('policy-new');
SELECT p.name, to_jsonb(p) - 'name' = to_jsonb(d) - 'name' AS as_default
FROM idem_policy_list p, idem_policy_list d WHERE p.name = 'policy-new' AND d.name = 'default';
-- nothing is stored that was not given
SELECT jsonb_strip_nulls(to_jsonb(p)) FROM idempotency_policies p WHERE name = 'policy-new';

-- All parameters, and an omitted one keeps its value.
SELECT idem_policy('policy-all', completed_ttl => '7 days', failed_ttl => '1 hour', lease => '5 min', wait => '2 s',
	on_repeat => 'reject', on_expiry => 'reject', tombstone => '30 days', require_fingerprint => true,
	on_unfinished => 'error', recoverable => true,
	key_format => 'uuidv7', max_key_bytes => 80, mismatch_status => 409, release_statuses => '{[503,504)}',
	max_body_bytes => 0, on_oversize => 'digest', owner_role => 'pg_monitor', max_live_keys => 1000, audit => true);
SELECT * FROM idem_policy_list WHERE name = 'policy-all' \gx
SELECT idem_policy('policy-all', lease => '6 min');
SELECT idem_policy('policy-all', audit => false, release_statuses => '{}', owner_role => '', key_format => 'any');
SELECT * FROM idem_policy_list WHERE name = 'policy-all' \gx
SELECT name FROM idem_policy_list WHERE name LIKE 'policy-%' OR name = 'default' ORDER BY name COLLATE "C";

-- Every bad value.
SELECT args, regress.error_of(format('SELECT idem_policy(''policy-bad'', %s)', args)) AS state
FROM unnest(ARRAY[
	'completed_ttl => ''0''', 'completed_ttl => ''400 days''', 'completed_ttl => ''400 days 1 us''',
	'completed_ttl => ''-1 s''', 'completed_ttl => ''1 month''', 'completed_ttl => ''1 year -365 days''',
	'failed_ttl => ''0''', 'failed_ttl => ''401 days''', 'failed_ttl => ''-1 us''', 'failed_ttl => ''1 mon''',
	'lease => ''1 us''', 'lease => ''1 day''', 'lease => ''0''', 'lease => ''-1 s''', 'lease => ''25 hours''', 'lease => ''1 mon''',
	'wait => ''0''', 'wait => ''1 min''', 'wait => ''-1 s''', 'wait => ''61 s''', 'wait => ''1 mon''',
	'on_repeat => ''replay''', 'on_repeat => ''Replay''', 'on_repeat => ''''', 'on_repeat => ''ignore''',
	'on_expiry => ''reuse''', 'on_expiry => ''refuse''',
	'on_expiry => ''reject''', 'on_expiry => ''reject'', tombstone => ''0''', 'on_expiry => ''reject'', tombstone => ''1 us''',
	'tombstone => ''1 day''', 'tombstone => ''-1 s''', 'tombstone => ''401 days''', 'tombstone => ''1 mon''',
	'require_fingerprint => false', 'on_unfinished => ''lease''', 'on_unfinished => ''commit''', 'recoverable => true',
	'key_format => ''uuid''', 'key_format => ''uuidv1''', 'key_format => ''''',
	'max_key_bytes => 1', 'max_key_bytes => 1024', 'max_key_bytes => 0', 'max_key_bytes => 1025', 'max_key_bytes => -1',
	'mismatch_status => 400', 'mismatch_status => 422', 'mismatch_status => 0', 'mismatch_status => 1000',
	'release_statuses => ''{}''', 'release_statuses => ''{[100,600)}''', 'release_statuses => ''{(,)}''',
	'max_body_bytes => 0', 'max_body_bytes => -1', 'max_body_bytes => 2147483647',
	'on_oversize => ''digest''', 'on_oversize => ''truncate''',
	'owner_role => ''pg_monitor''', 'owner_role => ''''', 'owner_role => ''regress_idem_no_such_role''',
	'max_live_keys => 0', 'max_live_keys => 2147483647', 'max_live_keys => -1']) args;
SELECT count(*) AS rows FROM idempotency_policies WHERE name = 'policy-bad';
-- values are checked together with those that stay
SELECT idem_policy('policy-pair', on_expiry => 'reject', tombstone => '1 day');
SELECT regress.error_of($$SELECT idem_policy('policy-pair', tombstone => '0')$$) AS "0",
	regress.error_of($$SELECT idem_policy('policy-pair', tombstone => '0', on_expiry => 'reuse')$$) AS both;
-- a month never slips in through a time zone or an interval style
SELECT regress.error_of($$SELECT idem_policy('policy-bad', lease => interval 'P1M')$$) AS month;
-- names
SELECT regress.error_of($$SELECT idem_policy('')$$) AS empty, regress.error_of($$SELECT idem_policy(repeat('p', 63))$$) AS "63",
	regress.error_of($$SELECT idem_policy(repeat('p', 64))$$) AS "64";

-- Dropping.
SELECT idem_policy_drop('policy-new'), idem_policy_drop('policy-new') AS again, idem_policy_drop('policy-never') AS never;
SELECT regress.error_of($$SELECT idem_claim('policy', 'unknown', policy => 'policy-new')$$) AS dropped;

SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'policy-%';
