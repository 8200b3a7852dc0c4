/*-------------------------------------------------------------------------
 *
 * direct_sweep.c
 *	  The direct way to the key table: removing what is due.
 *
 * By the index on purge_at, and like direct.c, but for many rows.
 * Waits for nobody.  Specs: sweep-open-direct, sweep-changed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"
#include "storage/lmgr.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "store/direct.h"
#include "store/row.h"

/*
 * The next row that the snapshot shows, past the mark; false at the end.
 *
 * Many rows share a purge_at.  What earlier batches have removed of it stays in
 * the index until VACUUM, before what they have not: it is passed without a
 * look at the table (t/026_sweep_snapshot.pl).
 */
static bool
next_due(IndexScanDesc scan, TupleTableSlot *slot, IdemSweepMark *mark,
		 IdemSweepMark *row)
{
	while (index_getnext_tid(scan, ForwardScanDirection) != NULL)
	{
		bool		isnull;
		Datum		purge_at = index_getattr(scan->xs_itup, 1,
											 scan->xs_itupdesc, &isnull);

		/* before the fetch, which follows a HOT chain to its end */
		row->tid = scan->xs_heaptid;
		row->purge_at = DatumGetTimestampTz(purge_at);
		if (row->purge_at == mark->purge_at &&
			ItemPointerIsValid(&mark->tid) &&
			ItemPointerCompare(&row->tid, &mark->tid) <= 0)
			continue;
		if (index_fetch_heap(scan, slot))
			return true;
	}
	return false;
}

/* All that is due since the mark; to be ended. */
static IndexScanDesc
begin_scan(Relation keys, Relation index, Snapshot snapshot, TimestampTz from,
		   TimestampTz now)
{
	IndexScanDesc scan = idem_compat_index_beginscan(keys, index, snapshot, 2);
	ScanKeyData range[2];

	scan->xs_want_itup = true;
	ScanKeyInit(&range[0], 1, BTGreaterEqualStrategyNumber, F_TIMESTAMPTZ_GE,
				TimestampTzGetDatum(from));
	ScanKeyInit(&range[1], 1, BTLessEqualStrategyNumber, F_TIMESTAMPTZ_LE,
				TimestampTzGetDatum(now));
	index_rescan(scan, range, lengthof(range), NULL, 0);
	return scan;
}

static int64
sweep_index(IdemStore *store, IdemSweepMark *mark, TimestampTz now,
			int64 max_rows, IdemSweepCount count)
{
	Snapshot	snapshot = idem_direct_push_snapshot();
	CommandId	cid = GetCurrentCommandId(true);
	Relation	index = index_open(store->purge_index, store->lockmode);
	TupleTableSlot *slot = table_slot_create(store->keys, NULL);
	IndexScanDesc scan = begin_scan(store->keys, index, snapshot,
									mark->purge_at, now);
	TM_FailureData failure;
	IdemSweepMark from = *mark;
	IdemSweepMark row;
	IdemSweptRun run = {count};
	int64		rows = 0;

	CheckCmdReplicaIdentity(store->keys, CMD_DELETE);
	/* from where the last batch ended: dead entries before it are not read */
	while (rows < max_rows && next_due(scan, slot, &from, &row))
	{
		TM_Result	result;
		Datum		policy;
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		result = idem_compat_delete(store->keys, &slot->tts_tid, cid,
									snapshot, false, &failure);
		/* a row that somebody has locked, or changed, is for another time */
		if (result == TM_Ok)
		{
			*mark = row;
			policy = slot_getattr(slot, COLUMN_POLICY + 1, &isnull);
			idem_store_swept(&run, policy, isnull);
			rows++;
		}
		else if ((result == TM_Updated || result == TM_Deleted) &&
				 IsolationUsesXactSnapshot())
			idem_store_row_raise_rival();
	}
	idem_store_swept_end(&run);
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, NoLock);
	PopActiveSnapshot();
	CommandCounterIncrement();
	return rows;
}

/*
 * idem_direct_sweep
 *		idem_store_sweep in the direct way; 40001 at REPEATABLE READ and above,
 *		for a row that changed after the snapshot.
 *
 * table_tuple_delete() is told not to wait, so no lock on the row is needed
 * before: one change of the page where DELETE ... SKIP LOCKED makes two.
 */
int64
idem_direct_sweep(IdemStore *store, IdemSweepMark *mark, TimestampTz now,
				  int64 max_rows, IdemSweepCount count)
{
	if (!OidIsValid(store->purge_index))
		return idem_store_sql.sweep(store, mark, now, max_rows, count);
	if (!ConditionalLockRelationOid(store->purge_index, RowExclusiveLock))
		return 0;
	return sweep_index(store, mark, now, max_rows, count);
}
