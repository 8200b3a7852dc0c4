/*-------------------------------------------------------------------------
 *
 * spi.c
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
#include "parser/parse_coerce.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/snapmgr.h"

#include "base/catalog.h"
#include "base/citus.h"
#include "base/compat.h"
#include "base/spi.h"

/*
 * Statements of ours that are being executed, one in another (a trigger that
 * a user put on our table may call us).
 */
static int	executing = 0;

/*
 * idem_spi_latest
 *		The latest snapshot; that of the statement where a parallel plan runs,
 *		in which no other may be taken.
 */
Snapshot
idem_spi_latest(void)
{
	return IsInParallelMode() ? GetActiveSnapshot() : GetLatestSnapshot();
}

/*
 * idem_spi_begin_as, idem_spi_begin, idem_spi_end
 *		Around one or more statements, as the owner of the table that they are
 *		about, which is the key table unless told.
 */
void
idem_spi_begin_as(IdemSecctx *saved, Oid owner)
{
	int			code = SPI_connect();

	if (code != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed: %s", SPI_result_code_string(code));
	idem_secctx_enter(saved, owner);
}

void
idem_spi_begin(IdemSecctx *saved)
{
	idem_spi_begin_as(saved, idem_catalog()->owner);
}

void
idem_spi_end(const IdemSecctx *saved)
{
	idem_secctx_leave(saved);
	SPI_finish();
}

/*
 * The owner of the tables needs the schema, too.  Asked only where a statement
 * is about to be parsed.
 */
static void
require_schema(void)
{
	char	   *owner;

	if (idem_compat_may_use_schema(idem_catalog()->namespace, GetUserId()))
		return;

	/* the server's own error does not say whom it is about */
	owner = GetUserNameFromId(GetUserId(), false);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("role \"%s\", which owns tables of extension \"idempotency\", cannot use its schema",
					owner),
			 errhint("Grant it that: GRANT USAGE ON SCHEMA %s TO %s.",
					 idem_catalog()->schema, quote_identifier(owner))));
}

/* Whether a statement has a parameter more, for the tenant. */
static bool
has_tenant(const IdemPlan *plan)
{
	return plan->scope > 0 && idem_citus_is_used();
}

/*
 * For one key Citus finds the shard by the parameter, in a generic plan; for
 * many it has to know the value when it plans.
 */
static SPIPlanPtr
prepare_for_tenant(const IdemPlan *plan)
{
	Oid		   *types = palloc(sizeof(Oid) * (plan->nargs + 1));

	memcpy(types, plan->argtypes, sizeof(Oid) * plan->nargs);
	types[plan->nargs] = idem_catalog()->tenant_type;
	return SPI_prepare_cursor(psprintf(plan->sql, idem_catalog()->schema,
									   IDEM_TENANT ", ",
									   psprintf("$%d, ", plan->nargs + 1)),
							  plan->nargs + 1, types,
							  plan->many ? CURSOR_OPT_CUSTOM_PLAN : CURSOR_OPT_GENERIC_PLAN);
}

static void
prepare(IdemPlan *plan)
{
	uint64		generation = idem_catalog_generation();
	SPIPlanPtr	prepared;

	if (plan->plan != NULL && plan->generation == generation)
		return;

	/* at the outermost level only, where nobody can be in the middle of it */
	if (plan->plan != NULL && executing == 0)
		SPI_freeplan(plan->plan);
	plan->plan = NULL;

	require_schema();
	if (has_tenant(plan))
		prepared = prepare_for_tenant(plan);
	else
		prepared = SPI_prepare_cursor(psprintf(plan->sql,
											   plan->from != NULL ? plan->from : idem_catalog()->schema,
											   "", ""),
									  plan->nargs, (Oid *) plan->argtypes,
									  CURSOR_OPT_GENERIC_PLAN);
	if (prepared == NULL)
		elog(ERROR, "SPI_prepare failed: %s",
			 SPI_result_code_string(SPI_result));
	SPI_keepplan(prepared);
	plan->plan = prepared;
	plan->generation = generation;
}

/*
 * Whether an error speaks of the server or of the transaction, in a fixed text
 * of the server's or of ours.  Any other may quote the row that was written.
 */
static bool
speaks_of_no_row(int sqlstate)
{
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case MAKE_SQLSTATE('0', '8', '0', '0', '0'):
		case MAKE_SQLSTATE('0', 'A', '0', '0', '0'):
		case MAKE_SQLSTATE('2', '5', '0', '0', '0'):
		case MAKE_SQLSTATE('4', '0', '0', '0', '0'):
		case MAKE_SQLSTATE('5', '3', '0', '0', '0'):
		case MAKE_SQLSTATE('5', '4', '0', '0', '0'):
		case MAKE_SQLSTATE('5', '5', '0', '0', '0'):
		case MAKE_SQLSTATE('5', '7', '0', '0', '0'):
		case MAKE_SQLSTATE('5', '8', '0', '0', '0'):
		case MAKE_SQLSTATE('I', 'D', '0', '0', '0'):
		case MAKE_SQLSTATE('X', 'X', '0', '0', '0'):
			return true;
	}
	return sqlstate == ERRCODE_INSUFFICIENT_PRIVILEGE;
}

/*
 * What may be wrong with a table of ours is not foreseen: a constraint, an
 * index, a trigger, a rule, a partition.  Their errors quote the row, key, scope
 * and body, in message, detail, or the context of a statement that a trigger
 * made of it.  So no detail and no context passes.  Nothing is decided here;
 * the SQLSTATE stays as it is.
 */
static void
rethrow(MemoryContext context, bool prepared)
{
	ErrorData  *error;
	int			sqlstate;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	sqlstate = error->sqlerrcode;

	/*
	 * A deferred constraint cannot speak up at COMMIT: within a
	 * security-restricted operation none can be deferred, 42501.
	 */
	if (sqlstate == ERRCODE_INSUFFICIENT_PRIVILEGE && error->hint == NULL)
		error->hint = "The owner of the tables must have rights on them, and no deferrable constraint or trigger may be there; see idem_health().";

	/*
	 * Claims of a key on two nodes do not see each other's key lock, and
	 * Citus names neither table nor constraint of a shard.
	 */
	if (sqlstate == ERRCODE_UNIQUE_VIOLATION && idem_citus_is_used())
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to a concurrent claim"),
				 errhint("Repeat the whole transaction.")));

	/*
	 * A message passes of the classes that never quote, or where there was no
	 * row yet.  The detail of a deadlock is of processes and locks.
	 */
	if (!prepared || speaks_of_no_row(sqlstate))
		ereport(ERROR,
				(errcode(sqlstate),
				 errmsg_internal("%s", error->message),
				 sqlstate == ERRCODE_T_R_DEADLOCK_DETECTED && error->detail ?
				 errdetail_internal("%s", error->detail) : 0,
				 error->hint ? errhint("%s", error->hint) : 0));
	ereport(ERROR,
			(errcode(sqlstate),
			 error->constraint_name && error->table_name ?
			 errmsg("constraint \"%s\" of table \"%s\" refused a row",
					error->constraint_name, error->table_name) :
			 errmsg("what was added to the tables of extension \"idempotency\" refused a row"),
			 errdetail("The text of the error is left out, since it may show a key."),
			 errhint("Drop constraints, indexes, triggers, rules and columns that are not the extension's; see idem_health().")));
}

/* What holds while a plan is made; returns the level to leave. */
static int
pin_planner(void)
{
	int			guc_level = NewGUCNestLevel();

	/*
	 * No scan but by index: a plan made while the table was a page small
	 * would otherwise go on reading all of it, and take SIREAD locks on all
	 * of it, until the next ANALYZE.
	 */
	idem_secctx_set("enable_seqscan", "off");
	idem_secctx_set("enable_bitmapscan", "off");
	idem_secctx_set("enable_indexscan", "on");
	idem_secctx_set("enable_tidscan", "on");

	/* a scan that must be made in spite of that seems costly enough for it */
	idem_secctx_set("jit", "off");
	return guc_level;
}

/* How often the plan was made. */
static int
plan_generation(IdemPlan *plan)
{
	CachedPlanSource *source = linitial(SPI_plan_get_plan_sources(plan->plan));

	return source->generation;
}

static void
execute(IdemPlan *plan, Datum *values, const char *nulls, bool read_only,
		long limit)
{
	int			made = plan_generation(plan);
	bool		pinned = made == 0 || !SPI_plan_is_valid(plan->plan);
	int			guc_level = 0;
	int			code;

	if (pinned)
	{
		require_schema();
		guc_level = pin_planner();
	}
	code = SPI_execute_plan(plan->plan, values, nulls, read_only, limit);
	if (code < 0)
		elog(ERROR, "SPI_execute_plan failed: %s",
			 SPI_result_code_string(code));
	if (pinned)
		AtEOXact_GUC(false, guc_level);
	else if (plan_generation(plan) != made)
		plan->generation = 0;	/* made anew unpinned: not to be kept */
}

/*
 * idem_spi_from
 *		What a statement on rows of this node selects from or deletes from next.
 */
void
idem_spi_from(IdemPlan *plan, const char *from)
{
	if (plan->from != NULL && strcmp(plan->from, from) == 0)
		return;
	if (plan->from != NULL)
		pfree(unconstify(char *, plan->from));
	plan->from = NULL;
	plan->generation = 0;		/* its plan is of another text */
	plan->from = MemoryContextStrdup(TopMemoryContext, from);
}

/* The values, that of the tenant behind them. */
static Datum *
add_tenant(const IdemPlan *plan, const Datum *values, const char **nulls)
{
	Datum	   *all = palloc(sizeof(Datum) * (plan->nargs + 1));
	char	   *all_nulls = palloc(plan->nargs + 1);

	memcpy(all, values, sizeof(Datum) * plan->nargs);
	all[plan->nargs] =
		idem_citus_tenant(DatumGetTextPP(values[plan->scope - 1]));
	memset(all_nulls, ' ', plan->nargs + 1);
	if (*nulls != NULL)
		memcpy(all_nulls, *nulls, plan->nargs);
	*nulls = all_nulls;
	return all;
}

/*
 * idem_spi_execute
 *		Execute a statement between begin and end; rows are in SPI_tuptable.
 *
 * With read_only the active snapshot is used, else a fresh one where the
 * isolation level allows it.  Returns the number of rows.  No error of it has a
 * word of the row; see rethrow().
 */
uint64
idem_spi_execute(IdemPlan *plan, Datum *values, const char *nulls,
				 bool read_only, long limit)
{
	MemoryContext context = CurrentMemoryContext;
	int			outer = executing;
	volatile bool prepared = false;

	if (has_tenant(plan))
		values = add_tenant(plan, values, &nulls);
	PG_TRY();
	{
		prepare(plan);
		prepared = true;
		executing++;
		execute(plan, values, nulls, read_only, limit);
	}
	PG_CATCH();
	{
		executing = outer;
		rethrow(context, prepared);
	}
	PG_END_TRY();
	executing = outer;
	return SPI_processed;
}

/*
 * idem_spi_value
 *		A value of what the last statement returned; counted from 0.
 */
Datum
idem_spi_value(int row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 column + 1, isnull);
}

/* Whether a value of a type can be taken for one of another. */
static bool
reads_as(Oid type, Oid expected)
{
	/* by value, a wrong type is a wrong number, and no address */
	return type == expected || IsBinaryCoercible(type, expected) ||
		(get_typbyval(type) && get_typbyval(expected));
}

/*
 * idem_spi_require_types
 *		Refuse what the last statement returned if a column is read as another
 *		type than it is; 42804.  A number may be one of another size.
 */
void
idem_spi_require_types(const Oid *types, int number)
{
	TupleDesc	desc = SPI_tuptable->tupdesc;
	int			i;

	/*
	 * Who owns a table can give a column another type at any time, and a
	 * value that is taken for what it is not would be an address of his
	 * choice.  So it is the result that is looked at, and not the table.
	 */
	for (i = 0; i < number; i++)
	{
		Oid			type = SPI_gettypeid(desc, i + 1);

		if (!reads_as(type, types[i]))
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("column \"%s\" has type %s instead of %s",
							NameStr(TupleDescAttr(desc, i)->attname),
							format_type_be(type), format_type_be(types[i])),
					 errhint("Give the column its type back; see idem_health().")));
	}
}

/*
 * idem_spi_number
 *		A bigint of its first row; 0 for a null.
 */
int64
idem_spi_number(int column)
{
	bool		isnull;
	Datum		value = idem_spi_value(0, column, &isnull);

	return isnull ? 0 : DatumGetInt64(value);
}

/*
 * idem_spi_fetch_number
 *		What a query for one bigint comes to; 0 for a null.
 */
int64
idem_spi_fetch_number(IdemPlan *plan, Datum *values)
{
	(void) idem_spi_execute(plan, values, NULL, true, 1);
	return idem_spi_number(0);
}

/*
 * idem_spi_command
 *		Execute a utility command, which can have no parameters.
 */
void
idem_spi_command(const char *command)
{
	int			code = SPI_execute(command, false, 0);

	if (code != SPI_OK_UTILITY)
		elog(ERROR, "SPI_execute failed: %s", SPI_result_code_string(code));
}
