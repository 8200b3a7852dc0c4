--
-- Finishing: what is stored is what was given, byte for byte, by the holder
-- of the claim alone, once.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency CASCADE;
RESET client_min_messages;

CREATE FUNCTION pg_temp.age(in_key text, by interval)
RETURNS void LANGUAGE sql AS $$
	UPDATE idempotency_keys
	SET created_at = created_at - by, finished_at = finished_at - by,
		lease_until = lease_until - by, expires_at = expires_at - by,
		purge_at = purge_at - by
	WHERE scope = 'finish' AND key = in_key;
$$;

CREATE FUNCTION pg_temp.token(in_key text)
RETURNS bigint LANGUAGE sql AS $$
	SELECT token FROM idempotency_keys WHERE scope = 'finish' AND key = in_key;
$$;

-- SQLSTATE of a statement; what it did is undone.
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

-- A key claimed and finished in one transaction by the call given, then what
-- a repeat gets.
CREATE FUNCTION pg_temp.finish(in_key text, call text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_require('finish', in_key);
	EXECUTE format('SELECT ' || call, in_key);
END
$$;

CREATE VIEW pg_temp.stored AS
SELECT key, l.outcome, l.status_code AS status, l.headers, l.content_type,
	left(encode(l.body, 'escape'), 40) AS body, l.body_size AS size,
	l.body_sha256 = sha256(l.body) AS digest, l.expires_at - l.finished_at AS kept
FROM idempotency_keys k, LATERAL idem_lookup(k.scope, k.key) l
WHERE scope = 'finish';

--
-- Overloads and defaults.
--
SELECT pg_temp.finish('call 1', $$idem_complete('finish', %L)$$);
SELECT pg_temp.finish('call 2', $$idem_complete('finish', %L, '{"a": 1}')$$);
SELECT pg_temp.finish('call 3', $$idem_complete('finish', %L, NULL)$$);
SELECT pg_temp.finish('call 4', $$idem_complete('finish', %L, '{"b":1,  "a":1}'::json)$$);
SELECT pg_temp.finish('call 5', $$idem_complete('finish', %L, '{"b":1,  "a":1}'::jsonb)$$);
SELECT pg_temp.finish('call 6', $$idem_complete('finish', %L, '\x00ff'::bytea)$$);
SELECT pg_temp.finish('call 7', $$idem_complete('finish', %L, 'plain', content_type => 'text/plain')$$);
SELECT pg_temp.finish('call 8', $$idem_complete('finish', %L, status_code => 204)$$);
SELECT pg_temp.finish('call 9', $$idem_complete('finish', %L, '{}', 201, '{"A": "b"}', 'application/hal+json')$$);
SELECT pg_temp.finish('call a', $$idem_complete('finish', %L, NULL::json, 303)$$);
SELECT pg_temp.finish('call b', $$idem_complete('finish', %L, NULL::bytea, content_type => 'image/png')$$);
SELECT pg_temp.finish('call c', $$idem_complete('finish', %L, NULL::jsonb, headers => '[]')$$);
SELECT pg_temp.finish('fail 1', $$idem_fail('finish', %L)$$);
SELECT pg_temp.finish('fail 2', $$idem_fail('finish', %L, '{"error": "x"}')$$);
SELECT pg_temp.finish('fail 3', $$idem_fail('finish', %L, '{"error": "x"}', 402, retryable => false)$$);
SELECT pg_temp.finish('fail 4', $$idem_fail('finish', %L, '{"error":  "x"}'::json)$$);
SELECT pg_temp.finish('fail 5', $$idem_fail('finish', %L, '{"error":  "x"}'::jsonb)$$);
SELECT pg_temp.finish('fail 6', $$idem_fail('finish', %L, '\x00ff'::bytea, 422, '{"A": "b"}', 'a/b', retryable => false)$$);
SELECT * FROM pg_temp.stored WHERE key ~ '^(call|fail) ' ORDER BY key COLLATE "C";
SELECT key, r.outcome, r.attempt FROM idempotency_keys k, LATERAL idem_claim(scope, key) r
WHERE scope = 'finish' AND key ~ '^fail ' ORDER BY key COLLATE "C";

-- How long each kind is kept, and what the call returns.
SELECT idem_policy('finish-times', completed_ttl => '2 hours', failed_ttl => '3 hours');
SELECT idem_policy('finish-ever', completed_ttl => '0', failed_ttl => '0');
SELECT outcome, expires_at - lease_until AS kept FROM idem_claim('finish', 'ttl 1', policy => 'finish-times');
SELECT outcome, expires_at - lease_until AS kept FROM idem_claim('finish', 'ttl 2', policy => 'finish-times');
SELECT outcome, expires_at - lease_until AS kept FROM idem_claim('finish', 'ttl 3', policy => 'finish-times', ttl => '1 hour');
SELECT outcome, expires_at FROM idem_claim('finish', 'ttl 4', policy => 'finish-ever');
SELECT outcome, expires_at FROM idem_claim('finish', 'ttl 5', policy => 'finish-ever');
SELECT outcome, expires_at - lease_until AS kept FROM idem_claim('finish', 'ttl 6', policy => 'finish-ever', ttl => '1 hour');
CREATE TEMP TABLE returned (key text, expires_at timestamptz);
INSERT INTO returned VALUES
	('ttl 1', idem_complete('finish', 'ttl 1', token => pg_temp.token('ttl 1'))),
	('ttl 2', idem_fail('finish', 'ttl 2', token => pg_temp.token('ttl 2'))),
	('ttl 3', idem_complete('finish', 'ttl 3', token => pg_temp.token('ttl 3'))),
	('ttl 4', idem_complete('finish', 'ttl 4', token => pg_temp.token('ttl 4'))),
	('ttl 5', idem_fail('finish', 'ttl 5', token => pg_temp.token('ttl 5'))),
	('ttl 6', idem_fail('finish', 'ttl 6', token => pg_temp.token('ttl 6')));
-- for ever is null wherever it is returned, and has no header
SELECT key, coalesce(r.expires_at, 'infinity') = k.expires_at AS returned, (idem_lookup('finish', key)).expires_at IS NOT DISTINCT FROM r.expires_at AS looked_up,
	(idem_http_headers(idem_lookup('finish', key))::text LIKE '%Idempotency-Expires%') = (r.expires_at IS NOT NULL) AS header,
	CASE k.expires_at WHEN 'infinity' THEN 'for ever' ELSE (k.expires_at - finished_at)::text END AS kept,
	purge_at >= k.expires_at AS not_purged_before
FROM idempotency_keys k JOIN returned r USING (key) WHERE scope = 'finish' ORDER BY key COLLATE "C";

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
	pg_temp.error_of(format('SELECT pg_temp.finish_typed(''content'', %L, %L)', '{"a": [1, 2.50e1, null]}', type)) AS json,
	pg_temp.error_of(format('SELECT pg_temp.finish_typed(''content'', %L, %L)', '{"a": }', type)) AS "no json"
FROM unnest(ARRAY['application/json', 'application/json; charset=utf-8', 'Application/JSON', 'application/json ;v=1',
				  'application/problem+json', 'application/vnd.a+JSON ; v=1', 'image/svg+json',
				  'application/jsonp', 'text/plain', 'text/plain; v=application/json', 'text/json-seq',
				  'application/problem+json+xml']) type;
-- a media type becomes a header: no control characters
SELECT n, pg_temp.error_of(format('SELECT pg_temp.finish_typed(''content'', ''1'', %L)', type)) AS state
FROM (VALUES (1, ''), (2, E'text/plain\r\nX: y'), (3, E'text/plain\x7f'), (4, 't/' || repeat('x', 253)),
	(5, 't/' || repeat('x', 254))) v (n, type);
SELECT body, pg_temp.error_of(format('SELECT pg_temp.finish(''content'', %L)',
									 format('idem_complete(''finish'', %%L, %L)', body))) AS "default"
FROM unnest(ARRAY['', ' ', '1', '"a', '"a"', 'true', 'TRUE', '{}', '{,}', '[1,]', '{"a":1}x', E' \n{"a" : 1}\t', '01', '"\x"', '"\ud800"']) body;
-- json and bytea are taken as they are
SELECT pg_temp.error_of($$SELECT pg_temp.finish('content', 'idem_complete(''finish'', %L, ''\x7b''::bytea, content_type => ''application/json'')')$$) AS bytea;
SELECT pg_temp.finish('content 1', $$idem_complete('finish', %L, '{}'::json, content_type => 'text/plain')$$);
SELECT pg_temp.finish('content 2', $$idem_complete('finish', %L, '{', content_type => 'application/octet-stream')$$);
SELECT * FROM pg_temp.stored WHERE key LIKE 'content %' ORDER BY key COLLATE "C";

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
SELECT count(idem_complete('finish', 'bytes ' || id, body, token => pg_temp.token('bytes ' || id))) FROM bodies;
SELECT id, name, r.outcome, r.body = b.body AS same, encode(r.body, 'hex') = encode(b.body, 'hex') AS same_hex,
	r.body_size = length(b.body) AS size, r.body_sha256 = sha256(b.body) AS sha256, md5(r.body) = md5(l.body) AS lookup
FROM bodies b, LATERAL idem_claim('finish', 'bytes ' || id) r, LATERAL idem_lookup('finish', 'bytes ' || id) l
ORDER BY id;
-- the same through text and json
SELECT count(outcome) FROM bodies, LATERAL idem_claim('finish', 'text ' || id) WHERE id <= 7;
SELECT count(idem_complete('finish', 'text ' || id, convert_from(body, 'UTF8'), token => pg_temp.token('text ' || id)))
FROM bodies WHERE id <= 7;
SELECT count(outcome) FROM bodies, LATERAL idem_claim('finish', 'json ' || id) WHERE id <= 7;
SELECT count(idem_complete('finish', 'json ' || id, convert_from(body, 'UTF8')::json, token => pg_temp.token('json ' || id)))
FROM bodies WHERE id <= 7;
SELECT id, name, t.body = b.body AS text, j.body = b.body AS json, t.body_sha256 = sha256(b.body) AS sha256,
	t.body_size = length(b.body) AS size, idem_json(t)::text = convert_from(b.body, 'UTF8') AS idem_json
FROM bodies b, LATERAL idem_claim('finish', 'text ' || id) t, LATERAL idem_claim('finish', 'json ' || id) j
WHERE id <= 7 ORDER BY id;
-- what is no JSON
SELECT name, idem_json(r) IS NULL AS no_json
FROM bodies, LATERAL idem_claim('finish', 'bytes ' || id) r WHERE id > 7 ORDER BY id;
-- text that is not JSON, empty text
SELECT pg_temp.finish('empty text', $$idem_complete('finish', %L, '', content_type => 'text/plain')$$);
SELECT r.outcome, r.content_type, r.body, r.body_size, r.body_sha256 = sha256('') AS digest FROM idem_claim('finish', 'empty text') r;
SELECT pg_temp.finish('empty 1', $$idem_complete('finish', %L, '', 202)$$), pg_temp.finish('empty 2', $$idem_complete('finish', %L, '', 204, content_type => 'application/problem+json')$$),
	pg_temp.finish('empty 3', $$idem_fail('finish', %L, '', retryable => false)$$), pg_temp.finish('empty 4', $$idem_complete('finish', %L, ''::bytea)$$);
SELECT key, r.outcome, r.status_code, r.content_type, r.body, r.body_size, idem_json(r) AS json
FROM generate_series(1, 4) i, concat('empty ', i) key, LATERAL idem_claim('finish', key) r ORDER BY key;
-- text in the form of bytes, where it would be replayed as hexadecimal digits
SELECT type, body, pg_temp.error_of(format('SELECT pg_temp.finish_typed(''bytes'', %L, %L)', body, type)) AS text
FROM unnest(ARRAY['image/png', 'application/octet-stream', 'application/xml', 'application/textile', 'x/text', 'Text/plain', 'text/x', 'application/json', NULL]) type,
	unnest(ARRAY['\x89504e4700ff', '\x89504E4700FF', '\x', '\x8', '\x89g', '\X89', ' \x89', '\x89 ', '\\x89', 'x89', '\']) body
WHERE body = '\x89504e4700ff' OR type = 'image/png';
SELECT pg_temp.finish('bytes', $$idem_complete('finish', %L, '\x89504e4700ff'::bytea, content_type => 'image/png')$$);
SELECT r.content_type, r.body FROM idem_claim('finish', 'bytes') r;
-- what a message says of invalid JSON
\set SHOW_CONTEXT never
SELECT pg_temp.finish_typed('invalid', 'hello', NULL);
SELECT pg_temp.finish_typed('invalid', 'hello', 'application/json');
SELECT pg_temp.finish_typed('invalid', '\x89504e4700ff', 'image/png');
\set SHOW_CONTEXT errors
-- headers: text, order and repeats
SELECT pg_temp.finish('headers', $$idem_complete('finish', %L, '{}', 200, E'[ {"Set-Cookie":"a=1"},\n{"Set-Cookie" : "b=\u00e4"}, {"B": ""}, {"A":[1, 2]}, {"A": "\\\\"}]')$$);
SELECT r.headers FROM idem_claim('finish', 'headers') r;
SELECT r.headers::text = E'[ {"Set-Cookie":"a=1"},\n{"Set-Cookie" : "b=\u00e4"}, {"B": ""}, {"A":[1, 2]}, {"A": "\\\\"}]' AS same
FROM idem_claim('finish', 'headers') r;

--
-- Who may finish, and when.  ID001: no claim in progress.
--
SELECT call, pg_temp.error_of(format('SELECT ' || call, 'nobody''s')) AS "no row",
	pg_temp.error_of(format('SELECT ' || call, 'released')) AS "too"
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
SELECT pg_temp.error_of($$SELECT idem_complete('finish', 'savepoint')$$);
COMMIT;
SELECT count(*) FROM idempotency_keys WHERE scope = 'finish' AND key = 'savepoint';
-- One that was released has not; finishing in a savepoint is undone with it.
BEGIN;
SAVEPOINT s;
SELECT outcome FROM idem_claim('finish', 'savepoint');
RELEASE s;
SAVEPOINT s;
SELECT idem_complete('finish', 'savepoint', '1') IS NOT NULL AS done;
ROLLBACK TO s;
SELECT idem_complete('finish', 'savepoint', '2') IS NOT NULL AS done;
COMMIT;
SELECT idem_json(idem_lookup('finish', 'savepoint'));

-- ID002: without the token outside the claiming transaction, and with another.
SELECT outcome FROM idem_claim('finish', 'lost', owner => '00000000-0000-4000-8000-000000000001');
SELECT pg_temp.token('lost') AS first_token \gset
SELECT call, pg_temp.error_of(format('SELECT ' || call, 'NULL')) AS "none",
	pg_temp.error_of(format('SELECT ' || call, :first_token - 1)) AS smaller,
	pg_temp.error_of(format('SELECT ' || call, :first_token + 1)) AS greater,
	pg_temp.error_of(format('SELECT ' || call, '-1')) AS negative,
	pg_temp.error_of(format('SELECT ' || call, :first_token)) AS right
FROM unnest(ARRAY[
	'idem_complete(''finish'', ''lost'', token => %s)', 'idem_fail(''finish'', ''lost'', token => %s)',
	'idem_release(''finish'', ''lost'', %s)', 'idem_extend(''finish'', ''lost'', %s, ''1 min'')',
	'idem_checkpoint(''finish'', ''lost'', %s, ''p'')'
]) call;
SELECT pg_temp.hint_of($$SELECT idem_complete('finish', 'lost')$$) LIKE '%autocommit%' AS hint_about_autocommit;
-- its own repeat of the claim does not make it this transaction's
BEGIN;
SELECT outcome FROM idem_claim('finish', 'lost', owner => '00000000-0000-4000-8000-000000000001');
SELECT pg_temp.error_of($$SELECT idem_complete('finish', 'lost')$$);
COMMIT;
-- taken over: the first holder can do nothing any more, and changes nothing
SELECT pg_temp.age('lost', '2 minutes');
SELECT outcome, attempt FROM idem_claim('finish', 'lost');
SELECT call, pg_temp.error_of(format('SELECT ' || call, :first_token)) AS stale
FROM unnest(ARRAY[
	'idem_complete(''finish'', ''lost'', token => %s)', 'idem_fail(''finish'', ''lost'', token => %s)',
	'idem_release(''finish'', ''lost'', %s)', 'idem_extend(''finish'', ''lost'', %s, ''1 min'')',
	'idem_checkpoint(''finish'', ''lost'', %s, ''p'')'
]) call;
SELECT pg_temp.hint_of(format('SELECT idem_complete(''finish'', ''lost'', token => %s)', :first_token)) LIKE '%stale%' AS hint_about_token;
SELECT idem_complete('finish', 'lost', '"second"', token => pg_temp.token('lost')) IS NOT NULL AS done;
-- a stale token learns nothing from the finished row, either
SELECT pg_temp.error_of(format('SELECT idem_complete(''finish'', ''lost'', ''"first"'', token => %s)', :first_token)) AS other,
	pg_temp.error_of(format('SELECT idem_complete(''finish'', ''lost'', ''"second"'', token => %s)', :first_token)) AS same,
	pg_temp.error_of(format('SELECT idem_release(''finish'', ''lost'', %s)', :first_token)) AS release;
SELECT idem_json(idem_lookup('finish', 'lost'));

-- A lease that has ended but was not taken over still completes.
SELECT outcome FROM idem_claim('finish', 'late');
SELECT pg_temp.age('late', '2 minutes');
SELECT idem_complete('finish', 'late', '"late"', token => pg_temp.token('late')) > clock_timestamp() + interval '23 hours' AS done;
SELECT outcome FROM idem_claim('finish', 'late');

--
-- A finished row never changes; the same answer again writes nothing.
--
SELECT outcome FROM idem_claim('finish', 'twice');
SELECT idem_complete('finish', 'twice', '{"a": 1}', 201, '{"H": "1"}', token => pg_temp.token('twice')) AS returned \gset
CREATE TEMP TABLE before AS SELECT ctid AS place, xmin AS written, xmax AS locked, expires_at FROM idempotency_keys WHERE scope = 'finish' AND key = 'twice';
BEGIN;
SELECT idem_complete('finish', 'twice', '{"a": 1}', 201, '{"H": "1"}', token => pg_temp.token('twice')) = :'returned' AS same_time;
SELECT idem_complete('finish', 'twice', '{"a": 1}'::json, 201, '{"H": "1"}', token => pg_temp.token('twice')) = :'returned' AS same_time;
SELECT idem_complete('finish', 'twice', '{"a": 1}'::bytea, 201, '{"H": "1"}', 'application/json', token => pg_temp.token('twice')) = :'returned' AS same_time;
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid;
COMMIT;
SELECT (b.place, b.written::text, b.locked::text, b.expires_at) = (k.ctid, k.xmin::text, k.xmax::text, k.expires_at) AS untouched
FROM before b, idempotency_keys k WHERE scope = 'finish' AND key = 'twice';
SELECT what, pg_temp.error_of(format('SELECT idem_' || call, pg_temp.token('twice')))
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
SELECT pg_temp.error_of(format('SELECT idem_release(''finish'', ''twice'', %s)', pg_temp.token('twice'))) AS release,
	pg_temp.error_of(format('SELECT idem_extend(''finish'', ''twice'', %s, ''1 min'')', pg_temp.token('twice'))) AS extend,
	pg_temp.error_of(format('SELECT idem_checkpoint(''finish'', ''twice'', %s, ''p'')', pg_temp.token('twice'))) AS checkpoint;
-- in the claiming transaction, without a token
BEGIN;
SELECT outcome FROM idem_claim('finish', 'twice here');
SELECT idem_complete('finish', 'twice here', '1') IS NOT NULL AS done;
SELECT idem_complete('finish', 'twice here', '1') IS NOT NULL AS done;
SELECT pg_temp.error_of($$SELECT idem_complete('finish', 'twice here', '2')$$);
SELECT pg_temp.error_of($$SELECT idem_fail('finish', 'twice here', '1', 200)$$);
COMMIT;
-- failures, too
SELECT outcome FROM idem_claim('finish', 'twice failed');
SELECT idem_fail('finish', 'twice failed', '1', token => pg_temp.token('twice failed'))
	= idem_fail('finish', 'twice failed', '1', token => pg_temp.token('twice failed')) AS same_time;
SELECT pg_temp.error_of(format('SELECT idem_fail(''finish'', ''twice failed'', ''1'', retryable => false, token => %s)', pg_temp.token('twice failed'))) AS for_good,
	pg_temp.error_of(format('SELECT idem_complete(''finish'', ''twice failed'', ''1'', token => %s)', pg_temp.token('twice failed'))) AS completed;

--
-- Statuses that are not kept.
--
SELECT status, pg_temp.error_of(format($$SELECT pg_temp.finish('atomic', 'idem_complete(''finish'', %%L, status_code => %s)')$$, status)) AS claiming_transaction
FROM unnest(ARRAY[200, 304, 400, 404, 428, 429, 430, 499, 500, 503, 599]) status;
SELECT count(outcome) FROM unnest(ARRAY[200, 304, 400, 404, 428, 429, 430, 499, 500, 503, 599]) status,
	LATERAL idem_claim('finish', 'leased ' || status);
SELECT count(idem_complete('finish', 'leased ' || status, '"x"', status, token => pg_temp.token('leased ' || status)))
FROM unnest(ARRAY[200, 304, 400, 404, 428, 429, 430, 499, 500, 503, 599]) status;
SELECT key, l.outcome, l.status_code, l.http_status, r.outcome, r.attempt
FROM idempotency_keys k, LATERAL idem_lookup(scope, key) l, LATERAL idem_claim(scope, key) r
WHERE scope = 'finish' AND key LIKE 'leased %' ORDER BY key COLLATE "C";
-- the same again, before somebody claims it
SELECT outcome FROM idem_claim('finish', 'freed twice');
SELECT idem_complete('finish', 'freed twice', '"x"', 503, token => pg_temp.token('freed twice'))
	= idem_complete('finish', 'freed twice', '"x"', 503, token => pg_temp.token('freed twice')) AS same_time;
-- idem_fail commits what was done and says so, whatever the status
BEGIN;
SELECT outcome FROM idem_claim('finish', 'failed here');
SELECT idem_fail('finish', 'failed here', '"x"', 503) IS NOT NULL AS failed;
COMMIT;
-- the policy's statuses
SELECT idem_policy('finish-release', release_statuses => '{[404,405)}');
SELECT count(outcome) FROM unnest(ARRAY[404, 405, 500]) status,
	LATERAL idem_claim('finish', 'policy ' || status, policy => 'finish-release');
SELECT count(idem_complete('finish', 'policy ' || status, status_code => status, token => pg_temp.token('policy ' || status)))
FROM unnest(ARRAY[404, 405, 500]) status;
SELECT key, outcome FROM pg_temp.stored WHERE key LIKE 'policy %' ORDER BY key COLLATE "C";
-- statuses that are none
SELECT status, pg_temp.error_of(format($$SELECT pg_temp.finish('atomic', 'idem_complete(''finish'', %%L, status_code => %s)')$$, status))
FROM unnest(ARRAY[-1, 0, 99, 100, 600, 2000000000]) status;

--
-- Answers that are too large.
--
SELECT idem_policy('finish-small', max_body_bytes => 4);
SELECT idem_policy('finish-digest', max_body_bytes => 4, on_oversize => 'digest');
SELECT idem_policy('finish-none', max_body_bytes => 0, on_oversize => 'digest');
SELECT idem_policy('finish-nothing', max_body_bytes => 0);
CREATE FUNCTION pg_temp.finish_under(in_policy text, in_key text, body text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_require('finish', in_key, policy => in_policy);
	PERFORM idem_complete('finish', in_key, body, 201, '{"Location": "/a/long/path"}', 'text/plain');
END
$$;
SELECT policy, body, pg_temp.error_of(format('SELECT pg_temp.finish_under(%L, ''size'', %L)', policy, body))
FROM unnest(ARRAY['finish-small', 'finish-digest', 'finish-none', 'finish-nothing']) policy,
	unnest(ARRAY[NULL, '', '1234', '12345', 'ä12', 'ä123']) body;
SELECT pg_temp.finish_under('finish-digest', 'size 1', '1234');
SELECT pg_temp.finish_under('finish-digest', 'size 2', '12345');
SELECT pg_temp.finish_under('finish-none', 'size 3', '1');
SELECT key, r.outcome, r.status_code, r.headers, r.content_type, r.body, r.body_size,
	r.body_sha256 = sha256(given::bytea) AS digest, idem_json(r) IS NULL AS no_json
FROM (VALUES ('size 1', '1234'), ('size 2', '12345'), ('size 3', '1')) v (key, given),
	LATERAL idem_claim('finish', key) r ORDER BY key;
-- the same again is still known by its digest
SELECT idem_complete('finish', 'size 2', '12345', 201, '{"Location": "/a/long/path"}', 'text/plain', token => pg_temp.token('size 2')) IS NOT NULL AS same;
SELECT pg_temp.error_of(format($$SELECT idem_complete('finish', 'size 2', '12346', 201, '{"Location": "/a/long/path"}', 'text/plain', token => %s)$$, pg_temp.token('size 2'))) AS other;
-- the shipped limit: 1 MiB, of failures as well
SELECT pg_temp.error_of($$SELECT pg_temp.finish('mega', 'idem_complete(''finish'', %L, repeat(''x'', 1048576), content_type => ''text/plain'')')$$) AS "1 MiB",
	pg_temp.error_of($$SELECT pg_temp.finish('mega', 'idem_complete(''finish'', %L, repeat(''x'', 1048577), content_type => ''text/plain'')')$$) AS "one more",
	pg_temp.error_of($$SELECT pg_temp.finish('mega', 'idem_fail(''finish'', %L, repeat(''x'', 1048577), content_type => ''text/plain'')')$$) AS "failure",
	pg_temp.error_of($$SELECT pg_temp.finish('mega', 'idem_complete(''finish'', %L, convert_to(repeat(''x'', 2097152), ''UTF8''))')$$) AS "a megabyte too much";

--
-- Heartbeat and checkpoints.
--
SELECT outcome FROM idem_claim('finish', 'beat');
SELECT abs(extract(epoch FROM idem_extend('finish', 'beat', pg_temp.token('beat'), '1 hour') - clock_timestamp()) - 3600) < 30 AS in_an_hour;
SELECT lease_until - clock_timestamp() > '59 min' AS moved, expires_at - lease_until AS kept,
	purge_at >= expires_at AS not_purged_before FROM idempotency_keys WHERE scope = 'finish' AND key = 'beat';
SELECT lease, pg_temp.error_of(format('SELECT idem_extend(''finish'', ''beat'', %s, %L)', pg_temp.token('beat'), lease))
FROM unnest(ARRAY['1 us', '1 day', '24:00:00.000001', '0', '-1 s', '1 month']) lease;
-- a lease that had ended runs again
SELECT pg_temp.age('beat', '2 hours');
SELECT idem_extend('finish', 'beat', pg_temp.token('beat'), '1 min') > clock_timestamp() AS runs;
SELECT outcome, attempt FROM idem_claim('finish', 'beat');

SELECT idem_checkpoint('finish', 'beat', pg_temp.token('beat'), 'charged', '{"id": 7}');
SELECT pg_temp.age('beat', '2 minutes');
SELECT outcome, attempt, recovery_point, checkpoint FROM idem_claim('finish', 'beat');
-- nothing but the last one, and it goes on to the third attempt
SELECT idem_checkpoint('finish', 'beat', pg_temp.token('beat'), 'mailed');
SELECT idem_fail('finish', 'beat', token => pg_temp.token('beat')) IS NOT NULL AS failed;
SELECT outcome, attempt, recovery_point, checkpoint FROM idem_claim('finish', 'beat');
-- rolled back with its transaction
BEGIN;
SELECT idem_checkpoint('finish', 'beat', pg_temp.token('beat'), 'undone');
ROLLBACK;
SELECT recovery_point FROM idempotency_keys WHERE scope = 'finish' AND key = 'beat';
SELECT pg_temp.error_of(format('SELECT idem_checkpoint(''finish'', ''beat'', %s, %L, %L)', pg_temp.token('beat'), point, data)) AS state,
	length(point) AS point, length(data) AS data
FROM (VALUES (repeat('p', 1024), NULL), (repeat('p', 1025), NULL), ('', NULL),
	('p', '"' || repeat('d', 2000000) || '"')) v (point, data);

--
-- Giving up, and forgetting.
--
SELECT outcome, attempt FROM idem_claim('finish', 'released', '{"a": 1}', context => '\x01');
SELECT pg_temp.token('released') AS first_token \gset
SELECT idem_release('finish', 'released', :first_token);
SELECT idem_release('finish', 'released', :first_token) AS again;
SELECT l IS NULL AS no_such_key FROM idem_lookup('finish', 'released') l;
SELECT pg_temp.error_of(format('SELECT idem_complete(''finish'', ''released'', token => %s)', :first_token)) AS complete;
SELECT outcome, attempt, token > :first_token AS greater FROM idem_claim('finish', 'released', '{"a": 2}');
SELECT pg_temp.error_of(format('SELECT idem_release(''finish'', ''released'', %s)', :first_token)) AS stale;
BEGIN;
SELECT outcome, attempt FROM idem_claim('finish', 'released here');
SELECT idem_release('finish', 'released here');
SELECT outcome, attempt FROM idem_claim('finish', 'released here');
ROLLBACK;

SELECT idem_forget('finish', 'released'), idem_forget('finish', 'twice'), idem_forget('finish', 'fail 1'),
	idem_forget('finish', 'fail 3'), idem_forget('finish', 'twice') AS again;
SELECT action, entity, entity_id = idem_log_id('finish') || '/' || idem_log_id(key) AS right_id, attempt, token IS NOT NULL AS token
FROM idempotency_audit_log, unnest(ARRAY['released', 'twice', 'fail 1', 'fail 3']) key
WHERE entity_id LIKE idem_log_id('finish') || '/' || idem_log_id(key) ORDER BY id;
SELECT outcome, attempt FROM idem_claim('finish', 'twice');

SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'finish-%';

-- No token is below zero: -1 is a wrong one, not none.
SET client_min_messages = warning;
BEGIN;
SELECT outcome FROM idem_claim('finish-negative', 'k');
\set VERBOSITY sqlstate
SELECT idem_complete('finish-negative', 'k', token => -1);
ROLLBACK;
\set VERBOSITY default
