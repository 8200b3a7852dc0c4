/*-------------------------------------------------------------------------
 *
 * health_rights.c
 *	  Checks of whose our objects are, and who may what.
 *
 * A superuser may everything and is named nowhere.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_namespace.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "admin/health.h"
#include "idem.h"

/*
 * Whether only its owner may create in a schema (a superuser always may).
 */
static bool
schema_is_safe(Oid schema)
{
	HeapTuple	tuple = SearchSysCache1(NAMESPACEOID, ObjectIdGetDatum(schema));
	bool		safe = true;
	bool		isnull;
	Datum		datum;
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for schema %u", schema);
	owner = ((Form_pg_namespace) GETSTRUCT(tuple))->nspowner;
	datum = SysCacheGetAttr(NAMESPACEOID, tuple, Anum_pg_namespace_nspacl,
							&isnull);
	if (!isnull)				/* by default nobody but the owner may */
	{
		Acl		   *acl = DatumGetAclP(datum);
		const AclItem *items = ACL_DAT(acl);
		int			i;

		for (i = 0; i < ACL_NUM(acl); i++)
			if (items[i].ai_grantee != owner &&
				(ACLITEM_GET_PRIVS(items[i]) & ACL_CREATE) != 0)
				safe = false;
	}
	ReleaseSysCache(tuple);
	return safe;
}

IDEM_FUNCTION(idem_schema_check);

/*
 * idem_schema_check() RETURNS void
 *		Of the install script: refuse the schema that this function is in when
 *		others than its owner can create objects there; 42501.
 */
Datum
idem_schema_check(PG_FUNCTION_ARGS)
{
	Oid			schema = get_func_namespace(fcinfo->flinfo->fn_oid);

	if (!schema_is_safe(schema))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("schema \"%s\" is not safe for extension \"idempotency\"",
						get_namespace_name(schema)),
				 errdetail("Others than its owner have the privilege CREATE on it."),
				 errhint("CREATE SCHEMA idempotency, then CREATE EXTENSION idempotency SCHEMA idempotency CASCADE.")));
	PG_RETURN_VOID();
}

/* The members of our extension of a catalog. */
#define MEMBERS(catalog) \
	"SELECT d.objid FROM pg_depend d WHERE d.classid = '" catalog "'::regclass" \
	" AND d.refclassid = 'pg_extension'::regclass AND d.refobjid = $4" \
	" AND d.deptype = 'e'"

/* Executable by PUBLIC. */
#define FOR_ALL \
	"('idem_canonical', 'idem_fingerprint', 'idem_scope', 'idem_log_id'," \
	" 'idem_key', 'idem_json', 'idem_respond')"

/* In no level, and documented for nobody but a superuser. */
#define FOR_NOBODY \
	"('idem_secret', 'idem_secret_drop', 'idem_grant', 'idem_audit_prune', 'idem_distribute', 'idem_distribute_node'," \
	" 'idem_policy_changed', 'idem_limiter_changed', 'idem_audit_guard')"

/* Columns of the keys that tell nothing of a request. */
#define TELLS_NOTHING \
	"('state', 'attempt', 'created_at', 'finished_at', 'lease_until'," \
	" 'expires_at', 'purge_at', 'ttl', 'status_code', 'policy', 'body_size')"

const IdemHealthCheck idem_health_rights[] = {
	/* The owner of the database is the member of pg_database_owner. */
	{
		"schema_safe", IDEM_HEALTH_OWNER,
		"SELECT count(*) = 0, CASE WHEN count(*) = 0"
		" THEN 'it belongs to a superuser, and nobody else may create objects in it'"
		" ELSE string_agg(d.detail, '; ' ORDER BY d.detail) END FROM ("
		"SELECT format('%s has CREATE on it: revoke that', CASE WHEN a.grantee = 0 THEN 'PUBLIC'"
		" ELSE a.grantee::regrole::text END) AS detail"
		" FROM pg_namespace n, aclexplode(n.nspacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee"
		" WHERE n.oid = $3 AND a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner"
		" AND NOT coalesce(r.rolsuper, false)"
		/* who owns a shard makes it anew where it is moved to */
		" AND NOT (to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL"
		" AND a.grantee = (SELECT k.relowner FROM pg_class k WHERE k.oid = ($1)[1]))"
		" UNION ALL SELECT format('it belongs to %s, who is no superuser and can drop what is in it', o.owner::regrole)"
		" FROM pg_namespace n JOIN pg_database b ON b.datname = current_database(),"
		" LATERAL (SELECT CASE WHEN n.nspowner = 'pg_database_owner'::regrole"
		" THEN b.datdba ELSE n.nspowner END AS owner) o JOIN pg_roles r ON r.oid = o.owner"
		" WHERE n.oid = $3 AND NOT r.rolsuper) d"
	},
	{
		"owner", IDEM_HEALTH_OWNER,
		"SELECT count(DISTINCT c.relowner) = 1,"
		" CASE WHEN count(DISTINCT c.relowner) > 1 THEN 'give these tables to one role: '"
		" || string_agg(format('%s of %I', c.relname, r.rolname), ', ' ORDER BY c.relname)"
		" WHEN bool_and(r.rolsuper) THEN 'a superuser; a NOLOGIN role would do'"
		" ELSE min(r.rolname) END"
		" FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner"
		" WHERE c.oid = ANY ($1)"
		" AND c.relname IN ('idempotency_keys', 'idempotency_policies', 'idempotency_limiters')"
	},
	/* All is done as the owner of the keys: he needs no more than this. */
	{
		"owner_access", IDEM_HEALTH_CALLER,
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'the owner of the keys can use the schema and its tables'"
		" ELSE string_agg(d.command, '; ' ORDER BY d.command) END FROM ("
		"SELECT format('GRANT USAGE ON SCHEMA %s TO %s', n.oid::regnamespace, c.relowner::regrole) AS command"
		" FROM pg_namespace n JOIN pg_class c ON c.oid = ($1)[1]"
		" WHERE n.oid = $3 AND NOT has_schema_privilege(c.relowner, n.oid, 'USAGE')"
		" UNION ALL SELECT format('GRANT ALL ON %s.%I TO %s', $3::regnamespace, c.relname, k.relowner::regrole)"
		" FROM pg_class c JOIN pg_class k ON k.oid = ($1)[1]"
		" WHERE c.oid = ANY ($1)"
		" AND c.relname IN ('idempotency_keys', 'idempotency_policies', 'idempotency_limiters')"
		" AND NOT (has_table_privilege(k.relowner, c.oid, 'SELECT') AND has_table_privilege(k.relowner, c.oid, 'INSERT')"
		" AND has_table_privilege(k.relowner, c.oid, 'UPDATE') AND has_table_privilege(k.relowner, c.oid, 'DELETE'))) d"
	},
	{
		"audit_owner", IDEM_HEALTH_OWNER,
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'only a superuser can change the log, its seals and the secrets'"
		" ELSE 'can be changed by ' || string_agg(format('%s: %s', d.owner::regrole, d.what), ', ' ORDER BY d.what) END"
		" FROM (SELECT c.relowner AS owner, c.relname::text AS what FROM pg_class c WHERE c.oid = ANY ($2)"
		" OR c.oid = ANY ($1) AND c.relname IN ('idempotency_secrets', 'idempotency_audit_origin')"
		" UNION ALL SELECT CASE WHEN n.nspowner = 'pg_database_owner'::regrole THEN b.datdba ELSE n.nspowner END,"
		" 'all, as owner of the schema' FROM pg_namespace n JOIN pg_database b ON b.datname = current_database()"
		" WHERE n.oid = $3"
		" UNION ALL SELECT e.extowner, 'all, as owner of the extension' FROM pg_extension e WHERE e.oid = $4"
		" UNION ALL SELECT p.proowner, p.proname::text FROM pg_proc p"
		" WHERE p.pronamespace = $3 AND p.proname = 'idem_audit_guard') d"
		" JOIN pg_roles r ON r.oid = d.owner WHERE NOT r.rolsuper"
	},
	/* Beyond what idem_grant gives, and what the documentation does. */
	{
		"grants", IDEM_HEALTH_OWNER,
		"WITH r AS (SELECT c.oid, c.relname, c.relowner, c.relacl,"
		" c.relkind = 'v' OR c.relname IN ('idempotency_limiters', 'idempotency_audit_log', 'idempotency_audit_seals')"
		" AS readable, CASE WHEN c.oid = ANY ($2) AND c.relispartition THEN"
		" (SELECT l.relacl FROM pg_class l WHERE l.relnamespace = $3 AND l.relname = 'idempotency_audit_log') END AS whole"
		" FROM pg_class c WHERE c.oid = ANY ($1) OR c.oid IN (" MEMBERS("pg_class") ")),"
		" g (object, owner, grantee, privilege) AS ("
		"SELECT r.relname::text, r.relowner, a.grantee, a.privilege_type FROM r, aclexplode(r.relacl) a"
		" WHERE NOT (a.privilege_type = 'SELECT' AND a.grantee <> 0 AND (r.readable"
		" OR a.grantee IN (SELECT w.grantee FROM aclexplode(r.whole) w WHERE w.privilege_type = 'SELECT')))"
		" UNION ALL SELECT format('%s (%s)', r.relname, t.attname), r.relowner, a.grantee, a.privilege_type"
		" FROM r JOIN pg_attribute t ON t.attrelid = r.oid AND NOT t.attisdropped, aclexplode(t.attacl) a"
		" WHERE NOT (a.privilege_type = 'SELECT' AND a.grantee <> 0 AND (r.readable"
		" OR r.oid = ($1)[1] AND t.attname IN " TELLS_NOTHING "))"
		" UNION ALL SELECT p.proname || '()', p.proowner, a.grantee, a.privilege_type"
		" FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a"
		" WHERE p.oid IN (" MEMBERS("pg_proc") ")"
		" AND CASE WHEN a.grantee = 0 THEN p.proname NOT IN " FOR_ALL
		" ELSE p.proname IN " FOR_NOBODY " AND NOT ("
		/* with its triggers, where Citus is */
		"p.proname IN ('idem_policy_changed', 'idem_limiter_changed')"
		" AND to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL"
		" AND a.grantee = (SELECT k.relowner FROM pg_class k WHERE k.oid = ($1)[1])) END)"
		" SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'nothing beyond what idem_grant gives'"
		" ELSE 'revoke: ' || string_agg(DISTINCT format('%s on %s from %s', g.privilege, g.object,"
		" CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END), ', ') END"
		" FROM g LEFT JOIN pg_roles o ON o.oid = g.grantee"
		" WHERE g.grantee <> g.owner AND NOT coalesce(o.rolsuper, false)"
	},
	/* Nobody but a superuser can make a function in C, or have owned one. */
	{
		"objects", IDEM_HEALTH_OWNER,
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'functions and views are all there, and as they were made'"
		" ELSE string_agg(d.detail, ', ' ORDER BY d.detail) END FROM ("
		"SELECT 'missing: ' || w.name AS detail FROM (VALUES ('idem_complete', 4), ('idem_fail', 4), ('idem_http_problem', 2)"
		" UNION ALL SELECT unnest(ARRAY['idem_activity_values', 'idem_audit', 'idem_audit_digest', 'idem_audit_guard',"
		" 'idem_audit_prune', 'idem_audit_seal', 'idem_audit_verify', 'idem_canonical', 'idem_checkpoint',"
		" 'idem_claim', 'idem_context', 'idem_dedupe', 'idem_distribute', 'idem_distribute_node', 'idem_end_lease', 'idem_extend', 'idem_find', 'idem_fingerprint',"
		" 'idem_forget', 'idem_forget_scope', 'idem_grant', 'idem_health', 'idem_holder',"
		" 'idem_http_headers', 'idem_http_run', 'idem_http_time', 'idem_json', 'idem_key', 'idem_key_lock',"
		" 'idem_limiter', 'idem_limiter_changed', 'idem_limiter_drop', 'idem_log_id', 'idem_lookup', 'idem_policy',"
		" 'idem_policy_changed', 'idem_policy_drop', 'idem_policy_values', 'idem_recover', 'idem_release', 'idem_require',"
		" 'idem_respond', 'idem_run', 'idem_schedule', 'idem_scope', 'idem_secret', 'idem_secret_drop', 'idem_stats_reset',"
		" 'idem_stats_values', 'idem_sweep', 'idem_sweep_all', 'idem_sweep_status_values', 'idem_throttle',"
		" 'idem_throttle_activity_values', 'idem_throttle_all', 'idem_throttle_peek', 'idem_throttle_return',"
		" 'idem_unschedule']), 1) w (name, number)"
		" WHERE w.number > (SELECT count(*) FROM pg_proc p WHERE p.pronamespace = $3 AND p.proname = w.name"
		" AND p.oid IN (" MEMBERS("pg_proc") "))"
		" UNION ALL SELECT 'missing: ' || w.name FROM unnest(ARRAY['idem_activity', 'idem_policy_list', 'idem_stats',"
		" 'idem_sweep_status', 'idem_throttle_activity']) w (name)"
		" WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = $3 AND c.relname = w.name AND c.relkind = 'v')"
		" UNION ALL SELECT CASE WHEN l.lanname <> 'c' OR NOT starts_with(p.prosrc, p.proname::text)"
		" OR p.probin IS DISTINCT FROM (SELECT h.probin FROM pg_proc h WHERE h.pronamespace = $3 AND h.proname = 'idem_health')"
		" THEN format('%s is not of this library', p.proname)"
		" WHEN p.prosecdef THEN format('%s is SECURITY DEFINER', p.proname)"
		" WHEN p.proconfig IS NOT NULL THEN format('%s has settings of its own', p.proname)"
		" WHEN NOT r.rolsuper THEN format('%s belongs to %I', p.proname, r.rolname) END"
		" FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang JOIN pg_roles r ON r.oid = p.proowner"
		" WHERE p.oid IN (" MEMBERS("pg_proc") ")) d WHERE d.detail IS NOT NULL"
	},
	/* What PostgREST would read; a file of its own nobody here can see. */
	{
		"http_exposed", IDEM_HEALTH_OWNER,
		"SELECT count(*) = 0, CASE WHEN count(*) = 0"
		" THEN 'no setting of a role or database shows this schema to PostgREST'"
		" ELSE 'take this schema out of ' || string_agg(DISTINCT format('%s of %s', e.name, e.holder), ', ') END"
		" FROM (SELECT lower(split_part(c, '=', 1)) AS name,"
		" coalesce('role ' || quote_ident(r.rolname), 'database ' || quote_ident(d.datname), 'all roles') AS holder,"
		" string_to_array(substr(c, strpos(c, '=') + 1), ',') AS exposed"
		" FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) c"
		" LEFT JOIN pg_roles r ON r.oid = s.setrole"
		" LEFT JOIN pg_database d ON d.oid = s.setdatabase"
		" WHERE d.oid IS NULL OR d.datname = current_database()) e"
		" JOIN unnest(e.exposed) n (nspname) ON true"
		" WHERE e.name IN ('pgrst.db_schemas', 'pgrst.db_schema')"
		" AND btrim(n.nspname, ' ' || chr(9)) = (SELECT o.nspname FROM pg_namespace o WHERE o.oid = $3)"
	},
	{NULL}
};
