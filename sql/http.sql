--
-- The HTTP binding: problems, headers, and idem_http_run outside of PostgREST.
--
SET timezone = 'Europe/Berlin';

CREATE SCHEMA regress_http;

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
SELECT idem_http_problem(NULL::idem_result) IS NULL AS problem, idem_http_headers(NULL) IS NULL AS headers;
SELECT status, regress.error_of(format('SELECT idem_http_problem(pg_temp.result(''{"http_status": %s, "error_code": "c"}''))', status))
FROM unnest(ARRAY[-1, 200, 399, 400, 599, 600]) status;

-- by the code alone: the same, with its own status; of mismatch that which is shipped
SELECT code, pg_temp.plain(idem_http_problem(code)) = pg_temp.plain(idem_http_problem(pg_temp.result(json_build_object('http_status', status, 'error_code', code)))) AS same
FROM (TABLE refusals UNION ALL VALUES (500, 'idempotency_answer_unreadable')) r;
-- with another detail, and when to ask again, as in Retry-After
SELECT pg_temp.plain(idem_http_problem('rate_limited', e'Ask "us"\n', 1));
SELECT ms, idem_http_problem('rate_limited', NULL, ms) -> 'retry_after' AS retry_after FROM unnest(ARRAY[0, 1, 1000, 1001, 9223372036854775807]) ms;
SELECT regress.error_of('SELECT idem_http_problem(''rate_limited'', retry_after_ms => -1)') AS negative,
	regress.error_of('SELECT idem_http_problem(NULL)') AS none, regress.error_of($$SELECT idem_http_problem('teapot')$$) AS of_others,
	regress.error_of($$SELECT idem_http_problem('')$$) AS empty;

--
-- idem_http_time: UTC whatever the time zone and the style, null for what
-- RFC 3339 cannot say.
--
SELECT t, idem_http_time(t) FROM unnest(ARRAY['2026-03-29 03:30:00+02', '2026-01-01 00:00:00.120+01', '1999-12-31 23:59:59.999999Z', '0001-01-01 00:00Z',
	'9999-12-31 23:59:59.999999Z', '10000-01-01 00:00Z', '0001-01-01 00:00Z BC', 'infinity', '-infinity', NULL]::timestamptz[]) t;
SET datestyle = 'SQL, DMY';
SELECT idem_http_time('2026-03-29 03:30:00+02');
RESET datestyle;

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
SELECT retry_after_ms, idem_http_headers(pg_temp.result(json_build_object('http_status', 409, 'error_code', 'c', 'retry_after_ms', retry_after_ms)))
FROM unnest(ARRAY[1, 999, 1000, 1001, 59500, 86401000, 9223372036854775807, 0, NULL]::bigint[]) retry_after_ms;
SELECT idem_http_headers(pg_temp.result('{"retry_after_ms": 5000}')) AS no_refusal,
	idem_http_headers(pg_temp.result('{"retry_after_ms": 5000, "outcome": "replayed", "http_status": 200}')) AS replay,
	idem_http_headers(pg_temp.result('{"retry_after_ms": 5000, "error_code": "rate_limited", "http_status": 429}')) AS own;
CREATE FUNCTION pg_temp.respond_result(headers json)
RETURNS idem_result LANGUAGE sql AS $$ SELECT pg_temp.with_headers((idem_respond(200, '{}', headers)).headers) $$;
-- what HTTP cannot have is refused when it is stored; a row that has it nevertheless is sent without
CREATE FUNCTION pg_temp.respond(headers json)
RETURNS idem_response LANGUAGE sql AS $$ SELECT idem_respond(200, '{}', headers) $$;
SELECT headers, regress.error_of(format('SELECT pg_temp.respond(%L)', headers)) AS stored, idem_http_headers(pg_temp.with_headers(headers::json)) AS sent
FROM unnest(ARRAY['{"A\r\nB": "1"}', '{"A\n": "1"}', '{"": "1"}', '{"A B": "1"}', '{"A:": "1"}', '{"A\t": "1"}', '{"\u00e4": "1"}', '{"A\u0000": "1"}', '{"A(": "1"}',
	'{"A": "1\r\nB: 2"}', '{"A": "1\r"}', '{"A": "\n"}', '{"A": "1\u0000"}', '{"A": "\u0001"}', '{"A": "\u007f"}', '{"A": "\u0085"}', '{"A": "\u00e4\t\u20ac"}',
	'{"A": ["1", "2\n"]}', '[{"A": "1"}, {"B": "\r"}]', '{"A": "1", "B": "\u0000", "C": "2"}',
	'{"A": 1}', '{"A": true}', '{"A": null}', '{"A": {}}', '{"A": {"B": "1"}}', '{"A": [1]}', '{"A": [["1"]]}', '{"A": [{"B": "1"}]}', '{"A": ["1", null]}', '{"A": []}',
	'{"A": -1.50e+3}', '{"A": 123456789012345678901234567890}', '{"A": false, "a": "", "A": "  2\t "}',
	'["A"]', '[["A", "1"]]', '[["A", 1], ["A", true], ["B", ""]]', '[["A"]]', '[[]]', '[["A", "1", "2"]]', '[["A", ["1"]]]', '[["A", {"B": "1"}]]', '[["A", null]]', '[[1, "A"]]',
	'[["", "1"]]', '[["A", "1"], {"B": "2"}]', '[{"A": "1"}, ["B", "2"]]', '[{"A": "1", "B": "2"}]', '[{}]', '[{"A": "1"}, {}]', '[[["A", "1"]]]', '[{"A": {"B": "1"}}]',
	'[1]', '[null]', '"A"', '1', 'null', '[]', '{}', '[{"A": ["1"]}, "B"]']) headers;
SELECT regress.error_of($$SELECT pg_temp.respond(json_build_object('A', repeat('x', 65536)))$$) AS too_large,
	regress.error_of($$SELECT pg_temp.respond(json_build_object('A', repeat('x', 65000)))$$) AS large;
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
		state := regress.error_of(format('SELECT pg_temp.respond(%L)', headers));
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
SELECT regress.error_of($$SELECT idem_http_run('regress_http.echo(jsonb)', '{}')$$) AS nothing_set;
SELECT missing, regress.error_of(format($$SELECT set_config('request.method', %L, true), set_config('request.path', %L, true),
	set_config('request.headers', %L, true), set_config('request.jwt.claims', '{"sub": "ada"}', true), idem_http_run('regress_http.echo(jsonb)', '{}')$$,
	method, path, headers)) FROM (VALUES ('method', '', '/p', '{"idempotency-key": "k"}'), ('path', 'POST', '', '{"idempotency-key": "k"}'), ('headers', 'POST', '/p', ''),
	('JSON', 'POST', '/p', '{"idempotency-key": "k'), ('an object', 'POST', '/p', '"k"'), ('NUL', 'POST', '/p', '{"a": "\u0000", "idempotency-key": "k"}'),
	('nothing', 'POST', '/p', '{"idempotency-key": "k"}')) v (missing, method, path, headers);
-- nothing of that stays
SELECT current_setting('response.status', true) AS status, current_setting('response.headers', true) AS headers;

SET client_min_messages = warning;
DROP SCHEMA regress_http CASCADE;
RESET client_min_messages;
