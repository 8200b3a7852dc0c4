/*-------------------------------------------------------------------------
 *
 * idem_worker.c
 *	  The sweep of one database, as a background worker.
 *
 * Started by the launcher (idem_launcher.c), removes what is past its
 * retention batch by batch, and ends: when nothing is left, or after
 * MAX_RUN_USEC, for other databases to have their turn.
 *
 * Whoever wants the database for himself (DROP, RENAME, CREATE ... TEMPLATE)
 * locks it and then waits a few seconds for others to leave.  So each batch
 * begins by asking for the lock that a connection takes, without waiting for
 * it, and ends the worker if it cannot have it; and no batch takes longer than
 * BATCH_TIMEOUT_MS.  Whoever drops the extension waits for the batch, since
 * that holds a lock on the extension; one that comes later finds it gone and
 * ends the worker without a word.
 *
 * Rows that were removed stay in the index on purge_at while an old snapshot
 * may see them, and a scan from the beginning passes them all.  For rows that
 * were locked then, or whose transaction committed late, the worker begins at
 * the beginning nevertheless, as often as that takes no more than one part in
 * FULL_PASS_SHARE of its time, and else goes on where it was.  If it takes too
 * long, it is left for another time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "idem_catalog.h"
#include "idem_shmem.h"
#include "idem_sweep.h"
#include "idem_worker.h"
#include "idem_xact.h"

#define BATCH_TIMEOUT_MS	1000
#define MAX_REST_MS			500
#define MIN_BATCH			100
#define MAX_RUN_USEC		(10 * USECS_PER_SEC)
#define FULL_PASS_SHARE		100
#define FULL_PASS_USEC		(10 * USECS_PER_MINUTE) /* or else so often */
#define FALLBACK_USEC		USECS_PER_MINUTE

/* What became of a batch. */
typedef enum BatchEnd
{
	BATCH_DONE,
	BATCH_TOO_LONG,
	BATCH_FAILED,
	BATCH_ABSENT,				/* no extension here */
	BATCH_UNWANTED				/* somebody wants the database or extension */
} BatchEnd;

/* A run of the worker. */
typedef struct IdemWorkerRun
{
	IdemSweepState state;
	bool		full;			/* the batch begins at the beginning */
	TimestampTz resume;			/* where it would have gone on else */
	int64		batch;			/* rows in a batch */
	int64		rows;			/* removed by the last batch */
	TimestampTz reached;		/* by it, if it commits */
} IdemWorkerRun;

static char database_name[NAMEDATALEN]; /* for the log */

/* The lock that a connection takes on its database while it starts. */
static bool
lock_database(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, MyDatabaseId, 0);
	return LockAcquire(&tag, RowExclusiveLock, false, true) !=
		LOCKACQUIRE_NOT_AVAIL;
}

/*
 * The lock that keeps DROP EXTENSION away to the end of the transaction; false
 * when somebody is about to drop it, or just has.
 */
static bool
lock_extension(Oid extension)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, ExtensionRelationId, extension, 0);
	if (LockAcquire(&tag, AccessShareLock, false, true) ==
		LOCKACQUIRE_NOT_AVAIL)
		return false;
	AcceptInvalidationMessages();
	return get_extension_oid("idempotency", true) == extension;
}

/* What a batch does within its transaction. */
static BatchEnd
sweep_batch(IdemWorkerRun *run)
{
	Oid			extension;

	if (!lock_database())
		return BATCH_UNWANTED;
	extension = get_extension_oid("idempotency", true);
	if (!OidIsValid(extension))
		return BATCH_ABSENT;
	if (!lock_extension(extension))
		return BATCH_UNWANTED;
	idem_catalog_require_version();
	idem_xact_require_writable();
	run->reached = run->state.low;
	PushActiveSnapshot(GetTransactionSnapshot());
	run->rows = idem_sweep_batch(&run->reached, run->batch);
	PopActiveSnapshot();
	return BATCH_DONE;
}

/* Remember an error, and tell it to the log when it is another one. */
static void
note_error(IdemSweepState *state, int sqlstate, const char *message)
{
	char		last[IDEM_SWEEP_ERROR_BYTES];

	strlcpy(last, state->last_error, sizeof(last));
	strlcpy(state->last_error, message, sizeof(state->last_error));
	if (strcmp(last, state->last_error) != 0)
		ereport(LOG,
				(errcode(sqlstate),
				 errmsg("idempotency keys of database \"%s\" cannot be swept: %s",
						database_name, message),
				 errhint("Tried again with growing pauses; see idem_sweep_status.")));
}

/*
 * After an error: as the main loop of a backend does it.  A batch that was
 * cut off after its time is no error.
 */
static BatchEnd
clean_up(IdemWorkerRun *run, MemoryContext context)
{
	ErrorData  *error;
	BatchEnd	end = BATCH_FAILED;

	HOLD_INTERRUPTS();
	disable_timeout(STATEMENT_TIMEOUT, false);
	QueryCancelPending = false;
	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	AbortOutOfAnyTransaction();
	MemoryContextSwitchTo(context);
	FlushErrorState();
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		end = BATCH_TOO_LONG;
	else
		note_error(&run->state, error->sqlerrcode,
				   error->message != NULL ? error->message : "");
	FreeErrorData(error);
	RESUME_INTERRUPTS();
	return end;
}

static BatchEnd
run_batch(IdemWorkerRun *run)
{
	MemoryContext context = CurrentMemoryContext;
	volatile BatchEnd end = BATCH_DONE;

	run->rows = 0;
	pgstat_report_activity(STATE_RUNNING, "removing expired idempotency keys");
	SetCurrentStatementStartTimestamp();
	PG_TRY();
	{
		StartTransactionCommand();
		enable_timeout_after(STATEMENT_TIMEOUT, BATCH_TIMEOUT_MS);
		end = sweep_batch(run);
		disable_timeout(STATEMENT_TIMEOUT, false);
		QueryCancelPending = false; /* too late to be of use */
		CommitTransactionCommand();
		if (end == BATCH_DONE)
			run->state.low = run->reached;
	}
	PG_CATCH();
	{
		end = clean_up(run, context);
		run->rows = 0;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	pgstat_report_activity(STATE_IDLE, NULL);
	pgstat_report_stat(true);
	return end;
}

/*
 * A batch took too long: leave the full pass for another time, or make do with
 * fewer rows.  False when that cannot be.
 */
static bool
shorten(IdemWorkerRun *run, TimestampTz start)
{
	if (run->full)
	{
		run->state.low = run->resume != DT_NOBEGIN ? run->resume :
			start - FALLBACK_USEC;
		return true;
	}
	if (run->batch <= MIN_BATCH)
		return false;
	run->batch = Max(run->batch / 2, MIN_BATCH);
	return true;
}

static bool
database_is_wanted(void)
{
	bool		locked;

	StartTransactionCommand();
	locked = lock_database();
	CommitTransactionCommand();
	return !locked;
}

static void
rest_for(long milliseconds)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 milliseconds, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/*
 * Leave the processor and the disk to others; false when it is time to end.
 *
 * The latch is set before the time is over, too: the timer of the batch goes
 * on after disable_timeout().  And whoever wants the database waits for us to
 * leave it, so a long rest is one of many short ones.
 */
static bool
rest(TimestampTz start)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz end = TimestampTzPlusMilliseconds(now, idem_sweep_delay());

	for (;;)
	{
		rest_for(Min(TimestampDifferenceMilliseconds(now, end), MAX_REST_MS));
		now = GetCurrentTimestamp();
		if (now - start >= MAX_RUN_USEC)
			return false;
		if (now >= end)
			return true;
		if (database_is_wanted())
			return false;
	}
}

/* When to begin at the beginning again, by what it took to. */
static void
schedule_full_pass(IdemSweepState *state, TimestampTz begin)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		cost = Max(now - begin, 0);

	state->full_due = now + Min(cost * FULL_PASS_SHARE, FULL_PASS_USEC);
}

/* Batch after batch; returns how the last one ended. */
static BatchEnd
sweep(IdemWorkerRun *run, TimestampTz start)
{
	IdemSweepState *state = &run->state;
	BatchEnd	end;

	run->batch = idem_sweep_batch_size();
	if (state->low > start)
		state->low = DT_NOBEGIN;	/* the clock stepped back */
	run->resume = state->low;
	run->full = start >= state->full_due ||
		state->full_due - start > FULL_PASS_USEC;
	if (run->full)
		state->low = DT_NOBEGIN;
	state->last_rows = 0;
	for (;;)
	{
		TimestampTz begin = GetCurrentTimestamp();

		end = run_batch(run);
		if (run->full)
			schedule_full_pass(state, begin);
		state->last_rows += run->rows;
		state->more = end == BATCH_TOO_LONG ||
			(end == BATCH_DONE && run->rows == run->batch);
		if (end == BATCH_TOO_LONG && !shorten(run, start))
			return end;
		run->full = false;
		if (!state->more || !rest(start))
			return end;
	}
}

/* Tell the launcher, and idem_sweep_status, how it went. */
static void
report(IdemWorkerRun *run, BatchEnd end, TimestampTz start)
{
	IdemSweepState *state = &run->state;

	if (end == BATCH_ABSENT)
	{
		idem_shmem_forget(MyDatabaseId);
		return;
	}
	if (end == BATCH_UNWANTED && state->last_rows == 0)
		return;
	if (end == BATCH_TOO_LONG && run->batch <= MIN_BATCH)
		note_error(state, ERRCODE_QUERY_CANCELED, "a batch takes too long");
	else if (end != BATCH_FAILED && state->last_error[0] != '\0')
	{
		ereport(LOG,
				(errmsg("idempotency keys of database \"%s\" are swept again",
						database_name)));
		state->last_error[0] = '\0';
	}
	state->last_run = start;
	state->last_duration = GetCurrentTimestamp() - start;
	state->runs++;
	idem_shmem_put_sweep(state);
}

/*
 * Whatever is set for the database, but for its being read-only.
 * transaction_timeout is new in 17.
 */
static void
override_settings(void)
{
	SetConfigOption("default_transaction_isolation", "read committed",
					PGC_SUSET, PGC_S_OVERRIDE);
	if (GetConfigOption("transaction_timeout", true, false) != NULL)
		SetConfigOption("transaction_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
}

static void
read_database_name(void)
{
	char	   *name;

	StartTransactionCommand();
	name = get_database_name(MyDatabaseId);
	strlcpy(database_name, name != NULL ? name : "", sizeof(database_name));
	CommitTransactionCommand();
}

/*
 * idem_worker_main
 *		Entry point; the argument is the OID of the database.
 *
 * Connects as the bootstrap superuser, as autovacuum does; the statements run
 * as the owner of the key table.  Errors of a batch are caught; a termination
 * ends the process, and the launcher starts another one in time.
 */
void
idem_worker_main(Datum arg)
{
	TimestampTz start = GetCurrentTimestamp();
	IdemWorkerRun run;
	BatchEnd	end;

	pqsignal(SIGTERM, die);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(arg),
											  InvalidOid, 0);
	pgstat_report_appname(IDEM_WORKER_NAME);

	override_settings();
	read_database_name();

	memset(&run, 0, sizeof(run));
	(void) idem_shmem_get_sweep(MyDatabaseId, &run.state);
	end = sweep(&run, start);
	report(&run, end, start);
}
