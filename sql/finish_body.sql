--
-- Finishing: what is stored is what was given, byte for byte.
--
--
-- Content types.  Text that says it is JSON must be; what is stored is the
-- text.
--
CREATE FUNCTION pg_temp.finish_typed(in_key text, body text, type text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_require('finish', in_key);
	PERFORM idem_complete('finish', in_key, body, content_type => type);
END
$$;
SELECT type,
	regress.error_of(format('SELECT pg_temp.finish_typed(''content'', %L, %L)', '{"a": [1, 2.50e1, null]}', type)) AS json,
	regress.error_of(format('SELECT pg_temp.finish_typed(''content'', %L, %L)', '{"a": }', type)) AS "no json"
FROM unnest(ARRAY['application/json', 'application/json; charset=utf-8', 'Application/JSON', 'application/json ;v=1',
				  'application/problem+json', 'application/vnd.a+JSON ; v=1', 'image/svg+json',
				  'application/jsonp', 'text/plain', 'text/plain; v=application/json', 'text/json-seq',
				  'application/problem+json+xml']) type;
-- a media type becomes a header: no control characters
SELECT n, regress.error_of(format('SELECT pg_temp.finish_typed(''content'', ''1'', %L)', type)) AS state
FROM (VALUES (1, ''), (2, E'text/plain\r\nX: y'), (3, E'text/plain\x7f'), (4, 't/' || repeat('x', 253)),
	(5, 't/' || repeat('x', 254))) v (n, type);
SELECT body, regress.error_of(format('SELECT regress.finish(''content'', %L)',
									 format('idem_complete(''finish'', %%L, %L)', body))) AS "default"
FROM unnest(ARRAY['', ' ', '1', '"a', '"a"', 'true', 'TRUE', '{}', '{,}', '[1,]', '{"a":1}x', E' \n{"a" : 1}\t', '01', '"\x"', '"\ud800"']) body;
-- json and bytea are taken as they are
SELECT regress.error_of($$SELECT regress.finish('content', 'idem_complete(''finish'', %L, ''\x7b''::bytea, content_type => ''application/json'')')$$) AS bytea;
SELECT regress.finish('content 1', $$idem_complete('finish', %L, '{}'::json, content_type => 'text/plain')$$);
SELECT regress.finish('content 2', $$idem_complete('finish', %L, '{', content_type => 'application/octet-stream')$$);
SELECT * FROM regress.finished WHERE key LIKE 'content %' ORDER BY key COLLATE "C";

--
-- Bytes: the first answer, a repeat of it and the bytes given are the same.
--
CREATE TEMP TABLE bodies (id serial, name text, body bytea);
INSERT INTO bodies (name, body) VALUES
	('odd spacing', convert_to(E' {\t"a" :\n\n1 ,\r\n"b":[ ] } ', 'UTF8')),
	('order of keys', '{"b": 1, "a": 2, "B": 3}'),
	('duplicate keys', '{"a": 1, "a": 2, "a": {"a": 1, "a": 1}}'),
	('escapes', convert_to('{"\u0061\/\\\"\b\f\n\r\t": "\u00e4\ud83d\ude00\u0000"}', 'UTF8')),
	('numbers', '[1.0, 1e400, -0, 0.1e-7, 12345678901234567890.10]'),
	('4-byte characters', convert_to('["😀", "𝄞", "ä€", "" ]', 'UTF8')),
	('scalar', '"a"'),
	('empty', ''),
	('zeros', '\x00000000'),
	('not UTF-8', '\xfffe80c0'),
	('1 MiB of binary', (SELECT string_agg(sha256(i::text::bytea), '' ORDER BY i) FROM generate_series(1, 32768) i));
SELECT id, name, length(b.body) AS size, r.outcome
FROM bodies b, LATERAL idem_claim('finish', 'bytes ' || id) r ORDER BY id;
SELECT count(idem_complete('finish', 'bytes ' || id, body, token => regress.token('finish', 'bytes ' || id))) FROM bodies;
SELECT id, name, r.outcome, r.body = b.body AS same, encode(r.body, 'hex') = encode(b.body, 'hex') AS same_hex,
	r.body_size = length(b.body) AS size, r.body_sha256 = sha256(b.body) AS sha256, md5(r.body) = md5(l.body) AS lookup
FROM bodies b, LATERAL idem_claim('finish', 'bytes ' || id) r, LATERAL idem_lookup('finish', 'bytes ' || id) l
ORDER BY id;
-- the same through text and json
SELECT count(outcome) FROM bodies, LATERAL idem_claim('finish', 'text ' || id) WHERE id <= 7;
SELECT count(idem_complete('finish', 'text ' || id, convert_from(body, 'UTF8'), token => regress.token('finish', 'text ' || id)))
FROM bodies WHERE id <= 7;
SELECT count(outcome) FROM bodies, LATERAL idem_claim('finish', 'json ' || id) WHERE id <= 7;
SELECT count(idem_complete('finish', 'json ' || id, convert_from(body, 'UTF8')::json, token => regress.token('finish', 'json ' || id)))
FROM bodies WHERE id <= 7;
SELECT id, name, t.body = b.body AS text, j.body = b.body AS json, t.body_sha256 = sha256(b.body) AS sha256,
	t.body_size = length(b.body) AS size, idem_json(t)::text = convert_from(b.body, 'UTF8') AS idem_json
FROM bodies b, LATERAL idem_claim('finish', 'text ' || id) t, LATERAL idem_claim('finish', 'json ' || id) j
WHERE id <= 7 ORDER BY id;
-- what is no JSON
SELECT name, idem_json(r) IS NULL AS no_json
FROM bodies, LATERAL idem_claim('finish', 'bytes ' || id) r WHERE id > 7 ORDER BY id;
-- text that is not JSON, empty text
SELECT regress.finish('empty text', $$idem_complete('finish', %L, '', content_type => 'text/plain')$$);
SELECT r.outcome, r.content_type, r.body, r.body_size, r.body_sha256 = sha256('') AS digest FROM idem_claim('finish', 'empty text') r;
SELECT regress.finish('empty 1', $$idem_complete('finish', %L, '', 202)$$), regress.finish('empty 2', $$idem_complete('finish', %L, '', 204, content_type => 'application/problem+json')$$),
	regress.finish('empty 3', $$idem_fail('finish', %L, '', retryable => false)$$), regress.finish('empty 4', $$idem_complete('finish', %L, ''::bytea)$$);
SELECT key, r.outcome, r.status_code, r.content_type, r.body, r.body_size, idem_json(r) AS json
FROM generate_series(1, 4) i, concat('empty ', i) key, LATERAL idem_claim('finish', key) r ORDER BY key;
-- text in the form of bytes, where it would be replayed as hexadecimal digits
SELECT type, body, regress.error_of(format('SELECT pg_temp.finish_typed(''bytes'', %L, %L)', body, type)) AS text
FROM unnest(ARRAY['image/png', 'application/octet-stream', 'application/xml', 'application/textile', 'x/text', 'Text/plain', 'text/x', 'application/json', NULL]) type,
	unnest(ARRAY['\x89504e4700ff', '\x89504E4700FF', '\x', '\x8', '\x89g', '\X89', ' \x89', '\x89 ', '\\x89', 'x89', '\']) body
WHERE body = '\x89504e4700ff' OR type = 'image/png';
SELECT regress.finish('bytes', $$idem_complete('finish', %L, '\x89504e4700ff'::bytea, content_type => 'image/png')$$);
SELECT r.content_type, r.body FROM idem_claim('finish', 'bytes') r;
-- what a message says of invalid JSON
\set SHOW_CONTEXT never
SELECT pg_temp.finish_typed('invalid', 'hello', NULL);
SELECT pg_temp.finish_typed('invalid', 'hello', 'application/json');
SELECT pg_temp.finish_typed('invalid', '\x89504e4700ff', 'image/png');
\set SHOW_CONTEXT errors
-- headers: text, order and repeats
SELECT regress.finish('headers', $$idem_complete('finish', %L, '{}', 200, E'[ {"Set-Cookie":"a=1"},\n{"Set-Cookie" : "b=\u00e4"}, {"B": ""}, {"A":[1, 2]}, {"A": "\\\\"}]')$$);
SELECT r.headers FROM idem_claim('finish', 'headers') r;
SELECT r.headers::text = E'[ {"Set-Cookie":"a=1"},\n{"Set-Cookie" : "b=\u00e4"}, {"B": ""}, {"A":[1, 2]}, {"A": "\\\\"}]' AS same
FROM idem_claim('finish', 'headers') r;

--
-- A content type that the body implies is not stored, and given back all the
-- same; so are size and SHA-256.
--
SELECT idem_policy('finish-digest', max_body_bytes => 0, on_oversize => 'digest');
CREATE TEMP TABLE typed (id serial, policy text, body bytea, type text);
INSERT INTO typed (policy, body, type)
SELECT policy, body, type
FROM unnest('{default,finish-digest}'::text[]) policy, unnest(ARRAY['', '{}']::bytea[]) body,
	unnest('{NULL,application/json,application/JSON,application/octet-stream,text/plain}'::text[]) type
ORDER BY policy, body, type;
SELECT count(idem_claim('finish', 'type ' || id, policy => policy)) AS claims FROM typed;
SELECT count(idem_complete('finish', 'type ' || id, body, content_type => type,
	token => regress.token('finish', 'type ' || id))) AS finished FROM typed;
SELECT t.policy, convert_from(t.body, 'UTF8') AS body, t.type, k.content_type AS stored, r.content_type AS given,
	r.body IS NOT DISTINCT FROM CASE WHEN t.policy = 'default' OR t.body = '' THEN t.body END AS same,
	r.body_size = length(t.body) AS size, r.body_sha256 = sha256(t.body) AS sha256, k.body_size AS stored_size
FROM typed t JOIN idempotency_keys k ON k.scope = 'finish' AND k.key = 'type ' || id,
	LATERAL idem_lookup('finish', k.key) r ORDER BY id;
-- the same answer again is recognized, another one too
SELECT count(idem_complete('finish', 'type ' || id, body, content_type => type,
	token => regress.token('finish', 'type ' || id))) AS again FROM typed;
SELECT DISTINCT regress.sqlstate_of(format('SELECT idem_complete(''finish'', %L, %L::bytea, content_type => %L, token => %s)',
	'type ' || id, body, CASE type WHEN 'text/plain' THEN 'text/html' ELSE 'text/plain' END, regress.token('finish', 'type ' || id))) AS other_type,
	regress.sqlstate_of(format('SELECT idem_complete(''finish'', %L, ''x''::bytea, content_type => %L, token => %s)',
	'type ' || id, type, regress.token('finish', 'type ' || id))) AS other_body
FROM typed;
