/*-------------------------------------------------------------------------
 *
 * stats_store.c
 *	  The queries behind idem_activity and idem_sweep_status.
 *
 * For people and for monitoring, now and then: no plan is kept, and the
 * planner has its will.  They read what the calling statement sees.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "admin/stats_store.h"
#include "base/catalog.h"
#include "base/digest.h"
#include "base/spi.h"

#define ACTIVITY_SQL \
	"SELECT scope, key, policy, attempt, claimed_by, $1 - created_at," \
	" lease_until - $1, recovery_point" \
	" FROM %1$s.idempotency_keys WHERE state = 'p'"

#define OLDEST_SQL \
	"SELECT min(purge_at) FROM %1$s.idempotency_keys WHERE purge_at <= $1"

static const Oid activity_types[IDEM_ACTIVITY_COLUMNS] = {
	TEXTOID, TEXTOID, TEXTOID, INT4OID, TEXTOID, INTERVALOID, INTERVALOID,
	TEXTOID
};
static const Oid oldest_types[] = {TIMESTAMPTZOID};

/* Run a query whose $1 is the time. */
static void
execute(const char *sql, TimestampTz now)
{
	Oid			types[1] = {TIMESTAMPTZOID};
	Datum		values[1];
	int			code;

	values[0] = TimestampTzGetDatum(now);
	code = SPI_execute_with_args(psprintf(sql, idem_catalog()->schema),
								 lengthof(types), types, values, NULL, true, 0);
	if (code != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute_with_args failed: %s",
			 SPI_result_code_string(code));
}

/*
 * idem_store_activity
 *		Give the sink a row of idem_activity for each claim in progress.
 */
void
idem_store_activity(TimestampTz now, IdemActivitySink sink, void *arg)
{
	IdemSecctx	saved;
	uint64		i;

	idem_store_spi_begin(&saved);
	execute(ACTIVITY_SQL, now);
	idem_store_spi_require_types(activity_types, lengthof(activity_types));
	for (i = 0; i < SPI_processed; i++)
	{
		Datum		values[IDEM_ACTIVITY_COLUMNS];
		bool		nulls[IDEM_ACTIVITY_COLUMNS];
		int			j;

		heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
						  values, nulls);
		for (j = 0; j < 2; j++) /* scope and key: their ids only */
		{
			char	   *id = idem_digest_log_id(DatumGetTextPP(values[j]));

			values[j] = CStringGetTextDatum(id);
		}
		sink(arg, values, nulls);
	}
	idem_store_spi_end(&saved);
}

/*
 * idem_store_oldest_due
 *		The oldest purge_at that is over; "now" when there is none.
 */
TimestampTz
idem_store_oldest_due(TimestampTz now)
{
	TimestampTz oldest = now;
	IdemSecctx	saved;
	Datum		value;
	bool		isnull;

	idem_store_spi_begin(&saved);
	execute(OLDEST_SQL, now);
	idem_store_spi_require_types(oldest_types, lengthof(oldest_types));
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
						  &isnull);
	if (!isnull)
		oldest = DatumGetTimestampTz(value);
	idem_store_spi_end(&saved);
	return oldest;
}
