/*-------------------------------------------------------------------------
 *
 * idem_store_spi.c
 *	  Statements on our tables through SPI.
 *
 * Owns the life of the saved plans: made at first use, as the owner of the
 * key table and with the pinned search_path, and made again when the schema
 * has another name or the extension was created anew.  Plans are generic from
 * the start: each is pinned to an index.
 *
 * Text is built from the quoted name of the schema and nothing else.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/memutils.h"

#include "idem_catalog.h"
#include "idem_store_spi.h"

#define PRIMARY_KEY_NAME "idempotency_keys_pkey"

/*
 * Statements of ours that are being executed, one in another (a trigger that
 * a user put on our table may call us).  A plan is freed at the outermost
 * level only, where nobody can be in the middle of it.
 */
static int	executing = 0;

/*
 * idem_store_spi_begin, idem_store_spi_end
 *		Around one or more statements.
 */
void
idem_store_spi_begin(IdemSecctx *saved)
{
	int			code = SPI_connect();

	if (code != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed: %s", SPI_result_code_string(code));
	idem_secctx_enter(saved);
}

void
idem_store_spi_end(const IdemSecctx *saved)
{
	idem_secctx_leave(saved);
	SPI_finish();
}

static void
prepare(IdemPlan *plan)
{
	uint64		generation = idem_catalog_generation();
	SPIPlanPtr	prepared;
	char	   *sql;

	if (plan->plan != NULL && plan->generation == generation)
		return;
	if (plan->plan != NULL && executing == 0)
		SPI_freeplan(plan->plan);
	plan->plan = NULL;

	sql = psprintf(plan->sql, idem_catalog()->schema);
	prepared = SPI_prepare_cursor(sql, plan->nargs, (Oid *) plan->argtypes,
								  CURSOR_OPT_GENERIC_PLAN);
	if (prepared == NULL)
		elog(ERROR, "SPI_prepare failed: %s",
			 SPI_result_code_string(SPI_result));
	SPI_keepplan(prepared);
	plan->plan = prepared;
	plan->generation = generation;
	pfree(sql);
}

/*
 * Errors of a statement that mean something else to the caller.
 *
 * While REINDEX or CREATE INDEX CONCURRENTLY works on the primary key, the
 * executor may raise a unique violation from the index that ON CONFLICT did
 * not name, and its detail has the key in clear.  Nothing has been decided
 * then, so it is a serialization failure.  Without a primary key there is no
 * promise at all.
 */
static void
rethrow(MemoryContext context)
{
	ErrorData  *error;
	bool		spurious;
	bool		unprotected;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	spurious = error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION &&
		error->constraint_name != NULL &&
		strncmp(error->constraint_name, PRIMARY_KEY_NAME,
				strlen(PRIMARY_KEY_NAME)) == 0;
	unprotected = error->sqlerrcode == ERRCODE_INVALID_COLUMN_REFERENCE;
	if (spurious || unprotected)
		FlushErrorState();
	if (spurious)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to a concurrent index build"),
				 errhint("Repeat the whole transaction with the same key.")));
	if (unprotected)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("table \"%s\" has no valid primary key on (scope, key)",
						"idempotency_keys"),
				 errhint("Restore the primary key; see idem_health().")));
	PG_RE_THROW();
}

/*
 * idem_store_spi_execute
 *		Execute a statement between begin and end; rows are in SPI_tuptable.
 *
 * With read_only the active snapshot is used, else a fresh one where the
 * isolation level allows it.  Returns the number of rows.
 */
uint64
idem_store_spi_execute(IdemPlan *plan, Datum *values, const char *nulls,
					   bool read_only, long limit)
{
	MemoryContext context = CurrentMemoryContext;
	volatile int code = 0;

	prepare(plan);
	executing++;
	PG_TRY();
	{
		code = SPI_execute_plan(plan->plan, values, nulls, read_only, limit);
	}
	PG_CATCH();
	{
		executing--;
		rethrow(context);
	}
	PG_END_TRY();
	executing--;
	if (code < 0)
		elog(ERROR, "SPI_execute_plan failed: %s",
			 SPI_result_code_string(code));
	return SPI_processed;
}
