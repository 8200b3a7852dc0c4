--
-- The settings: the table of doc/settings.md is checked against this one.
--
-- the library is loaded by the first call
SELECT idem_log_id('a') IS NOT NULL AS loaded;

SELECT name, boot_val, unit, min_val, max_val, enumvals, context, vartype
FROM pg_settings WHERE name LIKE 'idempotency.%' ORDER BY name COLLATE "C";
SELECT name, short_desc FROM pg_settings WHERE name LIKE 'idempotency.%' ORDER BY name COLLATE "C";

-- A superuser may change them, within bounds and in units.
SET idempotency.max_ttl = '2 d';
SHOW idempotency.max_ttl;
SET idempotency.max_lease = '90 min';
SHOW idempotency.max_lease;
SET idempotency.max_wait = '2 s';
SHOW idempotency.max_wait;
RESET idempotency.max_ttl;
RESET idempotency.max_lease;
RESET idempotency.max_wait;
-- The way to the key table, and what is said of it.
SET idempotency.storage = 'sql';
SHOW idempotency.storage;
SELECT ok, detail FROM idem_health() WHERE check_name = 'storage';
SET idempotency.storage = 'auto';
SHOW idempotency.storage;
SELECT ok, split_part(detail, ':', 1) = CASE relkind WHEN 'r' THEN 'direct' ELSE 'sql' END AS as_said
FROM idem_health(), pg_class WHERE check_name = 'storage' AND oid = 'idempotency_keys'::regclass;
RESET idempotency.storage;
\set VERBOSITY sqlstate
SELECT format('SET %s = %L', name, (CASE i WHEN 1 THEN min_val::bigint - 1 ELSE max_val::bigint + 1 END)::text)
FROM pg_settings, generate_series(1, 2) i WHERE name LIKE 'idempotency.%' AND vartype = 'integer' ORDER BY name COLLATE "C", i \gexec
SET idempotency.storage = 'direct';
SET idempotency.storage = '';
-- there are no others
SET idempotency.nonsense = 1;
SET idempotency.max_ttll = 1;

-- An ordinary role can change none of them.
CREATE ROLE regress_idem_user;
SET ROLE regress_idem_user;
SELECT format('SET %s = %L', name, boot_val) FROM pg_settings WHERE name LIKE 'idempotency.%' ORDER BY name COLLATE "C" \gexec
RESET ROLE;
\set VERBOSITY default
DROP ROLE regress_idem_user;
