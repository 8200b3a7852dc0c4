--
-- on_unfinished = 'error': no COMMIT with a claim that is in progress.
--
SELECT idem_policy('unfinished', on_unfinished => 'error'), idem_policy('unfinished-lease');

-- What a framework does that commits after an error that it swallowed.
CREATE TABLE unfinished_work (key text);
BEGIN;
SELECT outcome FROM idem_claim('unfinished', 'k', policy => 'unfinished');
INSERT INTO unfinished_work VALUES ('k');
COMMIT;
SELECT (SELECT count(*) FROM unfinished_work) AS work, (SELECT count(*) FROM idempotency_keys WHERE scope = 'unfinished') AS keys;
-- several, and one by autocommit
\set VERBOSITY sqlstate
SELECT outcome FROM idem_claim('unfinished', 'k', policy => 'unfinished');
\set VERBOSITY terse
BEGIN;
SELECT outcome FROM idem_claim('unfinished', 'k', policy => 'unfinished');
SELECT outcome FROM idem_claim('unfinished', 'k 2', policy => 'unfinished');
SELECT outcome FROM idem_claim('unfinished', 'k 3', policy => 'unfinished-lease');
COMMIT;
\set VERBOSITY sqlstate
SELECT count(*) AS keys FROM idempotency_keys WHERE scope = 'unfinished';

-- Each way to end a claim in its transaction.
BEGIN;
SELECT outcome, idem_complete('unfinished', 'completed') IS NULL AS wrong FROM idem_claim('unfinished', 'completed', policy => 'unfinished');
SELECT outcome, idem_fail('unfinished', 'failed') IS NULL AS wrong FROM idem_claim('unfinished', 'failed', policy => 'unfinished');
SELECT outcome, idem_fail('unfinished', 'for good', retryable => false) IS NULL AS wrong FROM idem_claim('unfinished', 'for good', policy => 'unfinished');
SELECT outcome, idem_release('unfinished', 'released') FROM idem_claim('unfinished', 'released', policy => 'unfinished');
SELECT outcome, idem_forget('unfinished', 'forgotten') FROM idem_claim('unfinished', 'forgotten', policy => 'unfinished');
SELECT outcome FROM idem_run('regress.answer(jsonb)', 'unfinished', 'run', '{}', policy => 'unfinished');
COMMIT;
SELECT key, state FROM idempotency_keys WHERE scope = 'unfinished' ORDER BY key;
-- and to claim it again: retryable and released
BEGIN;
SELECT outcome, attempt FROM idem_claim('unfinished', 'failed', policy => 'unfinished');
SELECT outcome, attempt FROM idem_claim('unfinished', 'released', policy => 'unfinished');
COMMIT;
SELECT key, state FROM idempotency_keys WHERE scope = 'unfinished' ORDER BY key;

-- Savepoints: rolled back with the claim, with the finish, released.
BEGIN;
SAVEPOINT s;
SELECT outcome FROM idem_claim('unfinished', 'savepoint', policy => 'unfinished');
ROLLBACK TO s;
COMMIT;
BEGIN;
SELECT outcome FROM idem_claim('unfinished', 'savepoint', policy => 'unfinished');
SAVEPOINT s;
SELECT (idem_complete('unfinished', 'savepoint')).outcome;
ROLLBACK TO s;
COMMIT;
BEGIN;
SAVEPOINT s;
SELECT outcome FROM idem_claim('unfinished', 'savepoint', policy => 'unfinished');
RELEASE s;
SAVEPOINT t;
SELECT (idem_complete('unfinished', 'savepoint')).outcome;
RELEASE t;
COMMIT;
BEGIN;
SAVEPOINT s;
SELECT outcome FROM idem_claim('unfinished', 'savepoint 2', policy => 'unfinished');
RELEASE s;
COMMIT;
SELECT key, state FROM idempotency_keys WHERE scope = 'unfinished' AND key LIKE 'savepoint%';
-- a block with EXCEPTION is one
DO $$
BEGIN
	PERFORM idem_claim('unfinished', 'block', policy => 'unfinished');
	BEGIN
		PERFORM idem_complete('unfinished', 'block');
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
	END;
END $$;

-- An idem_run within the transaction is none of it; a claim in its handler is.
CREATE FUNCTION unfinished_handler(request jsonb) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_claim('unfinished', 'inner', policy => 'unfinished');
	IF request ? 'finish' THEN
		PERFORM idem_complete('unfinished', 'inner');
	END IF;
	RETURN '1';
END $$;
BEGIN;
SELECT outcome FROM idem_claim('unfinished', 'outer', policy => 'unfinished');
SELECT outcome FROM idem_run('regress.answer(jsonb)', 'unfinished', 'nested', '{}', policy => 'unfinished');
COMMIT;
SELECT outcome FROM idem_run('unfinished_handler(jsonb)', 'unfinished', 'outer', '{}', policy => 'unfinished-lease');
SELECT outcome FROM idem_run('unfinished_handler(jsonb)', 'unfinished', 'outer', '{"finish": true}', policy => 'unfinished-lease');
SELECT key, state FROM idempotency_keys WHERE scope = 'unfinished' AND key IN ('outer', 'inner', 'nested') ORDER BY key;

-- COMMIT in a procedure, where the error can be caught.
CREATE PROCEDURE unfinished_commit() LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_claim('unfinished', 'procedure', policy => 'unfinished');
	COMMIT;
END $$;
CALL unfinished_commit();

-- The policy at the claim counts, whatever becomes of it until the finish.
BEGIN;
SELECT outcome FROM idem_claim('unfinished', 'changed 1', policy => 'unfinished');
SELECT idem_policy('unfinished', on_unfinished => 'lease');
COMMIT;
BEGIN;
SELECT outcome FROM idem_claim('unfinished', 'changed 1', policy => 'unfinished');
SELECT idem_policy('unfinished', on_unfinished => 'lease');
SELECT (idem_complete('unfinished', 'changed 1')).outcome;
SELECT outcome FROM idem_claim('unfinished', 'changed 2', policy => 'unfinished');
SELECT idem_policy('unfinished', on_unfinished => 'error');
SELECT (idem_complete('unfinished', 'changed 2')).outcome;
SELECT outcome FROM idem_claim('unfinished', 'changed 3', policy => 'unfinished');
COMMIT;
SELECT count(*) AS keys FROM idempotency_keys WHERE scope = 'unfinished' AND key LIKE 'changed%';

-- The repetition of one's own claim is the same claim.
BEGIN;
SELECT outcome FROM idem_claim('unfinished', 'own', policy => 'unfinished', owner => '9a2a8a2e-0000-4000-8000-000000000001');
SELECT outcome FROM idem_claim('unfinished', 'own', policy => 'unfinished', owner => '9a2a8a2e-0000-4000-8000-000000000001');
SELECT (idem_complete('unfinished', 'own')).outcome;
COMMIT;
-- A claim that expires in its own transaction and is made anew is one claim.
BEGIN;
SELECT outcome FROM idem_claim('unfinished', 'short', policy => 'unfinished', lease => '1 us', ttl => '1 us');
SELECT pg_sleep(0.001);
SELECT outcome FROM idem_claim('unfinished', 'short', policy => 'unfinished');
SELECT (idem_complete('unfinished', 'short')).outcome;
COMMIT;
\set VERBOSITY default
SELECT key, state FROM idempotency_keys WHERE scope = 'unfinished' AND key IN ('own', 'short') ORDER BY key;
SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'unfinished%';
