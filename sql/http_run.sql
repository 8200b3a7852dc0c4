--
-- The HTTP binding: an API function, called as PostgREST does, a transaction for
-- each request.
--
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir '/sql/http.inc'
\set ECHO none
\i :include
\set ECHO all
SET timezone = 'Europe/Berlin';

-- The first answer, and replays: the same but for one header.
SET SESSION AUTHORIZATION regress_http_anon;
SELECT status, regress_http.plain(headers::json) AS headers, body
FROM regress_http.send('"http-1"', '{"what": "a", "status": 201, "headers": [{"Location": "/7"}, {"Set-Cookie": "a=1"}, {"Set-Cookie": "b=2"}]}');
SELECT status, regress_http.plain(headers::json) AS headers, body
FROM regress_http.send('http-1', '{"what": "a", "status": 201, "headers": [{"Location": "/7"}, {"Set-Cookie": "a=1"}, {"Set-Cookie": "b=2"}]}');
RESET SESSION AUTHORIZATION;
INSERT INTO regress_http.answers (status, headers, body) SELECT * FROM regress_http.send('http-2', '{"what": "b", "status": 402, "headers": {"B": "1", "A": ["2", "3"]}}');
INSERT INTO regress_http.answers (status, headers, body) SELECT * FROM regress_http.send('http-2', '{"what": "b", "status": 402, "headers": {"B": "1", "A": ["2", "3"]}}');
INSERT INTO regress_http.answers (status, headers, body) SELECT * FROM regress_http.send('"http-2"', '{"status": 402, "what": "b", "headers": {"A": ["2", "3"], "B": "1"}}');
SELECT status, body, replace(headers, '{"Idempotency-Replayed": "true"}, ', '') = (SELECT headers FROM regress_http.answers WHERE id = 1) AS headers,
	headers LIKE '%{"Idempotency-Replayed": "true"}%' AS replayed FROM regress_http.answers ORDER BY id;
SELECT * FROM regress_http.state;
-- the scope is that of principal, method and path; the expiry is the row's
SELECT scope = idem_scope('ada', 'POST', '/rpc/buy') AS scope, key, claimed_by,
	(SELECT e ->> 'Idempotency-Expires' FROM regress_http.answers, json_array_elements(headers::json) e WHERE id = 2 AND e -> 'Idempotency-Expires' IS NOT NULL)::timestamptz
	= expires_at AS expires FROM idempotency_keys WHERE key = 'http-2';
SELECT status, body FROM regress_http.send('http-2', '{"what": "c", "status": 200}', claims => '{"sub": "bob"}')
UNION ALL SELECT status, body FROM regress_http.send('http-2', '{"what": "d", "status": 200}', principal => 'bob2')
UNION ALL SELECT status, body FROM regress_http.send('http-2', '{"what": "e", "status": 200}', method => 'PATCH')
UNION ALL SELECT status, body FROM regress_http.send('http-2', '{"what": "f", "status": 200}', path => '/rpc/sell');
SELECT replace(scope, E'\u001e', ' | ') AS scope FROM idempotency_keys WHERE key = 'http-2' ORDER BY scope;
-- the settings are gone with the transaction
SELECT current_setting('response.status', true) = '' AS status, current_setting('response.headers', true) = '' AS headers;

-- Answers of other types: text, and the media type where PostgREST says another.
SELECT status, regress_http.plain(headers::json) AS headers, body FROM regress_http.send('http-3', '{}', 'echo')
UNION ALL SELECT status, regress_http.plain(headers::json) AS headers, body FROM regress_http.send('http-4', '{}', 'to_jsonb')
UNION ALL SELECT status, regress_http.plain(headers::json) AS headers, body FROM regress_http.send('http-5', '{}', 'to_null')
UNION ALL SELECT status, regress_http.plain(headers::json) AS headers, body FROM regress_http.send('http-6', '{}', 'to_other_json')
UNION ALL SELECT status, regress_http.plain(headers::json) AS headers, body FROM regress_http.send('http-7', '{"headers": {"content-TYPE": "application/json; a=b"}}', 'to_other_json');
-- the same from the store
SELECT status, regress_http.plain(headers::json) AS headers, body FROM regress_http.send('http-3', '{}', 'echo')
UNION ALL SELECT status, regress_http.plain(headers::json) AS headers, body FROM regress_http.send('http-5', '{}', 'to_null')
UNION ALL SELECT status, regress_http.plain(headers::json) AS headers, body FROM regress_http.send('http-6', '{}', 'to_other_json');
-- no body is kept: none on the first answer, and none on a replay
SELECT idem_policy('http-digest', max_body_bytes => 0, on_oversize => 'digest');
SELECT status, body FROM regress_http.send('http-8', '{}', 'echo', 'http-digest') UNION ALL SELECT status, body FROM regress_http.send('http-8', '{}', 'echo', 'http-digest');

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
