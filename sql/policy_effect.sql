--
-- Policies: a change is seen by the next statement.
--
SELECT idem_policy('policy-now', lease => '1 min');
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'now 1', policy => 'policy-now');
SELECT idem_policy('policy-now', lease => '2 min');
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'now 2', policy => 'policy-now');
-- also a direct UPDATE, INSERT, DELETE, TRUNCATE
UPDATE idempotency_policies SET lease = '3 min' WHERE name = 'policy-now';
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'now 3', policy => 'policy-now');
DELETE FROM idempotency_policies WHERE name = 'policy-now';
SELECT regress.error_of($$SELECT idem_claim('policy', 'now 4', policy => 'policy-now')$$) AS deleted;
INSERT INTO idempotency_policies (name, lease) VALUES ('policy-now', '4 min');
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'now 4', policy => 'policy-now');
COPY idempotency_policies (name, lease) FROM stdin;
policy-copied	00:05:00
\.
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'now 5', policy => 'policy-copied');
BEGIN;
TRUNCATE idempotency_policies;
SELECT regress.error_of($$SELECT idem_claim('policy', 'now 6', policy => 'policy-now')$$) AS truncated;
ROLLBACK;
SELECT lease_until - created_at AS lease FROM idem_claim('policy', 'now 6', policy => 'policy-now');
-- what a direct change makes wrong is refused, at the latest where it is used
SELECT change, regress.error_of(format($$WITH u AS (UPDATE idempotency_policies SET %s WHERE name = 'policy-now' RETURNING name)
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
SELECT regress.error_of($$SELECT idem_policy('policy-bad', completed_ttl => '2 days')$$) AS ttl,
	regress.error_of($$SELECT idem_policy('policy-bad', completed_ttl => '3 days')$$) AS too_long,
	regress.error_of($$SELECT idem_claim('policy', 'bounded', ttl => '3 days')$$) AS claim;
RESET idempotency.max_ttl;
SET idempotency.max_lease = '2 min';
SELECT regress.error_of($$SELECT idem_policy('policy-bad', lease => '3 min')$$) AS lease,
	regress.error_of($$SELECT idem_claim('policy', 'bounded', lease => '3 min')$$) AS claim;
RESET idempotency.max_lease;
SET idempotency.max_wait = '1 s';
SELECT regress.error_of($$SELECT idem_policy('policy-bad', wait => '2 s')$$) AS wait,
	regress.error_of($$SELECT idem_claim('policy', 'bounded', wait => '2 s')$$) AS claim;
RESET idempotency.max_wait;

-- A policy whose owner role is gone: nobody can claim under it.
CREATE ROLE regress_idem_rotating;
SELECT idem_policy('policy-owned', owner_role => 'regress_idem_rotating');
SELECT owner_role FROM idem_policy_list WHERE name = 'policy-owned';
DROP ROLE regress_idem_rotating;
CREATE ROLE regress_idem_member;
SELECT idem_grant('regress_idem_member', 'app');
SET ROLE regress_idem_member;
SELECT regress.error_of($$SELECT idem_claim('policy', 'owned', policy => 'policy-owned')$$) AS gone;
RESET ROLE;
DROP OWNED BY regress_idem_member;
DROP ROLE regress_idem_member;

SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'policy-%';
