--
-- The helpers around keys: scopes, headers, answers, contexts.
--
--
-- idem_scope joins by U+001E.
--
SELECT idem_scope('a', 'b', 'c') = E'a\u001eb\u001ec' AS joined, idem_scope('a') AS one,
	idem_scope(VARIADIC ARRAY['POST', '/api/events']) = E'POST\u001e/api/events' AS variadic,
	idem_scope('ä', '😀 ', '%') = E'ä\u001e😀 \u001e%' AS any_character;
-- different components never make the same scope
SELECT idem_scope('a', 'bc') <> idem_scope('ab', 'c') AS shifted, idem_scope('a', 'b') <> idem_scope('ab') AS joined;
SELECT what, regress.sqlstate_of(format('SELECT idem_scope(%s)', args)) FROM (VALUES
	('null', 'NULL::text'), ('a null', '''a'', NULL'), ('null array', 'VARIADIC NULL::text[]'), ('no component', 'VARIADIC ''{}''::text[]'),
	('empty', ''''''), ('an empty one', '''a'', '''', ''b'''), ('U+001E', 'E''a\u001eb'''), ('U+0001', 'E''\u0001'''),
	('tab', 'E''a\tb'''), ('new line', 'E''a\n'''), ('DEL', 'E''a\u007f'''), ('U+0080', 'E''a\u0080'''), ('U+009F', 'E''\u009fa'''),
	('U+00A0', 'E''a\u00a0'''), ('space', ''' '''),
	('1024 bytes', 'repeat(''a'', 1000), repeat(''b'', 23)'), ('1025 bytes', 'repeat(''a'', 1000), repeat(''b'', 24)'),
	('1024 in bytes', 'repeat(''ä'', 512)'), ('1026 in bytes', 'repeat(''ä'', 513)')) v (what, args);

--
-- idem_key: a structured string of RFC 8941, or the bare key.
--
SELECT what, '>' || idem_key(header) || '<' AS key FROM (VALUES
	('string', '"8e03978e-40d5-43dd-bc93-6894a57f9324"'), ('bare', '8e03978e-40d5-43dd-bc93-6894a57f9324'),
	('spaces around', E' \t "k" '), ('bare, spaces around', E' \tk '), ('space in it', '"a b"'), ('escapes', '"a\"b\\c"'),
	('parameters', '"k";a=1;b="x;\"y";c'), ('parameter with spaces', '"k" ; a=1'), ('comma in the string', '"a,b"'),
	('semicolon in the string', '"a;b"'), ('one character', 'x'), ('equals sign', 'a=b=='), ('1024 bytes', repeat('k', 1024)))
	v (what, header) WHERE length(idem_key(header)) < 100;
SELECT what, regress.sqlstate_of(format('SELECT idem_key(%L)', header)) FROM (VALUES
	('null', NULL), ('empty', ''), ('spaces', '  '), ('empty string', '""'), ('no end', '"a'), ('only a quote', '"'), ('escape at the end', '"a\'),
	('escape of nothing', '"a\b"'), ('control character', E'"a\tb"'), ('DEL', E'"a\x7f"'), ('not ASCII', '"ä"'), ('bare, not ASCII', 'ä'),
	('more after it', '"a" b'), ('two', '"a", "b"'), ('two, bare', 'a, b'), ('bare with space', 'a b'), ('bare with parameter', 'a;b=1'),
	('bare with quote', 'a"b'), ('bare with backslash', 'a\b'), ('bad parameter', '"a";'), ('bad parameter', '"a";A=1'), ('no end in parameter', '"a";b="c'),
	('1025 bytes', repeat('k', 1025)), ('1025 bytes', '"' || repeat('k', 1025) || '"')) v (what, header);

--
-- idem_log_id: the first 16 hex digits of a SHA-256.
--
SELECT value, idem_log_id(value), idem_log_id(value) = left(encode(sha256(convert_to(value, 'UTF8')), 'hex'), 16) AS right
FROM unnest(ARRAY['', 'a', 'order-4711', 'ä😀']) value;
SELECT idem_log_id(NULL) IS NULL AS "null";

--
-- idem_respond and idem_json.
--
SELECT status_code, headers, content_type, convert_from(body, 'UTF8') AS body
FROM unnest(ARRAY[idem_respond(201, '{"a":  1, "a": 2}', '[{"A": "1"}, {"A":  "2"}]'), idem_respond(204, NULL),
	idem_respond(100, 'null'), idem_respond(599, '"ä😀"', '{}')]) r;
SELECT args, regress.sqlstate_of(format('SELECT idem_respond(%s)', args))
FROM unnest(ARRAY['NULL, ''{}''', '99, ''{}''', '600, ''{}''', '-1, ''{}''', '200, ''{}'', ''1''', '200, ''{}'', ''"a"''', '200, ''{}'', ''null''', '200, ''{'''])
	args;
SELECT body, idem_json(ROW('replayed', 1, NULL, 200, NULL, 'text/plain', convert_to(body, 'UTF8'), NULL, NULL, NULL, NULL, NULL,
						   NULL, NULL, NULL, NULL, NULL, NULL, NULL)::idem_result) AS json
FROM unnest(ARRAY[' {"b":1,  "a" : [1.0]}', '1', '"\u0000"', '', '{', 'text', 'null', '{"a":1,"a":2}', '"ä😀"']) body;
SELECT body, idem_json(ROW('replayed', 1, NULL, 200, NULL, 'application/json', body, NULL, NULL, NULL, NULL, NULL,
						   NULL, NULL, NULL, NULL, NULL, NULL, NULL)::idem_result) AS json
FROM unnest(ARRAY[NULL, '\x22ff22', '\x220022', '\x226122', '\xeda080', '\x22c3', '\xefbbbf31']::bytea[]) body;
SELECT idem_json(NULL) IS NULL AS "null";

--
-- idem_context and idem_secret, in a transaction that is rolled back.
--
BEGIN;
DELETE FROM idempotency_secrets;
SELECT regress.sqlstate_of($$SELECT idem_context('a', 'b')$$) AS no_secret;
SELECT idem_secret('audit', '\x000102030405060708090a0b0c0d0e0f') AS audit_key;
SELECT idem_context('a', 'b') AS by_audit \gset
SELECT length(:'by_audit'::bytea) AS bytes, substr(:'by_audit'::bytea, 1, 4) AS key_id;
SELECT idem_secret('context', '\x000102030405060708090a0b0c0d0e0f') AS context_key;
SELECT idem_context('a', 'b') AS by_context \gset
-- the secret "context" comes before "audit"; the key id tells which it was
SELECT substr(:'by_context'::bytea, 1, 4) AS key_id, idem_context('a', 'b') = :'by_context'::bytea AS same,
	-- the same secret for another purpose: the derived key is that of contexts
	substr(:'by_context'::bytea, 5) = substr(:'by_audit'::bytea, 5) AS by_its_use;
-- HMAC-SHA256 over the components, each after its length, with a derived key
SELECT substr(:'by_context'::bytea, 5) = hmac('\x000000016100000001' || 'b'::bytea,
	hmac('idempotency 1 context'::bytea, '\x000102030405060708090a0b0c0d0e0f', 'sha256'), 'sha256') AS as_documented;
SELECT substr(:'by_context'::bytea, 5) <> hmac('\x000000016100000001' || 'b'::bytea, '\x000102030405060708090a0b0c0d0e0f', 'sha256') AS not_by_the_secret;
-- other components, other bytes
SELECT count(DISTINCT c) AS different FROM unnest(ARRAY[
	idem_context('a', 'bc'), idem_context('ab', 'c'), idem_context('abc'), idem_context('abc', ''), idem_context('', 'abc'),
	idem_context('a', 'b', 'c'), idem_context('A', 'bc'), idem_context(E'a\u001ebc')]) c;
SELECT regress.sqlstate_of($$SELECT idem_context(NULL::text)$$) AS "null", regress.sqlstate_of($$SELECT idem_context('a', NULL)$$) AS a_null,
	regress.sqlstate_of($$SELECT idem_context(VARIADIC '{}'::text[])$$) AS "none";
-- a new secret: another key id and other bytes
SELECT idem_secret('context', '\x101112131415161718191a1b1c1d1e1f') AS next_key;
SELECT substr(idem_context('a', 'b'), 1, 4) AS key_id, substr(idem_context('a', 'b'), 5) <> substr(:'by_context'::bytea, 5) AS other;
-- a new one for "audit" changes nothing here
SELECT idem_secret('audit', '\x202122232425262728292a2b2c2d2e2f') AS next_audit_key;
SELECT substr(idem_context('a', 'b'), 1, 4) AS key_id;
SELECT key_id, purpose, length(secret) AS bytes FROM idempotency_secrets ORDER BY key_id;
SELECT regress.sqlstate_of($$SELECT idem_secret('context', '\x000102030405060708090a0b0c0d0e')$$) AS "15 bytes",
	regress.sqlstate_of($$SELECT idem_secret('context', convert_to(repeat('s', 1024), 'UTF8'))$$) AS "1024 bytes",
	regress.sqlstate_of($$SELECT idem_secret('context', convert_to(repeat('s', 1025), 'UTF8'))$$) AS "1025 bytes",
	regress.sqlstate_of($$SELECT idem_secret('Context', '\x000102030405060708090a0b0c0d0e0f')$$) AS purpose;
CREATE ROLE regress_idem_user;
SELECT idem_grant('regress_idem_user', 'app');
GRANT EXECUTE ON FUNCTION idem_secret TO regress_idem_user;
SET LOCAL ROLE regress_idem_user;
SELECT regress.sqlstate_of($$SELECT idem_secret('context', '\x000102030405060708090a0b0c0d0e0f')$$) AS set_by_user,
	regress.sqlstate_of($$SELECT * FROM idempotency_secrets$$) AS read_by_user;
SELECT length(idem_context('a', 'b')) AS used_by_user;
RESET ROLE;
ROLLBACK;

-- idem_fingerprint is the SHA-256 of idem_canonical.
SELECT idem_canonical('{"b": 1, "a": 2}'), idem_fingerprint('{"b": 1, "a": 2}') = sha256('{"a":2,"b":1}') AS fingerprint;

-- idem_grant.
CREATE ROLE "regress_idem ""odd""";
SELECT level, regress.sqlstate_of(format('SELECT idem_grant(''"regress_idem ""odd"""'', %L)', level))
FROM unnest(ARRAY['app', 'operator', 'auditor', 'App', 'all', '', NULL]) level;
SELECT regress.sqlstate_of($$SELECT idem_grant('regress_idem_absent', 'app')$$) AS absent;
DROP ROLE "regress_idem ""odd""";

-- idem_health: what it checks, and that all is well; a worker needs preload.
CALL idem_sweep_all();
-- Keys of other scripts name roles that are gone.
SELECT check_name FROM idem_health() WHERE NOT ok AND check_name NOT IN ('worker', 'pg_cron', 'server_version', 'roles');
SELECT name AS not_checked FROM unnest(ARRAY['schema_safe', 'primary_key', 'key_columns', 'storage', 'worker', 'sweep_lag', 'triggers', 'server_version', 'pgcrypto', 'audit_owner', 'audit_seals', 'http_exposed']) name
WHERE name NOT IN (SELECT check_name FROM idem_health());

-- It sees a trigger of ours that is gone, and one that is not ours.
BEGIN;
DROP TRIGGER idempotency_audit_guard_row ON idempotency_audit_log;
SELECT ok, detail FROM idem_health() WHERE check_name = 'triggers';
ROLLBACK;
BEGIN;
CREATE TRIGGER foreign_one BEFORE INSERT ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
-- in partitions, where there are any, it is as well
SELECT ok, split_part(detail, ', ', 1) AS detail FROM idem_health() WHERE check_name = 'triggers';
ROLLBACK;

-- It sees a table of keys of another shape, and asks no more of it.
BEGIN;
ALTER TABLE idempotency_keys DROP COLUMN checkpoint;
SELECT check_name, detail FROM idem_health() WHERE NOT ok AND check_name LIKE 'key%';
ROLLBACK;
BEGIN;
ALTER TABLE idempotency_keys RENAME TO idempotency_keys_before;
CREATE TABLE idempotency_keys (scope text COLLATE "C", key text, state "char", purge_at text, PRIMARY KEY (scope, key));
SELECT check_name, detail ~ ' key, ' AS collation, detail ~ 'purge_at' AS type, detail ~ 'created_at' AS missing, detail ~ 'scope|state' AS others
FROM idem_health() WHERE NOT ok AND check_name LIKE 'key%';
ROLLBACK;

-- Two secrets set by one statement have two key ids.
BEGIN;
SELECT a < b AS in_order FROM (SELECT idem_secret('context', convert_to(repeat('c', 16), 'UTF8')) AS a,
	idem_secret('audit', convert_to(repeat('a', 16), 'UTF8')) AS b) s;
ROLLBACK;
