/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  The background worker that starts the sweeps.
 *
 * Connected to no database, so that it is in nobody's way.  Owns when which
 * database has its turn (README, "The launcher").  All that it knows is in its
 * own memory and in shared memory.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "audit/refusal_queue.h"
#include "base/compat.h"
#include "base/counters.h"
#include "base/databases.h"
#include "limit/bucket_table.h"
#include "sweep/launcher.h"
#include "sweep/task.h"
#include "sweep/worker.h"

#define LAUNCHER_NAME "idempotency launcher"
#define RESTART_SECONDS 1
#define MIN_PAUSE_USEC		USECS_PER_SEC
#define MAX_PAUSE_USEC		USECS_PER_MINUTE
#define MAX_PROBE_USEC		USECS_PER_HOUR
#define MAX_SLEEP_MS		10000
#define MAX_WORKER_USEC		USECS_PER_MINUTE

/* A database that may have the extension. */
typedef struct Target
{
	Oid			database;		/* the hash key */
	bool		exists;			/* seen when pg_database was read last */
	bool		probed;			/* not known to have the extension */
	TimestampTz due;			/* when a worker is to look there */
	int64		pause;			/* the last one, if it is growing */
} Target;

static bool worker_enabled = true;
static int	sweep_interval = 30;
static char *databases = "";

static HTAB *targets = NULL;
static bool slots_missing = false;	/* and that was logged */

/*
 * idem_launcher_interval
 *		The time between two sweeps, in microseconds.
 */
int64
idem_launcher_interval(void)
{
	return (int64) sweep_interval * USECS_PER_SEC;
}

/* Whether a database is one to look at. */
static bool
is_wanted(const Form_pg_database database)
{
	List	   *names;
	ListCell   *cell;

	/* also one whose DROP DATABASE was interrupted: nobody can connect */
	if (!database->datallowconn ||
		database->datconnlimit == DATCONNLIMIT_INVALID_DB)
		return false;

	/* it writes into what it splits */
	(void) SplitIdentifierString(pstrdup(databases), ',', &names);
	if (names == NIL)
		return !database->datistemplate;
	foreach(cell, names)
	{
		if (strcmp(lfirst(cell), NameStr(database->datname)) == 0)
			return true;
	}
	return false;
}

static void
add_target(Oid database, TimestampTz now)
{
	bool		found;
	Target	   *target = hash_search(targets, &database, HASH_ENTER, &found);

	target->exists = true;
	if (found)
		return;
	target->probed = false;
	target->due = now;
	target->pause = 0;
}

/* Read pg_database for targets; returns all databases that there are. */
static List *
read_databases(TimestampTz now)
{
	Relation	catalog = table_open(DatabaseRelationId, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(catalog, 0, NULL);
	List	   *all = NIL;
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);

		all = lappend_oid(all, database->oid);
		if (is_wanted(database))
			add_target(database->oid, now);
	}
	table_endscan(scan);
	table_close(catalog, AccessShareLock);
	return all;
}

/* Free the shared memory of a database that is gone. */
static void
forget_database(Oid database)
{
	idem_databases_forget(database);
	idem_counters_forget(database);
	idem_refusals_forget(database);
	idem_buckets_forget(database, NULL);
}

/* New targets, and those that are gone. */
static void
refresh_targets(TimestampTz now)
{
	List	   *known;
	ListCell   *cell;
	HASH_SEQ_STATUS status;
	Target	   *target;

	hash_seq_init(&status, targets);
	while ((target = hash_seq_search(&status)) != NULL)
		target->exists = false;

	/* what is allocated here goes with the transaction */
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());

	/*
	 * What is known is asked for before the catalog is read: a database that
	 * is created and used meanwhile would else be known, and seem to be gone.
	 */
	known = list_concat_unique_oid(idem_databases_list(),
								   idem_counters_databases());
	known = list_concat_unique_oid(known, idem_refusals_databases());
	known = list_difference_oid(known, read_databases(now));
	foreach(cell, known)
		forget_database(lfirst_oid(cell));
	PopActiveSnapshot();
	CommitTransactionCommand();

	/* the entry that the scan has just returned may be removed */
	hash_seq_init(&status, targets);
	while ((target = hash_seq_search(&status)) != NULL)
		if (!target->exists)
			(void) hash_search(targets, &target->database, HASH_REMOVE, NULL);
}

/* What happened since a target was scheduled. */
static void
advance(Target *target, TimestampTz now)
{
	IdemSweepState state;

	/* a backend has used a policy there: the extension is there after all */
	if (target->probed && idem_databases_get(target->database, &state))
	{
		target->probed = false;
		target->due = now;
	}

	/* the interval was made shorter */
	if (target->pause == 0)
		target->due = Min(target->due, now + idem_launcher_interval());
}

/* The target that is due first. */
static Target *
next_target(TimestampTz now)
{
	HASH_SEQ_STATUS status;
	Target	   *target;
	Target	   *first = NULL;

	hash_seq_init(&status, targets);
	while ((target = hash_seq_search(&status)) != NULL)
	{
		advance(target, now);
		if (first == NULL || target->due < first->due)
			first = target;
	}
	return first;
}

/* What both kinds of workers are registered with. */
static void
fill_worker(BackgroundWorker *worker, const char *name, const char *function,
			int restart_time)
{
	memset(worker, 0, sizeof(*worker));
	worker->bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker->bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker->bgw_restart_time = restart_time;
	strlcpy(worker->bgw_library_name, "idempotency", BGW_MAXLEN);
	strlcpy(worker->bgw_function_name, function, BGW_MAXLEN);
	strlcpy(worker->bgw_name, name, BGW_MAXLEN);
	strlcpy(worker->bgw_type, name, BGW_MAXLEN);
}

static bool
start_worker(Oid database, BackgroundWorkerHandle **handle)
{
	BackgroundWorker worker;

	fill_worker(&worker, IDEM_WORKER_NAME, "idem_worker_main",
				BGW_NEVER_RESTART);
	worker.bgw_main_arg = ObjectIdGetDatum(database);
	worker.bgw_notify_pid = MyProcPid;
	return RegisterDynamicBackgroundWorker(&worker, handle);
}

static void
sleep_ms(long timeout)
{
	idem_task_sleep(timeout, idem_compat_wait_event("IdempotencyLauncher"));
}

static void
wait_for_worker(BackgroundWorkerHandle *handle, TimestampTz start)
{
	pid_t		pid;

	/*
	 * The postmaster sets our latch when the worker starts and ends.  It goes
	 * by a time of its own and ends before this one is over; one that hangs
	 * would hold up all other databases.
	 */
	while (GetBackgroundWorkerPid(handle, &pid) != BGWH_STOPPED)
	{
		if (GetCurrentTimestamp() - start > MAX_WORKER_USEC)
			TerminateBackgroundWorker(handle);
		sleep_ms(1000);
	}
	pfree(handle);
}

/* Once when the slots are used up, and once when there is one again. */
static void
note_slots(bool missing)
{
	if (missing == slots_missing)
		return;
	slots_missing = missing;
	if (missing)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no free slot for a worker that sweeps idempotency keys"),
				 errhint("Increase \"max_worker_processes\".")));
	else
		ereport(LOG,
				(errmsg("a slot for a worker that sweeps idempotency keys is free again")));
}

static void
grow_pause(Target *target, int64 first, int64 longest)
{
	target->pause = target->pause < first ? first :
		Min(target->pause * 2, longest);
	target->due = GetCurrentTimestamp() + target->pause;
}

/* When a worker is to look at the database again. */
static void
reschedule(Target *target, const IdemSweepState *before, TimestampTz start)
{
	IdemSweepState after;

	/*
	 * The worker has told how it went, unless it found no extension, or did
	 * not come so far: then its number of runs is the same.
	 */
	target->probed = !idem_databases_get(target->database, &after);
	if (target->probed)
	{
		grow_pause(target, MAX_PAUSE_USEC, MAX_PROBE_USEC);
		return;
	}
	if (after.runs == before->runs || after.last_error[0] != '\0')
	{
		grow_pause(target, MIN_PAUSE_USEC, MAX_PAUSE_USEC);
		return;
	}

	/* others that are due come before one that has more to do (next_target) */
	target->pause = 0;
	target->due = after.more ? GetCurrentTimestamp() :
		start + idem_launcher_interval();
}

static void
sweep_target(Target *target)
{
	TimestampTz start = GetCurrentTimestamp();
	BackgroundWorkerHandle *handle;
	IdemSweepState before;

	if (idem_task_is_wanted(target->database))
	{
		/* nothing has failed: the pause does not grow */
		target->due = start + MIN_PAUSE_USEC;
		return;
	}
	(void) idem_databases_get(target->database, &before);
	if (!start_worker(target->database, &handle))
	{
		note_slots(true);
		grow_pause(target, MIN_PAUSE_USEC, MAX_PAUSE_USEC);
		return;
	}
	note_slots(false);
	wait_for_worker(handle, start);
	reschedule(target, &before, start);
}

static void
forget_launcher(int code, Datum arg)
{
	idem_databases_set_launcher(0);
}

/*
 * idem_launcher_main
 *		Entry point.  Never returns; an error or a termination ends the
 *		process, and the postmaster starts it anew.
 */
void
idem_launcher_main(Datum arg)
{
	HASHCTL		ctl = {.keysize = sizeof(Oid),.entrysize = sizeof(Target)};

	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	idem_task_override_settings();
	SetConfigOption("default_transaction_read_only", "off", PGC_SUSET,
					PGC_S_OVERRIDE);
	before_shmem_exit(forget_launcher, (Datum) 0);
	idem_databases_set_launcher(MyProcPid);
	targets = hash_create("idempotency databases", 64, &ctl,
						  HASH_ELEM | HASH_BLOBS);
	for (;;)
	{
		long		timeout = MAX_SLEEP_MS;

		pgstat_report_activity(STATE_IDLE, NULL);
		if (worker_enabled)
		{
			TimestampTz now = GetCurrentTimestamp();
			Target	   *target;

			refresh_targets(now);
			target = next_target(now);
			if (target != NULL && target->due <= now)
			{
				sweep_target(target);
				timeout = 0;
			}
			else if (target != NULL)
				timeout = Min(timeout, (target->due - now) / 1000 + 1);
		}
		sleep_ms(timeout);
	}
}

/* Whether this database is one to look at. */
static bool
comes_here(void)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID,
										ObjectIdGetDatum(MyDatabaseId));
	bool		wanted;

	if (!HeapTupleIsValid(tuple))
		return false;
	wanted = is_wanted((Form_pg_database) GETSTRUCT(tuple));
	ReleaseSysCache(tuple);
	return wanted;
}

/*
 * idem_launcher_describe
 *		For idem_health: whether the keys of this database are swept by
 *		themselves, and why not.
 */
const char *
idem_launcher_describe(IdemLauncherState *state)
{
	*state = IDEM_LAUNCHER_ABSENT;
	if (!idem_counters_exist())
		return "the library is not in shared_preload_libraries";
	if (!worker_enabled)
		return "idempotency.worker is off";
	if (RecoveryInProgress())
		return "this is a standby";
	if (idem_databases_launcher() == 0)
		return "not running; see the log of the server";
	if (comes_here())
	{
		*state = IDEM_LAUNCHER_RUNNING;
		return "running";
	}
	*state = IDEM_LAUNCHER_ELSEWHERE;
	return databases[0] != '\0' ?
		"idempotency.databases does not name this database" :
		"this database is a template, or closed to connections";
}

static bool
check_databases(char **newval, void **extra, GucSource source)
{
	char	   *copy = pstrdup(*newval);
	List	   *names;
	bool		valid = SplitIdentifierString(copy, ',', &names);

	if (!valid)
		GUC_check_errdetail("List syntax is invalid.");
	list_free(names);
	pfree(copy);
	return valid;
}

/*
 * idem_launcher_init
 *		Define the settings; while libraries are preloaded, ask for the worker.
 */
void
idem_launcher_init(void)
{
	BackgroundWorker worker;

	DefineCustomBoolVariable("idempotency.worker",
							 "Lets background workers remove expired keys.",
							 NULL,
							 &worker_enabled,
							 true,
							 PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
	DefineCustomStringVariable("idempotency.databases",
							   "Databases that background workers sweep; empty: all that have the extension.",
							   NULL,
							   &databases,
							   "",
							   PGC_SIGHUP, GUC_LIST_INPUT,
							   check_databases, NULL, NULL);
	DefineCustomIntVariable("idempotency.sweep_interval",
							"Time between two sweeps of a database.",
							NULL,
							&sweep_interval,
							30, 1, 86400,
							PGC_SIGHUP, GUC_UNIT_S,
							NULL, NULL, NULL);
	if (!process_shared_preload_libraries_in_progress)
		return;
	fill_worker(&worker, LAUNCHER_NAME, "idem_launcher_main", RESTART_SECONDS);
	RegisterBackgroundWorker(&worker);
}
