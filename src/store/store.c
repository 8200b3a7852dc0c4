/*-------------------------------------------------------------------------
 *
 * store.c
 *	  The one door to the key table.
 *
 * Owns the handle: which way a call takes, and until when that holds.  What is
 * the same in both ways is here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "storage/lmgr.h"
#include "utils/snapmgr.h"

#include "base/bytes.h"
#include "base/catalog.h"
#include "base/spi.h"
#include "store/parts.h"
#include "store/row.h"
#include "store/store.h"

/*
 * idem_store_open
 *		Lock the key table, and choose the way by what it is now.  Done again
 *		for a step that needs more of a lock, or after the table has changed.
 *
 * The lock is kept to the end of the transaction, as the executor's is.  Until
 * it is had, somebody may add what the direct way knows nothing of, so the
 * table is judged after that.  In the SQL way statements lock for themselves.
 * Spec: ways-change; t/015.
 */
void
idem_store_open(IdemStore *store, LOCKMODE lockmode)
{
	if (store->keys == NULL)
	{
		if (idem_whitelist_is_asked())
			store->keys = try_table_open(idem_catalog()->keys, lockmode);
		store->lockmode = lockmode;
	}
	else if (store->lockmode < lockmode)
	{
		LockRelationOid(RelationGetRelid(store->keys), lockmode);
		store->lockmode = lockmode;
	}

	/*
	 * After the lock, whose taking has brought what others have changed.  A
	 * table that was just dropped is none: a statement will say so.
	 */
	if (store->keys != NULL &&
		!idem_whitelist_passes(store->keys, &store->pkey, &store->purge_index))
	{
		table_close(store->keys, NoLock);
		store->keys = NULL;
	}
	/* statements lock for themselves: no step of the SQL way comes back here */
	if (store->keys == NULL)
		store->lockmode = MaxLockMode;
	store->way = store->keys == NULL ? &idem_store_sql : &idem_store_direct;
	store->changes = idem_whitelist_changes;
}

/*
 * idem_store_close
 *		Let go of the table; the locks, and the key lock, stay.
 */
void
idem_store_close(IdemStore *store)
{
	if (store->keys != NULL)
		table_close(store->keys, NoLock);
	store->keys = NULL;
	store->lockmode = NoLock;
	/* user code may change the row, whose lock is our own */
	ItemPointerSetInvalid(&store->row);
}

/*
 * idem_store_is_new
 *		Whether a statement need not read a key before it inserts it, since the
 *		snapshot shows none.
 *
 * For SERIALIZABLE, where reading would lock the page of the index to which the
 * key belongs against the insertion of its neighbours; sessions whose keys grow
 * with time insert into one and the same page.  That no rival has the key is
 * for the unique insertion to tell.  Spec: claim-serializable.
 */
bool
idem_store_is_new(const IdemKey *id)
{
	if (!IsolationIsSerializable())
		return false;
	/* with what this transaction has written itself */
	CommandCounterIncrement();
	return !idem_store_parts_may_show(id, GetTransactionSnapshot());
}

/*
 * idem_store_require_current
 *		Raise 40001 when a row has changed since the snapshot of the transaction,
 *		by which it was read.
 */
void
idem_store_require_current(IdemStore *store, const IdemKey *id,
						   const IdemRow *row)
{
	IdemRow		now;
	bool		found;

	PushActiveSnapshot(idem_spi_latest());
	found = idem_store_peek(store, id, &now);
	PopActiveSnapshot();
	/* what a holder may change of a claim in progress, or anybody after it */
	if (!found || now.state != row->state || now.token != row->token ||
		now.claim_xid != row->claim_xid ||
		now.lease_until != row->lease_until ||
		now.finished_at != row->finished_at)
		idem_store_row_raise_rival();
}

/*
 * idem_store_update, idem_store_delete
 *		Change or remove a row that this transaction has locked.
 */
void
idem_store_update(IdemStore *store, const IdemKey *id, const IdemRow *row)
{
	if (!idem_store_way(store, RowExclusiveLock)->update(store, id, row))
		idem_store_row_raise_suppressed(id);
}

void
idem_store_delete(IdemStore *store, const IdemKey *id)
{
	if (!idem_store_way(store, RowExclusiveLock)->delete(store, id))
		idem_store_row_raise_suppressed(id);
}

/*
 * idem_store_swept, idem_store_swept_end
 *		Count a row that was removed.  Mostly many rows in a row are of one policy:
 *		they are counted at once.
 */
void
idem_store_swept(IdemSweptRun *run, Datum policy, bool isnull)
{
	text	   *name = isnull ? NULL : DatumGetTextPP(policy);

	if (run->rows == 0 ||
		!idem_bytes_equal(idem_bytes_of(name), idem_bytes_of(run->policy)))
	{
		idem_store_swept_end(run);
		run->policy = isnull ? NULL : DatumGetTextPCopy(policy);
	}
	run->rows++;
}

void
idem_store_swept_end(IdemSweptRun *run)
{
	if (run->rows > 0)
		run->count(run->policy, run->rows);
	if (run->policy != NULL)
		pfree(run->policy);
	run->policy = NULL;
	run->rows = 0;
}

/*
 * idem_store_sweep
 *		Remove up to max_rows rows whose purge_at is over, oldest first; how
 *		many.
 *
 * Begins at the mark, which becomes that of the last one removed.  Waits for nobody: rows that are locked are skipped, and
 * when the table itself, a partition or an index is locked against writers
 * (ALTER TABLE, CLUSTER, ALTER INDEX) nothing is done.
 */
int64
idem_store_sweep(IdemSweepMark *mark, TimestampTz now, int64 max_rows,
				 IdemSweepCount count)
{
	IdemStore	store = {0};
	int64		rows;

	/* ALTER TABLE and the like go first, and the sweep comes another time */
	if (!ConditionalLockRelationOid(idem_catalog()->keys, RowExclusiveLock))
		return 0;
	rows = idem_store_way(&store, RowExclusiveLock)->sweep(&store, mark, now,
														   max_rows, count);
	idem_store_close(&store);
	return rows;
}
