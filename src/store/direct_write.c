/*-------------------------------------------------------------------------
 *
 * direct_write.c
 *	  The direct way to the key table: writing a row.
 *
 * Does what the executor does for the same statements (nodeModifyTable.c,
 * execIndexing.c, execReplication.c), for a table that whitelist.c passed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "executor/executor.h"
#include "storage/lmgr.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "store/direct.h"
#include "store/entries.h"
#include "store/row.h"

/*
 * idem_direct_make_slot
 *		The row of a key, to be written.
 */
TupleTableSlot *
idem_direct_make_slot(IdemStore *store, const IdemKey *id,
					  const IdemRow *row)
{
	TupleDesc	desc = RelationGetDescr(store->keys);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(desc, &TTSOpsVirtual);

	memset(slot->tts_isnull, true, desc->natts * sizeof(bool));
	idem_store_row_values(id, row, slot->tts_values, slot->tts_isnull);
	slot->tts_tableOid = RelationGetRelid(store->keys);
	return ExecStoreVirtualTuple(slot);
}

/*
 * Index entries for a row that was written.  Returns false when another row
 * that lives, or whose transaction has not ended, has the key already.
 */
static bool
insert_entries(IdemStore *store, const IdemKey *id, TupleTableSlot *slot,
			   IdemEntries *entries, bool update, IdemCompatIndexes which)
{
	/*
	 * To the index, a row that its own transaction has taken back is one that
	 * may live.  Whoever is told of another looks himself, with his own entry
	 * in its place: of two the later one is told, and finds the earlier.
	 */
	return idem_entries_insert(entries, slot, update, which) ||
		idem_direct_find_rival(store, id, false, &slot->tts_tid) ==
		IDEM_RIVAL_NONE;
}

/* The unique index is told not to wait, and not to raise an error with a key. */
static void
open_entries(IdemStore *store, IdemEntries *entries)
{
	idem_entries_open(entries, store->keys, UNIQUE_CHECK_PARTIAL);
}

/*
 * idem_direct_insert_slot
 *		Insert a row; false when another transaction has the key.
 *
 * Waits for nobody.
 */
bool
idem_direct_insert_slot(IdemStore *store, const IdemKey *id,
						TupleTableSlot *slot, IdemEntries *entries)
{
	TransactionId xid = GetCurrentTransactionId();
	uint32		token = SpeculativeInsertionLockAcquire(xid);
	bool		unique;

	/*
	 * Whoever comes between the look and this, a claimer from before we had
	 * the key lock, or a writer that takes none, is found by the index: one
	 * of the two puts its entry there first, under the lock of the page, and
	 * the other is told, without waiting, and takes its row back.
	 * Speculatively, so that no third one waits for a row that is taken back.
	 * Specs: claim-two, claim-dedupe, direct-new-key.
	 */
	table_tuple_insert_speculative(store->keys, slot,
								   GetCurrentCommandId(true), 0, NULL, token);
	unique = insert_entries(store, id, slot, entries, false,
							IDEM_COMPAT_INDEXES_ALL);
	table_tuple_complete_speculative(store->keys, slot, token, unique);
	SpeculativeInsertionLockRelease(xid);
	CommandCounterIncrement();
	return unique;
}

/*
 * idem_direct_take_back
 *		Make a row that this very transaction has inserted nobody's.
 */
void
idem_direct_take_back(IdemStore *store, TupleTableSlot *slot, CommandId cid)
{
	/* a command does not see what it has inserted itself */
	if (GetCurrentCommandId(false) == cid)
		CommandCounterIncrement();
	simple_table_tuple_delete(store->keys, &slot->tts_tid, SnapshotAny);
}

/*
 * As idem_direct_insert_slot(), for one who has the key lock and so hardly ever
 * meets a rival: one WAL record less.  A rival may wait for a row that was taken
 * back until we end, unless he looks who took it, as our own do.
 */
static bool
insert_plain(IdemStore *store, const IdemKey *id, TupleTableSlot *slot,
			 IdemEntries *entries)
{
	CommandId	cid = GetCurrentCommandId(true);
	bool		unique;

	table_tuple_insert(store->keys, slot, cid, 0, NULL);
	unique = insert_entries(store, id, slot, entries, false,
							IDEM_COMPAT_INDEXES_ALL);
	if (!unique)
		idem_direct_take_back(store, slot, cid);
	CommandCounterIncrement();
	return unique;
}

/*
 * idem_direct_insert
 *		Insert the row of a key that nobody locked, or we have the lock of;
 *		false when another transaction has the key.
 *
 * Waits for nobody.
 */
bool
idem_direct_insert(IdemStore *store, const IdemKey *id,
				   const IdemRow *row)
{
	TupleTableSlot *slot = idem_direct_make_slot(store, id, row);
	IdemEntries entries;
	bool		unique;

	open_entries(store, &entries);
	/* a subscriber would be sent a row that is taken back, too: t/012 */
	unique = store->locked && !RelationIsLogicallyLogged(store->keys) ?
		insert_plain(store, id, slot, &entries) :
		idem_direct_insert_slot(store, id, slot, &entries);
	idem_entries_close(&entries);
	ExecDropSingleTupleTableSlot(slot);

	/* from now on the row itself tells rivals */
	idem_store_drop(store);
	return unique;
}

/*
 * idem_direct_insert_new
 *		Insert a row where there must be none; 40001 when another transaction
 *		has the key.  Cheaper: the abort takes the row back.
 */
void
idem_direct_insert_new(IdemStore *store, const IdemKey *id,
					   const IdemRow *row)
{
	TupleTableSlot *slot = idem_direct_make_slot(store, id, row);
	IdemEntries entries;

	table_tuple_insert(store->keys, slot, GetCurrentCommandId(true), 0, NULL);
	open_entries(store, &entries);
	/* not speculatively: the error takes back the work and the row with it */
	if (!insert_entries(store, id, slot, &entries, false,
						IDEM_COMPAT_INDEXES_ALL))
		idem_store_row_raise_rival();
	idem_entries_close(&entries);
	ExecDropSingleTupleTableSlot(slot);
	CommandCounterIncrement();
	idem_store_drop(store);
}

/* The entries of a row that was updated, if that was not HOT. */
static void
update_entries(IdemStore *store, const IdemKey *id, TupleTableSlot *slot,
			   IdemCompatIndexes which)
{
	IdemEntries entries;

	if (which == IDEM_COMPAT_INDEXES_NONE)
		return;
	open_entries(store, &entries);
	if (!insert_entries(store, id, slot, &entries, true, which))
		idem_store_row_raise_twins(id);
	idem_entries_close(&entries);
}

/*
 * Where the row is that this transaction has locked; false when there is none
 * any more.  It is where it was locked, unless user code has run since.
 */
static bool
find_locked(IdemStore *store, const IdemKey *id, Snapshot snapshot,
			ItemPointer tid)
{
	bool		entries;
	HeapTuple	tuple;

	*tid = store->row;
	ItemPointerSetInvalid(&store->row);
	if (ItemPointerIsValid(tid))
		return true;
	tuple = idem_direct_find(store, id, snapshot, false, &entries);
	if (tuple != NULL)
		*tid = tuple->t_self;
	return tuple != NULL;
}

/*
 * idem_direct_update, idem_direct_delete
 *		Change or remove a row that this transaction has locked; false when
 *		there is none any more.
 */
bool
idem_direct_update(IdemStore *store, const IdemKey *id,
				   const IdemRow *row)
{
	Snapshot	snapshot = idem_direct_push_snapshot();
	ItemPointerData tid;
	IdemCompatIndexes indexes;
	TupleTableSlot *slot;
	TM_Result	result = TM_Deleted;

	if (find_locked(store, id, snapshot, &tid))
	{
		/* as the executor: a published table without identity is refused */
		CheckCmdReplicaIdentity(store->keys, CMD_UPDATE);
		slot = idem_direct_make_slot(store, id, row);
		result = idem_compat_update(store->keys, &tid, slot,
									GetCurrentCommandId(true), snapshot,
									&indexes);
		if (result == TM_Ok)
			update_entries(store, id, slot, indexes);
		ExecDropSingleTupleTableSlot(slot);
	}
	PopActiveSnapshot();
	CommandCounterIncrement();
	return result == TM_Ok;
}

bool
idem_direct_delete(IdemStore *store, const IdemKey *id)
{
	Snapshot	snapshot = idem_direct_push_snapshot();
	ItemPointerData tid;
	TM_FailureData failure;
	TM_Result	result = TM_Deleted;

	if (find_locked(store, id, snapshot, &tid))
	{
		CheckCmdReplicaIdentity(store->keys, CMD_DELETE);
		result = idem_compat_delete(store->keys, &tid,
									GetCurrentCommandId(true), snapshot,
									true, &failure);
	}
	PopActiveSnapshot();
	CommandCounterIncrement();
	return result == TM_Ok;
}
