--
-- The extension's members: each has a comment, decided properties and a
-- decided ACL.  A new one fails here until it has.
--
CREATE TEMP VIEW members AS
SELECT classid, objid, i.type, i.identity
FROM pg_depend d, LATERAL pg_identify_object(classid, objid, objsubid) i
WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
	AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotency')
	-- since 16 the array and row types that come by themselves are members, too
	AND (classid <> 'pg_type'::regclass OR NOT EXISTS (
		SELECT FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
		WHERE t.oid = objid AND (t.typcategory = 'A' OR c.relkind <> 'c')));

SELECT extname, extrelocatable, extversion, r.requires, r.superuser, r.trusted, r.relocatable
FROM pg_extension e JOIN pg_available_extension_versions r ON r.name = e.extname AND r.version = e.extversion
WHERE extname = 'idempotency';
-- dumped with their rows: all tables but the secrets, and the sequence
SELECT relname, relkind, relpersistence FROM pg_extension e JOIN pg_class c ON c.oid = ANY (extconfig)
WHERE extname = 'idempotency' ORDER BY relname COLLATE "C";
SELECT extcondition FROM pg_extension WHERE extname = 'idempotency';

-- Everything but functions.
SELECT type, identity FROM members WHERE type NOT IN ('function', 'procedure') ORDER BY type COLLATE "C", identity COLLATE "C";
SELECT c.relname, t.tgname, t.tgfoid::regproc, t.tgenabled, t.tgdeferrable
FROM members m JOIN pg_trigger t ON m.classid = 'pg_class'::regclass AND t.tgrelid = m.objid AND NOT t.tgisinternal
	JOIN pg_class c ON c.oid = t.tgrelid
ORDER BY 1, 2;
SELECT c.relname, i.indexrelid::regclass, pg_get_indexdef(i.indexrelid)
FROM members m JOIN pg_index i ON m.classid = 'pg_class'::regclass AND i.indrelid = m.objid JOIN pg_class c ON c.oid = i.indrelid
ORDER BY 1, 2;

-- Without a comment: nothing but the sequence, which belongs to its column.
SELECT type, identity FROM members
WHERE obj_description(objid, (SELECT relname FROM pg_class WHERE oid = classid)) IS NULL
ORDER BY type COLLATE "C", identity COLLATE "C";
SELECT t.tgname AS trigger_without_comment
FROM members m JOIN pg_trigger t ON m.classid = 'pg_class'::regclass AND t.tgrelid = m.objid AND NOT t.tgisinternal AND t.tgparentid = 0
WHERE obj_description(t.oid, 'pg_trigger') IS NULL;

--
-- Functions: volatility, strictness, parallel safety, and who may execute
-- them by the levels of idem_grant.
--
CREATE ROLE regress_idem_app;
CREATE ROLE regress_idem_operator;
CREATE ROLE regress_idem_auditor;
CREATE ROLE regress_idem_monitor;
CREATE ROLE regress_idem_nobody;
SELECT idem_grant('regress_idem_app', 'app'), idem_grant('regress_idem_operator', 'operator'),
	idem_grant('regress_idem_auditor', 'auditor'), idem_grant('regress_idem_monitor', 'monitor');

SELECT p.proname AS name, count(*) AS n, p.provolatile AS v, p.proisstrict AS strict, p.proparallel AS p,
	bool_or(has_function_privilege('public', p.oid, 'EXECUTE')) AS public,
	bool_and(has_function_privilege('regress_idem_app', p.oid, 'EXECUTE')) AS app,
	bool_and(has_function_privilege('regress_idem_operator', p.oid, 'EXECUTE')) AS operator,
	bool_and(has_function_privilege('regress_idem_auditor', p.oid, 'EXECUTE')) AS auditor
FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
GROUP BY 1, 3, 4, 5 ORDER BY 1;

-- the level monitor has what the level operator has, but nothing that changes something or names a key
SELECT string_agg(p.proname, ' ' ORDER BY p.proname) AS monitor, bool_and(has_function_privilege('regress_idem_operator', p.oid, 'EXECUTE')) AS operator_too
FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid, aclexplode(p.proacl) a WHERE a.grantee = 'regress_idem_monitor'::regrole;

-- No function runs as its owner, none is in SQL without a parsed body, and
-- none takes or returns "internal".
SELECT identity FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
WHERE p.prosecdef OR p.proconfig IS NOT NULL
	OR p.prolang NOT IN (SELECT oid FROM pg_language WHERE lanname IN ('c', 'sql'))
	OR (p.prolang = (SELECT oid FROM pg_language WHERE lanname = 'sql') AND p.prosqlbody IS NULL)
	OR 'internal'::regtype = ANY (p.proargtypes || p.prorettype)
	OR (p.probin IS NOT NULL AND p.probin <> 'idempotency');
-- a function that is executable by PUBLIC touches no table
SELECT proname FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
WHERE has_function_privilege('public', p.oid, 'EXECUTE') AND (p.provolatile <> 'i' OR p.proparallel <> 's');

-- Relations.
SELECT c.relname, c.relkind, c.relrowsecurity AS rls,
	r.role, concat_ws(', ', CASE WHEN has_table_privilege(r.role, c.oid, 'SELECT') THEN 'select' END,
					  CASE WHEN has_table_privilege(r.role, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER') THEN 'change' END) AS may
FROM members m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid AND c.relkind IN ('r', 'v', 'm', 'p', 'f'),
	unnest(ARRAY['public', 'regress_idem_app', 'regress_idem_operator', 'regress_idem_auditor', 'regress_idem_monitor']) r (role)
WHERE has_table_privilege(r.role, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
	OR r.role = 'public'
ORDER BY 1, 4;
SELECT c.relname FROM members m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid AND c.relkind = 'S'
WHERE CASE c.relkind WHEN 'S' THEN has_sequence_privilege('public', c.oid, 'USAGE, SELECT, UPDATE') END;

-- The levels do what they are for, as those roles.
SET ROLE regress_idem_app;
SELECT outcome FROM idem_claim('members', 'app');
RESET ROLE;
SET ROLE regress_idem_auditor;
SELECT count(*) >= 0 AS log FROM idempotency_audit_log;
SELECT count(*) >= 0 AS seals FROM idempotency_audit_seals;
SELECT idem_audit_seal() >= 0 AS sealed, idem_audit_digest() IS NOT NULL AS digest;
SELECT count(*) AS problems FROM idem_audit_verify();
SELECT count(*) > 0 AS policies FROM idem_policy_list;
SELECT count(*) > 0 AS health FROM idem_health();
RESET ROLE;
SET ROLE regress_idem_operator;
SELECT count(*) > 0 AS policies FROM idem_policy_list;
SELECT idem_policy('members-operator'), idem_policy_drop('members-operator');
RESET ROLE;
SET ROLE regress_idem_monitor;
SELECT count(*) > 0 AS health FROM idem_health();
SELECT count(*) >= 0 AS stats FROM idem_stats;
SELECT count(*) >= 0 AS activity FROM idem_activity;
SELECT count(*) AS sweep_status FROM idem_sweep_status;
SELECT count(*) >= 0 AS throttle_activity FROM idem_throttle_activity;
RESET ROLE;
SET ROLE regress_idem_nobody;
\set VERBOSITY sqlstate
SELECT idem_claim('members', 'nobody');
SELECT count(*) FROM idem_policy_list;
SELECT count(*) FROM idempotency_audit_log;
\set VERBOSITY default
SELECT idem_scope('a', 'b') IS NOT NULL AS helpers;
RESET ROLE;

-- The types.
SELECT enumlabel FROM pg_enum WHERE enumtypid = 'idem_outcome'::regtype ORDER BY enumsortorder;
SELECT attrelid::regclass AS type, string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum) AS columns
FROM pg_attribute WHERE attrelid IN ('idem_response'::regclass, 'idem_result'::regclass) GROUP BY 1 ORDER BY 1;
-- the signatures
\pset format unaligned
\pset tuples_only on
SELECT p.proname || '(' || pg_get_function_arguments(p.oid) || ') ' || COALESCE(pg_get_function_result(p.oid), 'procedure')
FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
ORDER BY p.oid::regprocedure::text COLLATE "C";
\pset tuples_only off
\pset format aligned

DROP OWNED BY regress_idem_app, regress_idem_operator, regress_idem_auditor, regress_idem_monitor;
DROP ROLE regress_idem_app, regress_idem_operator, regress_idem_auditor, regress_idem_monitor, regress_idem_nobody;
