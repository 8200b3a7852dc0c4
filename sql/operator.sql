--
-- What an operator does with keys of other roles: end a lease, forget a key, or
-- a scope.  Each call is audited, whatever the policy says.
--
CREATE ROLE regress_idem_operator;
SELECT idem_grant('regress_idem_operator', 'operator');
GRANT USAGE ON SCHEMA regress TO regress_idem_operator;
SELECT idem_policy('operator-short', completed_ttl => '1 h', failed_ttl => '2 h');
SELECT idem_policy('operator-tombstone', failed_ttl => '2 h', on_expiry => 'reject', tombstone => '3 h');
SELECT coalesce(max(id), 0) AS start FROM idempotency_audit_log \gset
CREATE VIEW regress.operator_log AS
SELECT id, action, entity, replace(replace(replace(entity_id, idem_log_id('operator'), 'S'), idem_log_id('k'), 'K'),
	idem_log_id('other'), 'OTHER') AS entity_id, attempt, token IS NOT NULL AS token, nullif(effective_role, session_role) AS role, detail
FROM idempotency_audit_log;

-- A lease ends: token, attempt and checkpoint stay, and the row is kept as long
-- as an abandoned one is from now on.
SELECT token AS first FROM idem_claim('operator', 'k', lease => '1 h', policy => 'operator-short') \gset
SELECT isfinite(idem_checkpoint('operator', 'k', :first, 'paid', '{"n": 1}')) AS checkpoint;
SELECT purge_at AS purge_at FROM idempotency_keys WHERE scope = 'operator' AND key = 'k' \gset
SET ROLE regress_idem_operator;
SELECT regress.sqlstate_of($$SELECT idem_lookup('operator', 'k')$$) AS lookup;
SELECT idem_end_lease('operator', 'k'), idem_end_lease('operator', 'k') AS again;
RESET ROLE;
SELECT state, coalesce(attempt, 1) AS attempt, token = :first AS token, recovery_point, checkpoint, lease_until <= clock_timestamp() AS ended,
	expires_at - lease_until AS kept, purge_at = :'purge_at' AS purge_at, purge_at >= expires_at AS later
FROM idempotency_keys WHERE scope = 'operator' AND key = 'k';
SELECT outcome, attempt, token > :first AS greater, recovery_point, checkpoint FROM idem_claim('operator', 'k', lease => '1 h');
-- purge_at moves when the policy has become longer, and not back
SELECT idem_policy('operator-short', failed_ttl => '20 days');
SELECT idem_end_lease('operator', 'k');
SELECT expires_at - lease_until AS kept, purge_at >= expires_at AS later
FROM idempotency_keys WHERE scope = 'operator' AND key = 'k';
-- until somebody takes over, the holder may finish
SELECT (idem_complete('operator', 'k', token => token)).outcome IS NOT NULL AS completed
FROM idempotency_keys WHERE scope = 'operator' AND key = 'k';
-- with a tombstone; for ever
SELECT outcome FROM idem_claim('operator', 'tombstone', policy => 'operator-tombstone');
SELECT outcome FROM idem_claim('operator', 'ever', ttl => '0');
SELECT idem_end_lease('operator', 'tombstone'), idem_end_lease('operator', 'ever');
SELECT key, purge_at >= expires_at + interval '3 h' AS tombstone, expires_at
FROM idempotency_keys WHERE scope = 'operator' AND (key, expires_at = 'infinity') IN (('ever', true), ('tombstone', true))
UNION ALL
SELECT key, purge_at >= expires_at + interval '3 h', NULL
FROM idempotency_keys WHERE scope = 'operator' AND key = 'tombstone';

-- None with a running lease: nothing, finished, released, ended, uncommitted
SELECT idem_end_lease('operator', 'never') AS never, idem_end_lease('operator', 'k') AS completed;
SELECT outcome FROM idem_claim('operator', 'released');
SELECT idem_release('operator', 'released', regress.token('operator', 'released')) AS released;
SELECT idem_end_lease('operator', 'released') AS released;
SELECT outcome FROM idem_claim('operator', 'over', lease => '1 us');
SELECT idem_end_lease('operator', 'over') AS over;
BEGIN;
SELECT outcome FROM idem_claim('operator', 'mine');
SELECT idem_end_lease('operator', 'mine') AS mine;
ROLLBACK;
-- but one that was committed, and extended here
SELECT token AS second FROM idem_claim('operator', 'extended') \gset
BEGIN;
SELECT idem_extend('operator', 'extended', :second, '1 h') IS NOT NULL AS extended;
SELECT idem_end_lease('operator', 'extended') AS extended;
ROLLBACK;
SELECT action, entity, entity_id, attempt, token, detail FROM regress.operator_log
WHERE id > :start AND entity_id = 'S/K' ORDER BY id;
SELECT count(*) AS lease_ended FROM regress.operator_log WHERE id > :start AND action = 'lease_ended';

-- Any key is forgotten, in any state, whoever claimed it.
SELECT regress.sqlstate_of($$SET ROLE regress_idem_operator; SELECT idem_complete('operator', 'k')$$) AS complete;
SET ROLE regress_idem_operator;
SELECT key, idem_forget('operator', key), idem_forget('operator', key) AS again
FROM unnest(ARRAY['k', 'released', 'over', 'extended', 'never']) key;
RESET ROLE;
SELECT action, attempt, role FROM regress.operator_log WHERE id > :start AND entity_id = 'S/K' AND action = 'forgotten';
-- a claim of this very transaction: then there is nothing to finish
BEGIN;
SELECT outcome FROM idem_claim('operator', 'mine');
SELECT idem_forget('operator', 'mine');
SELECT outcome, attempt FROM idem_claim('operator', 'mine');
SELECT (idem_complete('operator', 'mine')).outcome IS NOT NULL AS completed;
COMMIT;

-- All that nobody works on in a scope, the first ones in key order first.
SELECT idem_forget_scope('operator') AS left_over;
SELECT count(first) FROM idem_dedupe('operator', ARRAY(SELECT 'message ' || i FROM generate_series(10, 29) i));
SELECT count(first) FROM idem_dedupe('other', '{k}');
SELECT outcome FROM unnest(ARRAY['failed', 'for good', 'released', 'expired', 'running', 'lease over', 'abandoned']) key,
	LATERAL idem_claim('operator', key, lease => '1 h');
SELECT (idem_fail('operator', 'failed', token => regress.token('operator', 'failed'))).outcome IS NOT NULL AS failed,
	(idem_fail('operator', 'for good', retryable => false, token => regress.token('operator', 'for good'))).outcome IS NOT NULL AS for_good,
	(idem_complete('operator', 'expired', token => regress.token('operator', 'expired'))).outcome IS NOT NULL AS expired,
	idem_release('operator', 'released', regress.token('operator', 'released')) AS released,
	idem_end_lease('operator', 'lease over') AS over;
SELECT count(regress.age('operator', 'expired', '3 days')), count(regress.age('operator', 'abandoned', '3 days')) AS aged;
SET ROLE regress_idem_operator;
SELECT idem_forget_scope('operator', 5) AS some, idem_forget_scope('operator') AS rest, idem_forget_scope('operator') AS nothing,
	idem_forget_scope('operator-never') AS never;
RESET ROLE;
SELECT scope, key, state FROM idempotency_keys WHERE scope IN ('operator', 'other') ORDER BY scope, key;
SELECT action, entity, entity_id, attempt, role, detail FROM regress.operator_log
WHERE id > :start AND entity = 'idempotency_scope' AND entity_id = 'S' ORDER BY id;

-- The key of a running idem_run is not forgotten from within, nor one that this
-- transaction has claimed, however short its times are.
CREATE FUNCTION regress.forgets(request jsonb) RETURNS json LANGUAGE sql AS $$
	SELECT json_build_object('scope', idem_forget_scope('operator'), 'key', idem_forget('operator', 'run'),
		'lease', idem_end_lease('operator', 'run'));
$$;
SELECT count(first) FROM idem_dedupe('operator', '{a,z}');
SELECT outcome FROM idem_claim('operator', 'run');
SELECT (idem_fail('operator', 'run', token => regress.token('operator', 'run'))).outcome IS NOT NULL AS failed;
SELECT outcome, attempt, idem_json(r) FROM idem_run('regress.forgets(jsonb)', 'operator', 'run') r;
BEGIN;
SELECT outcome FROM idem_claim('operator', 'short', lease => '1 us', ttl => '1 us');
SELECT FROM pg_sleep(0.001);
SELECT idem_forget_scope('operator');
SELECT (idem_complete('operator', 'short')).outcome IS NOT NULL AS completed;
ROLLBACK;

-- A row of the log is written, or nothing is done.  Nobody else writes one.
CREATE FUNCTION regress.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE USING ERRCODE = '55000'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON idempotency_audit_log_default FOR EACH ROW EXECUTE FUNCTION regress.refuse();
SELECT call, regress.sqlstate_of('SELECT ' || call) FROM unnest(ARRAY[
	'idem_forget(''operator'', ''running'')', 'idem_end_lease(''operator'', ''running'')', 'idem_forget_scope(''other'')',
	'idem_find(scope => ''other'')', 'idem_holder(''operator'', ''running'')']) call;
DROP TRIGGER refuse ON idempotency_audit_log_default;
SELECT count(*) FROM idempotency_keys WHERE (scope, key) IN (('operator', 'running'), ('other', 'k'));
SELECT regress.sqlstate_of($$SELECT idem_audit('forgotten', 'idempotency_scope', 'S')$$);

DELETE FROM idempotency_keys WHERE scope IN ('operator', 'other');
DROP VIEW regress.operator_log;
DROP FUNCTION regress.forgets(jsonb), regress.refuse();
DROP OWNED BY regress_idem_operator;
DROP ROLE regress_idem_operator;
SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'operator-%';
