--
-- Policies: their values, checks and effect at once.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency CASCADE;
RESET client_min_messages;

CREATE FUNCTION pg_temp.error_of(sql text)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	hint text;
BEGIN
	BEGIN
		EXECUTE sql;
		RAISE EXCEPTION USING ERRCODE = 'P9999';
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
		RETURN CASE SQLSTATE WHEN 'P9999' THEN 'no error'
			ELSE SQLSTATE || CASE hint WHEN '' THEN ' without a hint' ELSE '' END END;
	END;
END
$$;

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
	key_format => 'uuidv7', max_key_bytes => 80, mismatch_status => 409, release_statuses => '{[503,504)}',
	max_body_bytes => 0, on_oversize => 'digest', owner_role => 'pg_monitor', max_live_keys => 1000, audit => true);
SELECT * FROM idem_policy_list WHERE name = 'policy-all' \gx
SELECT idem_policy('policy-all', lease => '6 min');
SELECT idem_policy('policy-all', audit => false, release_statuses => '{}', owner_role => '', key_format => 'any');
SELECT * FROM idem_policy_list WHERE name = 'policy-all' \gx
SELECT name FROM idem_policy_list WHERE name LIKE 'policy-%' OR name = 'default' ORDER BY name COLLATE "C";

-- Every bad value.
SELECT args, pg_temp.error_of(format('SELECT idem_policy(''policy-bad'', %s)', args)) AS state
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
	'require_fingerprint => false',
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
SELECT pg_temp.error_of($$SELECT idem_policy('policy-pair', tombstone => '0')$$) AS "0",
	pg_temp.error_of($$SELECT idem_policy('policy-pair', tombstone => '0', on_expiry => 'reuse')$$) AS both;
-- a month never slips in through a time zone or an interval style
SELECT pg_temp.error_of($$SELECT idem_policy('policy-bad', lease => interval 'P1M')$$) AS month;
-- names
SELECT pg_temp.error_of($$SELECT idem_policy('')$$) AS empty, pg_temp.error_of($$SELECT idem_policy(repeat('p', 63))$$) AS "63",
	pg_temp.error_of($$SELECT idem_policy(repeat('p', 64))$$) AS "64";

-- Dropping.
SELECT idem_policy_drop('policy-new'), idem_policy_drop('policy-new') AS again, idem_policy_drop('policy-never') AS never;
SELECT pg_temp.error_of($$SELECT idem_claim('policy', 'unknown', policy => 'policy-new')$$) AS dropped;

--
-- A change is seen by the next statement.
--
SELECT idem_policy('policy-now', lease => '1 min');
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'now 1', policy => 'policy-now');
SELECT idem_policy('policy-now', lease => '2 min');
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'now 2', policy => 'policy-now');
-- also a direct UPDATE, INSERT, DELETE, TRUNCATE
UPDATE idempotency_policies SET lease = '3 min' WHERE name = 'policy-now';
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'now 3', policy => 'policy-now');
DELETE FROM idempotency_policies WHERE name = 'policy-now';
SELECT pg_temp.error_of($$SELECT idem_claim('policy', 'now 4', policy => 'policy-now')$$) AS deleted;
INSERT INTO idempotency_policies (name, lease) VALUES ('policy-now', '4 min');
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'now 4', policy => 'policy-now');
COPY idempotency_policies (name, lease) FROM stdin;
policy-copied	00:05:00
\.
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'now 5', policy => 'policy-copied');
BEGIN;
TRUNCATE idempotency_policies;
SELECT pg_temp.error_of($$SELECT idem_claim('policy', 'now 6', policy => 'policy-now')$$) AS truncated;
ROLLBACK;
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'now 6', policy => 'policy-now');
-- what a direct change makes wrong is refused, at the latest where it is used
SELECT change, pg_temp.error_of(format($$WITH u AS (UPDATE idempotency_policies SET %s WHERE name = 'policy-now' RETURNING name)
	SELECT idem_claim('policy', 'now 7', policy => name) FROM u$$, change)) <> 'no error' AS refused
FROM unnest(ARRAY['on_repeat = ''nonsense''', 'key_format = ''uuidv1''', 'lease = ''-1 s''', 'lease = ''1 month''',
				  'on_expiry = ''reject''', 'max_key_bytes = 5000']) change;
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'now 7', policy => 'policy-now');

-- A rolled-back change is gone, also from the cache, in every order.
BEGIN;
SELECT idem_policy('policy-now', lease => '10 min');
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'rolled 1', policy => 'policy-now');
ROLLBACK;
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'rolled 1', policy => 'policy-now');
BEGIN;
SAVEPOINT s;
SELECT idem_policy('policy-now', lease => '11 min');
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'rolled 2', policy => 'policy-now');
ROLLBACK TO s;
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'rolled 2', policy => 'policy-now');
COMMIT;
-- REPEATABLE READ sees its own change, and its rollback
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'repeatable 1', policy => 'policy-now');
UPDATE idempotency_policies SET lease = '12 min' WHERE name = 'policy-now';
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'repeatable 2', policy => 'policy-now');
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'repeatable 3', policy => 'policy-now');
COMMIT;
-- within one query: from call to call
SELECT i, idem_policy('policy-now', lease => make_interval(mins => 20 + i)) IS NOT NULL AS set,
	(SELECT lease_until - created_at FROM idem_claim('policy', 'query ' || i, policy => 'policy-now')) AS lease
FROM generate_series(1, 3) i;

-- A changed "default", and the shipped one again.
SELECT idem_policy('default', lease => '90 s', mismatch_status => 409);
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'default 1');
SELECT name, lease, mismatch_status, completed_ttl FROM idem_policy_list WHERE name = 'default';
SELECT count(*) FROM idem_policy_list WHERE name = 'default';
SELECT idem_policy_drop('default'), idem_policy_drop('default') AS again;
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'default 2');

-- The settings that bound policies; one that is there stays in service.
SELECT idem_policy('policy-long', completed_ttl => '7 days', lease => '1 hour', wait => '5 s');
SET idempotency.max_ttl = '2 d';
SELECT outcome FROM idem_claim('policy', 'long', policy => 'policy-long');
SELECT completed_ttl FROM idem_policy_list WHERE name = 'policy-long';
SELECT pg_temp.error_of($$SELECT idem_policy('policy-bad', completed_ttl => '2 days')$$) AS ttl,
	pg_temp.error_of($$SELECT idem_policy('policy-bad', completed_ttl => '3 days')$$) AS too_long,
	pg_temp.error_of($$SELECT idem_claim('policy', 'bounded', ttl => '3 days')$$) AS claim;
RESET idempotency.max_ttl;
SET idempotency.max_lease = '2 min';
SELECT pg_temp.error_of($$SELECT idem_policy('policy-bad', lease => '3 min')$$) AS lease,
	pg_temp.error_of($$SELECT idem_claim('policy', 'bounded', lease => '3 min')$$) AS claim;
RESET idempotency.max_lease;
SET idempotency.max_wait = '1 s';
SELECT pg_temp.error_of($$SELECT idem_policy('policy-bad', wait => '2 s')$$) AS wait,
	pg_temp.error_of($$SELECT idem_claim('policy', 'bounded', wait => '2 s')$$) AS claim;
RESET idempotency.max_wait;

-- A policy whose owner role is gone: nobody can claim under it.
CREATE ROLE regress_idem_rotating;
SELECT idem_policy('policy-owned', owner_role => 'regress_idem_rotating');
SELECT owner_role FROM idem_policy_list WHERE name = 'policy-owned';
DROP ROLE regress_idem_rotating;
CREATE ROLE regress_idem_member;
SELECT idem_grant('regress_idem_member', 'app');
SET ROLE regress_idem_member;
SELECT pg_temp.error_of($$SELECT idem_claim('policy', 'owned', policy => 'policy-owned')$$) AS gone;
RESET ROLE;
DROP OWNED BY regress_idem_member;
DROP ROLE regress_idem_member;

SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'policy-%';
