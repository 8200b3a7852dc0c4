/*-------------------------------------------------------------------------
 *
 * direct.c
 *	  The direct way to the key table: by its access methods.
 *
 * For a table that whitelist.c has found to be as it was created.  Does
 * what the executor does for the same statements (nodeLockRows.c,
 * nodeModifyTable.c, execIndexing.c, execReplication.c): the same locks on
 * table and indexes, a fresh snapshot for each look where the isolation level
 * allows it, the command counter advanced before a look and after a write.
 * Every look ends with a read under an MVCC snapshot, which takes the predicate
 * locks that SERIALIZABLE needs, but for a key that is inserted next.  Neither user nor search_path is
 * switched: nothing here calls anything that they could change.
 *
 * Nothing here waits for another transaction but where it is told to.  How a
 * new key is told from one that another transaction is just inserting:
 *
 *	- A claimer looks with an MVCC snapshot.  If it finds no row it takes the
 *	  key lock without waiting.  If the index had entries for the key it looks
 *	  again with a dirty snapshot, which names the transaction of an uncommitted
 *	  row; if there is none it inserts, and gives the lock back: from now on the
 *	  row itself tells rivals.  So most losers write nothing.
 *	- idem_run takes the lock before it looks, and keeps it while its handler
 *	  runs, since there is no row before that.
 *	- Whoever comes between look and insertion (another claimer before we had
 *	  the lock, idem_dedupe without it, somebody's INSERT) is found by the
 *	  index, which is told to report a conflict and not to wait
 *	  (UNIQUE_CHECK_PARTIAL): one of the two puts its entry there first, under
 *	  the lock of the index page, and the other takes its row back, which was
 *	  inserted speculatively.  That one looks again.
 *
 * The unique index alone decides; the lock only makes that a loser learns of
 * it before it has written anything, and that wait = 0 is exact.  Speculative
 * insertion alone would be exact as well, but it cannot keep rivals off while
 * a handler runs, and each of many losers would leave a dead row.
 *
 * Specs: claim-two, claim-two-ends, claim-dedupe, direct-new-key and the other
 * direct-..., run-two, run-dedupe.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_collation.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "store/direct.h"
#include "store/row.h"
#include "store/whitelist.h"

/* A scan of the primary key for one key. */
typedef struct IdemProbe
{
	Relation	index;
	IndexScanDesc scan;
	Snapshot	snapshot;		/* that rows are fetched with */
	TupleTableSlot *slot;
} IdemProbe;

/*
 * idem_store_direct_open, idem_store_direct_close
 *		Open the key table; false when the way is SQL.  The lock stays.
 */
bool
idem_store_direct_open(IdemDirect *direct, LOCKMODE lockmode)
{
	direct->lockmode = lockmode;
	direct->keys = idem_store_way_open(lockmode, &direct->pkey,
									   &direct->purge_index);
	return direct->keys != NULL;
}

void
idem_store_direct_close(IdemDirect *direct)
{
	table_close(direct->keys, NoLock);
}

static void
init_scan_key(ScanKey entry, AttrNumber column, const text *value)
{
	ScanKeyEntryInitialize(entry, 0, column, BTEqualStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXTEQ, PointerGetDatum(value));
}

static void
begin_probe(IdemProbe *probe, const IdemDirect *direct, const IdemKey *id,
			Snapshot snapshot)
{
	ScanKeyData entries[2];

	probe->index = index_open(direct->pkey, direct->lockmode);
	probe->slot = table_slot_create(direct->keys, NULL);
	probe->snapshot = snapshot;
	probe->scan = idem_compat_index_beginscan(direct->keys, probe->index,
											  snapshot, lengthof(entries));
	init_scan_key(&entries[0], 1, id->scope);
	init_scan_key(&entries[1], 2, id->key);
	index_rescan(probe->scan, entries, lengthof(entries), NULL, 0);
}

/* The next row; "entries" tells whether the index has any for the key. */
static bool
next_of_probe(IdemProbe *probe, bool *entries)
{
	while (index_getnext_tid(probe->scan, ForwardScanDirection) != NULL)
	{
		*entries = true;
		if (idem_compat_fetch_heap(probe->scan, probe->snapshot, probe->slot))
			return true;
	}
	return false;
}

static void
end_probe(IdemProbe *probe)
{
	index_endscan(probe->scan);
	ExecDropSingleTupleTableSlot(probe->slot);
	index_close(probe->index, NoLock);
}

/*
 * idem_store_direct_push_snapshot
 *		A snapshot for a look: a new one in READ COMMITTED, that of the transaction
 *		above, both with what this transaction has written so far; that of the
 *		statement where a parallel plan runs.  To be popped.
 */
Snapshot
idem_store_direct_push_snapshot(void)
{
	if (IsInParallelMode())
		PushActiveSnapshot(GetActiveSnapshot());
	else
	{
		CommandCounterIncrement();
		PushActiveSnapshot(GetTransactionSnapshot());
	}
	return GetActiveSnapshot();
}

/* The row of a probe, copied; NULL if there is none. */
static HeapTuple
end_search(IdemProbe *probe, const IdemKey *id, bool *entries)
{
	HeapTuple	tuple = NULL;

	if (next_of_probe(probe, entries))
	{
		tuple = ExecCopySlotHeapTuple(probe->slot);
		if (next_of_probe(probe, entries))
			idem_store_row_raise_twins(id);
	}
	end_probe(probe);
	return tuple;
}

/*
 * The row of a key under an MVCC snapshot, copied; NULL if there is none, and
 * then "entries" tells whether there may be one that the snapshot cannot see.
 *
 * Under SERIALIZABLE an index scan with an MVCC snapshot locks the page that it
 * reads against insertions, those of neighbouring keys among them.  Where there
 * is a row, its own predicate lock will do: a second one of the key cannot
 * come, and who removes this one meets that lock.  Where there is none and the
 * caller is going to "insert" the key, the unique index will do.  So the index
 * is scanned with a snapshot that locks nothing, its entries are fetched with
 * that of the transaction, and only who relies on a key's absence scans again.
 * Spec: claim-serializable.
 */
static HeapTuple
find_tuple(const IdemDirect *direct, const IdemKey *id, Snapshot snapshot,
		   bool insert, bool *entries)
{
	IdemProbe	probe;
	HeapTuple	tuple;

	*entries = false;
	if (IsolationIsSerializable())
	{
		begin_probe(&probe, direct, id, SnapshotAny);
		probe.snapshot = snapshot;
		tuple = end_search(&probe, id, entries);
		if (tuple != NULL || insert)
			return tuple;
	}
	begin_probe(&probe, direct, id, snapshot);
	return end_search(&probe, id, entries);
}

/* The row that a tuple is; whether it is that of the key, too. */
static bool
form_row(const IdemDirect *direct, HeapTuple tuple, const IdemKey *id,
		 IdemRow *row)
{
	TupleDesc	desc = RelationGetDescr(direct->keys);
	Datum	   *values = palloc(desc->natts * sizeof(Datum));
	bool	   *nulls = palloc(desc->natts * sizeof(bool));
	bool		same;

	heap_deform_tuple(tuple, desc, values, nulls);
	idem_store_row_form(row, values, nulls);
	same = idem_store_row_is(id, values);
	pfree(values);
	pfree(nulls);
	return same;
}

/*
 * idem_store_direct_look
 *		Read a row as it is now, where the isolation level lets us; no lock.
 *
 * "absent" when the index has no entry for the key, not even one of a row that
 * cannot be seen: then nobody had inserted it when we looked, and the caller
 * must.
 */
bool
idem_store_direct_look(const IdemDirect *direct, const IdemKey *id,
					   IdemRow *row, bool *absent)
{
	bool		entries;
	Snapshot	snapshot = idem_store_direct_push_snapshot();
	HeapTuple	tuple = find_tuple(direct, id, snapshot, true, &entries);

	PopActiveSnapshot();
	*absent = !entries;
	return tuple != NULL && form_row(direct, tuple, id, row);
}

/*
 * idem_store_direct_read
 *		The same for whoever inserts nothing.
 */
bool
idem_store_direct_read(const IdemDirect *direct, const IdemKey *id,
					   IdemRow *row)
{
	bool		found;

	(void) idem_store_direct_push_snapshot();
	found = idem_store_direct_peek(direct, id, row);
	PopActiveSnapshot();
	return found;
}

/*
 * idem_store_direct_peek
 *		Read a row as the calling statement sees it; works in recovery.
 */
bool
idem_store_direct_peek(const IdemDirect *direct, const IdemKey *id,
					   IdemRow *row)
{
	bool		entries;
	HeapTuple	tuple = find_tuple(direct, id, GetActiveSnapshot(), false,
									&entries);

	return tuple != NULL && form_row(direct, tuple, id, row);
}

/*
 * idem_store_direct_lock
 *		Read a row FOR UPDATE, its last version; 40001 when the snapshot of the
 *		transaction is older than its last change.
 *
 * With wait, behind the transaction that has it, as long as lock_timeout and
 * deadlock_timeout allow.
 */
IdemDirectLocked
idem_store_direct_lock(const IdemDirect *direct, const IdemKey *id, bool wait,
					   IdemRow *row)
{
	Snapshot	snapshot = idem_store_direct_push_snapshot();
	bool		entries;
	HeapTuple	tuple = find_tuple(direct, id, snapshot, false, &entries);
	IdemDirectLocked locked = IDEM_DIRECT_GONE;
	TM_FailureData failure;
	TM_Result	result = TM_Deleted;
	TupleTableSlot *slot;

	if (tuple == NULL)
	{
		PopActiveSnapshot();
		return IDEM_DIRECT_GONE;
	}
	slot = table_slot_create(direct->keys, NULL);
	result = table_tuple_lock(direct->keys, &tuple->t_self, snapshot, slot,
							  GetCurrentCommandId(false), LockTupleExclusive,
							  wait ? LockWaitBlock : LockWaitSkip,
							  IsolationUsesXactSnapshot() ? 0 :
							  TUPLE_LOCK_FLAG_FIND_LAST_VERSION, &failure);
	PopActiveSnapshot();
	switch (result)
	{
		case TM_Ok:
			if (form_row(direct, ExecCopySlotHeapTuple(slot), id, row))
				locked = IDEM_DIRECT_LOCKED;
			break;
		case TM_WouldBlock:
			locked = IDEM_DIRECT_BUSY;
			break;
		case TM_Updated:
		case TM_Deleted:
			if (IsolationUsesXactSnapshot())
				idem_store_row_raise_rival();
			break;
		case TM_SelfModified:
			break;
		default:
			elog(ERROR, "unexpected result of table_tuple_lock: %u", result);
	}
	ExecDropSingleTupleTableSlot(slot);
	return locked;
}

/* The first row of a key in a dirty snapshot, which says whose it is. */
static bool
find_dirty(const IdemDirect *direct, const IdemKey *id, Snapshot dirty,
		   ItemPointer tid)
{
	IdemProbe	probe;
	bool		found;

	begin_probe(&probe, direct, id, dirty);
	found = index_getnext_slot(probe.scan, ForwardScanDirection, probe.slot);
	if (found)
		*tid = probe.slot->tts_tid;
	end_probe(&probe);
	return found;
}

/*
 * idem_store_direct_rival
 *		Whether there is a row of a key that idem_store_direct_read did not
 *		find.  With wait, not before the transaction that inserted it has ended.
 */
IdemDirectRival
idem_store_direct_rival(const IdemDirect *direct, const IdemKey *id, bool wait)
{
	for (;;)
	{
		SnapshotData dirty;
		ItemPointerData tid;

		InitDirtySnapshot(dirty);
		if (!find_dirty(direct, id, &dirty, &tid))
			return IDEM_RIVAL_NONE;
		if (!TransactionIdIsValid(dirty.xmin))
			return IDEM_RIVAL_COMMITTED;
		if (!wait)
			return IDEM_RIVAL_OPEN;
		if (dirty.speculativeToken != 0)
			SpeculativeInsertionWait(dirty.xmin, dirty.speculativeToken);
		else
			XactLockTableWait(dirty.xmin, direct->keys, &tid, XLTW_Lock);
	}
}

static TupleTableSlot *
make_slot(const IdemDirect *direct, const IdemKey *id, const IdemRow *row)
{
	TupleDesc	desc = RelationGetDescr(direct->keys);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(desc, &TTSOpsVirtual);

	memset(slot->tts_isnull, true, desc->natts * sizeof(bool));
	idem_store_row_values(id, row, slot->tts_values, slot->tts_isnull);
	slot->tts_tableOid = RelationGetRelid(direct->keys);
	return ExecStoreVirtualTuple(slot);
}

/*
 * Index entries for a row that was written, as ExecInsertIndexTuples() makes
 * them.  All indexes are valid and plain, and one is unique, whose columns no
 * update changes.  Returns false when that one has the key already, of another
 * row that lives or whose transaction has not ended: it is told not to wait,
 * and not to raise an error, which would show the key.
 */
static bool
insert_index_entries(const IdemDirect *direct, TupleTableSlot *slot,
					 bool update, IdemCompatIndexes indexes)
{
	ResultRelInfo result;
	bool		unique = true;
	int			i;

	if (indexes == IDEM_COMPAT_INDEXES_NONE)
		return true;
	InitResultRelInfo(&result, direct->keys, 0, NULL, 0);
	ExecOpenIndices(&result, false);
	for (i = 0; i < result.ri_NumIndices; i++)
	{
		Relation	index = result.ri_IndexRelationDescs[i];
		IndexInfo  *info = result.ri_IndexRelationInfo[i];
		bool		is_unique = index->rd_index->indisunique;
		Datum		values[INDEX_MAX_KEYS];
		bool		isnull[INDEX_MAX_KEYS];

		if (!info->ii_ReadyForInserts ||
			(indexes == IDEM_COMPAT_INDEXES_SUMMARIZING &&
			 !idem_compat_is_summarizing(info)))
			continue;
		FormIndexDatum(info, slot, NULL, values, isnull);
		if (!index_insert(index, values, isnull, &slot->tts_tid, direct->keys,
						  is_unique ? UNIQUE_CHECK_PARTIAL : UNIQUE_CHECK_NO,
						  update && is_unique, info) && is_unique)
			unique = false;
	}
	ExecCloseIndices(&result);
	return unique;
}

/*
 * idem_store_direct_insert
 *		Insert a row; false when another transaction has the key.
 *
 * Waits for nobody, see the head of the file.
 */
bool
idem_store_direct_insert(const IdemDirect *direct, const IdemKey *id,
						 const IdemRow *row)
{
	TransactionId xid = GetCurrentTransactionId();
	TupleTableSlot *slot = make_slot(direct, id, row);
	uint32		token = SpeculativeInsertionLockAcquire(xid);
	bool		unique;

	table_tuple_insert_speculative(direct->keys, slot,
								   GetCurrentCommandId(true), 0, NULL, token);
	unique = insert_index_entries(direct, slot, false,
								  IDEM_COMPAT_INDEXES_ALL);
	table_tuple_complete_speculative(direct->keys, slot, token, unique);
	SpeculativeInsertionLockRelease(xid);
	ExecDropSingleTupleTableSlot(slot);
	CommandCounterIncrement();
	return unique;
}

/*
 * idem_store_direct_insert_new
 *		The same where there must be none; 40001 when another transaction has
 *		the key.  Cheaper: the abort takes the row back.
 */
void
idem_store_direct_insert_new(const IdemDirect *direct, const IdemKey *id,
							 const IdemRow *row)
{
	TupleTableSlot *slot = make_slot(direct, id, row);

	table_tuple_insert(direct->keys, slot, GetCurrentCommandId(true), 0, NULL);
	if (!insert_index_entries(direct, slot, false,
							  IDEM_COMPAT_INDEXES_ALL))
		idem_store_row_raise_rival();
	ExecDropSingleTupleTableSlot(slot);
	CommandCounterIncrement();
}

/*
 * idem_store_direct_update, idem_store_direct_delete
 *		Change or remove a row that this transaction has locked; false when
 *		there is none any more.
 */
bool
idem_store_direct_update(const IdemDirect *direct, const IdemKey *id,
						 const IdemRow *row)
{
	Snapshot	snapshot = idem_store_direct_push_snapshot();
	bool		entries;
	HeapTuple	old = find_tuple(direct, id, snapshot, false, &entries);
	IdemCompatIndexes indexes;
	TupleTableSlot *slot;
	TM_Result	result = TM_Deleted;

	if (old != NULL)
	{
		CheckCmdReplicaIdentity(direct->keys, CMD_UPDATE);
		slot = make_slot(direct, id, row);
		result = idem_compat_update(direct->keys, &old->t_self, slot,
									GetCurrentCommandId(true), snapshot,
									&indexes);
		if (result == TM_Ok &&
			!insert_index_entries(direct, slot, true, indexes))
			idem_store_row_raise_twins(id);
		ExecDropSingleTupleTableSlot(slot);
	}
	PopActiveSnapshot();
	CommandCounterIncrement();
	return result == TM_Ok;
}

bool
idem_store_direct_delete(const IdemDirect *direct, const IdemKey *id)
{
	Snapshot	snapshot = idem_store_direct_push_snapshot();
	bool		entries;
	HeapTuple	old = find_tuple(direct, id, snapshot, false, &entries);
	TM_FailureData failure;
	TM_Result	result = TM_Deleted;

	if (old != NULL)
	{
		CheckCmdReplicaIdentity(direct->keys, CMD_DELETE);
		result = table_tuple_delete(direct->keys, &old->t_self,
									GetCurrentCommandId(true), snapshot,
									InvalidSnapshot, true, &failure, false);
	}
	PopActiveSnapshot();
	CommandCounterIncrement();
	return old != NULL && result == TM_Ok;
}
