/*-------------------------------------------------------------------------
 *
 * index_guard.c
 *	  Indexes that the audit log must not have.
 *
 * An index of the log as a whole belongs to a member of the extension, so
 * pg_dump leaves it out; but it dumps, for each partition, that the index of
 * the partition is a part of it, and pg_restore fails.  So such an index is
 * refused while it is made, in a server that preloads the library and in any
 * session that has used it; elsewhere idem_health() tells.  An index of each
 * partition is restored with it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "audit/index_guard.h"

#define LOG_NAME "idempotency_audit_log"

static object_access_hook_type prev_hook = NULL;

/* The table of an index that is being made; InvalidOid if it is none. */
static Oid
find_table(Oid index)
{
	Relation	catalog = table_open(IndexRelationId, AccessShareLock);
	Oid			table = InvalidOid;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	/* the row of pg_index is of this command: only SnapshotSelf sees it */
	ScanKeyInit(&key, Anum_pg_index_indexrelid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(index));
	scan = systable_beginscan(catalog, IndexRelidIndexId, true, SnapshotSelf,
							  1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		table = ((Form_pg_index) GETSTRUCT(tuple))->indrelid;
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return table;
}

/* Whether this is the audit log of our extension. */
static bool
is_audit_log(Oid table)
{
	char	   *name = get_rel_name(table);
	Oid			extension;

	if (name == NULL || strcmp(name, LOG_NAME) != 0)
		return false;
	extension = get_extension_oid("idempotency", true);
	return OidIsValid(extension) &&
		getExtensionOfObject(RelationRelationId, table) == extension;
}

static void
object_access(ObjectAccessType access, Oid classId, Oid objectId, int subId,
			  void *arg)
{
	Oid			table;

	if (prev_hook)
		prev_hook(access, classId, objectId, subId, arg);

	/* for every object that is made: what is no relation is passed over first */
	if (access != OAT_POST_CREATE || classId != RelationRelationId ||
		subId != 0 || allowSystemTableMods)
		return;
	table = find_table(objectId);
	if (OidIsValid(table) && is_audit_log(table))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("an index of the whole audit log could not be restored from a dump"),
				 errhint("CREATE INDEX on each of its partitions; those that are made later get it, too.")));
}

/*
 * idem_audit_index_init
 *		Set the hook; once in a process.
 */
void
idem_audit_index_init(void)
{
	prev_hook = object_access_hook;
	object_access_hook = object_access;
}
