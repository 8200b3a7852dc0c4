/*-------------------------------------------------------------------------
 *
 * search.c
 *	  Statements on keys that nobody names one by one.
 *
 * For operators; both are statements in both ways to storage, and right for
 * every kind of table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/xid8.h"

#include "base/catalog.h"
#include "base/citus.h"
#include "base/spi.h"
#include "store/search.h"

/* The words that state_sql has; an expired key is nothing else. */
static const char *const states[] = {
	"in_progress", "completed", "failed", "released", "expired"
};

#define STATE_SQL \
	"CASE WHEN state = 'x' THEN 'released' WHEN expires_at <= $1 THEN 'expired'" \
	" WHEN state = 'p' THEN 'in_progress' WHEN state = 'c' THEN 'completed'" \
	" ELSE 'failed' END"

/* As idem_digest_log_id(). */
#define LOG_ID_SQL(column) \
	"left(encode(sha256(convert_to(" column ", getdatabaseencoding())), 'hex'), 16)"

/* The time, four conditions and the limit. */
#define SEARCH_MAX_ARGS 6

static const Oid found_types[] = {
	TEXTOID, TEXTOID, TEXTOID, TEXTOID, INT4OID, TEXTOID, TIMESTAMPTZOID,
	TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, JSONBOID
};

static const Oid delete_types[] = {
	TEXTOID, TIMESTAMPTZOID, INT8OID, TEXTARRAYOID, XID8OID
};

/*
 * Rows that others have locked are passed over, and those that are locked are
 * found again by the primary key: a place means nothing without its table, and
 * "key = ANY" could become a filter over the whole scope.
 */
static IdemPlan delete_plan = {
	"WITH gone AS MATERIALIZED (SELECT key FROM %1$s.idempotency_keys"
	" WHERE (%2$sscope) = (%3$s$1) AND (state <> 'p' OR expires_at <= $2 AND claim_xid <> $5)"
	" AND key <> ALL ($4) ORDER BY key LIMIT $3 FOR UPDATE SKIP LOCKED)"
	" DELETE FROM %1$s.idempotency_keys AS r USING gone"
	" WHERE (%2$sscope, r.key) = (%3$s$1, gone.key)",
	lengthof(delete_types), delete_types, 1, true
};

/*
 * idem_store_is_state
 *		Whether a word is one for the state of a key.
 */
bool
idem_store_is_state(const char *word)
{
	int			i;

	for (i = 0; i < lengthof(states); i++)
		if (strcmp(states[i], word) == 0)
			return true;
	return false;
}

/* A condition on what is sought; none where there is no value. */
static void
add_condition(StringInfo sql, const char *column, Datum value, Datum *values,
			  int *nargs)
{
	if (DatumGetPointer(value) == NULL)
		return;
	values[(*nargs)++] = value;
	appendStringInfo(sql, "%s %s = $%d", *nargs == 2 ? " WHERE" : " AND",
					 column, *nargs);
}

static Datum
text_or_null(const char *value)
{
	return value == NULL ? PointerGetDatum(NULL) : CStringGetTextDatum(value);
}

/*
 * idem_store_search
 *		Put keys into a tuplestore, in their order, as idem_find has them; how
 *		many.
 *
 * Reads what the calling statement sees: with a scope a range of the primary
 * key, else all of it, up to max_rows that are found.
 */
int64
idem_store_search(const IdemSearch *search, TimestampTz now,
				  Tuplestorestate *result, TupleDesc desc)
{
	Oid			types[SEARCH_MAX_ARGS] = {
		TIMESTAMPTZOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID
	};
	Datum		values[SEARCH_MAX_ARGS] = {TimestampTzGetDatum(now)};
	int			nargs = 1;
	StringInfoData sql;
	IdemSecctx	saved;
	int			code;
	uint64		i;

	initStringInfo(&sql);
	appendStringInfo(&sql,
					 "SELECT scope, key, " STATE_SQL ","
					 " coalesce(policy, 'default'), coalesce(attempt, 1),"
					 " claimed_by, created_at,"
					 " CASE WHEN state = 'p' THEN lease_until END,"
					 " nullif(expires_at, 'infinity'), recovery_point, checkpoint"
					 " FROM %s.idempotency_keys", idem_catalog()->schema);
	add_condition(&sql, "scope", PointerGetDatum(search->scope), values, &nargs);
	add_condition(&sql, LOG_ID_SQL("scope"), text_or_null(search->scope_id),
				  values, &nargs);
	add_condition(&sql, LOG_ID_SQL("key"), text_or_null(search->key_id),
				  values, &nargs);
	add_condition(&sql, STATE_SQL, text_or_null(search->state), values, &nargs);
	types[nargs] = INT8OID;
	values[nargs++] = Int64GetDatum(search->max_rows);
	appendStringInfo(&sql, " ORDER BY scope, key LIMIT $%d", nargs);

	/* asked now and then: no plan is kept, and the planner has its will */
	idem_spi_begin(&saved);
	code = SPI_execute_with_args(sql.data, nargs, types, values, NULL, true, 0);
	if (code != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute_with_args failed: %s",
			 SPI_result_code_string(code));

	/* a value of another type would be taken for an address (t/035_trust.pl) */
	idem_spi_require_types(found_types, lengthof(found_types));
	for (i = 0; i < SPI_processed; i++)
	{
		Datum		found[lengthof(found_types)];
		bool		nulls[lengthof(found_types)];

		heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, found,
						  nulls);
		tuplestore_putvalues(result, desc, found, nulls);
	}
	idem_spi_end(&saved);
	return (int64) i;
}

/*
 * idem_store_delete_finished
 *		Remove up to max_rows keys of a scope that nobody works on, in their
 *		order; how many.
 *
 * Finished, released, or in progress and expired, but for what this transaction
 * has claimed itself and the array of keys to keep.  Takes no key lock, as the
 * sweep; 40001 at REPEATABLE READ and above for a row that has changed since
 * the snapshot.
 */
int64
idem_store_delete_finished(const text *scope, TimestampTz now, int64 max_rows,
						   Datum keep)
{
	FullTransactionId mine = GetTopFullTransactionIdIfAny();
	Datum		values[lengthof(delete_types)];
	IdemSecctx	saved;
	int64		rows;

	values[0] = PointerGetDatum(scope);
	values[1] = TimestampTzGetDatum(now);
	values[2] = Int64GetDatum(max_rows);
	values[3] = keep;
	values[4] = UInt64GetDatum(idem_citus_xid(mine));
	idem_citus_require_here(scope);
	idem_spi_begin(&saved);
	rows = (int64) idem_spi_execute(&delete_plan, values, NULL, false, 0);
	idem_spi_end(&saved);
	return rows;
}
