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

/* Rows of one policy that were removed one after the other. */
typedef struct SweptRun
{
	text	   *policy;			/* NULL: none yet */
	int64		rows;
} SweptRun;

static void
count_run(SweptRun *run, IdemSweepCount count)
{
	if (run->policy == NULL)
		return;
	count(run->policy, run->rows);
	pfree(run->policy);
}

/* Mostly many rows in a row are of one policy: count them at once. */
static void
count_swept(SweptRun *run, TupleTableSlot *slot, IdemSweepCount count)
{
	bool		isnull;
	text	   *policy = DatumGetTextPP(slot_getattr(slot, COLUMN_POLICY + 1,
													 &isnull));
	Size		size = VARSIZE_ANY(policy);

	if (run->policy == NULL || VARSIZE_ANY(run->policy) != size ||
		memcmp(run->policy, policy, size) != 0)
	{
		count_run(run, count);
		run->policy = memcpy(palloc(size), policy, size);
		run->rows = 0;
	}
	run->rows++;
}

static int64
sweep_index(IdemStore *store, TimestampTz *low, TimestampTz now,
			int64 max_rows, IdemSweepCount count)
{
	Snapshot	snapshot = idem_direct_push_snapshot();
	CommandId	cid = GetCurrentCommandId(true);
	Relation	index = index_open(store->purge_index, store->lockmode);
	TupleTableSlot *slot = table_slot_create(store->keys, NULL);
	IndexScanDesc scan = idem_compat_index_beginscan(store->keys, index,
													 snapshot, 2);
	ScanKeyData range[2];
	TM_FailureData failure;
	SweptRun	run = {NULL, 0};
	bool		isnull;
	int64		rows = 0;

	CheckCmdReplicaIdentity(store->keys, CMD_DELETE);
	ScanKeyInit(&range[0], 1, BTGreaterEqualStrategyNumber, F_TIMESTAMPTZ_GE,
				TimestampTzGetDatum(*low));
	ScanKeyInit(&range[1], 1, BTLessEqualStrategyNumber, F_TIMESTAMPTZ_LE,
				TimestampTzGetDatum(now));
	index_rescan(scan, range, lengthof(range), NULL, 0);
	/* from where the last batch ended: dead entries before it are not read */
	while (rows < max_rows &&
		   index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		TM_Result	result;

		CHECK_FOR_INTERRUPTS();
		result = table_tuple_delete(store->keys, &slot->tts_tid, cid,
									snapshot, InvalidSnapshot, false, &failure,
									false);
		/* a row that somebody has locked, or changed, is for another time */
		if (result == TM_Ok)
		{
			*low = DatumGetTimestampTz(slot_getattr(slot, COLUMN_PURGE_AT + 1,
													&isnull));
			count_swept(&run, slot, count);
			rows++;
		}
		else if ((result == TM_Updated || result == TM_Deleted) &&
				 IsolationUsesXactSnapshot())
			idem_store_row_raise_rival();
	}
	count_run(&run, count);
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
idem_direct_sweep(IdemStore *store, TimestampTz *low, TimestampTz now,
				  int64 max_rows, IdemSweepCount count)
{
	if (!OidIsValid(store->purge_index))
		return idem_store_sql.sweep(store, low, now, max_rows, count);
	if (!ConditionalLockRelationOid(store->purge_index, RowExclusiveLock))
		return 0;
	return sweep_index(store, low, now, max_rows, count);
}
