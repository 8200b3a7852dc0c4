--
-- The HTTP binding: problems, headers, and idem_http_run for PostgREST.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency CASCADE;
RESET client_min_messages;
SET timezone = 'Europe/Berlin';

CREATE SCHEMA regress_http;
CREATE TABLE regress_http.effects (id serial, what text);

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
		RETURN CASE SQLSTATE WHEN 'P9999' THEN 'no error' ELSE SQLSTATE || CASE WHEN hint = '' THEN ' without a hint' ELSE '' END END;
	END;
END
$$;
-- An idem_result of which only some columns are given.
CREATE FUNCTION pg_temp.result(columns json)
RETURNS idem_result LANGUAGE sql AS $$
	SELECT json_populate_record(NULL::idem_result, columns)
$$;
CREATE FUNCTION pg_temp.with_headers(headers json)
RETURNS idem_result LANGUAGE plpgsql AS $$
DECLARE
	result idem_result;
BEGIN
	result.headers := headers;
	RETURN result;
END
$$;
-- What differs from run to run, made equal.
CREATE FUNCTION pg_temp.plain(value json)
RETURNS text LANGUAGE sql AS $$
	SELECT regexp_replace(value::text, '\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z', '<time>', 'g')
$$;

--
-- idem_http_problem: one for each refusal, none for anything else.
--
CREATE TEMP TABLE refusals (status integer, code text);
INSERT INTO refusals VALUES (409, 'idempotency_key_in_progress'), (409, 'idempotency_key_duplicate'), (409, 'idempotency_key_expired'),
	(422, 'idempotency_key_reused'), (400, 'idempotency_key_missing'), (400, 'idempotency_key_invalid'), (401, 'principal_missing'),
	(429, 'rate_limited');
\x
SELECT p ->> 'type' AS type, p ->> 'title' AS title, p -> 'status' AS status, p ->> 'detail' AS detail, p ->> 'code' AS code
FROM refusals, idem_http_problem(pg_temp.result(json_build_object('http_status', status, 'error_code', code))) p;
\x
-- the policy's own status; codes of others, with the status's phrase
SELECT pg_temp.plain(idem_http_problem(pg_temp.result(json_build_object('http_status', status, 'error_code', code)))) AS problem
FROM (VALUES (409, 'idempotency_key_reused'), (400, 'odd "code" \ é'), (404, 'gone'), (418, 'teapot'), (499, ''), (503, 'down'), (599, 'x')) v (status, code);
-- exactly these members in this order, and a time of now, in UTC
SELECT array_agg(k) AS members FROM json_object_keys(idem_http_problem(pg_temp.result('{"http_status": 409, "error_code": "c"}'))) k;
SELECT t ~ '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$' AS shape, t::timestamptz BETWEEN now() AND clock_timestamp() AS now
FROM (SELECT idem_http_problem(pg_temp.result('{"http_status": 409, "error_code": "c"}')) ->> 'time') p (t);
SELECT columns, idem_http_problem(pg_temp.result(columns)) IS NULL AS "null"
FROM unnest(ARRAY['{"outcome": "claimed"}', '{"outcome": "completed", "http_status": 200}', '{"outcome": "failed", "http_status": 500}',
	'{"outcome": "replayed", "http_status": 402}', '{}', '{"error_code": "c"}', '{"outcome": "mismatch"}']::json[]) columns;
SELECT idem_http_problem(NULL) IS NULL AS problem, idem_http_headers(NULL) IS NULL AS headers;
SELECT status, pg_temp.error_of(format('SELECT idem_http_problem(pg_temp.result(''{"http_status": %s, "error_code": "c"}''))', status))
FROM unnest(ARRAY[-1, 200, 399, 400, 599, 600]) status;

--
-- idem_http_headers.
--
SELECT what, idem_http_headers(pg_temp.result(columns)) FROM (VALUES
	('none', '{}'::json),
	('an object', '{"headers": {"Location": "/7", "A": "1"}}'),
	('order and repeats', '{"headers": {"B": "1", "A": "2", "B": "3", "b": "1"}}'),
	('an array', '{"headers": [{"B": "1"}, {"A": "2"}, {"B": "1"}]}'),
	('values in an array', '{"headers": {"Link": ["</1>", "</2>"], "A": "1", "None": [], "Z": ["z"]}}'),
	('both', '{"headers": [{"Link": ["</1>", "</2>"]}, {"A": "1", "B": "2"}, {}]}'),
	('no header', '{"headers": {}}'),
	('characters', '{"headers": {"X-1!#$%&''*+.^_`|~": "a\tb \"c\" \\ \u00e4\ud83d\ude00 é", "Empty": ""}}'),
	('replayed', '{"outcome": "replayed", "headers": {"A": "1"}}'),
	('completed', '{"outcome": "completed", "headers": {"A": "1"}}'),
	('expires', '{"expires_at": "2026-07-01 12:00:00.25+02"}'),
	('at midnight', '{"expires_at": "2027-01-01 00:00:00+00"}'),
	('never', '{"expires_at": "infinity"}'),
	('long ago', '{"expires_at": "-infinity"}'),
	('year 9999', '{"expires_at": "9999-12-31 23:59:59+00"}'),
	('year 10000', '{"expires_at": "10000-01-01 00:00:00+00"}'),
	('year 33', '{"expires_at": "0033-04-03 15:00:00+00"}'),
	('before Christ', '{"expires_at": "0044-03-15 12:00:00+00 BC"}'),
	('all', '{"outcome": "replayed", "headers": {"A": "1"}, "expires_at": "2026-07-01 12:00:00+00", "http_status": 200, "content_type": "text/plain"}')) v (what, columns);
-- Retry-After: of refusals, rounded up, never at once
SELECT retry_after, idem_http_headers(pg_temp.result(json_build_object('http_status', 409, 'error_code', 'c', 'retry_after', retry_after)))
FROM unnest(ARRAY['0', '1 us', '999999 us', '1 s', '1000001 us', '59.5 s', '1 day 1 s', NULL]::interval[]) retry_after;
SELECT idem_http_headers(pg_temp.result('{"retry_after": "5 s"}')) AS no_refusal,
	idem_http_headers(pg_temp.result('{"retry_after": "5 s", "outcome": "replayed", "http_status": 200}')) AS replay,
	idem_http_headers(pg_temp.result('{"retry_after": "5 s", "error_code": "rate_limited", "http_status": 429}')) AS own;
CREATE FUNCTION pg_temp.respond_result(headers json)
RETURNS idem_result LANGUAGE sql AS $$ SELECT pg_temp.with_headers((idem_respond(200, '{}', headers)).headers) $$;
-- what HTTP cannot have is refused when it is stored; a row that has it nevertheless is sent without
CREATE FUNCTION pg_temp.respond(headers json)
RETURNS idem_response LANGUAGE sql AS $$ SELECT idem_respond(200, '{}', headers) $$;
SELECT headers, pg_temp.error_of(format('SELECT pg_temp.respond(%L)', headers)) AS stored, idem_http_headers(pg_temp.with_headers(headers::json)) AS sent
FROM unnest(ARRAY['{"A\r\nB": "1"}', '{"A\n": "1"}', '{"": "1"}', '{"A B": "1"}', '{"A:": "1"}', '{"A\t": "1"}', '{"\u00e4": "1"}', '{"A\u0000": "1"}', '{"A(": "1"}',
	'{"A": "1\r\nB: 2"}', '{"A": "1\r"}', '{"A": "\n"}', '{"A": "1\u0000"}', '{"A": "\u0001"}', '{"A": "\u007f"}', '{"A": "\u0085"}', '{"A": "\u00e4\t\u20ac"}',
	'{"A": ["1", "2\n"]}', '[{"A": "1"}, {"B": "\r"}]', '{"A": "1", "B": "\u0000", "C": "2"}',
	'{"A": 1}', '{"A": true}', '{"A": null}', '{"A": {}}', '{"A": {"B": "1"}}', '{"A": [1]}', '{"A": [["1"]]}', '{"A": [{"B": "1"}]}', '{"A": ["1", null]}', '{"A": []}',
	'{"A": -1.50e+3}', '{"A": 123456789012345678901234567890}', '{"A": false, "a": "", "A": "  2\t "}',
	'["A"]', '[["A", "1"]]', '[["A", 1], ["A", true], ["B", ""]]', '[["A"]]', '[[]]', '[["A", "1", "2"]]', '[["A", ["1"]]]', '[["A", {"B": "1"}]]', '[["A", null]]', '[[1, "A"]]',
	'[["", "1"]]', '[["A", "1"], {"B": "2"}]', '[{"A": "1"}, ["B", "2"]]', '[{"A": "1", "B": "2"}]', '[{}]', '[{"A": "1"}, {}]', '[[["A", "1"]]]', '[{"A": {"B": "1"}}]',
	'[1]', '[null]', '"A"', '1', 'null', '[]', '{}', '[{"A": ["1"]}, "B"]']) headers;
SELECT pg_temp.error_of($$SELECT pg_temp.respond(json_build_object('A', repeat('x', 65536)))$$) AS too_large,
	pg_temp.error_of($$SELECT pg_temp.respond(json_build_object('A', repeat('x', 65000)))$$) AS large;
-- those of one connection, of one message, and our own are stored and not sent
SELECT idem_http_headers(pg_temp.respond_result(headers::json)) AS sent FROM unnest(ARRAY[
	'{"Connection": "close, X-Hop", "x-hop": "1", "Keep-Alive": "5", "Proxy-Connection": "a", "TE": "b", "Transfer-Encoding": "chunked", "Upgrade": "c", "A": "1"}',
	'[["connection", "x-a"], ["CONNECTION", ",, x-B ;q, x-C"], ["X-A", "1"], ["X-B", "2"], ["X-C", "3"], ["X-D", "4"]]', '{"X-A": 1, "Connection": ["x-a"]}',
	'{"content-length": 9, "Date": "today", "Idempotency-Replayed": true, "Idempotency-Expires": "x", "Retry-After": 5, "Content-Type": "a/b"}']) headers;

-- Whatever headers are: refused when they are stored, or each field comes back.
CREATE FUNCTION pg_temp.try_random_headers(OUT stored integer, OUT refused integer, OUT wrong integer) LANGUAGE plpgsql AS $$
DECLARE
	good_names text[] := ARRAY['A', 'x-a', '!#$%&''*+-.^_`|~', 'A\u0042', 'Connection', 'tE', 'Content-Length', 'retry-after', 'x-0'];
	bad_names text[] := ARRAY['', 'A B', 'A:', '\u00e4', 'A\r', '\u0000'];
	good_values text[] := ARRAY['"1"', '""', '1', '-2.50e3', 'true', 'false', '"\u00e4"', '" \t1 "', ' "q\"\\r" '];
	bad_values text[] := ARRAY['null', '"\r"', '"a\nb"', '{}', '[[]]', '[1,null]', '"\u0000"', '"\u007f"'];
	shape integer;
	fields text[];
	sent jsonb;
	name text;
	value text;
	list boolean;
	good boolean;
	headers json;
	state text;
BEGIN
	stored := 0; refused := 0; wrong := 0;
	FOR i IN 1 .. 4000 LOOP
		shape := floor(random() * 3); fields := '{}'; sent := '[]'; good := true;
		FOR j IN 1 .. floor(random() * 5) LOOP
			name := good_names[1 + floor(random() * cardinality(good_names))];
			value := good_values[1 + floor(random() * cardinality(good_values))];
			list := shape < 2 AND random() < 0.2;
			IF random() < 0.1 THEN
				good := false;
				IF random() < 0.5 THEN
					name := bad_names[1 + floor(random() * cardinality(bad_names))];
				ELSE
					value := bad_values[1 + floor(random() * cardinality(bad_values))];
				END IF;
			END IF;
			fields := fields || format((ARRAY['"%s":%s', '{"%s":%s}', '["%s",%s]'])[shape + 1], name, CASE WHEN list THEN format('[%s,%s]', value, value) ELSE value END);
			IF good AND lower(name) <> ALL (ARRAY['connection', 'te', 'content-length', 'retry-after']) THEN
				sent := sent || jsonb_build_object((format('["%s"]', name)::jsonb) ->> 0, btrim(format('[%s]', value)::json ->> 0, E' \t'));
				sent := sent || CASE WHEN list THEN sent -> -1 ELSE '[]' END;
			END IF;
		END LOOP;
		headers := format(CASE shape WHEN 0 THEN '{%s}' ELSE '[%s]' END, array_to_string(fields, ', '));
		state := pg_temp.error_of(format('SELECT pg_temp.respond(%L)', headers));
		stored := stored + (state = 'no error')::integer;
		refused := refused + (state = '22023')::integer;
		IF state <> (CASE WHEN good THEN 'no error' ELSE '22023' END) OR
			json_typeof(idem_http_headers(pg_temp.with_headers(headers))) <> 'array' OR	-- of a row that has it nevertheless, too
			good AND idem_http_headers(pg_temp.with_headers(headers))::jsonb <> sent THEN
			wrong := wrong + 1;
			RAISE NOTICE '% %: % for %', state, headers, idem_http_headers(pg_temp.with_headers(headers)), sent;
		END IF;
	END LOOP;
END
$$;
SELECT stored > 1000 AS stored, refused > 500 AS refused, wrong FROM pg_temp.try_random_headers();

--
-- idem_http_run outside of PostgREST.
--
CREATE FUNCTION regress_http.echo(request jsonb) RETURNS json LANGUAGE sql AS
$$ SELECT '{"b":1,  "a":1}'::json $$;
SELECT pg_temp.error_of($$SELECT idem_http_run('regress_http.echo(jsonb)', '{}')$$) AS nothing_set;
SELECT missing, pg_temp.error_of(format($$SELECT set_config('request.method', %L, true), set_config('request.path', %L, true),
	set_config('request.headers', %L, true), set_config('request.jwt.claims', '{"sub": "ada"}', true), idem_http_run('regress_http.echo(jsonb)', '{}')$$,
	method, path, headers)) FROM (VALUES ('method', '', '/p', '{"idempotency-key": "k"}'), ('path', 'POST', '', '{"idempotency-key": "k"}'), ('headers', 'POST', '/p', ''),
	('JSON', 'POST', '/p', '{"idempotency-key": "k'), ('an object', 'POST', '/p', '"k"'), ('NUL', 'POST', '/p', '{"a": "\u0000", "idempotency-key": "k"}'),
	('nothing', 'POST', '/p', '{"idempotency-key": "k"}')) v (missing, method, path, headers);
-- nothing of that stays
SELECT current_setting('response.status', true) AS status, current_setting('response.headers', true) AS headers;

--
-- An API function, called as PostgREST does: a transaction for each request.
--
CREATE FUNCTION regress_http.work(request jsonb) RETURNS idem_response LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
	INSERT INTO regress_http.effects (what) VALUES (request ->> 'what');
	IF request ? 'error' THEN
		RAISE EXCEPTION 'failed' USING ERRCODE = request ->> 'error';
	END IF;
	-- what a handler sets itself is not stored, so it must not go out either
	PERFORM set_config('response.status', '299', true), set_config('response.headers', '[{"X-Own": "1"}]', true);
	RETURN idem_respond((request ->> 'status')::integer, format('{"n":%s,  "n" :1.0}', (SELECT count(*) FROM regress_http.effects))::json,
		(request -> 'headers')::json);
END
$$;
CREATE FUNCTION regress_http.to_jsonb(request jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{"b":1,  "a":1}'::jsonb $$;
CREATE FUNCTION regress_http.to_null(request jsonb) RETURNS json LANGUAGE sql AS $$ SELECT NULL::json $$;
CREATE FUNCTION regress_http.to_text(request jsonb) RETURNS text LANGUAGE sql AS
$$ INSERT INTO regress_http.effects (what) VALUES ('text'); SELECT '{}' $$;
CREATE FUNCTION regress_http.to_bytea(request jsonb) RETURNS bytea LANGUAGE sql AS $$ SELECT '{}'::bytea $$;
CREATE FUNCTION regress_http.to_integer(request jsonb) RETURNS integer LANGUAGE sql AS $$ SELECT 1 $$;
CREATE FUNCTION regress_http.to_plain(request jsonb) RETURNS idem_response LANGUAGE sql SET search_path FROM CURRENT AS
$$ INSERT INTO regress_http.effects (what) VALUES ('plain'); SELECT ROW(200, NULL, 'text/plain', 'no json')::idem_response $$;
CREATE FUNCTION regress_http.to_other_json(request jsonb) RETURNS idem_response LANGUAGE sql SET search_path FROM CURRENT AS
$$ SELECT ROW(200, (request -> 'headers')::json, 'application/hal+json', '{"a":  1}')::idem_response $$;
CREATE FUNCTION regress_http.nested(request jsonb) RETURNS json LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
	inner_answer json := idem_http_run('regress_http.echo(jsonb)', request);
BEGIN
	RETURN json_build_object('inner', inner_answer, 'status', current_setting('response.status'), 'headers', current_setting('response.headers'));
END
$$;

CREATE ROLE regress_http_api;
CREATE ROLE regress_http_anon;
SELECT idem_grant('regress_http_api', 'app');
GRANT EXECUTE ON FUNCTION idem_http_run TO regress_http_api;
GRANT USAGE, CREATE ON SCHEMA regress_http TO regress_http_api;
GRANT USAGE ON SCHEMA regress_http TO regress_http_anon;
GRANT ALL ON regress_http.effects, regress_http.effects_id_seq TO regress_http_api;
SET ROLE regress_http_api;
CREATE FUNCTION regress_http.api(handler text, request jsonb, policy text, principal text)
RETURNS json LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
	SELECT idem_http_run(('regress_http.' || handler || '(jsonb)')::regprocedure, request, policy, principal);
END;
RESET ROLE;
-- One request: its settings, the call, and what PostgREST would answer.
CREATE FUNCTION regress_http.send(key text, request jsonb, handler text DEFAULT 'work', policy text DEFAULT 'default',
	principal text DEFAULT NULL, claims text DEFAULT '{"sub": "ada", "role": "web"}', method text DEFAULT 'POST', path text DEFAULT '/rpc/buy',
	OUT status text, OUT headers text, OUT body text)
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('request.method', method, true), set_config('request.path', path, true),
		set_config('request.headers', json_strip_nulls(json_build_object('accept', '*/*', 'idempotency-key', key, 'host', 'h'))::text, true),
		set_config('request.jwt.claims', claims, true);
	body := regress_http.api(handler, request, policy, principal);
	status := current_setting('response.status');
	headers := current_setting('response.headers');
END
$$;
CREATE TEMP VIEW state AS
SELECT (SELECT count(*) FROM regress_http.effects) AS effects, (SELECT count(*) FROM idempotency_keys WHERE key LIKE 'http-%') AS keys;
CREATE TEMP TABLE answers (id serial, status text, headers text, body text);

-- The first answer, and replays: the same but for one header.
SET SESSION AUTHORIZATION regress_http_anon;
SELECT status, pg_temp.plain(headers::json) AS headers, body
FROM regress_http.send('"http-1"', '{"what": "a", "status": 201, "headers": [{"Location": "/7"}, {"Set-Cookie": "a=1"}, {"Set-Cookie": "b=2"}]}');
SELECT status, pg_temp.plain(headers::json) AS headers, body
FROM regress_http.send('http-1', '{"what": "a", "status": 201, "headers": [{"Location": "/7"}, {"Set-Cookie": "a=1"}, {"Set-Cookie": "b=2"}]}');
RESET SESSION AUTHORIZATION;
INSERT INTO answers (status, headers, body) SELECT * FROM regress_http.send('http-2', '{"what": "b", "status": 402, "headers": {"B": "1", "A": ["2", "3"]}}');
INSERT INTO answers (status, headers, body) SELECT * FROM regress_http.send('http-2', '{"what": "b", "status": 402, "headers": {"B": "1", "A": ["2", "3"]}}');
INSERT INTO answers (status, headers, body) SELECT * FROM regress_http.send('"http-2"', '{"status": 402, "what": "b", "headers": {"A": ["2", "3"], "B": "1"}}');
SELECT status, body, replace(headers, '{"Idempotency-Replayed": "true"}, ', '') = (SELECT headers FROM answers WHERE id = 1) AS headers,
	headers LIKE '%{"Idempotency-Replayed": "true"}%' AS replayed FROM answers ORDER BY id;
SELECT * FROM state;
-- the scope is that of principal, method and path; the expiry is the row's
SELECT scope = idem_scope('ada', 'POST', '/rpc/buy') AS scope, key, claimed_by,
	(SELECT e ->> 'Idempotency-Expires' FROM answers, json_array_elements(headers::json) e WHERE id = 2 AND e -> 'Idempotency-Expires' IS NOT NULL)::timestamptz
	= expires_at AS expires FROM idempotency_keys WHERE key = 'http-2';
SELECT status, body FROM regress_http.send('http-2', '{"what": "c", "status": 200}', claims => '{"sub": "bob"}')
UNION ALL SELECT status, body FROM regress_http.send('http-2', '{"what": "d", "status": 200}', principal => 'bob2')
UNION ALL SELECT status, body FROM regress_http.send('http-2', '{"what": "e", "status": 200}', method => 'PATCH')
UNION ALL SELECT status, body FROM regress_http.send('http-2', '{"what": "f", "status": 200}', path => '/rpc/sell');
SELECT replace(scope, E'\u001e', ' | ') AS scope FROM idempotency_keys WHERE key = 'http-2' ORDER BY scope;
-- the settings are gone with the transaction
SELECT current_setting('response.status', true) = '' AS status, current_setting('response.headers', true) = '' AS headers;

-- Answers of other types: text, and the media type where PostgREST says another.
SELECT status, pg_temp.plain(headers::json) AS headers, body FROM regress_http.send('http-3', '{}', 'echo')
UNION ALL SELECT status, pg_temp.plain(headers::json) AS headers, body FROM regress_http.send('http-4', '{}', 'to_jsonb')
UNION ALL SELECT status, pg_temp.plain(headers::json) AS headers, body FROM regress_http.send('http-5', '{}', 'to_null')
UNION ALL SELECT status, pg_temp.plain(headers::json) AS headers, body FROM regress_http.send('http-6', '{}', 'to_other_json')
UNION ALL SELECT status, pg_temp.plain(headers::json) AS headers, body FROM regress_http.send('http-7', '{"headers": {"content-TYPE": "application/json; a=b"}}', 'to_other_json');
-- the same from the store
SELECT status, pg_temp.plain(headers::json) AS headers, body FROM regress_http.send('http-3', '{}', 'echo')
UNION ALL SELECT status, pg_temp.plain(headers::json) AS headers, body FROM regress_http.send('http-5', '{}', 'to_null')
UNION ALL SELECT status, pg_temp.plain(headers::json) AS headers, body FROM regress_http.send('http-6', '{}', 'to_other_json');
-- no body is kept: none on the first answer, and none on a replay
SELECT idem_policy('http-digest', max_body_bytes => 0, on_oversize => 'digest');
SELECT status, body FROM regress_http.send('http-8', '{}', 'echo', 'http-digest') UNION ALL SELECT status, body FROM regress_http.send('http-8', '{}', 'echo', 'http-digest');

-- Refused by what is found: 422 or the policy's code, 409, 409, 409.
SELECT idem_policy('http-once', on_repeat => 'reject');
SELECT idem_policy('http-gone', on_expiry => 'reject', tombstone => '1 day', mismatch_status => 409);
SELECT count(*) FROM regress_http.send('http-once', '{}', 'echo', 'http-once');
SELECT count(*) FROM regress_http.send('http-gone', '{}', 'echo', 'http-gone');
SELECT count(*) FROM regress_http.send('http-conflict', '{}', 'echo', 'http-gone');
UPDATE idempotency_keys SET expires_at = created_at WHERE key = 'http-gone';
SET ROLE regress_http_api;
SELECT token FROM idem_claim(idem_scope('ada', 'POST', '/rpc/buy'), 'http-open', '{}', lease => '1 hour') \gset
RESET ROLE;
CREATE TEMP VIEW refused AS
SELECT key, status, pg_temp.plain(headers::json) AS headers, pg_temp.plain(body::json) AS body
FROM (VALUES ('http-1', '{"other": 1}', 'default'), ('http-conflict', '{"other": 1}', 'default'), ('http-once', '{}', 'default'),
	('http-gone', '{}', 'default'), ('http-open', '{}', 'default')) r (key, request, policy),
	LATERAL regress_http.send(r.key, r.request::jsonb, 'work', r.policy) s;
\x
SELECT key, status, CASE WHEN key = 'http-open' THEN regexp_replace(headers, '"3(600|59\d)"', '"<an hour>"') ELSE headers END AS headers, body FROM refused;
\x
-- no key, no scope and no principal in any of it
SELECT count(*) AS refused, count(*) FILTER (WHERE concat(headers, body) ~ 'http-|ada|rpc') AS leaks FROM refused;
-- by a call for the same key around it, whose row is not there yet, and by a claim of this very transaction
SELECT status, pg_temp.plain(headers::json) AS headers, body::json ->> 'headers' AS inner_headers, body::json ->> 'status' AS inner_status,
	body::json -> 'inner' ->> 'code' AS inner_code FROM regress_http.send('http-nested', '{}', 'nested');
BEGIN;
SET LOCAL ROLE regress_http_api;
SELECT outcome FROM idem_claim(idem_scope('ada', 'POST', '/rpc/buy'), 'http-own', '{}');
RESET ROLE;
SELECT status, headers LIKE '%{"Retry-After": "60"}%' AS retry_after, body::json ->> 'code' AS code FROM regress_http.send('http-own', '{}', 'echo');
ROLLBACK;

-- Refused before: no key, a bad one, one that the policy does not take.
SELECT idem_policy('http-uuid', key_format => 'uuidv4');
SELECT idem_policy('http-short', max_key_bytes => 8);
SELECT what, status, headers, body::json ->> 'code' AS code, body::json ->> 'type' AS type FROM (VALUES
	('missing', NULL, 'default'), ('empty', '', 'default'), ('empty string', '""', 'default'), ('spaces', '  ', 'default'), ('no end', '"http', 'default'),
	('two', '"http-a", "http-b"', 'default'), ('no ASCII', 'é', 'default'), ('1025 bytes', repeat('k', 1025), 'default'), ('256 bytes', repeat('k', 256), 'default'),
	('9 bytes', '"http-9999"', 'http-short'), ('no UUID', 'http-k', 'http-uuid'), ('no hyphens', '8e03978e40d543ddbc936894a57f9324', 'http-uuid'), ('UUID of version 1', '"8e03978e-40d5-13dd-bc93-6894a57f9324"', 'http-uuid')) v (what, key, policy),
	LATERAL regress_http.send(key, '{"what": "never", "status": 200}', policy => policy);
SELECT status, body
FROM regress_http.send('"8E03978E-40D5-43DD-BC93-6894A57F9324"', '{}', 'echo', 'http-uuid')
UNION ALL SELECT status, body FROM regress_http.send('8e03978e-40d5-43dd-BC93-6894a57f9324', '{}', 'echo');
SELECT key AS canonical FROM idempotency_keys WHERE claimed_by = 'regress_http_api' AND key LIKE '8%';
SELECT status FROM regress_http.send('http-2345', '{}', 'echo', 'http-uuid') UNION ALL SELECT status FROM regress_http.send('http-234', '{}', 'echo', 'http-short');
-- a header that comes twice, or in another case
BEGIN;
SELECT set_config('request.method', 'POST', true), set_config('request.path', '/p', true), set_config('request.jwt.claims', '{"sub": "ada"}', true)
\g /dev/null
SELECT headers, CASE WHEN set_config('request.headers', headers, true) <> '' THEN idem_http_run('regress_http.echo(jsonb)', '{}') ->> 'code' END AS code
FROM unnest(ARRAY['{"idempotency-key": "http-x", "idempotency-key": "http-y"}', '{"idempotency-key": ["http-x", "http-y"]}', '{"idempotency-key": 1}',
	'{"idempotency-key": null}', '{"idempotency-key": ["http-x"]}', '{"x-idempotency-key": "http-x"}', '{}', '{"a": {"idempotency-key": "http-x"}}', '{"Idempotency-Key": "http-x"}']) headers;
ROLLBACK;

-- Who it is: the argument before the claim; an empty one is nobody.
SELECT what, status, headers, body::json ->> 'code' AS code FROM (VALUES
	('no claims', NULL, NULL), ('claims not set', NULL, ''), ('no sub', NULL, '{"role": "anon"}'), ('empty sub', NULL, '{"sub": ""}'),
	('sub is null', NULL, '{"sub": null}'), ('sub is a number', NULL, '{"sub": 42}'), ('sub is an object', NULL, '{"sub": {"sub": "ada"}}'),
	('sub is an array', NULL, '{"sub": ["ada"]}'), ('an array in one', NULL, '{"sub": [["ada"]]}'),
	('sub further inside', NULL, '{"a": {"sub": "ada"}}'), ('claims are an array', NULL, '[{"sub": "ada"}]'), ('no JSON', NULL, '{"sub": "ada'),
	('sub with NUL', NULL, '{"sub": "ada\u0000"}'), ('empty argument', '', '{"sub": "ada"}')) v (what, principal, claims),
	LATERAL regress_http.send('http-who', '{"what": "never", "status": 200}', principal => principal, claims => claims);
SELECT status FROM regress_http.send('http-who', '{}', 'echo', principal => 'cy', claims => '{"sub": "ada"}')
UNION ALL SELECT status FROM regress_http.send('http-who', '{}', 'echo', claims => '{"a": {"b": [{}]}, "sub": "d\u00e4", "aud": ["x", 1]}');
SELECT split_part(scope, E'\u001e', 1) AS principal FROM idempotency_keys WHERE key = 'http-who' ORDER BY 1;
-- nobody and no key: nobody; both before anything of the key is looked at
SELECT status FROM regress_http.send(NULL, '{}', claims => '{}');

-- Misuse is raised, and leaves nothing.
SELECT * FROM state;
SELECT call, pg_temp.error_of('SELECT regress_http.send(' || call || ')') FROM unnest(ARRAY[
	'''http-m'', ''{}'', ''to_text''', '''http-m'', ''{}'', ''to_bytea''', '''http-m'', ''{}'', ''to_integer''', '''http-m'', ''{}'', ''to_plain''',
	'''http-m'', NULL, ''echo''', '''http-m'', ''{}'', NULL', '''http-m'', ''{}'', ''echo'', NULL', '''http-m'', ''{}'', ''echo'', ''http-unknown''',
	'NULL, ''{}'', ''echo'', ''http-unknown''', 'NULL, ''{}'', ''to_text''',
	'''http-m'', ''{}'', ''echo'', principal => E''a\tb''', '''http-m'', ''{}'', ''echo'', principal => E''a\u001eb''', '''http-m'', ''{}'', ''echo'', claims => ''{"sub": "a\u001eb"}''',
	'''http-m'', ''{}'', ''echo'', principal => repeat(''a'', 1024)', '''http-m'', ''{}'', ''echo'', path => E''/a\n''',
	'''http-m'', ''{"what": "m", "status": 500}''', '''http-m'', ''{"what": "m", "status": 200, "error": "P0001"}''', '''http-m'', ''{"what": "m", "status": 200, "error": "23505"}''',
	'''http-m'', ''{"what": "m", "status": 200, "headers": {"A": "\r"}}''', '''http-m'', ''{"what": "m", "status": 200, "headers": {"A": null}}''',
	'''http-m'', ''{"what": "m", "status": 200}''']) call;
SELECT * FROM state;
-- a stored answer that is no JSON, and one that somebody else has stored, with headers that HTTP cannot have
SET ROLE regress_http_api;
SELECT idem_complete(idem_scope('ada', 'POST', '/rpc/buy'), 'http-open', 'text', content_type => 'text/plain', token => :token) IS NOT NULL AS stored;
SELECT token FROM idem_claim(idem_scope('ada', 'POST', '/rpc/buy'), 'http-split', '{}') \gset
SELECT idem_complete(idem_scope('ada', 'POST', '/rpc/buy'), 'http-split', '{}', token => :token) IS NOT NULL AS stored;
RESET ROLE;
UPDATE idempotency_keys SET headers = '{"A": "\r\nB: 1", "B": "2"}' WHERE key = 'http-split';
SELECT status, pg_temp.plain(headers::json) AS headers, body::json ->> 'code' AS code FROM regress_http.send('http-open', '{}');
SELECT status, pg_temp.plain(headers::json) AS headers, body FROM regress_http.send('http-split', '{}');
-- a stored answer with an empty body
SET ROLE regress_http_api;
SELECT token FROM idem_claim(idem_scope('ada', 'POST', '/rpc/buy'), 'http-empty', '{}') \gset
SELECT idem_complete(idem_scope('ada', 'POST', '/rpc/buy'), 'http-empty', '', 204, token => :token) IS NOT NULL AS stored;
RESET ROLE;
SELECT status, pg_temp.plain(headers::json) AS headers, body IS NULL AS none FROM regress_http.send('http-empty', '{}');
-- in a transaction that is read-only, as of GET, whatever the key
BEGIN READ ONLY;
SELECT pg_temp.error_of($$SELECT regress_http.send('http-1', '{}')$$) AS key, pg_temp.error_of($$SELECT regress_http.send(NULL, '{}')$$) AS no_key;
COMMIT;
-- a key that idem_dedupe has marked has no answer
SET ROLE regress_http_api;
SELECT first FROM idem_dedupe(idem_scope('ada', 'POST', '/rpc/buy'), '{http-marked}');
RESET ROLE;
UPDATE idempotency_keys SET fingerprint = idem_fingerprint('{}') WHERE key = 'http-marked';
SELECT status, body IS NULL AS none FROM regress_http.send('http-marked', '{}');

-- Not for clients.
SET SESSION AUTHORIZATION regress_http_anon;
SELECT pg_temp.error_of($$SELECT idem_http_run('regress_http.echo(jsonb)', '{}', principal => 'ada')$$) AS run,
	pg_temp.error_of($$SELECT idem_http_problem(pg_temp.result('{}'))$$) AS problem,
	pg_temp.error_of($$SELECT idem_http_headers(pg_temp.result('{}'))$$) AS headers;
RESET SESSION AUTHORIZATION;
-- the handler is that of the owner of the API function
REVOKE EXECUTE ON FUNCTION regress_http.echo FROM PUBLIC;
SELECT pg_temp.error_of($$SELECT regress_http.send('http-m', '{}', 'echo')$$) AS handler;

--
-- idem_health: http_exposed.
--
SELECT ok, detail FROM idem_health() WHERE check_name = 'http_exposed';
SELECT n.nspname AS schema FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE extname = 'idempotency' \gset
\set list 'api,\t' :schema ' ,x'
BEGIN;
ALTER ROLE regress_http_api SET pgrst.db_schemas = :'list';
SELECT ok, detail FROM idem_health() WHERE check_name = 'http_exposed';
ROLLBACK;
BEGIN;
SELECT current_database() AS dbname \gset
ALTER ROLE regress_http_api IN DATABASE :"dbname" SET pgrst.db_schemas = :'schema';
ALTER DATABASE :"dbname" SET pgrst.db_schema = :'schema';
SELECT ok, replace(detail, current_database(), '<this>') AS detail FROM idem_health() WHERE check_name = 'http_exposed';
ROLLBACK;
BEGIN;
ALTER DATABASE template1 SET pgrst.db_schemas = :'schema';
ALTER ROLE regress_http_api IN DATABASE template1 SET pgrst.db_schemas = :'schema';
\set list :schema '_not, not_' :schema ', API'
ALTER ROLE regress_http_anon SET pgrst.db_schemas = :'list';
ALTER ROLE regress_http_anon SET pgrst.db_extra_search_path = :'schema';
SELECT ok, detail FROM idem_health() WHERE check_name = 'http_exposed';
ROLLBACK;

SET client_min_messages = warning;
DROP SCHEMA regress_http CASCADE;
RESET client_min_messages;
DROP OWNED BY regress_http_api, regress_http_anon;
DROP ROLE regress_http_api, regress_http_anon;
SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'http-%';
DELETE FROM idempotency_keys WHERE claimed_by = 'regress_http_api';
