--
-- idem_run: claim, work and answer in one statement.
--
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir '/sql/run.inc'
\set ECHO none
\i :include
\set ECHO all

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
SELECT r.outcome, regress.given(r) FROM idem_run('regress_run.to_response(jsonb)', 'run', 'given', '{}') r;
SELECT r.outcome, regress.given(r) FROM idem_run('regress_run.to_response(jsonb)', 'run', 'given', '{}') r;
SELECT r.outcome, regress.given(r) FROM idem_run('regress_run.to_null(jsonb)', 'run', 'given null') r;
SELECT r.expires_at - r.finished_at AS kept FROM idem_lookup('run', 'given') r;
-- what claim, run and lookup say of a key is the same
SELECT (c.status_code, c.headers::text, c.content_type, c.body, c.fingerprint, c.finished_at, c.expires_at)
	= (r.status_code, r.headers::text, r.content_type, r.body, r.fingerprint, r.finished_at, r.expires_at) AS same
FROM idem_claim('run', 'given', '{}') c, idem_lookup('run', 'given') r;
-- text must be JSON; the key stays free
SELECT regress.sqlstate_of($$SELECT idem_run('regress_run.to_broken_text(jsonb)', 'run', 'broken')$$);

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
SELECT p.proname, p.prokind, regress.sqlstate_of(format('SELECT idem_run(%s::regprocedure, ''run'', ''wrong'', ''{}'')', p.oid))
FROM pg_proc p WHERE pronamespace = 'regress_run'::regnamespace AND proname !~ '^(to_|work|add$)'
ORDER BY proname COLLATE "C";
SELECT regress.sqlstate_of($$SELECT idem_run('0'::regprocedure, 'run', 'wrong')$$) AS zero,
	regress.sqlstate_of($$SELECT idem_run('regress_run.absent(jsonb)', 'run', 'wrong')$$) AS absent;
-- a window function
SELECT regress.sqlstate_of($$SELECT idem_run('first_value(anyelement)', 'run', 'wrong')$$) AS "window";
-- a wrong handler is found out also where it would not be called
SELECT regress.sqlstate_of($$SELECT idem_run('regress_run.as_integer(jsonb)', 'run', 'to_json', '{"c": 1}')$$) AS replay;

-- A strict handler is not called with a null.
CREATE FUNCTION regress_run.strictly(request jsonb) RETURNS json STRICT LANGUAGE sql AS $$ SELECT '1'::json $$;
SELECT regress.sqlstate_of($$SELECT idem_run('regress_run.strictly(jsonb)', 'run', 'strict')$$) AS "null",
	regress.sqlstate_of($$SELECT idem_run('regress_run.strictly(jsonb)', 'run', 'strict', NULL::jsonb, on_error => 'record')$$) AS "null, record",
	regress.sqlstate_of($$SELECT idem_run('regress_run.strictly(jsonb)', 'run', 'strict', 'null')$$) AS "JSON null";
SELECT regress.sqlstate_of($$SELECT idem_run('regress_run.to_null(jsonb)', 'run', 'not strict')$$) AS "called on null";

-- EXECUTE on the handler.
CREATE ROLE regress_idem_runner;
SELECT idem_grant('regress_idem_runner', 'app');
GRANT USAGE ON SCHEMA regress_run TO regress_idem_runner;
REVOKE EXECUTE ON FUNCTION regress_run.to_json(jsonb) FROM PUBLIC;
SET ROLE regress_idem_runner;
SELECT regress.sqlstate_of($$SELECT idem_run('regress_run.to_json(jsonb)', 'run', 'execute')$$) AS new_key,
	regress.sqlstate_of($$SELECT idem_run('regress_run.to_json(jsonb)', 'run', 'to_json', '{"c": 1}')$$) AS replay,
	regress.sqlstate_of($$SELECT idem_run('regress_run.to_text(jsonb)', 'run', 'execute')$$) AS other_handler;
RESET ROLE;
GRANT EXECUTE ON FUNCTION regress_run.to_json(jsonb) TO regress_idem_runner;
SET ROLE regress_idem_runner;
SELECT regress.sqlstate_of($$SELECT idem_run('regress_run.to_json(jsonb)', 'run', 'execute')$$) AS granted;
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
SELECT regress.sqlstate_of($$SELECT idem_run('write_denied(jsonb)', 'run', 'denied')$$) AS key_table;
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

DROP OWNED BY regress_idem_runner;
DROP ROLE regress_idem_runner;
SET client_min_messages = warning;
DROP SCHEMA regress_run CASCADE;
RESET client_min_messages;
SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'run-%';
