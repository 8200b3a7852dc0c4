--
-- idem_run: claim, work and answer in one statement.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency CASCADE;
RESET client_min_messages;

CREATE SCHEMA regress_run;
CREATE TABLE regress_run.effects (id serial, what text);
CREATE TABLE regress_run.seen (what text, value text);

CREATE FUNCTION regress_run.to_json(request jsonb) RETURNS json LANGUAGE sql AS
$$ SELECT '{"b":1,  "a":1}'::json $$;
CREATE FUNCTION regress_run.to_jsonb(request jsonb) RETURNS jsonb LANGUAGE sql AS
$$ SELECT request || '{"b":1,  "a":1}' $$;
CREATE FUNCTION regress_run.to_text(request jsonb) RETURNS text LANGUAGE sql AS
$$ SELECT E' \n"text" ' $$;
CREATE FUNCTION regress_run.to_bytea(request jsonb) RETURNS bytea LANGUAGE sql AS
$$ SELECT '\x00ff'::bytea $$;
CREATE FUNCTION regress_run.to_response(request jsonb) RETURNS idem_response LANGUAGE sql AS
$$ SELECT idem_respond(201, '{"id":  7}', '[{"Location": "/7"}, {"A":"1"},{"A":"2"}]') $$;
CREATE FUNCTION regress_run.to_row(request jsonb) RETURNS idem_response LANGUAGE sql AS
$$ SELECT ROW(202, NULL, 'text/plain', 'plain'::bytea)::idem_response $$;
CREATE FUNCTION regress_run.to_empty_row(request jsonb) RETURNS idem_response LANGUAGE sql AS
$$ SELECT ROW(NULL, NULL, NULL, NULL)::idem_response $$;
CREATE FUNCTION regress_run.to_null(request jsonb) RETURNS json LANGUAGE sql AS
$$ SELECT NULL::json $$;
CREATE FUNCTION regress_run.to_null_response(request jsonb) RETURNS idem_response LANGUAGE sql AS
$$ SELECT NULL::idem_response $$;
CREATE FUNCTION regress_run.to_broken_text(request jsonb) RETURNS text LANGUAGE sql AS
$$ SELECT 'no json' $$;

-- Leaves an effect and answers with the number of effects under its name.
CREATE FUNCTION regress_run.work(request jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_run.effects (what) VALUES (request ->> 'what');
	IF request ? 'error' THEN
		RAISE EXCEPTION 'the work "failed"' USING ERRCODE = request ->> 'error';
	END IF;
	RETURN jsonb_build_object('effects', (SELECT count(*) FROM regress_run.effects WHERE what = request ->> 'what'));
END
$$;
-- The same with a status of the caller's choice.
CREATE FUNCTION regress_run.work_with_status(request jsonb) RETURNS idem_response LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_run.effects (what) VALUES (request ->> 'what');
	RETURN idem_respond((request ->> 'status')::integer, '{"tried": true}', '{"Retry-After": "3"}');
END
$$;

CREATE FUNCTION pg_temp.given(result idem_result)
RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(key, ' ' ORDER BY ord)
	FROM json_each_text(row_to_json(result)) WITH ORDINALITY e (key, value, ord)
	WHERE value IS NOT NULL;
$$;

CREATE FUNCTION pg_temp.error_of(sql text)
RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		EXECUTE sql;
		RAISE EXCEPTION USING ERRCODE = 'P9999';
	EXCEPTION WHEN OTHERS OR query_canceled THEN
		RETURN CASE SQLSTATE WHEN 'P9999' THEN 'no error' ELSE SQLSTATE END;
	END;
END
$$;

--
-- Every type of answer: now, and again.
--
CREATE TEMP TABLE handlers AS
SELECT ord, 'regress_run.' || name || '(jsonb)' AS handler, name
FROM unnest(ARRAY['to_json', 'to_jsonb', 'to_text', 'to_bytea', 'to_response', 'to_row', 'to_empty_row',
				  'to_null', 'to_null_response']) WITH ORDINALITY h (name, ord);
SELECT name, r.outcome, r.attempt, r.status_code AS status, r.headers, r.content_type,
	encode(r.body, 'escape') AS body, r.body_size AS size, r.body_sha256 = sha256(r.body) AS digest, r.http_status AS http
FROM handlers, LATERAL idem_run(handler::regprocedure, 'run', name, '{"c": 1}') r ORDER BY ord;
SELECT name, r.outcome, r.attempt, r.status_code AS status, r.headers, r.content_type,
	encode(r.body, 'escape') AS body, r.body_size AS size, r.body_sha256 = sha256(r.body) AS digest, r.http_status AS http
FROM handlers, LATERAL idem_run(handler::regprocedure, 'run', name, '{"c": 1}') r ORDER BY ord;
SELECT r.outcome, pg_temp.given(r) FROM idem_run('regress_run.to_response(jsonb)', 'run', 'given', '{}') r;
SELECT r.outcome, pg_temp.given(r) FROM idem_run('regress_run.to_response(jsonb)', 'run', 'given', '{}') r;
SELECT r.outcome, pg_temp.given(r) FROM idem_run('regress_run.to_null(jsonb)', 'run', 'given null') r;
SELECT r.expires_at - r.finished_at AS kept FROM idem_lookup('run', 'given') r;
-- what claim, run and lookup say of a key is the same
SELECT (c.status_code, c.headers::text, c.content_type, c.body, c.fingerprint, c.finished_at, c.expires_at)
	= (r.status_code, r.headers::text, r.content_type, r.body, r.fingerprint, r.finished_at, r.expires_at) AS same
FROM idem_claim('run', 'given', '{}') c, idem_lookup('run', 'given') r;
-- text must be JSON; the key stays free
SELECT pg_temp.error_of($$SELECT idem_run('regress_run.to_broken_text(jsonb)', 'run', 'broken')$$);

-- The outcomes of a claim.
SELECT r.outcome, r.http_status FROM idem_run('regress_run.work(jsonb)', 'run', 'outcomes', '{"what": "outcomes"}', context => '\x01') r;
SELECT r.outcome, idem_json(r) FROM idem_run('regress_run.work(jsonb)', 'run', 'outcomes', '{"what": "outcomes"}', context => '\x01') r;
SELECT r.outcome, r.http_status FROM idem_run('regress_run.work(jsonb)', 'run', 'outcomes', '{"what": "other"}', context => '\x01') r;
SELECT r.outcome, r.http_status FROM idem_run('regress_run.work(jsonb)', 'run', 'outcomes', '{"what": "outcomes"}') r;
SELECT r.outcome FROM idem_claim('run', 'claimed', '{"what": "claimed"}') r;
SELECT r.outcome, r.http_status FROM idem_run('regress_run.work(jsonb)', 'run', 'claimed', '{"what": "claimed"}', wait => '1 ms') r;
SELECT idem_policy('run-once', on_repeat => 'reject');
SELECT r.outcome FROM idem_run('regress_run.work(jsonb)', 'run', 'once', '{"what": "once"}', policy => 'run-once') r;
SELECT r.outcome FROM idem_run('regress_run.work(jsonb)', 'run', 'once', '{"what": "once"}', policy => 'run-once') r;
UPDATE idempotency_keys SET lease_until = clock_timestamp() WHERE scope = 'run' AND key = 'claimed';
SELECT r.outcome, r.attempt FROM idem_run('regress_run.work(jsonb)', 'run', 'claimed', '{"what": "claimed"}') r;
SELECT what, count(*) FROM regress_run.effects GROUP BY what ORDER BY what COLLATE "C";
-- a replay has no transaction id, and looks at the handler all the same
BEGIN;
SELECT r.outcome FROM idem_run('regress_run.work(jsonb)', 'run', 'claimed', '{"what": "claimed"}') r;
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid;
COMMIT;

--
-- What is no handler.
--
CREATE FUNCTION regress_run.two(jsonb, jsonb) RETURNS json LANGUAGE sql AS $$ SELECT '1'::json $$;
CREATE FUNCTION regress_run.two_default(jsonb, jsonb DEFAULT NULL) RETURNS json LANGUAGE sql AS $$ SELECT '1'::json $$;
CREATE FUNCTION regress_run.nothing() RETURNS json LANGUAGE sql AS $$ SELECT '1'::json $$;
CREATE FUNCTION regress_run.takes_json(json) RETURNS json LANGUAGE sql AS $$ SELECT '1'::json $$;
CREATE FUNCTION regress_run.takes_many(VARIADIC jsonb[]) RETURNS json LANGUAGE sql AS $$ SELECT '1'::json $$;
CREATE FUNCTION regress_run.many(jsonb) RETURNS SETOF json LANGUAGE sql AS $$ SELECT '1'::json $$;
CREATE FUNCTION regress_run.as_table(jsonb) RETURNS TABLE (a json) LANGUAGE sql AS $$ SELECT '1'::json $$;
CREATE FUNCTION regress_run.as_integer(jsonb) RETURNS integer LANGUAGE sql AS $$ SELECT 1 $$;
CREATE FUNCTION regress_run.as_void(jsonb) RETURNS void LANGUAGE sql AS $$ SELECT 1 $$;
CREATE FUNCTION regress_run.as_record(jsonb, OUT a json, OUT b json) LANGUAGE sql AS $$ SELECT '1'::json, '2'::json $$;
CREATE FUNCTION regress_run.as_any(jsonb) RETURNS regress_run.seen LANGUAGE sql AS $$ SELECT 'a', 'b' $$;
CREATE FUNCTION regress_run.any_argument(anyelement) RETURNS json LANGUAGE sql AS $$ SELECT '1'::json $$;
CREATE FUNCTION regress_run.as_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE PROCEDURE regress_run.procedure(jsonb) LANGUAGE sql AS $$ SELECT 1 $$;
CREATE PROCEDURE regress_run.procedure_out(jsonb, OUT a json) LANGUAGE sql AS $$ SELECT '1'::json $$;
CREATE FUNCTION regress_run.add(jsonb, jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT $1 || $2 $$;
CREATE AGGREGATE regress_run.aggregate(jsonb) (SFUNC = regress_run.add, STYPE = jsonb, INITCOND = '{}');
SELECT p.proname, p.prokind, pg_temp.error_of(format('SELECT idem_run(%s::regprocedure, ''run'', ''wrong'', ''{}'')', p.oid))
FROM pg_proc p WHERE pronamespace = 'regress_run'::regnamespace AND proname !~ '^(to_|work|add$)'
ORDER BY proname COLLATE "C";
SELECT pg_temp.error_of($$SELECT idem_run('0'::regprocedure, 'run', 'wrong')$$) AS zero,
	pg_temp.error_of($$SELECT idem_run('regress_run.absent(jsonb)', 'run', 'wrong')$$) AS absent;
-- a window function
SELECT pg_temp.error_of($$SELECT idem_run('first_value(anyelement)', 'run', 'wrong')$$) AS "window";
-- a wrong handler is found out also where it would not be called
SELECT pg_temp.error_of($$SELECT idem_run('regress_run.as_integer(jsonb)', 'run', 'to_json', '{"c": 1}')$$) AS replay;

-- A strict handler is not called with a null.
CREATE FUNCTION regress_run.strictly(request jsonb) RETURNS json STRICT LANGUAGE sql AS $$ SELECT '1'::json $$;
SELECT pg_temp.error_of($$SELECT idem_run('regress_run.strictly(jsonb)', 'run', 'strict')$$) AS "null",
	pg_temp.error_of($$SELECT idem_run('regress_run.strictly(jsonb)', 'run', 'strict', NULL::jsonb, on_error => 'record')$$) AS "null, record",
	pg_temp.error_of($$SELECT idem_run('regress_run.strictly(jsonb)', 'run', 'strict', 'null')$$) AS "JSON null";
SELECT pg_temp.error_of($$SELECT idem_run('regress_run.to_null(jsonb)', 'run', 'not strict')$$) AS "called on null";

-- EXECUTE on the handler.
CREATE ROLE regress_idem_runner;
SELECT idem_grant('regress_idem_runner', 'app');
GRANT USAGE ON SCHEMA regress_run TO regress_idem_runner;
REVOKE EXECUTE ON FUNCTION regress_run.to_json(jsonb) FROM PUBLIC;
SET ROLE regress_idem_runner;
SELECT pg_temp.error_of($$SELECT idem_run('regress_run.to_json(jsonb)', 'run', 'execute')$$) AS new_key,
	pg_temp.error_of($$SELECT idem_run('regress_run.to_json(jsonb)', 'run', 'to_json', '{"c": 1}')$$) AS replay,
	pg_temp.error_of($$SELECT idem_run('regress_run.to_text(jsonb)', 'run', 'execute')$$) AS other_handler;
RESET ROLE;
GRANT EXECUTE ON FUNCTION regress_run.to_json(jsonb) TO regress_idem_runner;
SET ROLE regress_idem_runner;
SELECT pg_temp.error_of($$SELECT idem_run('regress_run.to_json(jsonb)', 'run', 'execute')$$) AS granted;
RESET ROLE;

--
-- The handler runs as the caller, with the caller's settings.
--
CREATE FUNCTION regress_run.look(request jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	RETURN jsonb_build_object('user', current_user, 'path', current_setting('search_path'),
							  'seqscan', current_setting('enable_seqscan'), 'bitmapscan', current_setting('enable_bitmapscan'),
							  'row', (idem_lookup('run', 'look')).outcome);
END
$$;
CREATE FUNCTION regress_run.look_as_owner(request jsonb) RETURNS jsonb SECURITY DEFINER LANGUAGE plpgsql AS
$$ BEGIN RETURN jsonb_build_object('not the caller', current_user <> 'regress_idem_runner'); END $$;
CREATE FUNCTION regress_run.set_path(request jsonb) RETURNS jsonb SET search_path = pg_catalog LANGUAGE plpgsql AS
$$ BEGIN RETURN jsonb_build_object('path', current_setting('search_path')); END $$;
CREATE FUNCTION regress_run.write_denied(request jsonb) RETURNS jsonb LANGUAGE plpgsql AS
$$ BEGIN DELETE FROM public.idempotency_keys; RETURN '1'; END $$;
SET ROLE regress_idem_runner;
SET search_path = regress_run, public;
SELECT idem_json(idem_run('look(jsonb)', 'run', 'look'));
SELECT idem_json(idem_run('look_as_owner(jsonb)', 'run', 'look as owner'));
SELECT idem_json(idem_run('set_path(jsonb)', 'run', 'set path'));
SELECT pg_temp.error_of($$SELECT idem_run('write_denied(jsonb)', 'run', 'denied')$$) AS key_table;
SELECT current_user, current_setting('search_path') AS path, current_setting('enable_seqscan') AS seqscan;
RESET search_path;
RESET ROLE;

-- A STABLE handler sees what was committed and done before the claim, its own
-- statement's earlier work included, but no row of its own key.
CREATE FUNCTION regress_run.count_effects(request jsonb) RETURNS jsonb STABLE LANGUAGE sql AS
$$ SELECT jsonb_build_object('effects', (SELECT count(*) FROM regress_run.seen), 'own row',
							 (SELECT count(*) FROM idempotency_keys WHERE scope = 'run' AND key = request ->> 'key')) $$;
CREATE FUNCTION regress_run.see(in_what text) RETURNS void LANGUAGE sql AS
$$ INSERT INTO regress_run.seen VALUES (in_what) $$;
CREATE FUNCTION regress_run.see_and_run(request jsonb) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
	PERFORM regress_run.see('before');
	RETURN idem_json(idem_run('regress_run.count_effects(jsonb)', 'run', 'stable 1', '{"key": "stable 1"}'));
END
$$;
SELECT regress_run.see_and_run('{}');
SELECT regress_run.see('in the same query'), idem_json(idem_run('regress_run.count_effects(jsonb)', 'run', 'stable 2', '{"key": "stable 2"}'));

--
-- on_error = 'raise': the error passes, and the key is free.
--
SELECT state, pg_temp.error_of(format($$SELECT idem_run('regress_run.work(jsonb)', 'run', 'raise', '{"what": "raise", "error": "%s"}')$$, state)) AS raised
FROM unnest(ARRAY['P0001', '22012', '23505', '40001', '40P01', '53200', '57014', '58030', 'XX000', 'ID003', 'ID010']) state;
SELECT count(*) AS rows FROM idempotency_keys WHERE scope = 'run' AND key = 'raise';
SELECT count(*) AS effects FROM regress_run.effects WHERE what = 'raise';
-- free at once, in the same transaction after a savepoint
BEGIN;
SAVEPOINT s;
\set VERBOSITY sqlstate
SELECT idem_run('regress_run.work(jsonb)', 'run', 'raise', '{"what": "raise", "error": "P0001"}');
\set VERBOSITY default
ROLLBACK TO s;
SELECT r.outcome, r.attempt, idem_json(r) FROM idem_run('regress_run.work(jsonb)', 'run', 'raise', '{"what": "raise"}') r;
COMMIT;

--
-- on_error = 'record': the failure is stored, the work undone.
--
SELECT r.outcome, r.attempt, r.status_code, r.http_status, r.content_type, idem_json(r), pg_temp.given(r)
FROM idem_run('regress_run.work(jsonb)', 'run', 'record', '{"what": "record", "error": "P0001"}', on_error => 'record') r;
SELECT outcome, status_code, idem_json(l) FROM idem_lookup('run', 'record') l;
SELECT count(*) AS effects FROM regress_run.effects WHERE what = 'record';
-- retryable: it runs again
SELECT r.outcome, r.attempt, idem_json(r) ->> 'sqlstate' AS sqlstate
FROM idem_run('regress_run.work(jsonb)', 'run', 'record', '{"what": "record", "error": "P0001"}', on_error => 'record') r;
SELECT r.outcome, r.attempt, idem_json(r) FROM idem_run('regress_run.work(jsonb)', 'run', 'mended', '{"what": "mended"}', on_error => 'record') r;
SELECT r.outcome, r.attempt, idem_json(r) FROM idem_run('regress_run.work(jsonb)', 'run', 'mended', '{"what": "mended"}', on_error => 'record') r;
SELECT count(*) AS effects FROM regress_run.effects WHERE what = 'mended';
-- what is stored, and what always passes
SELECT state, pg_temp.error_of(format($$SELECT idem_run('regress_run.work(jsonb)', 'run', 'record %1$s', '{"what": "record", "error": "%1$s"}', on_error => 'record')$$, state)) AS raised
FROM unnest(ARRAY['P0001', '22012', '23505', '42501', '25006', '40002', 'ID002', '55000',
				  '40001', '40P01', '53000', '53100', '53200', '53300', '57014', '57P01', '57P02', '57P03', '57P04', '57P05',
				  '58000', '58030', 'XX000', 'XX001', 'XX002']) state;
SELECT count(*) AS effects FROM regress_run.effects WHERE what = 'record';
-- the surrounding transaction goes on
BEGIN;
INSERT INTO regress_run.effects (what) VALUES ('around');
SELECT r.outcome FROM idem_run('regress_run.work(jsonb)', 'run', 'around', '{"what": "around", "error": "23505"}', on_error => 'record') r;
INSERT INTO regress_run.effects (what) VALUES ('around');
COMMIT;
SELECT count(*) AS effects FROM regress_run.effects WHERE what = 'around';
SELECT outcome FROM idem_lookup('run', 'around');
-- an answer that cannot be stored is a failure like others
SELECT r.outcome, idem_json(r) ->> 'sqlstate' AS sqlstate FROM idem_run('regress_run.to_broken_text(jsonb)', 'run', 'broken', on_error => 'record') r;
SELECT idem_policy('run-small', max_body_bytes => 5);
SELECT r.outcome, r.body, r.body_size > 5 AS size FROM idem_run('regress_run.to_json(jsonb)', 'run', 'small', policy => 'run-small', on_error => 'record') r;
SELECT pg_temp.error_of($$SELECT idem_run('regress_run.to_json(jsonb)', 'run', 'small 2', policy => 'run-small')$$) AS raise;
SELECT pg_temp.error_of($$SELECT idem_run('regress_run.to_json(jsonb)', 'run', 'on error', on_error => 'ignore')$$) AS "ignore",
	pg_temp.error_of($$SELECT idem_run('regress_run.to_json(jsonb)', 'run', 'on error', on_error => NULL)$$) AS "null";

-- A status that is not kept.
SELECT status, pg_temp.error_of(format($$SELECT idem_run('regress_run.work_with_status(jsonb)', 'run', 'status', '{"what": "status", "status": %s}')$$, status)) AS raise
FROM unnest(ARRAY[200, 404, 429, 500, 503, 600]) status;
SELECT count(*) AS effects FROM regress_run.effects WHERE what = 'status';
SELECT status, r.outcome, r.status_code, r.headers, idem_json(r), r.http_status
FROM unnest(ARRAY[200, 404, 429, 500, 503]) status,
	LATERAL idem_run('regress_run.work_with_status(jsonb)', 'run', 'status ' || status,
					 jsonb_build_object('what', 'status', 'status', status), on_error => 'record') r
ORDER BY status;
SELECT count(*) AS effects FROM regress_run.effects WHERE what = 'status';
SELECT r.outcome, r.attempt FROM idem_run('regress_run.work_with_status(jsonb)', 'run', 'status 503', '{"what": "status", "status": 503}', on_error => 'record') r;
-- the policy decides which: at a retry that of the first claim
SELECT idem_policy('run-release', release_statuses => '{[404,405)}');
SELECT r.outcome, r.attempt FROM idem_run('regress_run.work_with_status(jsonb)', 'run', 'status 503', '{"what": "status", "status": 503}', 'run-release', on_error => 'record') r;
SELECT r.outcome FROM idem_run('regress_run.work_with_status(jsonb)', 'run', 'release', '{"what": "release", "status": 503}', policy => 'run-release') r;
SELECT pg_temp.error_of($$SELECT idem_run('regress_run.work_with_status(jsonb)', 'run', 'release 2', '{"what": "release", "status": 404}', policy => 'run-release')$$) AS "404";

--
-- Nested: the key of a running call, from within its handler.
--
CREATE FUNCTION regress_run.nest(request jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	r idem_result;
BEGIN
	IF (request ->> 'depth')::integer = 0 THEN
		RETURN '"innermost"';
	END IF;
	r := idem_run('regress_run.nest(jsonb)', 'run', request ->> 'key' || COALESCE(request ->> 'next', ''),
				  request || jsonb_build_object('depth', (request ->> 'depth')::integer - 1), wait => '10 s');
	RETURN jsonb_build_object('inner', r.outcome, 'http', r.http_status, 'says', idem_json(r));
END
$$;
SELECT r.outcome, idem_json(r) FROM idem_run('regress_run.nest(jsonb)', 'run', 'nest', '{"key": "nest", "depth": 1}') r;
SELECT r.outcome, idem_json(r) FROM idem_run('regress_run.nest(jsonb)', 'run', 'nest a', '{"key": "nest a", "next": "b", "depth": 1}') r;
SELECT r.outcome, idem_json(r) FROM idem_claim('run', 'nest ab', '{"key": "nest a", "next": "b", "depth": 0}') r;
-- other calls for it
CREATE FUNCTION regress_run.inside(request jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	RETURN jsonb_build_object(
		'claim', (idem_claim('run', 'inside', wait => '10 s')).outcome,
		'lookup', (idem_lookup('run', 'inside')).outcome,
		'release', idem_release('run', 'inside'),
		'forget', idem_forget('run', 'inside'),
		'complete', pg_temp.error_of($q$SELECT idem_complete('run', 'inside')$q$),
		'fail', pg_temp.error_of($q$SELECT idem_fail('run', 'inside')$q$),
		'require', pg_temp.error_of($q$SELECT idem_require('run', 'inside')$q$),
		'dedupe', (SELECT first FROM idem_dedupe('run', '{inside}')),
		'another', (idem_claim('run', 'inside another')).outcome);
END
$$;
SELECT r.outcome, e.key, e.value
FROM idem_run('regress_run.inside(jsonb)', 'run', 'inside') r, LATERAL json_each(idem_json(r)) e ORDER BY e.key COLLATE "C";
-- after an error in the handler nothing is left of the running call
SELECT pg_temp.error_of($$SELECT idem_run('regress_run.work(jsonb)', 'run', 'after', '{"what": "after", "error": "P0001"}')$$);
SELECT r.outcome FROM idem_claim('run', 'after') r;
BEGIN;
SELECT pg_temp.error_of($$SELECT idem_run('regress_run.work(jsonb)', 'run', 'after 2', '{"what": "after", "error": "P0001"}')$$);
SELECT r.outcome FROM idem_claim('run', 'after 2') r;
SELECT idem_complete('run', 'after 2', '1') IS NOT NULL AS done;
COMMIT;

--
-- An executed call writes one row version.
--
CREATE TEMP VIEW written AS
SELECT sum(pg_stat_get_xact_tuples_inserted(oid)) AS inserted,
	sum(pg_stat_get_xact_tuples_updated(oid)) AS updated,
	sum(pg_stat_get_xact_tuples_deleted(oid)) AS deleted
FROM pg_class
WHERE oid = 'idempotency_keys'::regclass
	OR oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'idempotency_keys'::regclass);
BEGIN;
SELECT inserted AS i, updated AS u, deleted AS d FROM written \gset
SELECT outcome FROM idem_run('regress_run.work(jsonb)', 'run', 'one version', '{"what": "one"}');
SELECT inserted - :i AS inserted, updated - :u AS updated, deleted - :d AS deleted FROM written;
SELECT outcome FROM idem_run('regress_run.work(jsonb)', 'run', 'one version', '{"what": "one"}');
SELECT inserted - :i AS inserted, updated - :u AS updated, deleted - :d AS deleted FROM written;
COMMIT;
BEGIN;
SELECT inserted AS i, updated AS u, deleted AS d FROM written \gset
SELECT outcome FROM idem_run('regress_run.work(jsonb)', 'run', 'one recorded', '{"what": "one", "error": "P0001"}', on_error => 'record');
SELECT inserted - :i AS inserted, updated - :u AS updated, deleted - :d AS deleted FROM written;
SELECT outcome, attempt FROM idem_run('regress_run.work(jsonb)', 'run', 'one recorded', '{"what": "one", "error": "P0001"}', on_error => 'record');
SELECT inserted - :i AS inserted, updated - :u AS updated, deleted - :d AS deleted FROM written;
COMMIT;

--
-- The key lock: while the handler runs there is one, and afterwards to the end
-- of the transaction in the SQL way, none in the direct way, which a partitioned
-- table has not.
--
CREATE VIEW regress_run.key_locks AS
SELECT count(*) AS key_locks FROM pg_locks
WHERE locktype = 'advisory' AND objsubid = 478 AND pid = pg_backend_pid();
CREATE FUNCTION regress_run.count_locks(request jsonb) RETURNS text LANGUAGE sql AS
$$ SELECT key_locks::text FROM regress_run.key_locks $$;
BEGIN;
SET LOCAL idempotency.storage = 'sql';
SELECT outcome, idem_json(r) AS key_locks FROM idem_run('regress_run.count_locks(jsonb)', 'run', 'locks') r;
SELECT key_locks FROM regress_run.key_locks;
COMMIT;
SELECT key_locks FROM regress_run.key_locks;
BEGIN;
SET LOCAL idempotency.storage = 'auto';
SELECT outcome, idem_json(r) AS key_locks FROM idem_run('regress_run.count_locks(jsonb)', 'run', 'locks too') r;
SELECT key_locks = CASE relkind WHEN 'r' THEN 0 ELSE 1 END AS key_locks_as_said
FROM regress_run.key_locks, pg_class WHERE oid = 'idempotency_keys'::regclass;
COMMIT;

--
-- A new key's row is written once, at the end, so it is due exactly when its
-- answer has expired and its tombstone is over.
--
SELECT idem_policy('run-short', completed_ttl => '5 s', on_expiry => 'reject', tombstone => '1 s');
SELECT outcome FROM idem_run('regress_run.work(jsonb)', 'run', 'short', '{"what": "short"}', 'run-short');
SELECT purge_at = expires_at + interval '1 s' AS due FROM idempotency_keys WHERE scope = 'run' AND key = 'short';

DROP OWNED BY regress_idem_runner;
DROP ROLE regress_idem_runner;
SET client_min_messages = warning;
DROP SCHEMA regress_run CASCADE;
RESET client_min_messages;
SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'run-%';
