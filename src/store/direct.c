/*-------------------------------------------------------------------------
 *
 * direct.c
 *	  The direct way to the key table: by its access methods.
 *
 * For a table that whitelist.c has passed.  Does what the executor does for the
 * same statements (nodeLockRows.c, execReplication.c): the same locks on table
 * and indexes, a fresh snapshot for each look where the isolation level allows
 * it, the command counter advanced before a look and after a write.  Neither
 * user nor search_path is switched: nothing here calls anything that they could
 * change.  Nothing here waits for another transaction but where it is told to.
 * README.md tells who may run when.
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
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
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

static void
begin_probe(IdemProbe *probe, const IdemStore *store, const IdemKey *id,
			LOCKMODE lockmode, Snapshot snapshot)
{
	ScanKeyData entries[2];

	probe->index = index_open(store->pkey, lockmode);
	probe->slot = table_slot_create(store->keys, NULL);
	probe->snapshot = snapshot;
	probe->scan = idem_compat_index_beginscan(store->keys, probe->index,
											  snapshot, lengthof(entries));
	idem_store_row_scan_keys(id, entries);
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
end_probe(IdemProbe *probe, LOCKMODE release)
{
	index_endscan(probe->scan);
	ExecDropSingleTupleTableSlot(probe->slot);
	index_close(probe->index, release);
}

/*
 * idem_direct_push_snapshot
 *		A snapshot for a look: a new one in READ COMMITTED, that of the transaction
 *		above, both with what this transaction has written so far; that of the
 *		statement where a parallel plan runs.  To be popped.
 */
Snapshot
idem_direct_push_snapshot(void)
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
	end_probe(probe, NoLock);
	return tuple;
}

/*
 * The row of a key under an MVCC snapshot, copied; NULL if there is none, and
 * then "entries" tells whether there may be one that the snapshot cannot see.
 *
 * With "insert" the caller is going to insert the key if there is no row.
 */
HeapTuple
idem_direct_find(const IdemStore *store, const IdemKey *id, Snapshot snapshot,
				 bool insert, bool *entries)
{
	IdemProbe	probe;
	HeapTuple	tuple;

	*entries = false;
	if (IsolationIsSerializable())
	{
		/*
		 * An index scan with an MVCC snapshot would lock the page that it
		 * reads against insertions, those of neighbouring keys among them.
		 * Where there is a row, its own predicate lock will do: a second one
		 * of the key cannot come, and who removes this one meets that lock.
		 * Where there is none and one is inserted next, the unique index will
		 * do. So the index is scanned with a snapshot that locks nothing, and
		 * only who relies on a key's absence scans again.  Spec:
		 * claim-serializable.
		 */
		begin_probe(&probe, store, id, store->lockmode, SnapshotAny);
		probe.snapshot = snapshot;
		tuple = end_search(&probe, id, entries);
		if (tuple != NULL || insert)
			return tuple;
	}
	begin_probe(&probe, store, id, store->lockmode, snapshot);
	return end_search(&probe, id, entries);
}

/* The row that a tuple is; whether it is that of the key, too. */
static bool
form_row(const IdemStore *store, HeapTuple tuple, const IdemKey *id,
		 IdemRow *row)
{
	TupleDesc	desc = RelationGetDescr(store->keys);
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
 * The row of a key under the active snapshot; "absent" when the index has no
 * entry for it, not even one of a row that cannot be seen: then nobody had
 * inserted it when we looked, and the caller must, if told that it will.
 */
static bool
find_row(const IdemStore *store, const IdemKey *id, bool insert, IdemRow *row,
		 bool *absent)
{
	bool		entries;
	HeapTuple	tuple = idem_direct_find(store, id, GetActiveSnapshot(),
										 insert, &entries);

	*absent = !entries;
	return tuple != NULL && form_row(store, tuple, id, row);
}

static bool
peek(IdemStore *store, const IdemKey *id, IdemRow *row)
{
	bool		absent;

	return find_row(store, id, false, row, &absent);
}

static bool
read_now(IdemStore *store, const IdemKey *id, IdemRow *row)
{
	bool		found;

	(void) idem_direct_push_snapshot();
	found = peek(store, id, row);
	PopActiveSnapshot();
	return found;
}

static bool
look(IdemStore *store, const IdemKey *id, bool check_new, IdemRow *row)
{
	bool		found;

	/*
	 * Where there is no trace of the key after the key lock was had, nobody
	 * who asks for the lock can come in between, and nobody needs to look
	 * again.
	 */
	store->locked = check_new && idem_store_lock_key(id, &store->tag, false);
	(void) idem_direct_push_snapshot();
	found = find_row(store, id, true, row, &store->absent);
	PopActiveSnapshot();
	if (!store->absent)
		idem_store_drop(store);
	return found;
}

/*
 * Read a row FOR UPDATE, its last version; NEW when there is none, or none any
 * more.  With wait, behind the transaction that has it, as long as
 * lock_timeout and deadlock_timeout allow; else BUSY.
 */
static IdemStoreTaken
lock_row(IdemStore *store, const IdemKey *id, bool wait, IdemRow *row)
{
	Snapshot	snapshot = idem_direct_push_snapshot();
	bool		entries;
	HeapTuple	tuple = idem_direct_find(store, id, snapshot, false, &entries);
	IdemStoreTaken taken = IDEM_STORE_NEW;
	TM_FailureData failure;
	TM_Result	result;
	TupleTableSlot *slot;

	ItemPointerSetInvalid(&store->row);
	if (tuple == NULL)
	{
		PopActiveSnapshot();
		return IDEM_STORE_NEW;
	}

	/* what this transaction has written itself nobody else can lock */
	if (TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data)))
	{
		PopActiveSnapshot();
		if (!form_row(store, tuple, id, row))
			return IDEM_STORE_NEW;
		store->row = tuple->t_self;
		return IDEM_STORE_ROW;
	}

	/*
	 * In READ COMMITTED the last version is followed to, and decided upon;
	 * above, a row that has changed since the snapshot is 40001.
	 */
	slot = table_slot_create(store->keys, NULL);
	result = table_tuple_lock(store->keys, &tuple->t_self, snapshot, slot,
							  GetCurrentCommandId(false), LockTupleExclusive,
							  wait ? LockWaitBlock : LockWaitSkip,
							  IsolationUsesXactSnapshot() ? 0 :
							  TUPLE_LOCK_FLAG_FIND_LAST_VERSION, &failure);
	PopActiveSnapshot();
	switch (result)
	{
		case TM_Ok:
			if (form_row(store, ExecCopySlotHeapTuple(slot), id, row))
			{
				store->row = slot->tts_tid;
				taken = IDEM_STORE_ROW;
			}
			break;
		case TM_WouldBlock:
			taken = IDEM_STORE_BUSY;
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
	return taken;
}

static bool
lock(IdemStore *store, const IdemKey *id, IdemRow *row)
{
	return lock_row(store, id, true, row) == IDEM_STORE_ROW;
}

static IdemStoreTaken
try_lock(IdemStore *store, const IdemKey *id, IdemRow *row)
{
	return lock_row(store, id, false, row);
}

/*
 * idem_direct_is_taken_back
 *		Whether the transaction that inserted a row has deleted it, too: then it is
 *		nobody's, however that transaction ends.
 *
 * Who loses a race leaves such a row.  Of an updated row the next version has
 * the key.
 */
bool
idem_direct_is_taken_back(TupleTableSlot *slot)
{
	BufferHeapTupleTableSlot *in_buffer = (BufferHeapTupleTableSlot *) slot;
	HeapTuple	tuple = in_buffer->base.tuple;
	HeapTupleHeader header = tuple->t_data;
	bool		taken_back;

	/* infomask and xmax are one only under the lock of the page */
	LockBuffer(in_buffer->buffer, BUFFER_LOCK_SHARE);
	taken_back =
		(header->t_infomask & (HEAP_XMAX_INVALID | HEAP_XMAX_IS_MULTI)) == 0 &&
		!HEAP_XMAX_IS_LOCKED_ONLY(header->t_infomask) &&
		TransactionIdEquals(HeapTupleHeaderGetRawXmax(header),
							HeapTupleHeaderGetXmin(header)) &&
		ItemPointerEquals(&header->t_ctid, &tuple->t_self);
	LockBuffer(in_buffer->buffer, BUFFER_LOCK_UNLOCK);
	return taken_back;
}

/*
 * The first row of a key in a dirty snapshot, which says whose it is; not the
 * one at "own".
 */
static bool
find_dirty(const IdemStore *store, const IdemKey *id, Snapshot dirty,
		   ItemPointer own, ItemPointer tid)
{
	IdemProbe	probe;
	bool		found = false;

	/* as an insertion, which lets go of the indexes when it is done */
	begin_probe(&probe, store, id, AccessShareLock, dirty);
	while (!found &&
		   index_getnext_slot(probe.scan, ForwardScanDirection, probe.slot))
	{
		*tid = probe.slot->tts_tid;
		found = (own == NULL || !ItemPointerEquals(tid, own)) &&
			!idem_direct_is_taken_back(probe.slot);
	}
	end_probe(&probe, AccessShareLock);
	return found;
}

/*
 * idem_direct_find_rival
 *		Whether there is a row of a key besides our own that a look did not
 *		find.  With wait, not before the transaction that inserted it has ended.
 *
 * Must not wait for who waits for us: see README.md on rows taken back.
 */
IdemRival
idem_direct_find_rival(const IdemStore *store, const IdemKey *id, bool wait,
					   ItemPointer own)
{
	for (;;)
	{
		SnapshotData dirty;
		ItemPointerData tid;

		InitDirtySnapshot(dirty);
		if (!find_dirty(store, id, &dirty, own, &tid))
			return IDEM_RIVAL_NONE;
		if (!TransactionIdIsValid(dirty.xmin))
			return IDEM_RIVAL_COMMITTED;
		if (!wait)
			return IDEM_RIVAL_OPEN;

		/* who inserts speculatively may take the row back before its end */
		if (dirty.speculativeToken != 0)
			SpeculativeInsertionWait(dirty.xmin, dirty.speculativeToken);
		else
			XactLockTableWait(dirty.xmin, store->keys, &tid, XLTW_Lock);
	}
}

static bool
hold(IdemStore *store, const IdemKey *id, IdemRow *row)
{
	LOCKTAG		tag;

	if (lock(store, id, row))
		return true;

	/*
	 * No row that can be seen.  An idem_run may be at the key, which gives
	 * the key lock back when it has inserted one, or a claim that has not
	 * committed, which its row tells.  Wait for both; whoever waits must not
	 * keep others off, so the lock goes back at once.  Specs: finish-unseen,
	 * finish-unseen-run.
	 */
	(void) idem_store_lock_key(id, &tag, true);
	idem_store_unlock_key(&tag);
	if (idem_direct_find_rival(store, id, true, NULL) == IDEM_RIVAL_COMMITTED &&
		IsolationUsesXactSnapshot())
		idem_store_row_raise_rival();
	return lock(store, id, row);
}

static IdemStoreTaken
take_new(IdemStore *store, const IdemKey *id, bool check_new)
{
	IdemRival	rival;

	if (store->locked && store->absent)
		return IDEM_STORE_NEW;	/* looked with the key lock */
	store->locked = idem_store_lock_key(id, &store->tag, false);
	if (!store->locked)
		return IDEM_STORE_BUSY;

	/*
	 * A row that cannot be seen has an entry in the index.  If the look found
	 * none, a rival may have inserted since, but not under our lock; where
	 * that need not be known now, the insertion will tell.  Specs: claim-two,
	 * run-two.
	 */
	if (store->absent && !check_new)
		return IDEM_STORE_NEW;
	rival = idem_direct_find_rival(store, id, false, NULL);
	if (rival == IDEM_RIVAL_NONE)
		return IDEM_STORE_NEW;
	idem_store_drop(store);
	if (rival == IDEM_RIVAL_OPEN)
		return IDEM_STORE_BUSY;
	if (IsolationUsesXactSnapshot())
		idem_store_row_raise_rival();
	return IDEM_STORE_CHANGED;
}

static IdemStoreTaken
take(IdemStore *store, const IdemKey *id, bool found, bool check_new,
	 IdemRow *row)
{
	IdemStoreTaken taken;

	if (!found)
		return take_new(store, id, check_new);

	/* the sweep has it, or a rival's finish made it another: look again */
	taken = lock_row(store, id, false, row);
	return taken == IDEM_STORE_NEW ? IDEM_STORE_CHANGED : taken;
}

const IdemStoreWay idem_store_direct = {
	.read = read_now,
	.peek = peek,
	.lock = lock,
	.try_lock = try_lock,
	.hold = hold,
	.look = look,
	.take = take,
	.take_row = try_lock,
	.insert = idem_direct_insert,
	.insert_new = idem_direct_insert_new,
	.update = idem_direct_update,
	.delete = idem_direct_delete,
	.read_many = idem_direct_read_many,
	.insert_many = idem_direct_insert_many,
	.sweep = idem_direct_sweep
};
