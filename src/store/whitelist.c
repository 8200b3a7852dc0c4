/*-------------------------------------------------------------------------
 *
 * whitelist.c
 *	  What the direct way asks of the key table.
 *
 * The direct way does by hand what the executor does for the table as the
 * install script made it, and nothing else: no trigger fires, no rule is
 * rewritten, no default or constraint computed, no row security applied.  So
 * it is taken only where all that could be done to the table has not been,
 * point by point below; anything else, also what is not known here, means
 * SQL.
 *
 * The verdict is cached until an invalidation of the table or of one of its
 * indexes.  It is asked for with the table locked: whoever changes one of the
 * points either needs a lock that ours keeps away, or waits for ours between
 * its steps (CREATE INDEX and REINDEX CONCURRENTLY).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_opclass.h"
#include "commands/trigger.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "base/catalog.h"
#include "store/row.h"
#include "store/whitelist.h"

#define MAX_LOOKUPS 10

typedef enum StorageSetting
{
	STORAGE_AUTO,
	STORAGE_SQL
} StorageSetting;

static const struct config_enum_entry storage_options[] = {
	{"auto", STORAGE_AUTO, false},
	{"sql", STORAGE_SQL, false},
	{NULL, 0, false}
};

static int	storage = STORAGE_AUTO;

/* Changes of the table, or of its indexes, that this backend was told of. */
uint64		idem_whitelist_changes = 1;

/* The verdict on a table. */
static struct
{
	uint64		changes;		/* that it knows of */
	Oid			keys;
	Oid			pkey;
	Oid			purge_index;	/* InvalidOid: there is none */
	List	   *indexes;		/* in TopMemoryContext */
	const char *obstacle;		/* to the direct way; NULL: none */
}			verdict;

static void
relation_changed(Oid relid)
{
	if (relid == InvalidOid || relid == verdict.keys ||
		list_member_oid(verdict.indexes, relid))
		idem_whitelist_changes++;
}

static const char *
check_triggers(const TriggerDesc *triggers)
{
	int			i;

	if (triggers == NULL)
		return NULL;
	/* a foreign key that refers to us fires triggers, too: internal ones */
	for (i = 0; i < triggers->numtriggers; i++)
		if (!triggers->triggers[i].tgisinternal)
			return "it has a trigger";
	return "it has a foreign key, or an internal trigger";
}

/*
 * idem_whitelist_check_columns
 *		Our columns, and behind them only such as were dropped.
 */
const char *
idem_whitelist_check_columns(TupleDesc desc, const IdemColumnShape *shapes,
							 int number)
{
	int			i;

	/* each by its place: rows are formed from an array of values */
	if (desc->natts < number)
		return "its columns are not those of this library";
	for (i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute column = TupleDescAttr(desc, i);
		const IdemColumnShape *shape;

		/* a dropped one is null, which is written behind ours */
		if (i >= number)
		{
			if (!column->attisdropped)
				return "it has a column of somebody else's";
			continue;
		}
		shape = &shapes[i];
		if (column->attgenerated != '\0')
			return "it has a generated column";
		if (column->attisdropped ||
			strcmp(NameStr(column->attname), shape->name) != 0 ||
			column->atttypid != shape->type ||
			column->atttypmod != -1 ||
			column->attnotnull != shape->not_null)
			return "its columns are not those of this library";
	}
	return NULL;
}

/* Whether a column, of so many, has its values from a sequence. */
static bool
has_identity(TupleDesc desc, int number)
{
	int			i;

	for (i = 0; i < number; i++)
		if (TupleDescAttr(desc, i)->attidentity != '\0')
			return true;
	return false;
}

/*
 * idem_whitelist_check_heap
 *		A permanent heap, where nothing is computed or checked for a row.
 */
const char *
idem_whitelist_check_heap(Relation table)
{
	const Form_pg_class class = table->rd_rel;
	const TupleConstr *constraints = RelationGetDescr(table)->constr;

	if (class->relkind != RELKIND_RELATION)
		return "it is partitioned, or no table at all";
	if (class->relpersistence != RELPERSISTENCE_PERMANENT)
		return "it is not permanent";
	if (class->relam != HEAP_TABLE_AM_OID)
		return "it has another access method than heap";
	if (class->relchecks > 0 ||
		(constraints != NULL && constraints->num_check > 0))
		return "it has a CHECK constraint";
	if (constraints != NULL && constraints->has_generated_stored)
		return "it has a generated column";
	return NULL;
}

static const char *
check_table(Relation keys)
{
	const Form_pg_class class = keys->rd_rel;
	const char *obstacle = idem_whitelist_check_heap(keys);

	if (obstacle != NULL)
		return obstacle;
	if (class->relispartition)
		return "it is a partition";
	if ((class->relhassubclass &&	/* for a while after the last is gone */
		 find_inheritance_children(RelationGetRelid(keys), NoLock) != NIL) ||
		has_superclass(RelationGetRelid(keys)))
		return "it takes part in inheritance";
	if (keys->rd_rules != NULL)
		return "it has a rule";
	if (class->relforcerowsecurity)
		return "row security is forced";
	return check_triggers(keys->trigdesc);
}

static const char *
check_columns(TupleDesc desc)
{
	const char *obstacle = idem_whitelist_check_columns(desc,
														idem_store_columns,
														IDEM_NUM_COLUMNS);

	if (obstacle == NULL && has_identity(desc, IDEM_NUM_COLUMNS))
		obstacle = "it has a generated column";
	return obstacle;
}

/*
 * idem_whitelist_check_citus
 *		Citus distributes a table by hooks of its own and leaves its rows
 *		elsewhere.  Where Citus is, it is left to the planner which table that
 *		is.
 */
const char *
idem_whitelist_check_citus(void)
{
	return idem_catalog_has_citus() ?
		"Citus is installed in this database" : NULL;
}

/* A column of pg_index that has something for each column of the index. */
static const void *
vector_of(HeapTuple tuple, AttrNumber column)
{
	bool		isnull;

	return DatumGetPointer(SysCacheGetAttr(INDEXRELID, tuple, column, &isnull));
}

/*
 * idem_whitelist_has_class
 *		Whether the first columns of an index, so many, have this operator
 *		class.
 */
bool
idem_whitelist_has_class(HeapTuple tuple, int number, Oid class)
{
	const oidvector *classes = vector_of(tuple, Anum_pg_index_indclass);
	int			i;

	for (i = 0; i < number; i++)
		if (classes->values[i] != class)
			return false;
	return true;
}

/* The primary key: (scope, key) by bytes. */
static bool
is_our_key(HeapTuple tuple)
{
	Form_pg_index index = (Form_pg_index) GETSTRUCT(tuple);
	const oidvector *collations = vector_of(tuple, Anum_pg_index_indcollation);

	return index->indisprimary && index->indimmediate &&
		index->indnatts == 2 && index->indnkeyatts == 2 &&
		index->indkey.values[0] == COLUMN_SCOPE + 1 &&
		index->indkey.values[1] == COLUMN_KEY + 1 &&
		idem_whitelist_has_class(tuple, 2, TEXT_BTREE_OPS_OID) &&
		collations->values[0] == C_COLLATION_OID &&
		collations->values[1] == C_COLLATION_OID;
}

/* What is to be swept, oldest first: purge_at, ascending. */
static bool
is_purge_index(HeapTuple tuple)
{
	Form_pg_index index = (Form_pg_index) GETSTRUCT(tuple);
	const int2vector *options = vector_of(tuple, Anum_pg_index_indoption);

	return index->indkey.values[0] == COLUMN_PURGE_AT + 1 &&
		idem_whitelist_has_class(tuple, 1, TIMESTAMPTZ_BTREE_OPS_OID) &&
		options->values[0] == 0;
}

static const char *
check_index(HeapTuple tuple)
{
	Form_pg_index index = (Form_pg_index) GETSTRUCT(tuple);

	/* the sweep needs it; without it that alone goes the SQL way */
	if (is_purge_index(tuple))
		verdict.purge_index = index->indexrelid;
	if (is_our_key(tuple))
		verdict.pkey = index->indexrelid;
	else if (index->indisunique || index->indisexclusion)
		return "it has another unique index, or an exclusion constraint";
	return NULL;
}

static const char *
check_plain_index(HeapTuple tuple)
{
	Form_pg_index index = (Form_pg_index) GETSTRUCT(tuple);

	/* one that is being built has rules of its own for who must insert what */
	if (!index->indisvalid || !index->indisready || !index->indislive)
		return "it has an index that is not valid";
	if (!heap_attisnull(tuple, Anum_pg_index_indexprs, NULL) ||
		!heap_attisnull(tuple, Anum_pg_index_indpred, NULL))
		return "it has an index on an expression, or a partial one";
	return NULL;
}

/*
 * idem_whitelist_check_indexes
 *		Whether all are valid and plain, and nothing else of them is in the way.
 */
const char *
idem_whitelist_check_indexes(const List *indexes, IdemIndexCheck check)
{
	const char *obstacle = NULL;
	ListCell   *cell;

	foreach(cell, indexes)
	{
		HeapTuple	tuple = SearchSysCache1(INDEXRELID,
											ObjectIdGetDatum(lfirst_oid(cell)));

		/* DROP INDEX CONCURRENTLY takes no lock that ours would keep away */
		if (!HeapTupleIsValid(tuple))
			return "it has an index that is being dropped";
		if (obstacle == NULL)
			obstacle = check_plain_index(tuple);
		if (obstacle == NULL)
			obstacle = check(tuple);
		ReleaseSysCache(tuple);
	}
	return obstacle;
}

static const char *
check_indexes(const List *indexes)
{
	const char *obstacle;

	verdict.pkey = InvalidOid;
	verdict.purge_index = InvalidOid;
	obstacle = idem_whitelist_check_indexes(indexes, check_index);
	if (obstacle == NULL && !OidIsValid(verdict.pkey))
		obstacle = "it has no primary key (scope, key)";
	return obstacle;
}

/*
 * idem_whitelist_keep
 *		Keep the indexes of a table, whose invalidations count from now on.
 */
void
idem_whitelist_keep(List **kept, const List *indexes)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	/* it may be looked at by an invalidation at any moment */
	list_free(*kept);
	*kept = NIL;
	*kept = list_copy(indexes);
	MemoryContextSwitchTo(old);
}

static void
judge(Relation keys)
{
	List	   *indexes = RelationGetIndexList(keys);

	/* even if the verdict is SQL */
	idem_whitelist_keep(&verdict.indexes, indexes);
	verdict.keys = RelationGetRelid(keys);
	verdict.obstacle = check_table(keys);
	if (verdict.obstacle == NULL)
		verdict.obstacle = check_columns(RelationGetDescr(keys));
	if (verdict.obstacle == NULL)
		verdict.obstacle = check_indexes(indexes);
	if (verdict.obstacle == NULL)
		verdict.obstacle = idem_whitelist_check_citus();
	list_free(indexes);
}

/*
 * What stands in the direct way to a table that the caller has locked; NULL if
 * nothing does.
 *
 * A change during the look makes it be repeated; not for ever, since
 * debug_discard_caches makes one of everything.
 */
static const char *
find_obstacle(Relation keys)
{
	int			tries = 0;

	if (verdict.keys != RelationGetRelid(keys))
		verdict.changes = 0;
	while (verdict.changes != idem_whitelist_changes && tries++ < MAX_LOOKUPS)
	{
		uint64		changes = idem_whitelist_changes;

		judge(keys);
		verdict.changes = changes;
	}
	return verdict.obstacle;
}

/*
 * idem_whitelist_is_asked
 *		Whether the direct way is wanted at all: with idempotency.storage = sql
 *		the table need not be looked at.
 */
bool
idem_whitelist_is_asked(void)
{
	return storage != STORAGE_SQL;
}

/*
 * idem_whitelist_passes
 *		Whether the direct way may be taken to a table that the caller has
 *		locked.  Names its primary key and the index on purge_at, if somebody
 *		has not dropped that.
 */
bool
idem_whitelist_passes(Relation keys, Oid *pkey, Oid *purge_index)
{
	if (find_obstacle(keys) != NULL)
		return false;
	*pkey = verdict.pkey;
	*purge_index = verdict.purge_index;
	return true;
}

/*
 * idem_whitelist_describe
 *		The way in use and why, for idem_health.
 */
const char *
idem_whitelist_describe(void)
{
	Relation	keys;
	const char *obstacle;

	if (storage == STORAGE_SQL)
		return "sql: idempotency.storage says so";
	keys = table_open(idem_catalog()->keys, AccessShareLock);
	obstacle = find_obstacle(keys);
	table_close(keys, NoLock);
	return obstacle == NULL ? "direct: the key table is as it was created" :
		psprintf("sql: not the key table that it was: %s", obstacle);
}

/*
 * idem_whitelist_init
 *		Define the setting and watch the table; once in a process.
 */
void
idem_whitelist_init(void)
{
	DefineCustomEnumVariable("idempotency.storage",
							 "Way to the table of keys: direct where possible, or always SQL.",
							 NULL,
							 &storage,
							 STORAGE_AUTO, storage_options,
							 PGC_SUSET, 0,
							 NULL, NULL, NULL);
	idem_catalog_watch(relation_changed);
}
