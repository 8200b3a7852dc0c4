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

-- idem_fingerprint is the SHA-256 of idem_canonical.
SELECT idem_canonical('{"b": 1, "a": 2}'), idem_fingerprint('{"b": 1, "a": 2}') = sha256('{"a":2,"b":1}') AS fingerprint;

-- idem_grant.
CREATE ROLE "regress_idem ""odd""";
SELECT level, regress.sqlstate_of(format('SELECT idem_grant(''"regress_idem ""odd"""'', %L)', level))
FROM unnest(ARRAY['app', 'operator', 'auditor', 'monitor', 'App', 'all', '', NULL]) level;
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
