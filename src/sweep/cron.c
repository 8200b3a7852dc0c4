/*-------------------------------------------------------------------------
 *
 * cron.c
 *	  The job of pg_cron that sweeps.
 *
 * Everything is done as the caller, whose job it is then: pg_cron runs a job
 * with the rights of the role that scheduled it, and tells jobs of a name
 * apart by role.  The caller may be a superuser, so nothing of schema cron is
 * called by its name: the functions are those of pg_cron's own library
 * (base/foreign.c).  The table cron.job belongs to the extension, and a name
 * is taken once in a schema.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "base/catalog.h"
#include "base/compat.h"
#include "base/foreign.h"
#include "store/store.h"

#define JOB_NAME "idempotency-sweep"

#define FIND_SQL \
	"SELECT jobid FROM cron.job" \
	" WHERE jobname OPERATOR(pg_catalog.=) $1" \
	" AND username OPERATOR(pg_catalog.=) current_user" \
	" AND database OPERATOR(pg_catalog.=) pg_catalog.current_database()"

#define PG_CRON(name, symbol, nargs, ...) \
	{"pg_cron", "$libdir/pg_cron", name, symbol, nargs, {__VA_ARGS__}}

/* Up to 1.3 the name of a job is a name. */
static IdemForeign cron_schedule =
PG_CRON("schedule", "cron_schedule_named", 3, TEXTOID, TEXTOID, TEXTOID);
static IdemForeign cron_schedule_name =
PG_CRON("schedule", "cron_schedule_named", 3, NAMEOID, TEXTOID, TEXTOID);
static IdemForeign cron_unschedule =
PG_CRON("unschedule", "cron_unschedule", 1, INT8OID);

/* To be called as the caller, who needs what a call in SQL would need. */
static bool
load(IdemForeign *foreign, FmgrInfo *flinfo)
{
	Oid			schema = get_namespace_oid("cron", true);

	if (!idem_foreign_load(foreign, flinfo))
		return false;
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
require_cron(void)
{
	if (!OidIsValid(get_extension_oid("pg_cron", true)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension \"pg_cron\" is not installed in this database"),
				 errhint("Install it here, or let the background worker sweep, or schedule CALL idem_sweep_all() elsewhere.")));
}

static void
raise_unknown(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("extension \"pg_cron\" has no function %s() of its own that is known here",
					name),
			 errhint("Use pg_cron 1.3 or later, or let the background worker sweep.")));
}

/*
 * idem_store_cron_schedule
 *		Make the job, or change it; returns its number.  42501, 55000, and what
 *		pg_cron raises.
 */
int64
idem_store_cron_schedule(text *schedule)
{
	char	   *command = psprintf("CALL %s.idem_sweep_all()",
								   idem_catalog()->schema);
	FmgrInfo	function;
	Datum		name = CStringGetTextDatum(JOB_NAME);

	require_cron();
	if (!load(&cron_schedule, &function))
	{
		if (!load(&cron_schedule_name, &function))
			raise_unknown("cron.schedule");
		name = DirectFunctionCall1(namein, CStringGetDatum(JOB_NAME));
	}
	return DatumGetInt64(FunctionCall3(&function, name,
									   PointerGetDatum(schedule),
									   CStringGetTextDatum(command)));
}

/*
 * idem_store_cron_unschedule
 *		Remove the job; false when this role has none.  42501, 55000.
 */
bool
idem_store_cron_unschedule(void)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1];
	FmgrInfo	function;
	bool		found;
	bool		isnull;

	require_cron();
	if (!load(&cron_unschedule, &function))
		raise_unknown("cron.unschedule");
	values[0] = CStringGetTextDatum(JOB_NAME);
	SPI_connect();
	if (SPI_execute_with_args(FIND_SQL, lengthof(types), types, values, NULL,
							  true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look for the job");
	found = SPI_processed > 0;
	if (found)
		(void) FunctionCall1(&function,
							 SPI_getbinval(SPI_tuptable->vals[0],
										   SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	return found;
}
