/*-------------------------------------------------------------------------
 *
 * stats.c
 *	  What is counted, for an operator to see.
 *
 * The counters and the state of the sweeps are in shared memory (base/shmem.c).
 * A call is counted when it answers, whether its transaction commits or not.
 *
 * A database sees its own counters; those of the whole server are for members
 * of pg_monitor, and the names in them are never shown in the encoding of
 * another database.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "admin/stats.h"
#include "rule/policy.h"
#include "base/args.h"
#include "base/catalog.h"
#include "base/citus.h"
#include "base/digest.h"
#include "base/counters.h"
#include "base/databases.h"
#include "base/spi.h"

/* Columns of idem_stats_values(): database and policy, counters, the reset. */
#define STATS_COLUMNS	(2 + IDEM_NUM_COUNTERS + 1)

/* Those of idem_activity_values(), the first two of which are ids. */
#define ACTIVITY_COLUMNS 8

/*
 * The name as another database wrote it, in the encoding of this one; NULL
 * when that cannot be, or when there is no such database any more.
 */
static char *
convert_name(const char *name, Oid database)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID,
										ObjectIdGetDatum(database));
	int			to = GetDatabaseEncoding();
	int			len = strlen(name);
	int			from;
	Oid			function;
	char	   *converted;

	if (!HeapTupleIsValid(tuple))
		return NULL;
	from = ((Form_pg_database) GETSTRUCT(tuple))->encoding;
	ReleaseSysCache(tuple);

	/* SQL_ASCII says nothing of what its bytes are. */
	if (from == PG_SQL_ASCII || to == PG_SQL_ASCII)
		return NULL;
	if (from == to)
		return pstrdup(name);
	function = FindDefaultConversionProc(from, to);
	if (!OidIsValid(function))
		return NULL;

	converted = palloc(len * MAX_CONVERSION_GROWTH + 1);

	/*
	 * What is returned is how much was read: less than all where a character
	 * is not valid, or not in our encoding.
	 */
	return pg_do_encoding_conversion_buf(function, from, to,
										 (unsigned char *) name, len,
										 (unsigned char *) converted,
										 len * MAX_CONVERSION_GROWTH + 1,
										 true) == len ? converted : NULL;
}

/* The name of a policy, for a reader in this database. */
static char *
show_policy(const IdemCounters *counters)
{
	char	   *name = pstrdup(NameStr(counters->policy));
	char	   *converted;
	char	   *c;

	if (counters->database == MyDatabaseId)
		return name;
	converted = convert_name(name, counters->database);
	if (converted != NULL)
		return converted;

	/* bytes of another encoding would make a text that is not valid here */
	for (c = name; *c != '\0'; c++)
		if (IS_HIGHBIT_SET(*c))
			*c = '?';
	return name;
}

static void
put_counters(ReturnSetInfo *rsinfo, const IdemCounters *counters)
{
	Datum		values[STATS_COLUMNS];
	bool		nulls[STATS_COLUMNS] = {0};
	int			i;

	/* Those of no database are what found no room for counters of its own. */
	values[0] = ObjectIdGetDatum(counters->database);
	nulls[0] = !OidIsValid(counters->database);
	values[1] = CStringGetTextDatum(show_policy(counters));
	nulls[1] = nulls[0] ||
		strcmp(NameStr(counters->policy), IDEM_COUNTERS_NO_POLICY) == 0;
	for (i = 0; i < IDEM_NUM_COUNTERS; i++)
		values[2 + i] = Int64GetDatum((int64) counters->counts[i]);
	values[2 + i] = TimestampTzGetDatum(counters->stats_reset);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* What found no room is of interest only if there is something. */
static bool
is_empty(const IdemCounters *counters)
{
	int			i;

	for (i = 0; i < IDEM_NUM_COUNTERS; i++)
		if (counters->counts[i] != 0)
			return false;
	return true;
}

IDEM_FUNCTION(idem_stats_values);

/*
 * idem_stats_values() RETURNS TABLE (datid oid, policy text, claimed bigint,
 *		...)
 *		Counters of this database, and of all for a member of pg_monitor; nulls
 *		where the library was not preloaded.  Raises nothing of its own.
 */
Datum
idem_stats_values(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		monitors = has_privs_of_role(GetUserId(), ROLE_PG_MONITOR);
	Datum		values[STATS_COLUMNS] = {ObjectIdGetDatum(MyDatabaseId)};
	bool		nulls[STATS_COLUMNS];
	IdemCounters *counters;
	int			number;
	int			i;

	InitMaterializedSRF(fcinfo, 0);
	if (!idem_counters_exist())
	{
		/* this database, and nothing known */
		memset(nulls, true, sizeof(nulls));
		nulls[0] = false;
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values,
							 nulls);
		return (Datum) 0;
	}
	counters = idem_counters_copy(&number);
	for (i = 0; i < number; i++)
		if (counters[i].database == MyDatabaseId ||
			(monitors && (OidIsValid(counters[i].database) ||
						  !is_empty(&counters[i]))))
			put_counters(rsinfo, &counters[i]);
	return (Datum) 0;
}

IDEM_FUNCTION(idem_stats_reset);

/*
 * idem_stats_reset() RETURNS void
 *		Let the counters of this database begin anew.  Raises nothing of its
 *		own; an abort does not take it back.
 */
Datum
idem_stats_reset(PG_FUNCTION_ARGS)
{
	idem_counters_reset();
	PG_RETURN_VOID();
}

/* Run a query whose $1 is the time. */
static void
execute(const char *sql, TimestampTz now)
{
	Oid			types[1] = {TIMESTAMPTZOID};
	Datum		values[1];
	int			code;

	values[0] = TimestampTzGetDatum(now);

	/*
	 * Read only, and so what the calling statement sees.  People and
	 * monitoring ask now and then: no plan is kept, and the planner has its
	 * will.
	 */
	code = SPI_execute_with_args(psprintf(sql, idem_citus_rows(idem_catalog()->keys)),
								 lengthof(types), types, values, NULL, true, 0);
	if (code != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute_with_args failed: %s",
			 SPI_result_code_string(code));
}

IDEM_FUNCTION(idem_activity_values);

/*
 * idem_activity_values() RETURNS TABLE (scope_id text, key_id text, policy
 *		text, attempt integer, claimed_by text, age interval, lease_left
 *		interval, recovery_point text)
 *		Committed claims in progress.  Raises nothing of its own; reads the
 *		whole key table, under ACCESS SHARE.
 */
Datum
idem_activity_values(PG_FUNCTION_ARGS)
{
	static const Oid types[ACTIVITY_COLUMNS] = {
		TEXTOID, TEXTOID, TEXTOID, INT4OID, TEXTOID, INTERVALOID, INTERVALOID,
		TEXTOID
	};
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	IdemSecctx	saved;
	uint64		i;

	InitMaterializedSRF(fcinfo, 0);
	idem_spi_begin(&saved);
	execute("SELECT scope, key, coalesce(policy, '" IDEM_POLICY_DEFAULT "'), coalesce(attempt, 1),"
			" claimed_by, $1 - created_at,"
			" lease_until - $1, recovery_point"
			" FROM %1$s WHERE state = 'p'",
			GetCurrentTimestamp());

	/*
	 * Who owns the table may have given a column another type, and its value
	 * would be taken for an address (t/035_trust.pl).
	 */
	idem_spi_require_types(types, lengthof(types));
	for (i = 0; i < SPI_processed; i++)
	{
		Datum		values[ACTIVITY_COLUMNS];
		bool		nulls[ACTIVITY_COLUMNS];
		int			j;

		heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
						  values, nulls);
		for (j = 0; j < 2; j++) /* scope and key: their ids only */
			values[j] =
				CStringGetTextDatum(idem_digest_log_id(DatumGetTextPP(values[j])));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	idem_spi_end(&saved);
	return (Datum) 0;
}

/*
 * idem_stats_lag
 *		How long the oldest key that should be gone has been due, in
 *		microseconds; 0 when there is none.
 */
int64
idem_stats_lag(void)
{
	static const Oid type = TIMESTAMPTZOID;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz oldest;
	IdemSecctx	saved;
	bool		isnull;

	idem_spi_begin(&saved);
	execute("SELECT coalesce(min(purge_at), $1) FROM %1$s WHERE purge_at <= $1",
			now);
	idem_spi_require_types(&type, 1);
	oldest = DatumGetTimestampTz(idem_spi_value(0, 0, &isnull));
	idem_spi_end(&saved);
	return now - oldest;
}

IDEM_FUNCTION(idem_sweep_status_values);

/*
 * idem_sweep_status_values() RETURNS record (last_run timestamptz,
 *		last_duration interval, last_rows bigint, lag interval, last_error
 *		text)
 *		The last sweep of this database, by whomever: nulls while there was
 *		none, and where the library was not preloaded; and how long the oldest
 *		row has been due.  Takes ACCESS SHARE on the key table.
 */
Datum
idem_sweep_status_values(PG_FUNCTION_ARGS)
{
	Datum		values[5];
	bool		nulls[lengthof(values)] = {0};
	IdemSweepState state;
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	/* where nothing is known, the state is one of a database never swept */
	(void) idem_databases_get(MyDatabaseId, &state);
	values[0] = TimestampTzGetDatum(state.last_run);
	values[1] = idem_args_interval(state.last_duration);
	values[2] = Int64GetDatum(state.last_rows);
	values[3] = idem_args_interval(idem_stats_lag());
	values[4] = CStringGetTextDatum(state.last_error);
	nulls[0] = nulls[1] = nulls[2] = state.last_run == DT_NOBEGIN;
	nulls[4] = state.last_error[0] == '\0';
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}
