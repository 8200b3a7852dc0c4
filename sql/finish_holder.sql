--
-- Finishing: by the holder of the claim alone, once.
--
CREATE FUNCTION pg_temp.hint_of(sql text)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	hint text;
BEGIN
	EXECUTE sql;
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
	RETURN hint;
END
$$;

--
-- Who may finish, and when.  ID001: no claim in progress.
--
SELECT call, regress.error_of(format('SELECT ' || call, 'nobody''s')) AS "no row",
	regress.error_of(format('SELECT ' || call, 'released')) AS "too"
FROM unnest(ARRAY[
	'idem_complete(''finish'', %L)', 'idem_complete(''finish'', %L, token => 1)',
	'idem_fail(''finish'', %L)', 'idem_fail(''finish'', %L, token => 1)',
	'idem_extend(''finish'', %L, 1, ''1 min'')', 'idem_checkpoint(''finish'', %L, 1, ''p'')'
]) call;
SELECT idem_release('finish', 'nobody''s'), idem_forget('finish', 'nobody''s');

-- A savepoint that was rolled back has taken the claim with it.
BEGIN;
SAVEPOINT s;
SELECT outcome FROM idem_claim('finish', 'savepoint');
ROLLBACK TO s;
SELECT regress.error_of($$SELECT idem_complete('finish', 'savepoint')$$);
COMMIT;
SELECT count(*) FROM idempotency_keys WHERE scope = 'finish' AND key = 'savepoint';
-- One that was released has not; finishing in a savepoint is undone with it.
BEGIN;
SAVEPOINT s;
SELECT outcome FROM idem_claim('finish', 'savepoint');
RELEASE s;
SAVEPOINT s;
SELECT (idem_complete('finish', 'savepoint', '1')).outcome IS NOT NULL AS done;
ROLLBACK TO s;
SELECT (idem_complete('finish', 'savepoint', '2')).outcome IS NOT NULL AS done;
COMMIT;
SELECT idem_json(idem_lookup('finish', 'savepoint'));

-- ID002: without the token outside the claiming transaction, and with another.
SELECT outcome FROM idem_claim('finish', 'lost', owner => '00000000-0000-4000-8000-000000000001');
SELECT regress.token('finish', 'lost') AS first_token \gset
SELECT call, regress.error_of(format('SELECT ' || call, 'NULL')) AS "none",
	regress.error_of(format('SELECT ' || call, :first_token - 1)) AS smaller,
	regress.error_of(format('SELECT ' || call, :first_token + 1)) AS greater,
	regress.error_of(format('SELECT ' || call, '-1')) AS negative,
	regress.error_of(format('SELECT ' || call, :first_token)) AS right
FROM unnest(ARRAY[
	'idem_complete(''finish'', ''lost'', token => %s)', 'idem_fail(''finish'', ''lost'', token => %s)',
	'idem_release(''finish'', ''lost'', %s)', 'idem_extend(''finish'', ''lost'', %s, ''1 min'')',
	'idem_checkpoint(''finish'', ''lost'', %s, ''p'')'
]) call;
SELECT pg_temp.hint_of($$SELECT idem_complete('finish', 'lost')$$) LIKE '%autocommit%' AS hint_about_autocommit;
-- its own repeat of the claim does not make it this transaction's
BEGIN;
SELECT outcome FROM idem_claim('finish', 'lost', owner => '00000000-0000-4000-8000-000000000001');
SELECT regress.error_of($$SELECT idem_complete('finish', 'lost')$$);
COMMIT;
-- taken over: the first holder can do nothing any more, and changes nothing
SELECT regress.age('finish', 'lost', '2 minutes');
SELECT outcome, attempt FROM idem_claim('finish', 'lost');
SELECT call, regress.error_of(format('SELECT ' || call, :first_token)) AS stale
FROM unnest(ARRAY[
	'idem_complete(''finish'', ''lost'', token => %s)', 'idem_fail(''finish'', ''lost'', token => %s)',
	'idem_release(''finish'', ''lost'', %s)', 'idem_extend(''finish'', ''lost'', %s, ''1 min'')',
	'idem_checkpoint(''finish'', ''lost'', %s, ''p'')'
]) call;
SELECT pg_temp.hint_of(format('SELECT idem_complete(''finish'', ''lost'', token => %s)', :first_token)) LIKE '%stale%' AS hint_about_token;
SELECT (idem_complete('finish', 'lost', '"second"', token => regress.token('finish', 'lost'))).outcome IS NOT NULL AS done;
-- a stale token learns nothing from the finished row, either
SELECT regress.error_of(format('SELECT idem_complete(''finish'', ''lost'', ''"first"'', token => %s)', :first_token)) AS other,
	regress.error_of(format('SELECT idem_complete(''finish'', ''lost'', ''"second"'', token => %s)', :first_token)) AS same,
	regress.error_of(format('SELECT idem_release(''finish'', ''lost'', %s)', :first_token)) AS release;
SELECT idem_json(idem_lookup('finish', 'lost'));

-- A lease that has ended but was not taken over still completes.
SELECT outcome FROM idem_claim('finish', 'late');
SELECT regress.age('finish', 'late', '2 minutes');
SELECT (idem_complete('finish', 'late', '"late"', token => regress.token('finish', 'late'))).expires_at > clock_timestamp() + interval '23 hours' AS done;
SELECT outcome FROM idem_claim('finish', 'late');

--
-- A finished row never changes; the same answer again writes nothing.
--
SELECT outcome FROM idem_claim('finish', 'twice');
SELECT expires_at AS returned FROM idem_complete('finish', 'twice', '{"a": 1}', 201, '{"H": "1"}', token => regress.token('finish', 'twice')) \gset
CREATE TEMP TABLE before AS SELECT ctid AS place, xmin AS written, xmax AS locked, expires_at FROM idempotency_keys WHERE scope = 'finish' AND key = 'twice';
BEGIN;
SELECT (idem_complete('finish', 'twice', '{"a": 1}', 201, '{"H": "1"}', token => regress.token('finish', 'twice'))).expires_at = :'returned' AS same_time;
SELECT (idem_complete('finish', 'twice', '{"a": 1}'::json, 201, '{"H": "1"}', token => regress.token('finish', 'twice'))).expires_at = :'returned' AS same_time;
SELECT (idem_complete('finish', 'twice', '{"a": 1}'::bytea, 201, '{"H": "1"}', 'application/json', token => regress.token('finish', 'twice'))).expires_at = :'returned' AS same_time;
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid;
COMMIT;
SELECT (b.place, b.written::text, b.locked::text, b.expires_at) = (k.ctid, k.xmin::text, k.xmax::text, k.expires_at) AS untouched
FROM before b, idempotency_keys k WHERE scope = 'finish' AND key = 'twice';
SELECT what, regress.error_of(format('SELECT idem_' || call, regress.token('finish', 'twice')))
FROM (VALUES
	('body', $$complete('finish', 'twice', '{"a": 2}', 201, '{"H": "1"}', token => %s)$$),
	('spacing', $$complete('finish', 'twice', '{"a":1}', 201, '{"H": "1"}', token => %s)$$),
	('no body', $$complete('finish', 'twice', NULL, 201, '{"H": "1"}', token => %s)$$),
	('status', $$complete('finish', 'twice', '{"a": 1}', 202, '{"H": "1"}', token => %s)$$),
	('headers', $$complete('finish', 'twice', '{"a": 1}', 201, '{"H":"1"}', token => %s)$$),
	('no headers', $$complete('finish', 'twice', '{"a": 1}', 201, token => %s)$$),
	('type', $$complete('finish', 'twice', '{"a": 1}', 201, '{"H": "1"}', 'text/plain', token => %s)$$),
	('failed', $$fail('finish', 'twice', '{"a": 1}', 201, '{"H": "1"}', token => %s)$$),
	('failed for good', $$fail('finish', 'twice', '{"a": 1}', 201, '{"H": "1"}', token => %s, retryable => false)$$)) v (what, call);
-- it is no claim any more
SELECT regress.error_of(format('SELECT idem_release(''finish'', ''twice'', %s)', regress.token('finish', 'twice'))) AS release,
	regress.error_of(format('SELECT idem_extend(''finish'', ''twice'', %s, ''1 min'')', regress.token('finish', 'twice'))) AS extend,
	regress.error_of(format('SELECT idem_checkpoint(''finish'', ''twice'', %s, ''p'')', regress.token('finish', 'twice'))) AS checkpoint;
-- in the claiming transaction, without a token
BEGIN;
SELECT outcome FROM idem_claim('finish', 'twice here');
SELECT (idem_complete('finish', 'twice here', '1')).outcome IS NOT NULL AS done;
SELECT (idem_complete('finish', 'twice here', '1')).outcome IS NOT NULL AS done;
SELECT regress.error_of($$SELECT idem_complete('finish', 'twice here', '2')$$);
SELECT regress.error_of($$SELECT idem_fail('finish', 'twice here', '1', 200)$$);
COMMIT;
-- failures, too
SELECT outcome FROM idem_claim('finish', 'twice failed');
SELECT (idem_fail('finish', 'twice failed', '1', token => regress.token('finish', 'twice failed'))).expires_at
	= (idem_fail('finish', 'twice failed', '1', token => regress.token('finish', 'twice failed'))).expires_at AS same_time;
SELECT regress.error_of(format('SELECT idem_fail(''finish'', ''twice failed'', ''1'', retryable => false, token => %s)', regress.token('finish', 'twice failed'))) AS for_good,
	regress.error_of(format('SELECT idem_complete(''finish'', ''twice failed'', ''1'', token => %s)', regress.token('finish', 'twice failed'))) AS completed;

-- No token is below zero: -1 is a wrong one, not none.
SET client_min_messages = warning;
BEGIN;
SELECT outcome FROM idem_claim('finish-negative', 'k');
\set VERBOSITY sqlstate
SELECT idem_complete('finish-negative', 'k', token => -1);
ROLLBACK;
\set VERBOSITY default
