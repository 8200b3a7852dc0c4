--
-- Claiming: every row of the decision table, in every state, and what each
-- outcome shows.  Rows are made old by UPDATE and never by sleeping.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency CASCADE;
RESET client_min_messages;

-- Make a key older: all its times move into the past.
CREATE FUNCTION pg_temp.age(in_scope text, in_key text, by interval)
RETURNS void LANGUAGE sql AS $$
	UPDATE idempotency_keys
	SET created_at = created_at - by, finished_at = finished_at - by,
		lease_until = lease_until - by, expires_at = expires_at - by,
		purge_at = purge_at - by
	WHERE scope = in_scope AND key = in_key;
$$;

CREATE FUNCTION pg_temp.token(in_scope text, in_key text)
RETURNS bigint LANGUAGE sql AS $$
	SELECT token FROM idempotency_keys WHERE scope = in_scope AND key = in_key;
$$;

-- The columns of a result that are not null, in their order.
CREATE FUNCTION pg_temp.given(result idem_result)
RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(key, ' ' ORDER BY ord)
	FROM json_each_text(row_to_json(result)) WITH ORDINALITY e (key, value, ord)
	WHERE value IS NOT NULL;
$$;

-- SQLSTATE of a statement, and whether it has a hint; what it did is undone.
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

--
-- The table as a matrix: policy, state of the key and its age against who
-- asks.  Keys are made in one transaction, made old in the next and asked for
-- in a third; what a claim did is undone, so each finds the same row.
--
SELECT idem_policy('claim-replay');
SELECT idem_policy('claim-once', on_repeat => 'reject');
SELECT idem_policy('claim-refuse', on_expiry => 'reject', tombstone => '1 day');
SELECT idem_policy('claim-both', on_repeat => 'reject', on_expiry => 'reject',
				   tombstone => '1 day');

CREATE TEMP TABLE made AS
SELECT policy, state, age, state || '/' || age AS key
FROM (VALUES (1, 'claim-replay'), (2, 'claim-once'), (3, 'claim-refuse'),
			 (4, 'claim-both')) p (pno, policy),
	 (VALUES (1, 'running'), (2, 'lease over'), (3, 'completed'),
			 (4, 'retryable'), (5, 'failed'), (6, 'released')) s (sno, state),
	 (VALUES (1, 'live'), (2, 'expired'), (3, 'long gone')) a (ano, age)
ORDER BY pno, sno, ano;
ALTER TABLE made ADD id serial;

DO $$
DECLARE
	m record;
BEGIN
	FOR m IN SELECT * FROM made ORDER BY id LOOP
		PERFORM idem_claim(m.policy, m.key, '{"a": 1}', policy => m.policy,
						   context => '\xc0', owner => '00000000-0000-4000-8000-000000000001',
						   lease => '1 hour', ttl => '1 day');
		CASE m.state
			WHEN 'completed' THEN PERFORM idem_complete(m.policy, m.key, '{}');
			WHEN 'retryable' THEN PERFORM idem_fail(m.policy, m.key, '{}');
			WHEN 'failed' THEN PERFORM idem_fail(m.policy, m.key, '{}', retryable => false);
			WHEN 'released' THEN PERFORM idem_release(m.policy, m.key);
			ELSE NULL;
		END CASE;
	END LOOP;
END
$$;

-- A key in progress expires an hour of lease and a day after it was claimed.
DO $$
BEGIN
	PERFORM pg_temp.age(policy, key,
						CASE age WHEN 'expired' THEN interval '26 hours'
							 WHEN 'long gone' THEN interval '51 hours'
							 ELSE '0' END)
	FROM made;
	PERFORM pg_temp.age(policy, key, '2 hours')
	FROM made WHERE state = 'lease over' AND age = 'live';
	UPDATE idempotency_keys SET lease_until = clock_timestamp() + interval '1 hour'
	WHERE key LIKE 'running/%' AND scope LIKE 'claim-%';
END
$$;

CREATE FUNCTION pg_temp.ask(in_policy text, in_key text, in_request jsonb,
							in_context bytea, in_owner uuid)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result idem_result;
BEGIN
	BEGIN
		result := idem_claim(in_policy, in_key, in_request, policy => in_policy,
							 context => in_context, owner => in_owner);
		RAISE EXCEPTION USING ERRCODE = 'P9999';
	EXCEPTION WHEN SQLSTATE 'P9999' THEN
		RETURN result.outcome
			|| CASE result.outcome WHEN 'claimed' THEN ' ' || result.attempt ELSE '' END
			|| CASE WHEN result.token = pg_temp.token(in_policy, in_key)
				THEN ' (same)' ELSE '' END;
	WHEN OTHERS THEN
		RETURN SQLSTATE;
	END;
END
$$;

-- "again" is the request and context of the claim; the others differ from it
-- in one thing.  "(same)": the token is the one of the claim.
SELECT policy, state, age,
	pg_temp.ask(policy, key, '{"a": 1}', '\xc0', NULL) AS again,
	pg_temp.ask(policy, key, '{"a": 1}', '\xc0', '00000000-0000-4000-8000-000000000001') AS owner,
	pg_temp.ask(policy, key, '{"a": 1}', '\xc0', '00000000-0000-4000-8000-000000000002') AS stranger
FROM made ORDER BY id;

SELECT policy, state, age,
	pg_temp.ask(policy, key, '{"a": 2}', '\xc0', NULL) AS request,
	pg_temp.ask(policy, key, NULL, '\xc0', NULL) AS "no request",
	pg_temp.ask(policy, key, '{"a": 1}', '\xc1', NULL) AS context,
	pg_temp.ask(policy, key, '{"a": 1}', NULL, NULL) AS "no context",
	pg_temp.ask(policy, key, '{"a": 2}', '\xc1', '00000000-0000-4000-8000-000000000001') AS owner
FROM made ORDER BY id;

-- Another role gets what is free, and nothing else.
CREATE ROLE regress_idem_other;
SELECT idem_grant('regress_idem_other', 'app');
GRANT SELECT ON made TO regress_idem_other;
GRANT SELECT ON idempotency_keys TO regress_idem_other;
SET ROLE regress_idem_other;
SELECT policy, state, age,
	pg_temp.ask(policy, key, '{"a": 1}', '\xc0', NULL) AS again,
	pg_temp.ask(policy, key, '{"a": 2}', '\xc0', '00000000-0000-4000-8000-000000000001') AS other
FROM made ORDER BY id;
RESET ROLE;
REVOKE SELECT ON idempotency_keys FROM regress_idem_other;

-- Given now and not then.
SELECT outcome, attempt FROM idem_claim('claim', 'bare');
SELECT outcome, attempt FROM idem_claim('claim', 'bare', '{"a": 1}');
SELECT outcome, attempt FROM idem_claim('claim', 'bare', fingerprint => '\x01');
SELECT outcome, attempt FROM idem_claim('claim', 'bare', context => '\x01');
SELECT outcome, attempt FROM idem_claim('claim', 'bare', owner => '00000000-0000-4000-8000-000000000001');
SELECT outcome, attempt FROM idem_claim('claim', 'bare');

-- A request and its fingerprint are the same; the fingerprint is canonical.
SELECT outcome FROM idem_claim('claim', 'print', '{"a": 1, "b": [1.0, 2]}');
SELECT outcome FROM idem_claim('claim', 'print', '{"b": [1, 2e0], "a": 1}');
SELECT outcome FROM idem_claim('claim', 'print',
							   fingerprint => idem_fingerprint('{"a": 1, "b": [1, 2]}'));
SELECT outcome FROM idem_claim('claim', 'print', '{"a": 1, "b": [2, 1]}');
-- Bytes that are a prefix of the others are other bytes.
SELECT outcome FROM idem_claim('claim', 'prefix', fingerprint => '\x0102');
SELECT outcome FROM idem_claim('claim', 'prefix', fingerprint => '\x01');
SELECT outcome FROM idem_claim('claim', 'prefix', fingerprint => '\x010200');

--
-- Its own claim: in every state, in the claiming transaction.
--
BEGIN;
SELECT outcome, attempt FROM idem_claim('claim', 'own', '{"a": 1}', context => '\xc0',
	owner => '00000000-0000-4000-8000-000000000001');
SELECT pg_temp.token('claim', 'own') AS first_token \gset
SELECT outcome FROM idem_claim('claim', 'own', '{"a": 1}', context => '\xc0');
-- nothing is compared, and nobody waits
SELECT outcome, retry_after > '0' AS retry, http_status, error_code
FROM idem_claim('claim', 'own', '{"a": 2}', wait => '1 minute');
SELECT outcome, attempt, token = :first_token AS same_token
FROM idem_claim('claim', 'own', '{"a": 2}', owner => '00000000-0000-4000-8000-000000000001');
SELECT outcome FROM idem_claim('claim', 'own', '{"a": 2}',
							   owner => '00000000-0000-4000-8000-000000000002');
-- its lease over or not
SELECT pg_temp.age('claim', 'own', '1 hour');
SELECT outcome FROM idem_claim('claim', 'own', '{"a": 1}', context => '\xc0');
SELECT outcome, attempt, token = :first_token AS same_token
FROM idem_claim('claim', 'own', owner => '00000000-0000-4000-8000-000000000001');
-- finished, it is like any other
SELECT idem_complete('claim', 'own', '"done"') IS NOT NULL AS done;
SELECT outcome, idem_json(idem_claim) FROM idem_claim('claim', 'own', '{"a": 1}', context => '\xc0');
SELECT outcome FROM idem_claim('claim', 'own', '{"a": 2}', context => '\xc0');
COMMIT;
BEGIN;
SELECT outcome, attempt FROM idem_claim('claim', 'own failed');
SELECT idem_fail('claim', 'own failed') IS NOT NULL AS failed;
SELECT outcome, attempt FROM idem_claim('claim', 'own failed');
SELECT idem_release('claim', 'own failed');
SELECT outcome, attempt FROM idem_claim('claim', 'own failed');
SELECT idem_fail('claim', 'own failed', retryable => false) IS NOT NULL AS failed;
SELECT outcome, attempt FROM idem_claim('claim', 'own failed');
COMMIT;

--
-- What each outcome shows.
--
SELECT idem_policy('claim-show', on_expiry => 'reject', tombstone => '1 day',
				   mismatch_status => 409);
SELECT idem_policy('claim-show-once', on_repeat => 'reject');

SELECT c.outcome, c.attempt, c.http_status, c.error_code, pg_temp.given(c)
FROM idem_claim('claim', 'show', '{"a": 1}', policy => 'claim-show') c;
-- of a claim without a fingerprint
SELECT c.outcome, c.attempt, c.http_status, c.error_code, pg_temp.given(c)
FROM idem_claim('claim', 'show bare') c;
SELECT c.outcome, c.http_status, c.error_code, c.retry_after > '50 s' AS later,
	c.retry_after <= '60 s' AS in_time, pg_temp.given(c)
FROM idem_claim('claim', 'show', '{"a": 1}') c;
SELECT c.outcome, c.http_status, c.error_code, pg_temp.given(c)
FROM idem_claim('claim', 'show', '{"a": 2}') c;
-- the status is that of the policy of the first claim, not of the call's
SELECT c.outcome, c.http_status FROM idem_claim('claim', 'show bare', '{"a": 2}', policy => 'claim-show') c;

-- taken over, with a checkpoint
SELECT idem_checkpoint('claim', 'show', pg_temp.token('claim', 'show'), 'paid', '{"charge": 7}');
SELECT pg_temp.token('claim', 'show') AS first_token \gset
SELECT pg_temp.age('claim', 'show', '2 minutes');
SELECT c.outcome, c.attempt, c.token > :first_token AS greater, c.recovery_point, c.checkpoint,
	pg_temp.given(c)
FROM idem_claim('claim', 'show', '{"a": 1}') c;

SELECT idem_complete('claim', 'show', '{"ok": true}', 201, '{"Location": "/1"}',
					 token => pg_temp.token('claim', 'show')) IS NOT NULL AS done;
SELECT c.outcome, c.attempt, c.status_code, c.headers, c.content_type,
	convert_from(c.body, 'UTF8') AS body, c.body_size,
	c.body_sha256 = sha256(c.body) AS digest_right, c.http_status, c.error_code
FROM idem_claim('claim', 'show', '{"a": 1}') c;
SELECT pg_temp.given(c) FROM idem_claim('claim', 'show', '{"a": 1}') c;
SELECT pg_temp.given(c) FROM idem_claim('claim', 'show', '{"a": 2}') c;
-- an answer without headers and body
SELECT c.outcome FROM idem_claim('claim', 'show empty') c;
SELECT idem_complete('claim', 'show empty', token => pg_temp.token('claim', 'show empty')) IS NOT NULL AS done;
SELECT c.outcome, c.status_code, c.http_status, pg_temp.given(c) FROM idem_claim('claim', 'show empty') c;

SELECT pg_temp.age('claim', 'show', '25 hours');
SELECT c.outcome, c.http_status, c.error_code, pg_temp.given(c)
FROM idem_claim('claim', 'show', '{"a": 1}') c;
-- every time
SELECT c.outcome FROM idem_claim('claim', 'show', '{"a": 1}') c;
SELECT pg_temp.age('claim', 'show', '1 day');
-- the tombstone is over: a fresh row, nothing old left in it
SELECT c.outcome, c.attempt, c.token > :first_token AS greater, pg_temp.given(c)
FROM idem_claim('claim', 'show') c;
SELECT state, attempt, finished_at, ttl, status_code, owner, policy, fingerprint, context, headers,
	content_type, body_size, body_sha256, body, recovery_point, checkpoint
FROM idempotency_keys WHERE scope = 'claim' AND key = 'show' \gx

SELECT outcome FROM idem_claim('claim', 'show once', '{"a": 1}', policy => 'claim-show-once');
SELECT c.outcome FROM idem_claim('claim', 'show once', '{"a": 1}') c;
SELECT idem_complete('claim', 'show once', 'true', token => pg_temp.token('claim', 'show once')) IS NOT NULL AS done;
SELECT c.outcome, c.http_status, c.error_code, pg_temp.given(c)
FROM idem_claim('claim', 'show once', '{"a": 1}') c;
SELECT outcome FROM idem_claim('claim', 'show once', '{"a": 2}');

-- failed for good: the failure is the answer
SELECT outcome FROM idem_claim('claim', 'show failed');
SELECT idem_fail('claim', 'show failed', '{"error": 1}', 400, retryable => false,
				 token => pg_temp.token('claim', 'show failed')) IS NOT NULL AS failed;
SELECT c.outcome, c.status_code, c.http_status, idem_json(c), pg_temp.given(c)
FROM idem_claim('claim', 'show failed') c;

--
-- Attempts and tokens: each claim has a greater token.
--
CREATE TEMP TABLE tokens (ord serial, attempt integer, token bigint);
INSERT INTO tokens (attempt, token) SELECT attempt, token FROM idem_claim('claim', 'tokens');
SELECT pg_temp.age('claim', 'tokens', '2 minutes');
INSERT INTO tokens (attempt, token) SELECT attempt, token FROM idem_claim('claim', 'tokens');
SELECT idem_fail('claim', 'tokens', token => pg_temp.token('claim', 'tokens')) IS NOT NULL AS failed;
INSERT INTO tokens (attempt, token) SELECT attempt, token FROM idem_claim('claim', 'tokens');
SELECT idem_release('claim', 'tokens', pg_temp.token('claim', 'tokens'));
INSERT INTO tokens (attempt, token) SELECT attempt, token FROM idem_claim('claim', 'tokens');
-- a row from a clock that was ahead
UPDATE idempotency_keys SET token = token + 1000000000000 WHERE scope = 'claim' AND key = 'tokens';
INSERT INTO tokens (attempt, token) SELECT 0, pg_temp.token('claim', 'tokens');
SELECT pg_temp.age('claim', 'tokens', '2 minutes');
INSERT INTO tokens (attempt, token) SELECT attempt, token FROM idem_claim('claim', 'tokens');
-- expired: the attempts begin anew, the tokens do not
SELECT pg_temp.age('claim', 'tokens', '25 hours');
INSERT INTO tokens (attempt, token) SELECT attempt, token FROM idem_claim('claim', 'tokens');
SELECT ord, attempt, token > lag(token) OVER (ORDER BY ord) AS greater,
	token = lag(token) OVER (ORDER BY ord) + 1 AS by_one
FROM tokens ORDER BY ord;
-- the wall clock in microseconds
SELECT abs(token - extract(epoch FROM clock_timestamp()) * 1000000) < 60000000 AS now
FROM idem_claim('claim', 'tokens now');

--
-- ttl, lease and wait of the call; a day is 24 hours, whatever the time zone.
--
SELECT lease_until - created_at AS lease, expires_at - lease_until AS kept
FROM idem_claim('claim', 'default times');
SELECT lease_until - created_at AS lease, expires_at - lease_until AS kept
FROM idem_claim('claim', 'own times', lease => '90 s', ttl => '2 hours');
-- a completion is kept that long from its finish
SELECT idem_complete('claim', 'own times', token => pg_temp.token('claim', 'own times')) AS returned \gset
SELECT expires_at = :'returned' AS returned, expires_at - finished_at AS kept
FROM idem_lookup('claim', 'own times');

SET timezone = 'Europe/Berlin';
SELECT count(*) AS keys, count(*) FILTER (WHERE kept <> days * 86400) AS wrong
FROM generate_series(20, 400, 20) days,
	LATERAL (SELECT extract(epoch FROM expires_at) - extract(epoch FROM lease_until) AS kept
			 FROM idem_claim('claim', 'berlin ' || days, ttl => make_interval(days => days))) c;
SELECT extract(epoch FROM lease_until) - extract(epoch FROM created_at) AS lease
FROM idem_claim('claim', 'berlin lease', lease => '1 day');
RESET timezone;

-- 0 is for ever
SELECT expires_at FROM idem_claim('claim', 'for ever', ttl => '0');
SELECT idem_complete('claim', 'for ever', token => pg_temp.token('claim', 'for ever'));
SELECT pg_temp.age('claim', 'for ever', '1000 years');
SELECT outcome, expires_at FROM idem_claim('claim', 'for ever');
SELECT purge_at FROM idempotency_keys WHERE scope = 'claim' AND key = 'for ever';

-- a later claim keeps what the first one gave, or changes it
SELECT outcome FROM idem_claim('claim', 'again', ttl => '2 hours', lease => '10 min');
SELECT pg_temp.age('claim', 'again', '1 hour');
SELECT attempt, expires_at - lease_until AS kept FROM idem_claim('claim', 'again');
SELECT pg_temp.age('claim', 'again', '1 hour');
SELECT attempt, expires_at - lease_until AS kept FROM idem_claim('claim', 'again', ttl => '3 hours');

SELECT args, pg_temp.error_of(format('SELECT idem_claim(''claim'', ''bounds'', %s)', args))
FROM unnest(ARRAY[
	'lease => ''1 day''', 'lease => ''24:00:00''', 'lease => ''1 day 1 us''',
	'lease => ''1 us''', 'lease => ''0''', 'lease => ''-1 s''', 'lease => ''1 month''',
	'lease => ''1 month -30 days''',
	'ttl => ''400 days''', 'ttl => ''400 days 1 us''', 'ttl => ''1 us''', 'ttl => ''-1 us''',
	'ttl => ''1 day -25 hours''', 'ttl => ''1 month''', 'ttl => ''1 year''',
	'ttl => ''2000000000 days''',
	'wait => ''0''', 'wait => ''1 min''', 'wait => ''1 min 1 us''', 'wait => ''-1 s''',
	'wait => ''1 month'''
]) args;

-- a wait ends by itself, and returns as soon as it must
SELECT outcome FROM idem_claim('claim', 'default times', wait => '0');
SELECT outcome FROM idem_claim('claim', 'default times', wait => '20 ms');
UPDATE idempotency_keys SET lease_until = clock_timestamp() + interval '50 ms'
WHERE scope = 'claim' AND key = 'default times';
SELECT outcome, attempt FROM idem_claim('claim', 'default times', wait => '1 min');

--
-- An outcome that writes nothing has no transaction id, no row lock, no key
-- lock.
--
SELECT outcome FROM idem_claim('claim', 'quiet', '{"a": 1}', owner => '00000000-0000-4000-8000-000000000001');
BEGIN;
SELECT outcome FROM idem_claim('claim', 'quiet', '{"a": 1}');
SELECT outcome FROM idem_claim('claim', 'quiet', '{"a": 2}');
SELECT outcome FROM idem_claim('claim', 'show failed');
SELECT outcome FROM idem_claim('claim', 'show once', '{"a": 1}');
SELECT outcome FROM idem_claim('claim-refuse', 'completed/expired', '{"a": 1}', context => '\xc0');
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid,
	(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS key_locks,
	(SELECT count(*) FROM pg_locks WHERE mode IN ('RowShareLock', 'RowExclusiveLock')
	 AND pid = pg_backend_pid()) AS table_locks;
COMMIT;
-- The repetition of one's own claim lets somebody work: it holds the row.
BEGIN;
SELECT outcome FROM idem_claim('claim', 'quiet', '{"a": 1}', owner => '00000000-0000-4000-8000-000000000001');
SELECT pg_current_xact_id_if_assigned() IS NOT NULL AS has_xid;
ROLLBACK;

--
-- What a claim holds besides its row, whether that is new or one whose time is
-- over: in the SQL way a key lock, in the direct way, which a partitioned table
-- has not, nothing.
--
SELECT outcome FROM idem_claim('claim', 'over');
SELECT pg_temp.age('claim', 'over', '1 week');
BEGIN;
SET LOCAL idempotency.storage = 'sql';
SELECT outcome, count(*) AS claims
FROM unnest(ARRAY['over', 'held 1', 'held 2']) k, LATERAL idem_claim('claim', k) GROUP BY outcome;
SELECT count(*) AS key_locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
ROLLBACK;
BEGIN;
SET LOCAL idempotency.storage = 'auto';
SELECT outcome, count(*) AS claims
FROM unnest(ARRAY['over', 'held 1', 'held 2']) k, LATERAL idem_claim('claim', k) GROUP BY outcome;
SELECT (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())
	= CASE relkind WHEN 'r' THEN 0 ELSE 3 END AS key_locks_as_said
FROM pg_class WHERE oid = 'idempotency_keys'::regclass;
ROLLBACK;

--
-- Savepoints and FROM.
--
BEGIN;
SAVEPOINT s;
SELECT outcome FROM idem_claim('claim', 'savepoint');
ROLLBACK TO s;
SELECT outcome, attempt FROM idem_claim('claim', 'savepoint');
ROLLBACK;
SELECT outcome, attempt FROM idem_claim('claim', 'savepoint');
-- FROM calls once: a second call would find the first one's claim
SELECT outcome, attempt, http_status FROM idem_claim('claim', 'from');

--
-- idem_require: the token, or an error for each other outcome.
--
SELECT idem_require('claim', 'require', '{"a": 1}') = pg_temp.token('claim', 'require') AS token;
SELECT idem_require('claim', 'require owner', owner => '00000000-0000-4000-8000-000000000001')
	= idem_require('claim', 'require owner', owner => '00000000-0000-4000-8000-000000000001') AS same_token;
SELECT what, pg_temp.error_of('SELECT idem_require(' || args || ')')
FROM (VALUES
	('replayed', $$'claim', 'show failed'$$),
	('in progress', $$'claim', 'require', '{"a": 1}'$$),
	('mismatch', $$'claim', 'require', '{"a": 2}'$$),
	('mismatch', $$'claim', 'require', '{"a": 1}', context => '\x01'$$),
	('expired', $$'claim-refuse', 'completed/expired'$$),
	('duplicate', $$'claim', 'show once'$$)) v (what, args);

--
-- Formats of keys: a policy says which are refused, and has no say in how they are spelled.
--
SELECT idem_policy('claim-uuid', key_format => 'uuid');
SELECT idem_policy('claim-uuidv4', key_format => 'uuidv4');
SELECT idem_policy('claim-uuidv7', key_format => 'uuidv7');
SELECT key,
	pg_temp.error_of(format('SELECT idem_claim(''claim'', %L, policy => ''claim-uuid'')', key)) AS uuid,
	pg_temp.error_of(format('SELECT idem_claim(''claim'', %L, policy => ''claim-uuidv4'')', key)) AS v4,
	pg_temp.error_of(format('SELECT idem_claim(''claim'', %L, policy => ''claim-uuidv7'')', key)) AS v7
FROM unnest(ARRAY[
	'8e03978e-40d5-43dd-bc93-6894a57f9324', '8E03978E-40D5-43DD-BC93-6894A57F9324',
	'8e03978e40d543ddbc936894a57f9324', '{8e03978e-40d5-43dd-bc93-6894a57f9324}',
	'017f22e2-79b0-7cc3-98c4-dc0c0c07398f', 'c232ab00-9414-11ec-b3c8-9f6bdeced846',
	'00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff',
	-- the variant is not that of RFC 9562
	'8e03978e-40d5-43dd-7c93-6894a57f9324', '017f22e2-79b0-7cc3-f8c4-dc0c0c07398f',
	'8e03978e-40d5-43dd-bc93-6894a57f932', '8e03978e-40d5-43dd-bc93-6894a57f93245',
	'8e03978e-40d5-43dd-bc93-6894a57f932g', ' 8e03978e-40d5-43dd-bc93-6894a57f9324',
	'8e03978e-40d5-43dd-bc93-6894a57f9324 ', '{8e03978e-40d5-43dd-bc93-6894a57f9324',
	'not a uuid'
]) key;

-- A UUID is one key in any case, under every policy and in every function.
SELECT outcome FROM idem_claim('claim', '8E03978E-40D5-43DD-BC93-6894A57F9324', policy => 'claim-uuidv4', ttl => '1 hour');
SELECT outcome FROM idem_claim('claim', '8e03978e-40d5-43dd-bc93-6894a57f9324', policy => 'claim-uuidv4');
SELECT key FROM idempotency_keys WHERE scope = 'claim' AND policy LIKE 'claim-uuid%';
SELECT outcome FROM idem_lookup('claim', '8E03978E-40D5-43DD-bc93-6894A57F9324');
SELECT idem_extend('claim', '8E03978E-40D5-43DD-BC93-6894A57F9324', token, '1 hour') IS NOT NULL AS extended,
	idem_checkpoint('claim', '8E03978E-40D5-43DD-BC93-6894A57F9324', token, 'half') IS NOT NULL AS remembered,
	idem_complete('claim', '8E03978E-40D5-43DD-BC93-6894A57F9324', '{}', token => token) IS NOT NULL AS done
FROM idempotency_keys WHERE scope = 'claim' AND key = '8e03978e-40d5-43dd-bc93-6894a57f9324';
SELECT outcome FROM idem_claim('claim', '8E03978E-40d5-43dd-bc93-6894a57f9324', policy => 'claim-uuidv4');
SELECT idem_forget('claim', '8E03978E-40D5-43DD-BC93-6894A57F9324');
SELECT outcome FROM idem_lookup('claim', '8e03978e-40d5-43dd-bc93-6894a57f9324');
-- braces and missing hyphens make other keys
SELECT outcome FROM idem_claim('claim', '8E03978E-40D5-43DD-BC93-6894A57F9324');
SELECT outcome FROM idem_claim('claim', '8e03978e-40d5-43dd-bc93-6894a57f9324');
SELECT outcome FROM idem_lookup('claim', '{8e03978e-40d5-43dd-bc93-6894a57f9324}');
SELECT outcome FROM idem_claim('claim', '{8E03978E-40D5-43DD-BC93-6894A57F9324}')
UNION ALL SELECT outcome FROM idem_claim('claim', '8E03978E40D543DDBC936894A57F9324');
SELECT key FROM idempotency_keys WHERE scope = 'claim' AND upper(key) LIKE '%8E03978E%' ORDER BY key COLLATE "C";

-- The policy changes, is dropped, or is another caller's: a repeat is never new.
CREATE FUNCTION pg_temp.never(jsonb) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'the work is done twice';
END
$$;
CREATE FUNCTION pg_temp.repeats(in_key text) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(outcome::text, ' ' ORDER BY n) FROM (
		SELECT 1 AS n, outcome FROM idem_claim('claim spelled', upper(in_key), policy => 'claim-spelled')
		UNION ALL SELECT 2, outcome FROM idem_claim('claim spelled', lower(in_key), policy => 'claim-spelled')
		UNION ALL SELECT 3, outcome FROM idem_claim('claim spelled', upper(in_key))
		UNION ALL SELECT 4, outcome FROM idem_claim('claim spelled', in_key, policy => 'claim-uuid')
		UNION ALL SELECT 5, outcome FROM idem_run('pg_temp.never(jsonb)', 'claim spelled', upper(in_key))
		UNION ALL SELECT 6, outcome FROM idem_run('pg_temp.never(jsonb)', 'claim spelled', lower(in_key), policy => 'claim-uuidv4')
		UNION ALL SELECT 7, CASE WHEN first THEN 'claimed' ELSE 'duplicate' END::idem_outcome
		FROM idem_dedupe('claim spelled', ARRAY[upper(in_key)], 'claim-spelled')) r
$$;
CREATE FUNCTION pg_temp.finish(in_key text, in_policy text) RETURNS timestamptz LANGUAGE sql AS $$
	SELECT idem_complete('claim spelled', in_key, '{}', token => token) FROM idem_claim('claim spelled', in_key, policy => in_policy)
$$;
SELECT idem_policy('claim-spelled');
SELECT pg_temp.finish('8E03978E-40D5-43DD-BC93-6894A57F9001', 'claim-spelled') IS NOT NULL AS any;
SELECT idem_policy('claim-spelled', key_format => 'uuid');
SELECT pg_temp.finish('8E03978E-40D5-43DD-BC93-6894A57F9002', 'claim-spelled') IS NOT NULL AS uuid;
SELECT pg_temp.repeats('8e03978e-40d5-43dd-bc93-6894a57f900' || n) FROM generate_series(1, 2) n;
SELECT idem_policy('claim-spelled', key_format => 'any');
SELECT pg_temp.repeats('8e03978e-40d5-43dd-bc93-6894a57f900' || n) FROM generate_series(1, 2) n;
SELECT idem_policy_drop('claim-spelled');
SELECT idem_policy('claim-spelled', key_format => 'uuidv4');
SELECT pg_temp.repeats('8e03978e-40d5-43dd-bc93-6894a57f900' || n) FROM generate_series(1, 2) n;
SELECT count(*) AS keys FROM idempotency_keys WHERE scope = 'claim spelled';
SELECT pg_temp.error_of($$SELECT idem_require('claim spelled', '8e03978e-40d5-43dd-BC93-6894a57f9001')$$) AS require;
SELECT token FROM idem_claim('claim spelled', '8E03978E-40D5-43DD-BC93-6894A57F9003') \gset
SELECT idem_fail('claim spelled', '8e03978e-40d5-43dd-bc93-6894a57f9003', token => :token) IS NOT NULL AS failed;
SELECT attempt, token FROM idem_claim('claim spelled', '8e03978e-40d5-43dd-bc93-6894a57f9003') \gset
-- a log id is that of the key as it is stored
SELECT count(*) AS activity FROM idem_activity WHERE scope_id = idem_log_id('claim spelled')
	AND key_id = idem_log_id('8e03978e-40d5-43dd-bc93-6894a57f9003');
SELECT idem_release('claim spelled', '8E03978E-40D5-43DD-BC93-6894A57F9003', :token) AS released, :attempt AS attempt;

-- Keys are bytes: no case, space or collation makes two of them one.
SELECT count(*) AS claimed
FROM unnest(ARRAY['a', 'A', ' a', 'a ', 'ä', E'a\u0308', E'a\n', E'\u001e', '%', '''', '"', '\', '€', '😀']) key,
	LATERAL idem_claim('claim bytes', key) c
WHERE outcome = 'claimed';
-- and the same key in another scope is another key
SELECT outcome FROM idem_claim('claim bytes 2', 'a');
SELECT pg_temp.error_of(format('SELECT idem_claim(%L, %L)', repeat('s', s), repeat('k', k))) AS state, s, k
FROM (VALUES (1, 1), (1024, 255), (1025, 1), (1, 256), (0, 1), (1, 0)) v (s, k);

--
-- The policy.
--
SELECT idem_policy('claim-print', require_fingerprint => true);
SELECT pg_temp.error_of($$SELECT idem_claim('claim', 'required', policy => 'claim-print')$$) AS "none",
	pg_temp.error_of($$SELECT idem_claim('claim', 'required', '{}', policy => 'claim-print')$$) AS request,
	pg_temp.error_of($$SELECT idem_claim('claim', 'required', fingerprint => '\x01', policy => 'claim-print')$$) AS fingerprint,
	pg_temp.error_of($$SELECT idem_claim('claim', 'required', '{}', fingerprint => '\x01')$$) AS "both";

-- A policy that is gone: "default" decides.
SELECT idem_policy('claim-gone', on_repeat => 'reject', mismatch_status => 400, key_format => 'uuid');
SELECT outcome FROM idem_claim('claim', '11111111-1111-4111-8111-111111111111', '{}', policy => 'claim-gone');
SELECT idem_complete('claim', '11111111-1111-4111-8111-111111111111', '{}',
	token => pg_temp.token('claim', '11111111-1111-4111-8111-111111111111')) IS NOT NULL AS done;
SELECT outcome FROM idem_claim('claim', '11111111-1111-4111-8111-111111111111', '{}');
SELECT idem_policy_drop('claim-gone');
SELECT outcome FROM idem_claim('claim', '11111111-1111-4111-8111-111111111111', '{}');
SELECT outcome, http_status FROM idem_claim('claim', '11111111-1111-4111-8111-111111111111', '{"a": 1}');
SELECT pg_temp.error_of($$SELECT idem_claim('claim', 'gone', policy => 'claim-gone')$$);

-- The policy of the first claim decides, whatever the call names.
SELECT outcome FROM idem_claim('claim-once', 'completed/live', '{"a": 1}', policy => 'claim-replay', context => '\xc0');

-- The number of live keys of a scope.
SELECT idem_policy('claim-few', max_live_keys => 2);
SELECT outcome FROM idem_claim('claim few', '1', policy => 'claim-few');
SELECT outcome FROM idem_claim('claim few', '2', policy => 'claim-few');
SELECT pg_temp.error_of($$SELECT idem_claim('claim few', '3', policy => 'claim-few')$$) AS third;
-- a live key is still found, another scope is another number, and a key that
-- has expired or was given up is not live
SELECT outcome FROM idem_claim('claim few', '1', policy => 'claim-few');
SELECT outcome FROM idem_claim('claim few 2', '3', policy => 'claim-few');
SELECT pg_temp.age('claim few', '1', '1 hour');
SELECT outcome, attempt FROM idem_claim('claim few', '1', policy => 'claim-few');
SELECT pg_temp.age('claim few', '1', '2 days');
SELECT outcome, attempt FROM idem_claim('claim few', '3', policy => 'claim-few');
SELECT pg_temp.error_of($$SELECT idem_claim('claim few', '1', policy => 'claim-few')$$) AS expired_one;
SELECT idem_release('claim few', '2', pg_temp.token('claim few', '2'));
SELECT outcome, attempt FROM idem_claim('claim few', '1', policy => 'claim-few');
SELECT pg_temp.error_of($$SELECT idem_claim('claim few', '2', policy => 'claim-few')$$) AS released_one;

-- The owner role of a policy, in place of the current user.
CREATE ROLE regress_idem_owner;
SELECT idem_policy('claim-owned', owner_role => 'regress_idem_owner');
SET ROLE regress_idem_other;
SELECT pg_temp.error_of($$SELECT idem_claim('claim', 'owned', policy => 'claim-owned')$$) AS no_member;
RESET ROLE;
GRANT regress_idem_owner TO regress_idem_other;
SET ROLE regress_idem_other;
SELECT outcome FROM idem_claim('claim', 'owned', policy => 'claim-owned');
SELECT outcome FROM idem_claim('claim', 'not owned');
RESET ROLE;
SELECT key, claimed_by FROM idempotency_keys WHERE scope = 'claim' AND key LIKE '%owned' ORDER BY key COLLATE "C";
-- a role that is gone is nobody: only a superuser has its rights
CREATE ROLE regress_idem_gone;
SELECT idem_grant('regress_idem_gone', 'app');
SET ROLE regress_idem_gone;
SELECT outcome FROM idem_claim('claim', 'orphan');
RESET ROLE;
DROP OWNED BY regress_idem_gone;
DROP ROLE regress_idem_gone;
SET ROLE regress_idem_other;
SELECT pg_temp.error_of($$SELECT idem_claim('claim', 'orphan')$$) AS orphan;
RESET ROLE;
SELECT outcome FROM idem_claim('claim', 'orphan');

DROP OWNED BY regress_idem_other, regress_idem_owner;
DROP ROLE regress_idem_other, regress_idem_owner;
SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'claim-%';

-- Columns that somebody has added and dropped leave their numbers behind.
BEGIN;
ALTER TABLE idempotency_keys ADD COLUMN one integer, ADD COLUMN two integer, ADD COLUMN three integer;
ALTER TABLE idempotency_keys DROP COLUMN one, DROP COLUMN two, DROP COLUMN three;
SELECT outcome FROM idem_claim('claim', 'dropped columns');
SELECT idem_complete('claim', 'dropped columns', '{"a":  1}'::json) IS NOT NULL AS stored;
SELECT outcome, idem_json(r) AS answer FROM idem_claim('claim', 'dropped columns') r;
ROLLBACK;
