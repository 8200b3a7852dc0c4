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
#include "executor/executor.h"
#include "storage/lmgr.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "store/direct.h"
#include "store/entries.h"
#include "store/row.h"

static TupleTableSlot *
make_slot(IdemStore *store, const IdemKey *id, const IdemRow *row)
{
	TupleDesc	desc = RelationGetDescr(store->keys);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(desc, &TTSOpsVirtual);

	memset(slot->tts_isnull, true, desc->natts * sizeof(bool));
	idem_store_row_values(id, row, slot->tts_values, slot->tts_isnull);
	slot->tts_tableOid = RelationGetRelid(store->keys);
	return ExecStoreVirtualTuple(slot);
}

/*
 * Index entries for a row that was written.  One index is unique, whose columns
 * no update changes.  Returns false when that one has the key already, of
 * another row that lives or whose transaction has not ended: it is told not to
 * wait, and not to raise an error, which would show the key.
 */
static bool
insert_index_entries(IdemStore *store, TupleTableSlot *slot,
					 bool update, IdemCompatIndexes indexes)
{
	IdemEntries entries;
	bool		unique;

	if (indexes == IDEM_COMPAT_INDEXES_NONE)
		return true;
	idem_entries_open(&entries, store->keys, UNIQUE_CHECK_PARTIAL);
	unique = idem_entries_insert(&entries, slot, update, indexes);
	idem_entries_close(&entries);
	return unique;
}

/*
 * idem_direct_insert
 *		Insert a row; false when another transaction has the key.
 *
 * Waits for nobody.
 */
bool
idem_direct_insert(IdemStore *store, const IdemKey *id,
				   const IdemRow *row)
{
	TransactionId xid = GetCurrentTransactionId();
	TupleTableSlot *slot = make_slot(store, id, row);
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
	unique = insert_index_entries(store, slot, false,
								  IDEM_COMPAT_INDEXES_ALL);
	table_tuple_complete_speculative(store->keys, slot, token, unique);
	SpeculativeInsertionLockRelease(xid);
	ExecDropSingleTupleTableSlot(slot);
	CommandCounterIncrement();

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
	TupleTableSlot *slot = make_slot(store, id, row);

	table_tuple_insert(store->keys, slot, GetCurrentCommandId(true), 0, NULL);
	/* not speculatively: the error takes back the work and the row with it */
	if (!insert_index_entries(store, slot, false,
							  IDEM_COMPAT_INDEXES_ALL))
		idem_store_row_raise_rival();
	ExecDropSingleTupleTableSlot(slot);
	CommandCounterIncrement();
	idem_store_drop(store);
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
	bool		entries;
	HeapTuple	old = idem_direct_find(store, id, snapshot, false, &entries);
	IdemCompatIndexes indexes;
	TupleTableSlot *slot;
	TM_Result	result = TM_Deleted;

	if (old != NULL)
	{
		/* as the executor: a published table without identity is refused */
		CheckCmdReplicaIdentity(store->keys, CMD_UPDATE);
		slot = make_slot(store, id, row);
		result = idem_compat_update(store->keys, &old->t_self, slot,
									GetCurrentCommandId(true), snapshot,
									&indexes);
		if (result == TM_Ok &&
			!insert_index_entries(store, slot, true, indexes))
			idem_store_row_raise_twins(id);
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
	bool		entries;
	HeapTuple	old = idem_direct_find(store, id, snapshot, false, &entries);
	TM_FailureData failure;
	TM_Result	result = TM_Deleted;

	if (old != NULL)
	{
		CheckCmdReplicaIdentity(store->keys, CMD_DELETE);
		result = table_tuple_delete(store->keys, &old->t_self,
									GetCurrentCommandId(true), snapshot,
									InvalidSnapshot, true, &failure, false);
	}
	PopActiveSnapshot();
	CommandCounterIncrement();
	return old != NULL && result == TM_Ok;
}
