/*-------------------------------------------------------------------------
 *
 * whitelist.c
 *	  What the direct way asks of the audit log.
 *
 * As store/whitelist.c does of the key table, point by point: what an INSERT
 * of ours would do beyond writing the row and its index entries must be
 * nothing.  Of the log that is what a statement on it looks at (privileges,
 * rules, triggers, its partitions), of the partition what comes with the row
 * there.  The guard is a trigger that lets our row pass, so it may be there,
 * and must: without it the log is not the one that it was.
 *
 * The verdict is for one partition, that of the last row.  It is cached until
 * an invalidation of log, partition, one of its indexes or the function of the
 * guard, and judged with the locks that an INSERT takes: ROW EXCLUSIVE on log
 * and partition, to the end of the transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_opclass.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "partitioning/partbounds.h"
#include "partitioning/partdesc.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/partcache.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "audit/cell.h"
#include "audit/guard.h"
#include "audit/row.h"
#include "audit/whitelist.h"
#include "base/catalog.h"
#include "store/whitelist.h"

#define MAX_LOOKUPS 10

/* Changes of what a verdict rests on, that this backend was told of. */
static uint64 changes = 1;

/* The verdict on the log, for rows of some time. */
static struct
{
	uint64		changes;		/* that it knows of */
	Oid			log;
	TimestampTz from;			/* from <= at < to */
	TimestampTz to;
	Oid			partition;		/* InvalidOid: the log itself is in the way */
	bool		judged;			/* the partition was looked at, too */
	List	   *indexes;		/* of the partition, in TopMemoryContext */
	uint32		guard;			/* hash of its function in the system cache */
	const char *obstacle;		/* to the direct way; NULL: none */
}			verdict;

static void
relation_changed(Oid relid)
{
	if (relid == InvalidOid || relid == verdict.log ||
		relid == verdict.partition ||
		list_member_oid(verdict.indexes, relid))
		changes++;
}

static void
function_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	/* 0 stands for all functions */
	if (hashvalue == 0 || hashvalue == verdict.guard)
		changes++;
}

/* The guard as it was installed; it lets the row pass unchanged. */
static bool
is_guard(const Trigger *trigger)
{
	return TRIGGER_FOR_ROW(trigger->tgtype) &&
		TRIGGER_FOR_BEFORE(trigger->tgtype) &&
		trigger->tgenabled == TRIGGER_FIRES_ALWAYS &&
		trigger->tgqual == NULL && idem_guard_is_it(trigger->tgfoid);
}

/* What fires for other events is nothing to an INSERT. */
static const char *
check_triggers(Relation table)
{
	/* a copy, since a look-up may bring news of the table */
	const TriggerDesc *triggers = CopyTriggerDesc(table->trigdesc);
	int			guards = 0;
	int			i;

	for (i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		const Trigger *trigger = &triggers->triggers[i];

		if (!TRIGGER_FOR_INSERT(trigger->tgtype))
			continue;

		/* before it is looked at: a change meanwhile must count */
		verdict.guard = GetSysCacheHashValue1(PROCOID,
											  ObjectIdGetDatum(trigger->tgfoid));
		if (!is_guard(trigger))
			return "it has a trigger or a foreign key";
		guards++;
	}
	return guards == 1 ? NULL : "its guard is missing";
}

/*
 * Whether the owner may insert by a right of his own, which he has unless he
 * has taken it from himself.  What he may as a superuser, or as a member of
 * some role, is for the statement to find out: that can change without a word
 * to us.
 */
static bool
may_insert(Relation log)
{
	HeapTuple	tuple = SearchSysCache1(RELOID,
										ObjectIdGetDatum(RelationGetRelid(log)));
	bool		found;
	Datum		datum;
	bool		isnull;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u",
			 RelationGetRelid(log));
	datum = SysCacheGetAttr(RELOID, tuple, Anum_pg_class_relacl, &isnull);
	found = isnull;
	if (!isnull)
	{
		Acl		   *acl = DatumGetAclP(datum);
		int			i;

		for (i = 0; i < ACL_NUM(acl); i++)
			if (ACL_DAT(acl)[i].ai_grantee == log->rd_rel->relowner &&
				(ACLITEM_GET_PRIVS(ACL_DAT(acl)[i]) & ACL_INSERT) != 0)
				found = true;
	}
	ReleaseSysCache(tuple);
	return found;
}

/* By range of "at", and of nothing else. */
static bool
is_partitioned_by_at(Relation log)
{
	PartitionKey key;

	if (log->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		return false;
	key = RelationGetPartitionKey(log);
	return key->strategy == PARTITION_STRATEGY_RANGE && key->partnatts == 1 &&
		key->partattrs[0] == AUDIT_AT + 1 &&
		key->partsupfunc[0].fn_oid == F_TIMESTAMPTZ_CMP;
}

/* Our columns, where "id" may have a default that we do not use. */
static const char *
check_columns(TupleDesc desc)
{
	const char *obstacle;
	int			i;

	obstacle = idem_whitelist_check_columns(desc, idem_audit_row_columns,
											IDEM_AUDIT_COLUMNS);
	for (i = 0; obstacle == NULL && i < IDEM_AUDIT_COLUMNS; i++)
	{
		char		identity = TupleDescAttr(desc, i)->attidentity;

		/* from 17 on partitions have it from the log */
		if (identity != '\0' &&
			(i != AUDIT_ID || identity != ATTRIBUTE_IDENTITY_BY_DEFAULT))
			obstacle = "it has a generated column";
	}
	return obstacle;
}

static const char *
check_log(Relation log)
{
	const Form_pg_class class = log->rd_rel;
	const TupleConstr *constraints = RelationGetDescr(log)->constr;
	const char *obstacle;

	if (!is_partitioned_by_at(log))
		return "it is not partitioned by its time";
	if (class->relispartition || has_superclass(RelationGetRelid(log)))
		return "it takes part in inheritance";
	if (log->rd_rules != NULL)
		return "it has a rule";
	if (class->relforcerowsecurity)
		return "row security is forced";
	if (constraints != NULL && constraints->num_check > 0)
		return "it has a CHECK constraint";
	if (!may_insert(log))
		return "its owner cannot insert by a right of his own";
	obstacle = check_columns(RelationGetDescr(log));
	if (obstacle == NULL)
		obstacle = check_triggers(log);
	if (obstacle == NULL)
		obstacle = idem_whitelist_check_citus();
	return obstacle;
}

/* Find the partition for a time; what is in the way, or NULL. */
static const char *
find_partition(Relation log, TimestampTz at)
{
	PartitionDesc desc = RelationGetPartitionDesc(log, false);
	PartitionBoundInfo bounds = desc->boundinfo;
	int			number;
	IdemCell   *cells;
	const IdemCell *cell;

	/* whether it is still one depends on the isolation level */
	if (desc->detached_exist)
		return "one of its partitions is being detached";
	cells = idem_cell_list(&number);
	cell = idem_cell_find(cells, number, at);
	if (cell == NULL)
		return "there is no partition for that time";

	verdict.from = cell->from;
	verdict.to = cell->to;

	/* a cell names it although it may be detached, or another one attached */
	if (cell->partition == idem_catalog()->audit_default &&
		(bounds == NULL || !partition_bound_has_default(bounds) ||
		 desc->oids[bounds->default_index] != cell->partition))
		return "its default partition is another one";
	verdict.partition = cell->partition;
	pfree(cells);
	return NULL;
}

/* The id, which is unique in each partition, or nothing. */
static const char *
check_index(HeapTuple tuple)
{
	Form_pg_index index = (Form_pg_index) GETSTRUCT(tuple);

	if (index->indisexclusion ||
		(index->indisunique &&
		 (!index->indimmediate || index->indnkeyatts != 1 ||
		  index->indkey.values[0] != AUDIT_ID + 1 ||
		  !idem_whitelist_has_class(tuple, 1, INT8_BTREE_OPS_OID))))
		return "it has another unique index, or an exclusion constraint";
	return NULL;
}

static const char *
check_partition(Relation partition, const List *indexes)
{
	const char *obstacle = idem_whitelist_check_heap(partition);

	if (obstacle == NULL)
		obstacle = check_columns(RelationGetDescr(partition));
	if (obstacle == NULL)
		obstacle = check_triggers(partition);
	if (obstacle == NULL)
		obstacle = idem_whitelist_check_indexes(indexes, check_index);
	return obstacle;
}

/* Look at the log, and for the partition; the log is locked. */
static void
judge_log(Relation log, TimestampTz at)
{
	verdict.changes = 0;		/* should there be an error */
	verdict.judged = false;
	verdict.log = RelationGetRelid(log);
	verdict.from = DT_NOBEGIN;
	verdict.to = DT_NOEND;
	verdict.partition = InvalidOid;
	verdict.obstacle = check_log(log);
	if (verdict.obstacle == NULL)
		verdict.obstacle = find_partition(log, at);
}

/* Look at the partition, which is locked now. */
static void
judge_partition(Relation partition)
{
	List	   *indexes = RelationGetIndexList(partition);

	idem_whitelist_keep(&verdict.indexes, indexes);
	verdict.obstacle = check_partition(partition, indexes);
	verdict.judged = true;
	list_free(indexes);
}

/*
 * The partition, locked and open, if nothing is in the way; NULL where
 * something is.  Sets *again when something changed meanwhile.
 */
static Relation
open_partition(Relation log, TimestampTz at, LOCKMODE lockmode, bool *again)
{
	uint64		before = changes;
	Relation	partition = NULL;

	if (verdict.changes != before || verdict.log != RelationGetRelid(log) ||
		at < verdict.from || at >= verdict.to)
		judge_log(log, at);
	if (OidIsValid(verdict.partition))
	{
		partition = try_table_open(verdict.partition, lockmode);

		/*
		 * The lock may have been waited for, behind somebody who attaches a
		 * partition for this very time and so locks the default one, or
		 * builds an index: taking it has brought what he did.
		 */
		if (partition != NULL && changes == before && !verdict.judged)
			judge_partition(partition);
	}
	*again = changes != before;
	verdict.changes = before;
	if (partition != NULL && (*again || verdict.obstacle != NULL))
	{
		table_close(partition, NoLock);
		partition = NULL;
	}
	return partition;
}

/*
 * The same for the log as it is now; false where it was just dropped, which a
 * statement will say.
 */
static bool
find_way(TimestampTz at, LOCKMODE lockmode, Relation *partition)
{
	Relation	log = try_table_open(idem_catalog()->audit_log, lockmode);
	bool		again = true;
	int			tries = 0;

	*partition = NULL;
	if (log == NULL)
		return false;

	/*
	 * A change during the look makes it be repeated; not for ever, since
	 * debug_discard_caches makes one of everything.
	 */
	while (again && tries++ < MAX_LOOKUPS)
		*partition = open_partition(log, at, lockmode, &again);
	table_close(log, NoLock);
	return true;
}

/*
 * idem_audit_whitelist_open
 *		The partition for a row of this time, locked and open, if the direct
 *		way may be taken to it; else NULL.
 */
Relation
idem_audit_whitelist_open(TimestampTz at)
{
	Relation	partition = NULL;

	if (idem_whitelist_is_asked())
		(void) find_way(at, RowExclusiveLock, &partition);
	return partition;
}

/*
 * idem_audit_whitelist_obstacle
 *		What is in the way for a row of now, for idem_health; NULL if nothing
 *		is, or the setting has forbidden it.
 */
const char *
idem_audit_whitelist_obstacle(void)
{
	Relation	partition;

	if (!idem_whitelist_is_asked() ||
		!find_way(GetCurrentTimestamp(), AccessShareLock, &partition))
		return NULL;
	if (partition == NULL)
		return verdict.obstacle;
	table_close(partition, NoLock);
	return NULL;
}

/*
 * idem_audit_whitelist_init
 *		Watch log and guard; once in a process.
 */
void
idem_audit_whitelist_init(void)
{
	idem_catalog_watch(relation_changed);
	CacheRegisterSyscacheCallback(PROCOID, function_changed, (Datum) 0);
}
