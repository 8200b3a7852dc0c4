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

#include "access/xact.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/snapmgr.h"

#include "idem_catalog.h"
#include "idem_compat.h"
#include "idem_store_row.h"
#include "idem_store_spi.h"

#define KEY_TABLE "idempotency_keys"
#define KEY_COLUMNS "(scope, key)=("
#define QUOTED_KEY_COLUMNS "(\"scope\", \"key\")=(" /* quote_all_identifiers */

/*
 * Statements of ours that are being executed, one in another (a trigger that
 * a user put on our table may call us).  A plan is freed at the outermost
 * level only, where nobody can be in the middle of it.
 */
static int	executing = 0;

/*
 * idem_store_spi_latest
 *		The latest snapshot; that of the statement where a parallel plan runs,
 *		in which no other may be taken.
 */
Snapshot
idem_store_spi_latest(void)
{
	return IsInParallelMode() ? GetActiveSnapshot() : GetLatestSnapshot();
}

/*
 * idem_store_spi_begin_as, idem_store_spi_begin, idem_store_spi_end
 *		Around one or more statements, as the owner of the table that they are
 *		about, which is the key table unless told.
 */
void
idem_store_spi_begin_as(IdemSecctx *saved, Oid owner)
{
	int			code = SPI_connect();

	if (code != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed: %s", SPI_result_code_string(code));
	idem_secctx_enter(saved, owner);
}

void
idem_store_spi_begin(IdemSecctx *saved)
{
	idem_store_spi_begin_as(saved, idem_catalog()->owner);
}

void
idem_store_spi_end(const IdemSecctx *saved)
{
	idem_secctx_leave(saved);
	SPI_finish();
}

/*
 * The owner of the tables needs the schema, too.  Whoever calls could not tell
 * from the server's own error whom it is about.  Asked only where a statement
 * is about to be parsed.
 */
static void
require_schema(void)
{
	char	   *owner;

	if (idem_compat_may_use_schema(idem_catalog()->namespace, GetUserId()))
		return;
	owner = GetUserNameFromId(GetUserId(), false);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("role \"%s\", which owns tables of extension \"idempotency\", cannot use its schema",
					owner),
			 errhint("Grant it that: GRANT USAGE ON SCHEMA %s TO %s.",
					 idem_catalog()->schema, quote_identifier(owner))));
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

	require_schema();
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
 * A unique violation of (scope, key) means that another transaction wrote the
 * key: where a row must not exist, or from a second index that is there while
 * the first is being rebuilt, which ON CONFLICT does not name.  Nothing has
 * been decided then, so it is a serialization failure.  Any other comes from
 * an index of a user's.  Both would have the key in clear in their detail.
 *
 * No catalog can be asked here, so it is the detail, too, that tells the
 * columns of the index; that part of it is not translated.
 */
static void
rethrow(MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	if (error->sqlerrcode != ERRCODE_UNIQUE_VIOLATION ||
		error->table_name == NULL || strcmp(error->table_name, KEY_TABLE) != 0)
		PG_RE_THROW();
	FlushErrorState();
	if (error->detail != NULL &&
		(strstr(error->detail, KEY_COLUMNS) != NULL ||
		 strstr(error->detail, QUOTED_KEY_COLUMNS) != NULL))
		idem_store_row_raise_rival();
	ereport(ERROR,
			(errcode(ERRCODE_UNIQUE_VIOLATION),
			 errmsg("a unique index \"%s\" that was added to table \"%s\" forbids this key",
					error->constraint_name ? error->constraint_name : "",
					KEY_TABLE),
			 errhint("Drop the index, or create it without UNIQUE.")));
}

/*
 * Scans other than by index are off while a plan is made: one made while the
 * table was a page small would otherwise go on reading all of it, and take
 * SIREAD locks on all of it, until the next ANALYZE.  So is the JIT, for which
 * a scan that must be made in spite of that would seem costly enough.
 */
static int
pin_planner(void)
{
	static const char *const pinned[][2] = {
		{"enable_seqscan", "off"},
		{"enable_bitmapscan", "off"},
		{"enable_indexscan", "on"},
		{"enable_tidscan", "on"},
		{"jit", "off"}
	};
	int			guc_level = NewGUCNestLevel();
	int			i;

	for (i = 0; i < lengthof(pinned); i++)
		(void) set_config_option(pinned[i][0], pinned[i][1], PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
	return guc_level;
}

/* How often the plan was made. */
static int
plan_generation(IdemPlan *plan)
{
	CachedPlanSource *source = linitial(SPI_plan_get_plan_sources(plan->plan));

	return source->generation;
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
	bool		pinned;
	int			guc_level = 0;
	int			made;

	prepare(plan);
	made = plan_generation(plan);
	pinned = made == 0 || !SPI_plan_is_valid(plan->plan);
	if (pinned)
	{
		require_schema();
		guc_level = pin_planner();
	}
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
	if (pinned)
		AtEOXact_GUC(false, guc_level);
	else if (plan_generation(plan) != made)
		plan->generation = 0;	/* made anew unpinned: not to be kept */
	return SPI_processed;
}

/*
 * idem_store_spi_value
 *		A value of what the last statement returned; counted from 0.
 */
Datum
idem_store_spi_value(int row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 column + 1, isnull);
}

/*
 * idem_store_spi_number
 *		A bigint of its first row; 0 for a null.
 */
int64
idem_store_spi_number(int column)
{
	bool		isnull;
	Datum		value = idem_store_spi_value(0, column, &isnull);

	return isnull ? 0 : DatumGetInt64(value);
}

/*
 * idem_store_spi_command
 *		Execute a utility command, which can have no parameters.
 */
void
idem_store_spi_command(const char *command)
{
	int			code = SPI_execute(command, false, 0);

	if (code != SPI_OK_UTILITY)
		elog(ERROR, "SPI_execute failed: %s", SPI_result_code_string(code));
}
