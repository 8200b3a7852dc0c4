--
-- The HTTP binding: what is refused, and misuse.
--
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir '/sql/http.inc'
\set ECHO none
\i :include
\set ECHO all
SET timezone = 'Europe/Berlin';

-- Refused by what is found: 422 or the policy's code, 409, 409, 409.
SELECT idem_policy('http-once', on_repeat => 'reject');
SELECT idem_policy('http-gone', on_expiry => 'reject', tombstone => '1 day', mismatch_status => 409);
SELECT count(*) FROM regress_http.send('http-1', '{}', 'echo');
SELECT count(*) FROM regress_http.send('http-once', '{}', 'echo', 'http-once');
SELECT count(*) FROM regress_http.send('http-gone', '{}', 'echo', 'http-gone');
SELECT count(*) FROM regress_http.send('http-conflict', '{}', 'echo', 'http-gone');
UPDATE idempotency_keys SET expires_at = created_at WHERE key = 'http-gone';
SET ROLE regress_http_api;
SELECT token FROM idem_claim(idem_scope('ada', 'POST', '/rpc/buy'), 'http-open', '{}', lease => '1 hour') \gset
RESET ROLE;
CREATE TEMP VIEW refused AS
SELECT key, status, regress_http.plain(headers::json) AS headers, regress_http.plain(body::json) AS body
FROM (VALUES ('http-1', '{"other": 1}', 'default'), ('http-conflict', '{"other": 1}', 'default'), ('http-once', '{}', 'default'),
	('http-gone', '{}', 'default'), ('http-open', '{}', 'default')) r (key, request, policy),
	LATERAL regress_http.send(r.key, r.request::jsonb, 'work', r.policy) s;
\x
SELECT key, status, CASE WHEN key = 'http-open' THEN regexp_replace(headers, '"3(600|59\d)"', '"<an hour>"') ELSE headers END AS headers, body FROM refused;
\x
-- no key, no scope and no principal in any of it
SELECT count(*) AS refused, count(*) FILTER (WHERE concat(headers, body) ~ 'http-|ada|rpc') AS leaks FROM refused;
-- by a call for the same key around it, whose row is not there yet, and by a claim of this very transaction
SELECT status, regress_http.plain(headers::json) AS headers, body::json ->> 'headers' AS inner_headers, body::json ->> 'status' AS inner_status,
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
SELECT * FROM regress_http.state;
SELECT call, regress.error_of('SELECT regress_http.send(' || call || ')') FROM unnest(ARRAY[
	'''http-m'', ''{}'', ''to_text''', '''http-m'', ''{}'', ''to_bytea''', '''http-m'', ''{}'', ''to_integer''', '''http-m'', ''{}'', ''to_plain''',
	'''http-m'', NULL, ''echo''', '''http-m'', ''{}'', NULL', '''http-m'', ''{}'', ''echo'', NULL', '''http-m'', ''{}'', ''echo'', ''http-unknown''',
	'NULL, ''{}'', ''echo'', ''http-unknown''', 'NULL, ''{}'', ''to_text''',
	'''http-m'', ''{}'', ''echo'', principal => E''a\tb''', '''http-m'', ''{}'', ''echo'', principal => E''a\u001eb''', '''http-m'', ''{}'', ''echo'', claims => ''{"sub": "a\u001eb"}''',
	'''http-m'', ''{}'', ''echo'', principal => repeat(''a'', 1024)', '''http-m'', ''{}'', ''echo'', path => E''/a\n''',
	'''http-m'', ''{"what": "m", "status": 500}''', '''http-m'', ''{"what": "m", "status": 200, "error": "P0001"}''', '''http-m'', ''{"what": "m", "status": 200, "error": "23505"}''',
	'''http-m'', ''{"what": "m", "status": 200, "headers": {"A": "\r"}}''', '''http-m'', ''{"what": "m", "status": 200, "headers": {"A": null}}''',
	'''http-m'', ''{"what": "m", "status": 200}''']) call;
SELECT * FROM regress_http.state;
-- a stored answer that is no JSON, and one that somebody else has stored, with headers that HTTP cannot have
SET ROLE regress_http_api;
SELECT (idem_complete(idem_scope('ada', 'POST', '/rpc/buy'), 'http-open', 'text', content_type => 'text/plain', token => :token)).outcome IS NOT NULL AS stored;
SELECT token FROM idem_claim(idem_scope('ada', 'POST', '/rpc/buy'), 'http-split', '{}') \gset
SELECT (idem_complete(idem_scope('ada', 'POST', '/rpc/buy'), 'http-split', '{}', token => :token)).outcome IS NOT NULL AS stored;
RESET ROLE;
UPDATE idempotency_keys SET headers = '{"A": "\r\nB: 1", "B": "2"}' WHERE key = 'http-split';
SELECT status, regress_http.plain(headers::json) AS headers, body::json ->> 'code' AS code FROM regress_http.send('http-open', '{}');
SELECT status, regress_http.plain(headers::json) AS headers, body FROM regress_http.send('http-split', '{}');
-- a stored answer with an empty body
SET ROLE regress_http_api;
SELECT token FROM idem_claim(idem_scope('ada', 'POST', '/rpc/buy'), 'http-empty', '{}') \gset
SELECT (idem_complete(idem_scope('ada', 'POST', '/rpc/buy'), 'http-empty', '', 204, token => :token)).outcome IS NOT NULL AS stored;
RESET ROLE;
SELECT status, regress_http.plain(headers::json) AS headers, body IS NULL AS none FROM regress_http.send('http-empty', '{}');
-- in a transaction that is read-only, as of GET, whatever the key
BEGIN READ ONLY;
SELECT regress.error_of($$SELECT regress_http.send('http-1', '{}')$$) AS key, regress.error_of($$SELECT regress_http.send(NULL, '{}')$$) AS no_key;
COMMIT;
-- a key that idem_dedupe has marked has no answer
SET ROLE regress_http_api;
SELECT first FROM idem_dedupe(idem_scope('ada', 'POST', '/rpc/buy'), '{http-marked}');
RESET ROLE;
UPDATE idempotency_keys SET fingerprint = idem_fingerprint('{}') WHERE key = 'http-marked';
SELECT status, body IS NULL AS none FROM regress_http.send('http-marked', '{}');

-- Not for clients.
SET SESSION AUTHORIZATION regress_http_anon;
SELECT regress.error_of($$SELECT idem_http_run('regress_http.echo(jsonb)', '{}', principal => 'ada')$$) AS run,
	regress.error_of($$SELECT idem_http_problem(json_populate_record(NULL::idem_result, '{}'))$$) AS problem,
	regress.error_of($$SELECT idem_http_headers(json_populate_record(NULL::idem_result, '{}'))$$) AS headers;
RESET SESSION AUTHORIZATION;
-- the handler is that of the owner of the API function
REVOKE EXECUTE ON FUNCTION regress_http.echo FROM PUBLIC;
SELECT regress.error_of($$SELECT regress_http.send('http-m', '{}', 'echo')$$) AS handler;

SET client_min_messages = warning;
DROP SCHEMA regress_http CASCADE;
RESET client_min_messages;
DROP OWNED BY regress_http_api, regress_http_anon;
DROP ROLE regress_http_api, regress_http_anon;
SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'http-%';
DELETE FROM idempotency_keys WHERE claimed_by = 'regress_http_api';
