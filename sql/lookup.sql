--
-- idem_lookup reads and never writes; everything else refuses a read-only
-- transaction.
--
CREATE FUNCTION regress_lookup_work(request jsonb) RETURNS json LANGUAGE sql AS $$ SELECT '{}'::json $$;

SELECT idem_policy('lookup-refuse', on_expiry => 'reject', tombstone => '1 day');
SELECT count(c.outcome) FROM unnest(ARRAY['running', 'lease over', 'abandoned', 'completed', 'retryable', 'failed', 'released',
	'expired', 'long gone']) k, LATERAL idem_claim('lookup', k, '{"a": 1}', policy => 'lookup-refuse') c;
SELECT (idem_complete('lookup', 'completed', '{"n":  1}', 201, '{"A": "1"}', token => regress.token('lookup', 'completed'))).outcome IS NOT NULL AS done;
SELECT (idem_fail('lookup', 'retryable', '{}', 503, token => regress.token('lookup', 'retryable'))).outcome IS NOT NULL AS done;
SELECT (idem_fail('lookup', 'failed', '{}', 400, retryable => false, token => regress.token('lookup', 'failed'))).outcome IS NOT NULL AS done;
SELECT idem_release('lookup', 'released', regress.token('lookup', 'released'));
SELECT (idem_complete('lookup', 'expired', '{}', token => regress.token('lookup', 'expired'))).outcome IS NOT NULL AS done;
SELECT (idem_complete('lookup', 'long gone', '{}', token => regress.token('lookup', 'long gone'))).outcome IS NOT NULL AS done;
SELECT regress.age('lookup', 'lease over', '1 hour'), regress.age('lookup', 'abandoned', '26 hours'), regress.age('lookup', 'expired', '26 hours'),
	regress.age('lookup', 'long gone', '3 days');

-- The state, in a read-only transaction.
BEGIN READ ONLY;
SELECT k, l.outcome, l.attempt, l.token, l.status_code AS status, idem_json(l) AS body, l.headers,
	l.fingerprint = idem_fingerprint('{"a": 1}') AS fingerprint, l.http_status, l.error_code, l.retry_after_ms > 0 AS retry
FROM unnest(ARRAY['running', 'lease over', 'abandoned', 'completed', 'retryable', 'failed', 'released',
	'expired', 'long gone', 'never']) k, LATERAL idem_lookup('lookup', k) l;
SELECT idem_lookup('lookup', 'never') IS NULL AS never;
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid,
	(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS key_locks;
-- All others refuse, also what would write nothing.
SELECT call, regress.error_of('SELECT ' || call) AS state
FROM unnest(ARRAY[
	'idem_claim(''lookup'', ''new'')', 'idem_claim(''lookup'', ''completed'', ''{"a": 1}'')',
	'idem_require(''lookup'', ''new'')', 'idem_require(''lookup'', ''completed'', ''{"a": 1}'')',
	'idem_run(''regress_lookup_work(jsonb)'', ''lookup'', ''new'')', 'idem_run(''regress_lookup_work(jsonb)'', ''lookup'', ''completed'', ''{"a": 1}'')',
	'idem_dedupe(''lookup'', ''{new}'')', 'idem_dedupe(''lookup'', ''{completed}'')', 'idem_dedupe(''lookup'', ''{}'')',
	'idem_complete(''lookup'', ''running'')', 'idem_complete(''lookup'', ''completed'', token => 1)', 'idem_complete(''lookup'', ''never'')',
	'idem_fail(''lookup'', ''running'')', 'idem_extend(''lookup'', ''running'', 1, ''1 s'')',
	'idem_checkpoint(''lookup'', ''running'', 1, ''p'')', 'idem_release(''lookup'', ''running'')', 'idem_release(''lookup'', ''never'')',
	'idem_forget(''lookup'', ''completed'')', 'idem_forget(''lookup'', ''never'')',
	'idem_forget_scope(''lookup'')', 'idem_end_lease(''lookup'', ''never'')', 'idem_holder(''lookup'', ''never'')', 'idem_find(scope => ''lookup'')',
	'idem_policy(''lookup-new'')', 'idem_policy_drop(''lookup-new'')', 'idem_sweep()',
	'idem_audit(''a'', ''b'', ''c'')', 'idem_secret(''context'', ''0123456789abcdef'')', 'idem_secret_drop(''context'', 1)', 'idem_grant(current_user::regrole, ''app'')']) call;
-- and these go on
SELECT count(*) > 0 AS policies FROM idem_policy_list;
SELECT count(*) > 0 AS health FROM idem_health();
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE;
SELECT outcome FROM idem_lookup('lookup', 'completed');
COMMIT;

-- It takes the snapshot of the calling statement.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT outcome FROM idem_lookup('lookup', 'completed');
COMMIT;
SELECT l.outcome AS before_statement, c.outcome AS claim
FROM idem_claim('lookup', 'snapshot') c, LATERAL idem_lookup('lookup', 'snapshot') l;
SELECT outcome FROM idem_lookup('lookup', 'snapshot');
-- and sees what its own transaction did
BEGIN;
SELECT outcome FROM idem_claim('lookup', 'own');
SELECT outcome FROM idem_lookup('lookup', 'own');
SELECT (idem_complete('lookup', 'own')).outcome IS NOT NULL AS done;
SELECT outcome FROM idem_lookup('lookup', 'own');
ROLLBACK;
SELECT outcome FROM idem_lookup('lookup', 'own');

-- An expired key is expired at the moment of reading, not when it is swept.
SELECT outcome FROM idem_claim('lookup', 'moment', ttl => '1 hour');
SELECT (idem_complete('lookup', 'moment', token => regress.token('lookup', 'moment'))).outcome IS NOT NULL AS done;
UPDATE idempotency_keys SET expires_at = clock_timestamp() WHERE scope = 'lookup' AND key = 'moment';
SELECT outcome, http_status, error_code FROM idem_lookup('lookup', 'moment');
UPDATE idempotency_keys SET purge_at = clock_timestamp() WHERE scope = 'lookup' AND key = 'moment';
SELECT outcome FROM idem_lookup('lookup', 'moment');

-- Under a parallel plan, with policies that are not cached.  The setting has
-- another name since 16.
BEGIN;
SELECT idem_secret('context', '\x000102030405060708090a0b0c0d0e0f') > 0 AS secret;
SELECT idem_policy('lookup-parallel');
SELECT set_config(name, 'regress', true) AS parallel FROM pg_settings
WHERE name IN ('force_parallel_mode', 'debug_parallel_query');
SELECT outcome FROM idem_lookup('lookup', 'completed');
SELECT name FROM idem_policy_list WHERE name LIKE 'lookup-%' ORDER BY name COLLATE "C";
SELECT length(idem_context('a', 'b')) AS context;
ROLLBACK;

DROP FUNCTION regress_lookup_work;
SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'lookup-%';
