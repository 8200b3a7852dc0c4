/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  The sweep of one database, as a background worker.
 *
 * Started by the launcher, does its tasks one after the other, each batch by
 * batch: until nothing is left, or for MAX_RUN_USEC, for other databases to
 * have their turn.  Owns what a batch is, how long it may take, and what
 * becomes of its errors.  Who may run when is in the README.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "audit/partition.h"
#include "audit/refusal_queue.h"
#include "audit/seal.h"
#include "base/args.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/databases.h"
#include "limit/bucket_table.h"
#include "sweep/sweep.h"
#include "sweep/task.h"
#include "sweep/worker.h"

#define BATCH_TIMEOUT_MS	1000
#define MAX_REST_MS			500
#define MIN_BATCH			100
#define MAX_RUN_USEC		(10 * USECS_PER_SEC)
#define FULL_PASS_SHARE		100
#define FULL_PASS_USEC		(10 * USECS_PER_MINUTE) /* or else so often */
#define FALLBACK_USEC		USECS_PER_MINUTE
#define REFUSALS_BATCH		100
#define SEAL_BATCH			40000	/* rows of the log */

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
	IdemSweepMark mark;			/* at "state.low", where the next one begins */
	IdemSweepMark reached;		/* by it, if it commits */
	IdemRefused *refused;		/* what is left to write */
	int			nrefused;
	int			refused_batch;	/* how many of them are a batch */
	int64		seal_rows;		/* in a batch */
	bool		unsealed;		/* the last batch left rows of the log so */
	bool		partitions_seen;	/* it could see to them */
	IdemTask	task;			/* that we are at */
	BatchEnd	ends[IDEM_NUM_TASKS];	/* how the last batch of each ended */
	bool		failed;			/* with an error, which was noted */
} IdemWorkerRun;

/* What a batch does within its transaction. */
typedef void (*BatchWork) (IdemWorkerRun *run);

static char database_name[NAMEDATALEN]; /* for the log */

/* Of a batch, and whether it has come. */
static TimeoutId batch_timeout;
static volatile sig_atomic_t batch_timed_out = false;

/*
 * Handler of the time-out: cancel as SIGINT does.  STATEMENT_TIMEOUT would do
 * as well, but for not telling afterwards whether it was that, or somebody's
 * pg_cancel_backend().
 */
static void
cut_off_batch(void)
{
	batch_timed_out = true;
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
}

/*
 * The lock that keeps DROP EXTENSION away to the end of the transaction; false
 * when somebody is about to drop it, or just has.
 */
static bool
lock_extension(Oid extension)
{
	LOCKTAG		tag;

	/*
	 * DROP EXTENSION waits for the batch that has this lock.  One that had it
	 * before us may have committed between our look-up and our lock: so look
	 * again (t/027_worker_lifecycle.pl).
	 */
	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, ExtensionRelationId, extension, 0);
	if (LockAcquire(&tag, AccessShareLock, false, true) ==
		LOCKACQUIRE_NOT_AVAIL)
		return false;
	AcceptInvalidationMessages();
	return get_extension_oid("idempotency", true) == extension;
}

/* What a batch begins with: locks, and whether it may do anything. */
static BatchEnd
begin_batch(void)
{
	Oid			extension;

	if (!idem_task_lock_database(MyDatabaseId))
		return BATCH_UNWANTED;
	extension = get_extension_oid("idempotency", true);
	if (!OidIsValid(extension))
		return BATCH_ABSENT;
	if (!lock_extension(extension))
		return BATCH_UNWANTED;
	idem_catalog_require_version();
	idem_args_require_writable();
	return BATCH_DONE;
}

static void
sweep_batch(IdemWorkerRun *run)
{
	/* somebody has moved it */
	if (run->mark.purge_at != run->state.low)
		run->mark = idem_store_sweep_from(run->state.low);
	run->reached = run->mark;
	run->rows = idem_sweep_batch(&run->reached, run->batch);
}

static void
refusals_batch(IdemWorkerRun *run)
{
	idem_refusals_write(run->refused, Min(run->nrefused, run->refused_batch));
}

static void
seal_batch(IdemWorkerRun *run)
{
	run->unsealed = idem_seal_batch(run->seal_rows);
}

static void
partitions_batch(IdemWorkerRun *run)
{
	run->partitions_seen = idem_partition_ensure();
}

/* Remember the first error of a run. */
static void
note_error(IdemWorkerRun *run, int sqlstate, const char *message)
{
	IdemSweepState *state = &run->state;
	char		last[IDEM_SWEEP_ERROR_BYTES];

	if (run->failed)
		return;
	run->failed = true;
	state->failed_task = run->task;
	strlcpy(last, state->last_error, sizeof(last));
	strlcpy(state->last_error, message,
			pg_mbcliplen(message, strlen(message),
						 sizeof(state->last_error) - 1) + 1);

	/* told when it changes, and not every few seconds */
	if (strcmp(last, state->last_error) == 0)
		return;
	idem_task_log_failure(run->task, database_name, sqlstate, message);
}

/* After an error: as the main loop of a backend does it. */
static BatchEnd
clean_up(IdemWorkerRun *run, MemoryContext context)
{
	ErrorData  *error;
	BatchEnd	end = BATCH_FAILED;

	HOLD_INTERRUPTS();

	/* a cancel that came late is not for the next batch */
	disable_timeout(batch_timeout, false);
	QueryCancelPending = false;
	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	AbortOutOfAnyTransaction();
	MemoryContextSwitchTo(context);
	FlushErrorState();

	/* cut off after its time, which is no error */
	if (batch_timed_out && error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		end = BATCH_TOO_LONG;
	else
		note_error(run, error->sqlerrcode,
				   error->message != NULL ? error->message : "");
	FreeErrorData(error);
	RESUME_INTERRUPTS();
	return end;
}

static BatchEnd
run_batch(IdemWorkerRun *run, BatchWork work, const char *activity)
{
	MemoryContext context = CurrentMemoryContext;
	volatile BatchEnd end = BATCH_DONE;

	pgstat_report_activity(STATE_RUNNING, activity);
	SetCurrentStatementStartTimestamp();
	PG_TRY();
	{
		StartTransactionCommand();
		batch_timed_out = false;
		enable_timeout_after(batch_timeout, BATCH_TIMEOUT_MS);
		end = begin_batch();
		if (end == BATCH_DONE)
		{
			PushActiveSnapshot(GetTransactionSnapshot());
			work(run);
			PopActiveSnapshot();
		}

		/* it is done: too late to be cut off */
		disable_timeout(batch_timeout, false);
		QueryCancelPending = false;
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		end = clean_up(run, context);
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

/* Leave the processor and the disk to others; false when it is time to end. */
static bool
rest(TimestampTz start)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz end = TimestampTzPlusMilliseconds(now, idem_sweep_delay());

	/*
	 * Whoever wants the database waits for us to leave it, so a long rest is
	 * one of many short ones.  The latch is set before the time is over, too:
	 * the timer of the batch goes on after disable_timeout().
	 */
	for (;;)
	{
		idem_task_sleep(Min(TimestampDifferenceMilliseconds(now, end),
							MAX_REST_MS),
						idem_compat_wait_event("IdempotencySweepPause"));
		now = GetCurrentTimestamp();
		if (now - start >= MAX_RUN_USEC)
			return false;
		if (now >= end)
			return true;
		if (idem_task_is_wanted(MyDatabaseId))
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

	/*
	 * Rows that were removed stay in the index on purge_at while an old
	 * snapshot may see them, and a scan from the beginning passes them all
	 * (t/026_sweep_snapshot.pl).  It is made nevertheless, for rows that were
	 * locked the last time or whose transaction committed late, as often as
	 * it takes no more than one part in FULL_PASS_SHARE of the time.  When it
	 * is due later than that allows, the clock has stepped back.
	 */
	run->full = start >= state->full_due ||
		state->full_due - start > FULL_PASS_USEC;
	if (run->full)
		state->low = DT_NOBEGIN;
	state->last_rows = 0;
	for (;;)
	{
		TimestampTz begin = GetCurrentTimestamp();

		run->rows = 0;
		end = run_batch(run, sweep_batch, "removing expired idempotency keys");
		if (end == BATCH_DONE)
		{
			run->mark = run->reached;
			state->low = run->mark.purge_at;
		}
		else
			run->rows = 0;
		if (run->full)
			schedule_full_pass(state, begin);
		state->last_rows += run->rows;
		state->more = end == BATCH_TOO_LONG ||
			(end == BATCH_DONE && run->rows == run->batch);
		if (end == BATCH_TOO_LONG && !shorten(run, start))
		{
			note_error(run, ERRCODE_QUERY_CANCELED, "a batch takes too long");
			return end;
		}
		run->full = false;
		if (!state->more || !rest(start))
			return end;
	}
}

/* Write what is queued, batch after batch; returns how the last one ended. */
static BatchEnd
write_refusals(IdemWorkerRun *run)
{
	TimestampTz start = GetCurrentTimestamp();
	BatchEnd	end = BATCH_DONE;

	run->refused = idem_refusals_begin(&run->nrefused);
	run->refused_batch = REFUSALS_BATCH;
	while (run->nrefused > 0 && GetCurrentTimestamp() - start < MAX_RUN_USEC)
	{
		int			number = Min(run->nrefused, run->refused_batch);

		CHECK_FOR_INTERRUPTS();
		end = run_batch(run, refusals_batch,
						"writing refusals to the audit log");
		if (end == BATCH_DONE)
		{
			run->refused += number;
			run->nrefused -= number;
		}

		/* somebody may have put a slow trigger on the log */
		else if (end == BATCH_TOO_LONG && number > 1)
			run->refused_batch = number / 10 + 1;
		else
			break;
	}
	if (end == BATCH_TOO_LONG)
		note_error(run, ERRCODE_QUERY_CANCELED, "a row takes too long");
	idem_refusals_end();
	return end;
}

/* Seal what can be sealed, batch after batch; smaller ones if need be. */
static BatchEnd
seal(IdemWorkerRun *run)
{
	TimestampTz start = GetCurrentTimestamp();
	BatchEnd	end;

	run->seal_rows = SEAL_BATCH;
	do
	{
		run->unsealed = false;
		end = run_batch(run, seal_batch, "sealing the audit log");
		if (end != BATCH_TOO_LONG)
			continue;
		if (run->seal_rows <= MIN_BATCH)
		{
			note_error(run, ERRCODE_QUERY_CANCELED, "a batch takes too long");
			return end;
		}
		run->seal_rows = Max(run->seal_rows / 4, MIN_BATCH);
		run->unsealed = true;
	} while ((end == BATCH_DONE || end == BATCH_TOO_LONG) &&
			 run->unsealed && rest(start));

	/* cut off, and time to end: another run goes on with it */
	return end == BATCH_TOO_LONG ? BATCH_DONE : end;
}

/*
 * See to the partitions of the log, apart from the seals, which are made where
 * partitions cannot be.
 */
static BatchEnd
make_partitions(IdemWorkerRun *run)
{
	BatchEnd	end;

	/* not come to: an error that idem_health() shows is not over by that */
	if (run->unsealed)
		return BATCH_UNWANTED;
	run->partitions_seen = false;
	end = run_batch(run, partitions_batch, "partitioning the audit log");

	/* it waits for nobody, so a busy disk or a lock is for another time */
	if (end == BATCH_TOO_LONG || (end == BATCH_DONE && !run->partitions_seen))
		return BATCH_UNWANTED;
	return end;
}

/* Tell the launcher, and idem_sweep_status, how it went. */
static void
report(IdemWorkerRun *run, TimestampTz start, BatchEnd end)
{
	IdemSweepState *state = &run->state;

	/* no extension here, or no longer: nothing of it stays, and no entry */
	if (end == BATCH_ABSENT)
	{
		idem_databases_forget(MyDatabaseId);
		idem_refusals_forget(MyDatabaseId);
		idem_buckets_forget(MyDatabaseId, NULL);
		return;
	}

	/* nothing was done: the launcher sees it by the number of runs */
	if (run->ends[IDEM_TASK_SWEEP] == BATCH_UNWANTED && state->last_rows == 0)
		return;

	/* an error is over when what it was at has been done */
	if (!run->failed && state->last_error[0] != '\0' &&
		(state->failed_task == IDEM_TASK_SWEEP ||
		 run->ends[state->failed_task] == BATCH_DONE))
	{
		idem_task_log_success(state->failed_task, database_name);
		state->last_error[0] = '\0';
	}
	state->last_run = start;
	state->last_duration = GetCurrentTimestamp() - start;
	state->last_worker = GetCurrentTimestamp();
	state->runs++;
	idem_databases_put(state);
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
 * One after the other, as long as nobody else wants the database; how the last
 * one ended.
 */
static BatchEnd
do_tasks(IdemWorkerRun *run, TimestampTz start)
{
	BatchEnd	end = BATCH_DONE;

	/* a task that is not come to has not succeeded, for report() */
	for (run->task = 0; run->task < IDEM_NUM_TASKS; run->task++)
		run->ends[run->task] = BATCH_UNWANTED;
	for (run->task = 0; run->task < IDEM_NUM_TASKS; run->task++)
	{
		end = run->task == IDEM_TASK_SWEEP ? sweep(run, start) :
			run->task == IDEM_TASK_REFUSALS ? write_refusals(run) :
			run->task == IDEM_TASK_SEALS ? seal(run) : make_partitions(run);
		run->ends[run->task] = end;
		if (end == BATCH_ABSENT || end == BATCH_UNWANTED)
			break;
	}
	return end;
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

	pqsignal(SIGTERM, die);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(arg),
											  InvalidOid, 0);
	pgstat_report_appname(IDEM_WORKER_NAME);

	idem_task_override_settings();
	batch_timeout = RegisterTimeout(USER_TIMEOUT, cut_off_batch);
	read_database_name();

	memset(&run, 0, sizeof(run));
	(void) idem_databases_get(MyDatabaseId, &run.state);
	report(&run, start, do_tasks(&run, start));
}
