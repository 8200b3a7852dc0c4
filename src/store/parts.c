/*-------------------------------------------------------------------------
 *
 * parts.c
 *	  The tables that hold the rows of the key table.
 *
 * That is itself, where it was left as it was created; partitions or children
 * where somebody has made some; on Citus the shards of this node.  Owns what the SQL way does to them by their
 * access methods, since no statement can: to look into an index without a
 * predicate lock, and to lock a row without ever waiting.  Nothing is written
 * here, and what is no heap is left to statements.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

#include "base/catalog.h"
#include "base/citus.h"
#include "base/compat.h"
#include "store/parts.h"
#include "store/row.h"

static List *
parts_of(Oid table)
{
	return idem_citus_is_used() ? idem_citus_shards(table) :
		find_all_inheritors(table, NoLock, NULL);
}

static bool
lock_with_indexes(Oid relid)
{
	Relation	table;
	List	   *indexes;
	bool		is_table;
	ListCell   *cell;

	if (!ConditionalLockRelationOid(relid, RowExclusiveLock))
		return false;
	table = try_table_open(relid, NoLock);
	if (table == NULL)
		return false;			/* dropped meanwhile */

	/* RelationGetIndexList() locks none; the DELETE would wait for each */
	indexes = RelationGetIndexList(table);
	is_table = table->rd_rel->relkind != RELKIND_VIEW;
	table_close(table, NoLock);
	if (!is_table)
		return false;			/* its tableoid and ctid may be anything */
	foreach(cell, indexes)
	{
		if (!ConditionalLockRelationOid(lfirst_oid(cell), RowExclusiveLock))
			return false;
	}
	return true;
}

/*
 * idem_store_parts_lock
 *		Take the locks that a DELETE and its planning take, on each table with
 *		rows of one of ours, and its indexes, to the end of the transaction; false when one of them
 *		cannot be had at once.
 */
bool
idem_store_parts_lock(Oid table)
{
	List	   *parts = parts_of(table);
	ListCell   *cell;

	foreach(cell, parts)
	{
		if (!lock_with_indexes(lfirst_oid(cell)))
			return false;
	}
	return true;
}

static bool
is_column(Relation table, Relation index, int i, const char *name, Oid collation)
{
	AttrNumber	column = index->rd_index->indkey.values[i];

	return column > 0 && index->rd_indcollation[i] == collation &&
		strcmp(NameStr(TupleDescAttr(RelationGetDescr(table),
									 column - 1)->attname), name) == 0;
}

/*
 * idem_store_parts_is_of_key
 *		Whether an index is the unique one of (scope, key), by bytes, behind the
 *		tenant where there is one.
 */
bool
idem_store_parts_is_of_key(Relation table, Relation index)
{
	static const char *const names[] = {"scope", "key"};
	const Form_pg_index form = index->rd_index;
	int			before = idem_citus_is_used() ? 1 : 0;
	int			i;

	if (!form->indisunique || !form->indisvalid || !form->indimmediate ||
		form->indnkeyatts != before + lengthof(names) ||
		index->rd_rel->relam != BTREE_AM_OID ||
		RelationGetIndexPredicate(index) != NIL)
		return false;
	if (before > 0 && !is_column(table, index, 0, IDEM_TENANT,
								 idem_catalog()->tenant_collation))
		return false;
	for (i = 0; i < lengthof(names); i++)
		if (index->rd_opcintype[before + i] != TEXTOID ||
			!is_column(table, index, before + i, names[i], C_COLLATION_OID))
			return false;
	return true;
}

/*
 * idem_store_parts_scan_keys
 *		To find a key in such an index; how many there are, at most
 *		IDEM_PARTS_SCAN_KEYS.
 */
int
idem_store_parts_scan_keys(const IdemKey *id, ScanKeyData *entries)
{
	const IdemCatalog *catalog = idem_catalog();
	TypeCacheEntry *type;

	if (!idem_citus_is_used())
	{
		idem_store_row_scan_keys(id, entries);
		return 2;
	}
	type = lookup_type_cache(catalog->tenant_type, TYPECACHE_EQ_OPR_FINFO);
	ScanKeyEntryInitializeWithInfo(&entries[0], 0, 1, BTEqualStrategyNumber,
								   InvalidOid, catalog->tenant_collation,
								   &type->eq_opr_finfo,
								   idem_citus_tenant(id->scope));
	idem_store_row_scan_keys(id, &entries[1]);
	entries[1].sk_attno++;
	entries[2].sk_attno++;
	return 3;
}

/* Whether the snapshot shows a row of the key, by this index. */
static bool
finds(Relation table, Relation index, const IdemKey *id, Snapshot snapshot)
{
	TupleTableSlot *slot = table_slot_create(table, NULL);
	ScanKeyData entries[IDEM_PARTS_SCAN_KEYS];
	int			number = idem_store_parts_scan_keys(id, entries);
	IndexScanDesc scan = idem_compat_index_beginscan(table, index, SnapshotAny,
													 number);
	bool		found = false;

	index_rescan(scan, entries, number, NULL, 0);
	/* SnapshotAny takes no predicate lock on pages; rows are judged by ours */
	while (!found && index_getnext_tid(scan, ForwardScanDirection) != NULL)
		found = idem_compat_fetch_heap(scan, snapshot, slot);
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	return found;
}

/* Whether a table may show a row; one without the index may hold anything. */
static bool
may_hold(Oid relid, const IdemKey *id, Snapshot snapshot)
{
	Relation	table = try_table_open(relid, AccessShareLock);
	bool		found = true;
	List	   *indexes = NIL;
	ListCell   *cell;

	if (table == NULL)
		return true;			/* dropped, or moved away, meanwhile */

	/* a foreign table, or another access method, cannot be looked into */
	if (table->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
		found = false;			/* has no rows of its own */
	else if (table->rd_rel->relam == HEAP_TABLE_AM_OID)
		indexes = RelationGetIndexList(table);
	foreach(cell, indexes)
	{
		Relation	index = index_open(lfirst_oid(cell), AccessShareLock);
		bool		of_key = idem_store_parts_is_of_key(table, index);

		if (of_key)
			found = finds(table, index, id, snapshot);
		index_close(index, NoLock);
		if (of_key)
			break;
	}
	table_close(table, NoLock);
	return found;
}

/*
 * idem_store_parts_of_key
 *		The tables that may have the row of a key; none where that is on another
 *		node.
 */
List *
idem_store_parts_of_key(const IdemKey *id, LOCKMODE lockmode)
{
	Oid			keys = idem_catalog()->keys;
	Oid			shard;

	if (!idem_citus_is_used())
		return find_all_inheritors(keys, lockmode, NULL);
	shard = idem_citus_shard(keys, id->scope);
	return OidIsValid(shard) ? list_make1_oid(shard) : NIL;
}

/*
 * idem_store_parts_may_show
 *		Whether a snapshot shows a row of this key; true where that cannot be
 *		told.  Locks the row for SERIALIZABLE, but no page of an index.
 *
 * The snapshot is registered or active: no other holds back those who remove
 * rows.
 */
bool
idem_store_parts_may_show(const IdemKey *id, Snapshot snapshot)
{
	List	   *parts = idem_store_parts_of_key(id, AccessShareLock);
	ListCell   *cell;

	Assert(snapshot->regd_count > 0 || snapshot->active_count > 0);
	if (parts == NIL)
		return true;			/* on another node */
	foreach(cell, parts)
	{
		if (may_hold(lfirst_oid(cell), id, snapshot))
			return true;
	}
	return false;
}

/*
 * idem_store_parts_lock_row
 *		Lock a row as FOR UPDATE does, without waiting; false when it is locked,
 *		or has changed since the active snapshot, which must be the one that it
 *		was found with: it keeps the place from being used anew.  40001 for the
 *		latter at REPEATABLE READ and above.
 *
 * Neither are we told of a newer version of the row nor does the server look for
 * one, which is where it might wait.
 */
bool
idem_store_parts_lock_row(IdemPlace *place, IdemPart *part)
{
	TM_FailureData failure;
	TM_Result	result;

	if (part->table == NULL || RelationGetRelid(part->table) != place->table)
	{
		idem_store_parts_close(part);
		part->table = table_open(place->table, RowExclusiveLock);
		part->slot = table_slot_create(part->table, NULL);
	}
	if (part->table->rd_rel->relam != HEAP_TABLE_AM_OID)
		return true;			/* the DELETE will see */
	result = table_tuple_lock(part->table, &place->tid, GetActiveSnapshot(),
							  part->slot, GetCurrentCommandId(false),
							  LockTupleExclusive, LockWaitSkip, 0, &failure);
	ExecClearTuple(part->slot);
	if ((result == TM_Updated || result == TM_Deleted) &&
		IsolationUsesXactSnapshot())
		idem_store_row_raise_rival();
	return result == TM_Ok;
}

/*
 * idem_store_parts_close
 *		After the last of those calls; the locks stay.
 */
void
idem_store_parts_close(IdemPart *part)
{
	if (part->table == NULL)
		return;
	ExecDropSingleTupleTableSlot(part->slot);
	table_close(part->table, NoLock);
}

/*
 * idem_store_parts_compare
 *		An order of places, for qsort(): those of a table are next to each other.
 */
int
idem_store_parts_compare(const void *a, const void *b)
{
	const IdemPlace *x = a;
	const IdemPlace *y = b;

	if (x->table != y->table)
		return x->table < y->table ? -1 : 1;
	return ItemPointerCompare(unconstify(ItemPointerData *, &x->tid),
							  unconstify(ItemPointerData *, &y->tid));
}

/*
 * idem_store_parts_array
 *		Places in one table as an array.
 */
Datum
idem_store_parts_array(const IdemPlace *places, int number)
{
	Datum	   *tids = palloc(sizeof(Datum) * number);
	int			i;

	for (i = 0; i < number; i++)
		tids[i] = PointerGetDatum(&places[i].tid);
	return PointerGetDatum(construct_array(tids, number, TIDOID,
										   sizeof(ItemPointerData), false,
										   TYPALIGN_SHORT));
}
