/*-------------------------------------------------------------------------
 *
 * sweep.c
 *	  Removing keys past their retention, now or by a job of pg_cron.
 *
 * Of pg_cron everything is done as the caller, whose job it is then: it runs a
 * job with the rights of the role that scheduled it, and tells jobs of a name
 * apart by role.  The caller may be a superuser, so nothing of schema cron is
 * called by its name: the functions are those of pg_cron's own library
 * (base/foreign.c).  The table cron.job belongs to the extension, and a name
 * is taken once in a schema.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/relcache.h"
#include "utils/timestamp.h"

#include "base/args.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/counters.h"
#include "base/databases.h"
#include "base/foreign.h"
#include "key/leases.h"
#include "key/lifetime.h"
#include "rule/policy.h"
#include "store/store.h"
#include "sweep/sweep.h"

#define JOB_NAME "idempotency-sweep"

#define FIND_SQL \
	"SELECT jobid FROM cron.job" \
	" WHERE jobname OPERATOR(pg_catalog.=) $1" \
	" AND username OPERATOR(pg_catalog.=) current_user" \
	" AND database OPERATOR(pg_catalog.=) pg_catalog.current_database()"

#define PG_CRON(name, symbol, nargs, ...) \
	{"pg_cron", "$libdir/pg_cron", name, symbol, nargs, {__VA_ARGS__}}

static IdemForeign cron_schedule =
PG_CRON("schedule", "cron_schedule_named", 3, TEXTOID, TEXTOID, TEXTOID);
static IdemForeign cron_schedule_name =
PG_CRON("schedule", "cron_schedule_named", 3, NAMEOID, TEXTOID, TEXTOID);
static IdemForeign cron_unschedule =
PG_CRON("unschedule", "cron_unschedule", 1, INT8OID);

static int	sweep_batch = 10000;
static int	sweep_delay = 10;

static void
count_swept(const text *policy, int64 rows)
{
	IdemPolicy	values;

	idem_policy_get_stored(policy, &values);
	idem_counters_add(values.counters, IDEM_COUNT_SWEPT, rows);
}

/*
 * idem_sweep_batch
 *		Remove up to max_rows rows past purge_at, oldest first, from the mark
 *		on, which becomes that of the last; how many.
 */
int64
idem_sweep_batch(IdemSweepMark *mark, int64 max_rows)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		rows = idem_store_sweep(mark, now, max_rows, count_swept);

	/* what was listed of them is no key: it is not counted */
	if (rows < max_rows)
		idem_leases_sweep(now, max_rows);
	return rows;
}

/*
 * idem_sweep_batch_size, idem_sweep_delay
 *		The settings: rows, milliseconds.
 */
int
idem_sweep_batch_size(void)
{
	return sweep_batch;
}

int
idem_sweep_delay(void)
{
	return sweep_delay;
}

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
	TimestampTz start = GetCurrentTimestamp();
	IdemSweepMark mark = idem_store_sweep_from(DT_NOBEGIN);
	int64		rows;

	idem_args_require_writable();
	if (max_rows <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be greater than zero", "max_rows"),
				 errhint("Leave it out for \"idempotency.sweep_batch\" rows.")));
	rows = idem_sweep_batch(&mark, max_rows);
	idem_databases_note_sweep(start, rows);
	PG_RETURN_INT64(rows);
}

/* Nothing was removed, perhaps since the table or an index is locked. */
static void
warn_if_locked(void)
{
	Oid			keys = idem_catalog()->keys;
	bool		locked = !ConditionalLockRelationOid(keys, RowExclusiveLock);
	Relation	table;
	ListCell   *cell;

	/*
	 * Asked again, since the sweep does not say why it did nothing.  If it is
	 * not locked now, the rows were tried, or will be the next time.
	 */
	if (!locked)
	{
		table = table_open(keys, NoLock);
		foreach(cell, RelationGetIndexList(table))
		{
			if (!ConditionalLockRelationOid(lfirst_oid(cell),
											RowExclusiveLock))
				locked = true;
		}
		table_close(table, NoLock);
	}
	if (locked)
		ereport(WARNING,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("expired keys may be left: table \"%s\" is locked",
						"idempotency_keys"),
				 errhint("Call idem_sweep_all() again when the transaction that has locked it has ended.")));
}

IDEM_FUNCTION(idem_sweep_all);

/*
 * idem_sweep_all(max_duration interval)
 *		Procedure: remove batch after batch, each in a transaction of its own,
 *		until nothing is left or the time is over.
 *
 * Raises 22023, 25006, and 2D000 where CALL may not commit; warns with 55P03
 * when the table is locked.  Holds between two commits what one idem_sweep()
 * holds.
 */
Datum
idem_sweep_all(PG_FUNCTION_ARGS)
{
	bool		atomic = fcinfo->context == NULL ||
	!IsA(fcinfo->context, CallContext) ||
	castNode(CallContext, fcinfo->context)->atomic;
	TimestampTz start = GetCurrentTimestamp();
	TimestampTz end = DT_NOEND;
	IdemSweepMark mark = idem_store_sweep_from(DT_NOBEGIN);
	int64		rows;
	int64		all = 0;

	if (!PG_ARGISNULL(0))
		end = idem_lifetime_add(start,
								idem_args_usec("max_duration", PG_GETARG_DATUM(0)));
	if (atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("idem_sweep_all() cannot run inside a transaction block"),
				 errhint("CALL it by itself, or use idem_sweep() in a transaction.")));

	/*
	 * A commit after each batch, so that its locks are gone, and an error
	 * loses no more than one.
	 */
	SPI_connect_ext(SPI_OPT_NONATOMIC);
	idem_args_require_writable();
	while ((rows = idem_sweep_batch(&mark, sweep_batch)) > 0)
	{
		all += rows;
		if (GetCurrentTimestamp() >= end)
			break;
		SPI_commit();
		CHECK_FOR_INTERRUPTS();
	}
	if (rows == 0)
		warn_if_locked();
	idem_databases_note_sweep(start, all);
	SPI_finish();
	PG_RETURN_VOID();
}

/* Make ready to call it, as the caller. */
static bool
load_cron(IdemForeign *foreign, FmgrInfo *flinfo)
{
	Oid			schema = get_namespace_oid("cron", true);

	if (!idem_foreign_load(foreign, flinfo))
		return false;

	/* no parser and no executor ask for what a call in SQL would need */
	if (!OidIsValid(schema) ||
		!idem_compat_may_use_schema(schema, GetUserId()) ||
		!idem_compat_may_execute(flinfo->fn_oid, GetUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for %s", "pg_cron"),
				 errhint("GRANT USAGE ON SCHEMA cron TO the role that is to own the job.")));
	return true;
}

static void
raise_missing(const char *name)
{
	if (!OidIsValid(get_extension_oid("pg_cron", true)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension \"pg_cron\" is not installed in this database"),
				 errhint("Install it here, or let the background worker sweep, or schedule CALL idem_sweep_all() elsewhere.")));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("extension \"pg_cron\" has no function %s() of its own that is known here",
					name),
			 errhint("Use pg_cron 1.3 or later, or let the background worker sweep.")));
}

IDEM_FUNCTION(idem_schedule);

/*
 * idem_schedule(schedule text) RETURNS bigint
 *		Let pg_cron call idem_sweep_all(), as the caller; the number of the
 *		job.  A repeated call changes the caller's one job.
 *
 * Raises 22004, 25006, 42501, 55000 where there is no pg_cron, and what
 * pg_cron says to the schedule.
 */
Datum
idem_schedule(PG_FUNCTION_ARGS)
{
	text	   *schedule = idem_args_text(fcinfo, 0, "schedule");
	Datum		name = CStringGetTextDatum(JOB_NAME);
	char	   *command;
	FmgrInfo	function;

	idem_args_require_writable();
	command = psprintf("CALL %s.idem_sweep_all()", idem_catalog()->schema);
	if (!load_cron(&cron_schedule, &function))
	{
		/* up to 1.3 the name of a job is a name */
		if (!load_cron(&cron_schedule_name, &function))
			raise_missing("cron.schedule");
		name = DirectFunctionCall1(namein, CStringGetDatum(JOB_NAME));
	}
	PG_RETURN_DATUM(FunctionCall3(&function, name, PointerGetDatum(schedule),
								  CStringGetTextDatum(command)));
}

IDEM_FUNCTION(idem_unschedule);

/*
 * idem_unschedule() RETURNS boolean
 *		Remove the caller's job; false when there is none.  Raises 25006,
 *		42501, 55000.
 */
Datum
idem_unschedule(PG_FUNCTION_ARGS)
{
	Oid			type = TEXTOID;
	Datum		name = CStringGetTextDatum(JOB_NAME);
	FmgrInfo	function;
	bool		found;
	bool		isnull;

	idem_args_require_writable();
	if (!load_cron(&cron_unschedule, &function))
		raise_missing("cron.unschedule");
	SPI_connect();
	if (SPI_execute_with_args(FIND_SQL, 1, &type, &name, NULL, true, 1) !=
		SPI_OK_SELECT)
		elog(ERROR, "could not look for the job");
	found = SPI_processed > 0;
	if (found)
		(void) FunctionCall1(&function,
							 SPI_getbinval(SPI_tuptable->vals[0],
										   SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	PG_RETURN_BOOL(found);
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
	DefineCustomIntVariable("idempotency.sweep_delay",
							"Pause of the background worker between two batches.",
							NULL,
							&sweep_delay,
							10, 0, 10000,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
}
