/*-------------------------------------------------------------------------
 *
 * guard.c
 *	  Who may write to the audit log and its seals.
 *
 * Owns the trigger of the log and of its seals, which lets nobody change them
 * but a superuser and the extension's own statements, and the passes of those
 * (README, "The guard").
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/rel.h"

#include "audit/guard.h"

/*
 * The two passes.  That of a row is spent by the row: a trigger of a user's on
 * the log that inserts a second one finds none.
 */
static const IdemAuditRow *row_pass = NULL; /* the row being inserted */
static bool change_pass = false;	/* while log or seals are changed */

/*
 * idem_guard_insert
 *		Execute a statement that inserts this row; how many it did.  As the
 *		owner of the log.
 */
uint64
idem_guard_insert(const IdemAuditRow *row, IdemPlan *plan, Datum *values,
				  const char *nulls)
{
	volatile uint64 rows = 0;

	PG_TRY();
	{
		row_pass = row;
		rows = idem_spi_execute(plan, values, nulls, false, 0);
	}
	PG_FINALLY();
	{
		/* by an error, too: the row is on the stack of our caller */
		row_pass = NULL;
	}
	PG_END_TRY();
	return rows;
}

/*
 * idem_guard_change
 *		Execute a statement that the guard of log and seals lets pass; how many
 *		rows.  As the owner of the log.
 */
uint64
idem_guard_change(IdemPlan *plan, Datum *values, const char *nulls)
{
	volatile uint64 rows = 0;

	PG_TRY();
	{
		change_pass = true;
		rows = idem_spi_execute(plan, values, nulls, false, 0);
	}
	PG_FINALLY();
	{
		/* by an error, too: whoever catches it must not have the pass */
		change_pass = false;
	}
	PG_END_TRY();
	return rows;
}

/* Whether a column of a row has this text; a null has none. */
static bool
has_text(HeapTuple tuple, TupleDesc desc, const char *column,
		 const char *expected)
{
	char	   *value = SPI_getvalue(tuple, desc, SPI_fnumber(desc, column));

	return strcmp(value != NULL ? value : "", expected) == 0;
}

/* Likewise for a number, where a null is 0. */
static bool
has_number(HeapTuple tuple, TupleDesc desc, const char *column,
		   int64 expected)
{
	char	   *value = SPI_getvalue(tuple, desc, SPI_fnumber(desc, column));

	return (value != NULL ? strtoll(value, NULL, 10) : 0) == expected;
}

/* Whether the row to be inserted is the one that has the pass; spends it. */
static bool
has_row_pass(const TriggerData *trigdata)
{
	TupleDesc	desc = RelationGetDescr(trigdata->tg_relation);
	HeapTuple	tuple = trigdata->tg_trigtuple;
	const IdemAuditRow *row = row_pass;

	/* the guard is that of the seals, too, which have no entity_id */
	if (row == NULL || !TRIGGER_FIRED_BY_INSERT(trigdata->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) ||
		SPI_fnumber(desc, "entity_id") == SPI_ERROR_NOATTRIBUTE)
		return false;

	/*
	 * Spent before it is compared: a trigger that changes our row is refused,
	 * and so is a second row that it makes look like ours.
	 */
	row_pass = NULL;
	return has_text(tuple, desc, "action", row->action) &&
		has_text(tuple, desc, "entity", row->entity) &&
		has_text(tuple, desc, "entity_id", row->entity_id) &&
		has_text(tuple, desc, "effective_role", row->effective_role) &&
		has_number(tuple, desc, "attempt", row->attempt) &&
		has_number(tuple, desc, "token", row->token);
}

IDEM_FUNCTION(idem_audit_guard);

/*
 * idem_audit_guard() RETURNS trigger
 *		Before INSERT, UPDATE, DELETE and TRUNCATE of the log and its seals;
 *		42501 unless it has a pass or is a superuser's (who restores a dump,
 *		and could drop the trigger anyway).  39P01 when called by itself.
 */
Datum
idem_audit_guard(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager",
						"idem_audit_guard")));
	/* the pass is looked at first: it is spent where a superuser needs none */
	if (!has_row_pass(trigdata) && !change_pass && !superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("the audit log can only be appended to, by idem_audit()")));
	if (!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event))
		return PointerGetDatum(NULL);
	return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ?
						   trigdata->tg_newtuple : trigdata->tg_trigtuple);
}

/*
 * idem_guard_is_it
 *		Whether a trigger that calls this function calls the guard.
 */
bool
idem_guard_is_it(Oid function)
{
	FmgrInfo	info;

	/*
	 * By the address of its code: who owns a function may put another one in
	 * its place under the same name, and one that has settings, or that a
	 * hook wants to see, has another address, too.
	 */
	fmgr_info(function, &info);
	return info.fn_addr == idem_audit_guard;
}
