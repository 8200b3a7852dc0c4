/*-------------------------------------------------------------------------
 *
 * acl.c
 *	  Who owns our objects, and what others may do with them.
 *
 * What a new object grants to whom is not ours alone to say: ALTER DEFAULT
 * PRIVILEGES gives away every table, function or type that its role makes.
 * So whatever is there is taken away again, from everyone but the owner.
 *
 * Each query gives commands, made by format() and of names that PostgreSQL
 * has quoted; they are executed in its order.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"

#include "base/acl.h"
#include "base/catalog.h"
#include "base/spi.h"

/*
 * Members of the extension $1.  Those that other members bring along, which
 * 16 counts among them, are passed over; so is what has no privileges.
 */
#define MEMBERS \
	"(SELECT i.identity, i.type, c.relkind, coalesce(c.relname, '') AS relname," \
	" CASE WHEN i.type IN ('function', 'procedure') THEN 'ROUTINE'" \
	" WHEN i.type = 'sequence' THEN 'SEQUENCE'" \
	" WHEN i.type = 'type' THEN 'TYPE' ELSE 'TABLE' END AS kind," \
	" coalesce(c.relacl, p.proacl, t.typacl) AS acl," \
	" coalesce(c.relowner, p.proowner, t.typowner) AS owner" \
	" FROM pg_depend d CROSS JOIN LATERAL" \
	" pg_identify_object(d.classid, d.objid, 0) i" \
	" LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid" \
	" LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid" \
	" LEFT JOIN pg_type t ON d.classid = 'pg_type'::regclass AND t.oid = d.objid" \
	" AND t.typcategory <> 'A' AND (t.typrelid = 0 OR" \
	" (SELECT k.relkind FROM pg_class k WHERE k.oid = t.typrelid) = 'c')" \
	" WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = $1" \
	" AND d.deptype = 'e'" \
	" AND coalesce(c.relowner, p.proowner, t.typowner) IS NOT NULL) m"

/* A sequence goes with its table. */
static const char own_sql[] =
"SELECT format('ALTER %s %s OWNER TO %s', CASE WHEN relkind = 'v' THEN 'VIEW'"
" ELSE kind END, identity, " CppAsString2(BOOTSTRAP_SUPERUSERID) "::regrole)"
" FROM " MEMBERS " WHERE kind <> 'SEQUENCE' AND relname NOT IN"
" ('idempotency_keys', 'idempotency_policies', 'idempotency_limiters')";

/*
 * Types are for everyone, as by default.  The owner has all rights even if the
 * defaults gave him less; that last command also is what pg_dump compares the
 * privileges of a member with, so that it dumps what was granted since.
 */
static const char strip_sql[] =
"SELECT command FROM (SELECT 1, format('REVOKE ALL ON %s %s FROM %s', kind,"
" identity, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)"
" FROM " MEMBERS ", aclexplode(coalesce(acl, acldefault("
"CASE kind WHEN 'ROUTINE' THEN 'f' WHEN 'TYPE' THEN 'T' ELSE 'r' END::\"char\", owner)))"
" WHERE grantee <> owner AND NOT (grantee = 0 AND kind = 'TYPE')"
" UNION SELECT 2, format('GRANT ALL ON %s %s TO %s', kind, identity,"
" owner::regrole) FROM " MEMBERS ") o (n, command) ORDER BY n";

static const char table_sql[] =
"SELECT command FROM (SELECT 1, format('REVOKE ALL ON TABLE %s FROM %s',"
" oid::regclass, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)"
" FROM pg_class, aclexplode(relacl) WHERE oid = $1 AND grantee <> relowner"
" UNION SELECT 2, format('GRANT ALL ON TABLE %s TO %s', oid::regclass,"
" relowner::regrole) FROM pg_class WHERE oid = $1) o (n, command) ORDER BY n";

/*
 * Who may do something with a partition of the log $1, and is among those whom
 * the defaults of this database give that to.
 */
static const char restored_sql[] =
"SELECT DISTINCT format('REVOKE ALL ON TABLE %s FROM %s', c.oid::regclass,"
" CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END)"
" FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
" CROSS JOIN LATERAL aclexplode(c.relacl) a"
" JOIN pg_default_acl d ON d.defaclrole = c.relowner AND d.defaclobjtype = 'r'"
" AND d.defaclnamespace IN (0, c.relnamespace)"
" CROSS JOIN LATERAL aclexplode(d.defaclacl) b"
" WHERE i.inhparent = $1 AND a.grantee <> c.relowner AND b.grantee = a.grantee";

/* What was given to others, for another server to give. */
static const char repeat_sql[] =
"SELECT format('GRANT %s ON %s %s TO %s%s', a.privilege_type, kind, identity,"
" a.grantee::regrole, CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)"
" FROM " MEMBERS ", aclexplode(acl) a WHERE a.grantee <> owner AND a.grantee <> 0"
" UNION ALL SELECT format('GRANT %s (%I) ON TABLE %s TO %s%s', a.privilege_type, t.attname, t.attrelid::regclass,"
" a.grantee::regrole, CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)"
" FROM pg_depend d JOIN pg_attribute t ON t.attrelid = d.objid AND NOT t.attisdropped, aclexplode(t.attacl) a"
" WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = $1 AND d.deptype = 'e'"
" AND d.classid = 'pg_class'::regclass AND a.grantee <> 0"
" ORDER BY 1";

/* Execute what a query about an object comes to. */
static void
execute_all(const char *sql, Oid object)
{
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(object);
	SPITupleTable *commands;
	uint64		i;

	/* all of them are read before the first is executed: it changes them */
	if (SPI_execute_with_args(sql, 1, &type, &value, NULL, false, 0) !=
		SPI_OK_SELECT)
		elog(ERROR, "could not find the privileges of an object");
	commands = SPI_tuptable;
	for (i = 0; i < commands->numvals; i++)
		idem_spi_command(SPI_getvalue(commands->vals[i],
									  commands->tupdesc, 1));
	SPI_freetuptable(commands);
}

IDEM_FUNCTION(idem_install_own);

/*
 * idem_install_own() RETURNS void
 *		For the install script, which drops it: give the members of the
 *		extension to the one role that is a superuser for ever, and take what
 *		anybody else has on them.
 */
Datum
idem_install_own(PG_FUNCTION_ARGS)
{
	Oid			extension = get_extension_oid("idempotency", false);
	IdemSecctx	saved;

	/*
	 * Who owns a function or a type can put another one in its place, under
	 * everybody who uses it; who owns the audit log can disable its triggers
	 * (t/033_audit_roles.pl).  The tables whose owner our code becomes are
	 * left to whoever creates the extension, to give them to a role without
	 * other rights.
	 */
	idem_spi_begin_as(&saved, GetUserId());
	execute_all(own_sql, extension);
	execute_all(strip_sql, extension);
	idem_spi_end(&saved);
	PG_RETURN_VOID();
}

/*
 * idem_acl_strip
 *		Take what anybody but its owner has on a new table, given by its
 *		qualified name.  Between begin and end.
 */
void
idem_acl_strip(const char *table)
{
	Datum		relid = DirectFunctionCall1(regclassin, CStringGetDatum(table));

	execute_all(table_sql, DatumGetObjectId(relid));
}

/*
 * idem_acl_restored
 *		Take what default privileges have given on the partitions of the log
 *		when pg_restore made them.  Between begin and end.
 */
void
idem_acl_restored(void)
{
	/* two do not do it at once, and who comes second need not wait */
	if (ConditionalLockRelationOid(idem_catalog()->audit_seals,
								   ShareUpdateExclusiveLock))
		execute_all(restored_sql, idem_catalog()->audit_log);
}

/*
 * idem_acl_repeat
 *		Add the commands that give roles what they have on our objects, to a
 *		script for another server with the same.  Between begin and end.
 */
void
idem_acl_repeat(StringInfo script)
{
	Oid			type = OIDOID;
	Datum		value = ObjectIdGetDatum(get_extension_oid("idempotency", false));
	uint64		i;

	if (SPI_execute_with_args(repeat_sql, 1, &type, &value, NULL, true, 0) !=
		SPI_OK_SELECT)
		elog(ERROR, "could not find the privileges of the extension");
	for (i = 0; i < SPI_processed; i++)
		appendStringInfo(script, "%s; ",
						 SPI_getvalue(SPI_tuptable->vals[i],
									  SPI_tuptable->tupdesc, 1));
}
