/*-------------------------------------------------------------------------
 *
 * idem_sweep.c
 *	  Removing keys past their retention.
 *
 * Only tidies up: what has expired is expired at the moment of reading, and
 * nothing else depends on when, or whether, this runs.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "idem_args.h"
#include "idem_state.h"
#include "idem_store.h"
#include "idem_sweep.h"
#include "idem_xact.h"

static int	sweep_batch = 10000;

IDEM_FUNCTION(idem_sweep);

/*
 * idem_sweep(max_rows integer) RETURNS bigint
 *		Remove up to max_rows rows past purge_at, oldest first; how many.
 *
 * Never waits: skips locked rows, and does nothing while the table is locked.
 * Raises 22023, 25006; 40001 at REPEATABLE READ and above, for a row that
 * changed after the snapshot.
 */
Datum
idem_sweep(PG_FUNCTION_ARGS)
{
	int64		max_rows = PG_ARGISNULL(0) ? sweep_batch : PG_GETARG_INT32(0);

	idem_xact_require_writable();
	if (max_rows <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be greater than zero", "max_rows"),
				 errhint("Leave it out for \"idempotency.sweep_batch\" rows.")));
	PG_RETURN_INT64(idem_store_sweep(GetCurrentTimestamp(), max_rows));
}

IDEM_FUNCTION(idem_sweep_all);

/*
 * idem_sweep_all(max_duration interval)
 *		Procedure: remove batch after batch, each in a transaction of its own,
 *		until nothing is left or the time is over.
 *
 * Raises 22023, 25006, and 2D000 where CALL may not commit.  Holds between two
 * commits what one idem_sweep() holds.
 */
Datum
idem_sweep_all(PG_FUNCTION_ARGS)
{
	bool		atomic = fcinfo->context == NULL ||
	!IsA(fcinfo->context, CallContext) ||
	castNode(CallContext, fcinfo->context)->atomic;
	TimestampTz end = DT_NOEND;

	if (!PG_ARGISNULL(0))
		end = idem_state_add(GetCurrentTimestamp(),
							 idem_args_usec("max_duration", PG_GETARG_DATUM(0)));
	if (atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("idem_sweep_all() cannot run inside a transaction block"),
				 errhint("CALL it by itself, or use idem_sweep() in a transaction.")));
	SPI_connect_ext(SPI_OPT_NONATOMIC);
	idem_xact_require_writable();
	while (idem_store_sweep(GetCurrentTimestamp(), sweep_batch) > 0 &&
		   GetCurrentTimestamp() < end)
	{
		SPI_commit();
		CHECK_FOR_INTERRUPTS();
	}
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * idem_sweep_init
 *		Define the settings of the sweep.
 */
void
idem_sweep_init(void)
{
	DefineCustomIntVariable("idempotency.sweep_batch",
							"Most keys that one batch of a sweep removes.",
							NULL,
							&sweep_batch,
							10000, 1, 1000000,
							PGC_SUSET, 0,
							NULL, NULL, NULL);
}
