/*-------------------------------------------------------------------------
 *
 * idem_store_cron.c
 *	  The job of pg_cron that sweeps.
 *
 * Everything is done as the caller, whose job it is then: pg_cron runs a job
 * with the rights of the role that scheduled it, and tells jobs of a name
 * apart by role.  pg_cron keeps its objects in schema cron, which only its
 * installation can have created when the extension is there.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "utils/builtins.h"

#include "idem_catalog.h"
#include "idem_store.h"

#define JOB_NAME "'idempotency-sweep'"

/* Literals have no type yet: 1.4 takes a name where 1.5 takes a text. */
#define SCHEDULE_SQL "SELECT cron.schedule(" JOB_NAME ", $1, $2)"
#define UNSCHEDULE_SQL \
	"SELECT cron.unschedule(jobid) FROM cron.job" \
	" WHERE jobname OPERATOR(pg_catalog.=) " JOB_NAME \
	" AND username OPERATOR(pg_catalog.=) current_user" \
	" AND database OPERATOR(pg_catalog.=) pg_catalog.current_database()"

static void
require_cron(void)
{
	if (!OidIsValid(get_extension_oid("pg_cron", true)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension \"pg_cron\" is not installed in this database"),
				 errhint("Install it here, or let the background worker sweep, or schedule CALL idem_sweep_all() elsewhere.")));
}

static uint64
execute(const char *sql, int nargs, Oid *types, Datum *values)
{
	int			code = SPI_execute_with_args(sql, nargs, types, values, NULL,
											 false, 0);

	if (code != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute_with_args failed: %s",
			 SPI_result_code_string(code));
	return SPI_processed;
}

/*
 * idem_store_cron_schedule
 *		Make the job, or change it; returns its number.  55000, and what
 *		pg_cron raises.
 */
int64
idem_store_cron_schedule(text *schedule)
{
	Oid			types[2] = {TEXTOID, TEXTOID};
	Datum		values[2];
	bool		isnull;
	int64		job;

	require_cron();
	SPI_connect();
	values[0] = PointerGetDatum(schedule);
	values[1] = CStringGetTextDatum(psprintf("CALL %s.idem_sweep_all()",
											 idem_catalog()->schema));
	if (execute(SCHEDULE_SQL, lengthof(types), types, values) != 1)
		elog(ERROR, "cron.schedule() returned nothing");
	job = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
									  SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	return job;
}

/*
 * idem_store_cron_unschedule
 *		Remove the job; false when this role has none.  55000.
 */
bool
idem_store_cron_unschedule(void)
{
	uint64		rows;

	require_cron();
	SPI_connect();
	rows = execute(UNSCHEDULE_SQL, 0, NULL, NULL);
	SPI_finish();
	return rows > 0;
}
