/*-------------------------------------------------------------------------
 *
 * log.c
 *	  The audit log: its rows, their ids, and who may write them.
 *
 * Owns the statement that adds to idempotency_audit_log, and the guard: the
 * trigger of the log and of its seals, which lets nobody change them but a
 * superuser and the extension's own statements (README, "The guard").
 *
 * Owns idempotency_audit_origin, too: the first id that was taken in this
 * cluster.  That table is not dumped, so a restored log has no origin until it
 * is written to: the transaction ids of its rows mean nothing here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "audit/alike.h"
#include "audit/log.h"
#include "base/acl.h"
#include "base/args.h"
#include "base/catalog.h"
#include "base/digest.h"

/*
 * The two passes of the guard.  That of a row is spent by the row: a trigger
 * of a user's on the log that inserts a second one finds none.
 */
static const IdemAuditRow *row_pass = NULL; /* the row being inserted */
static bool change_pass = false;	/* while log or seals are changed */

static const Oid insert_types[] = {
	TIMESTAMPTZOID, TEXTOID, TEXTOID, TEXTOID, INT4OID, INT8OID, TEXTOID,
	TEXTOID, JSONBOID, TEXTOID, TEXTOID, INT8OID
};

static IdemPlan insert_plan = {
	"INSERT INTO %1$s.idempotency_audit_log (id, at, xid, action, entity,"
	" entity_id, attempt, token, session_role, effective_role, client_addr,"
	" application_name, detail)"
	" VALUES ($12, $1, pg_catalog.pg_current_xact_id(), $2, $3, $4,"
	" NULLIF($5, 0), NULLIF($6, 0), $7, $8,"
	" COALESCE($10::inet, pg_catalog.inet_client_addr()),"
	" COALESCE($11, pg_catalog.current_setting('application_name')), $9)",
	lengthof(insert_types), insert_types
};

static const Oid origin_types[] = {INT8OID};

static IdemPlan origin_plan = {
	"SELECT min(first_id) FROM %1$s.idempotency_audit_origin"
};
static IdemPlan begin_plan = {
	"INSERT INTO %1$s.idempotency_audit_origin VALUES ($1)",
	lengthof(origin_types), origin_types
};

static IdemPlan last_id_plan = {
	"SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END"
	" FROM %1$s.idempotency_audit_log_id_seq"
};

/* Since then (idem_catalog_generation) there is an origin; 0: not known. */
static uint64 origin_known = 0;

/* The transaction of this session that wrote one: it may yet roll back. */
static uint64 origin_written = 0;

static int64
take_id(void)
{
	/*
	 * A transaction id first, and the id of the row after it.  Sealing rests
	 * on that order: whoever began after a seal was made can have taken none
	 * of the ids that had been taken then (idem_chain_low_id).
	 */
	(void) GetTopTransactionId();
	return nextval_internal(idem_catalog()->audit_sequence, false);
}

static uint64
current_xid(void)
{
	return U64FromFullTransactionId(GetTopFullTransactionIdIfAny());
}

/*
 * idem_audit_origin
 *		The first id of this cluster; 0 when it has none yet.  As the owner of
 *		the log.
 */
int64
idem_audit_origin(void)
{
	int64		origin = idem_spi_fetch_number(&origin_plan, NULL);

	/* not remembered in the transaction that wrote it: it may roll back */
	if (origin != 0 &&
		(current_xid() == 0 || current_xid() != origin_written))
		origin_known = idem_catalog_generation();
	return origin;
}

/*
 * idem_audit_begun
 *		Whether anything was written here.
 */
bool
idem_audit_begun(void)
{
	IdemSecctx	saved;
	bool		begun;

	idem_spi_begin_as(&saved, idem_catalog()->seals_owner);
	begun = idem_audit_origin() != 0;
	idem_spi_end(&saved);
	return begun;
}

static void
begin_origin(int64 id)
{
	Datum		value = Int64GetDatum(id);

	/* partitions that are there already came with a restore */
	idem_acl_restored();

	/* two that are the first ones both write; the smaller one holds */
	(void) idem_spi_execute(&begin_plan, &value, NULL, false, 0);
	origin_written = current_xid();
}

static void
ensure_origin(int64 id)
{
	IdemSecctx	saved;

	idem_spi_begin_as(&saved, idem_catalog()->seals_owner);
	if (idem_audit_origin() == 0)
		begin_origin(id);
	idem_spi_end(&saved);
}

/*
 * idem_audit_adopt
 *		Let the log begin here, if nobody has: a restore is complete.  As the
 *		owner of the log.
 */
void
idem_audit_adopt(void)
{
	if (idem_audit_origin() == 0)
	{
		begin_origin(take_id());

		/* sealing, in the same statement, is to see it */
		CommandCounterIncrement();
	}
}

/*
 * idem_audit_last_id
 *		The last id that anybody has taken, whatever the snapshot.  As the
 *		owner of the log.
 */
int64
idem_audit_last_id(void)
{
	return idem_spi_fetch_number(&last_id_plan, NULL);
}

static void
set_values(const IdemAuditRow *row, int64 id, Datum *values, char *nulls)
{
	memset(nulls, ' ', lengthof(insert_types));
	values[0] = TimestampTzGetDatum(row->at != 0 ? row->at :
									GetCurrentTimestamp());
	values[1] = CStringGetTextDatum(row->action);
	values[2] = CStringGetTextDatum(row->entity);
	values[3] = CStringGetTextDatum(row->entity_id);
	values[4] = Int32GetDatum(row->attempt);
	values[5] = Int64GetDatum(row->token);
	values[6] = CStringGetTextDatum(row->session_role ? row->session_role :
									GetUserNameFromId(GetSessionUserId(),
													  false));
	values[7] = CStringGetTextDatum(row->effective_role);
	values[8] = row->detail;
	nulls[8] = row->detail == (Datum) 0 ? 'n' : ' ';

	/* a null stands for what this session has */
	if (row->client_addr != NULL)
		values[9] = CStringGetTextDatum(row->client_addr);
	else
		nulls[9] = 'n';
	if (row->application_name != NULL)
		values[10] = CStringGetTextDatum(row->application_name);
	else
		nulls[10] = 'n';
	values[11] = Int64GetDatum(id);
}

/*
 * idem_audit_write
 *		Write a row in this transaction; returns its id.
 */
int64
idem_audit_write(const IdemAuditRow *row)
{
	Datum		values[lengthof(insert_types)];
	char		nulls[lengthof(insert_types)];
	IdemSecctx	saved;
	volatile uint64 rows = 0;
	int64		id = take_id();

	set_values(row, id, values, nulls);

	/* before the first row of this cluster, which it is to begin with */
	if (origin_known != idem_catalog_generation())
		ensure_origin(id);
	idem_spi_begin_as(&saved, idem_catalog()->audit_owner);
	PG_TRY();
	{
		row_pass = row;
		rows = idem_spi_execute(&insert_plan, values, nulls, false, 0);
	}
	PG_FINALLY();
	{
		/* by an error, too: the row is on the stack of our caller */
		row_pass = NULL;
	}
	PG_END_TRY();

	/* a trigger that returns null, or a rule, would lose it without a word */
	if (rows != 1)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a row of the audit log was suppressed"),
				 errhint("Drop foreign triggers and rules on \"%s\"; see idem_health().",
						 "idempotency_audit_log")));
	idem_spi_end(&saved);
	return id;
}

/*
 * idem_audit_change
 *		Execute a statement that the guard of log and seals lets pass; how many
 *		rows.  As the owner of the log.
 */
uint64
idem_audit_change(IdemPlan *plan, Datum *values, const char *nulls)
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

/*
 * idem_audit_transition
 *		Record what became of a key.
 */
void
idem_audit_transition(const char *action, const IdemKey *id,
					  const IdemRow *key)
{
	IdemAuditRow row = {
		.action = action,
		.entity = IDEM_ENTITY_KEY,
		.entity_id = psprintf("%s/%s", idem_digest_log_id(id->scope),
							  idem_digest_log_id(id->key)),
		.attempt = key->attempt,
		.token = key->token,
		.effective_role = GetUserNameFromId(GetUserId(), false)
	};

	(void) idem_audit_write(&row);
}

IDEM_FUNCTION(idem_audit);

/*
 * idem_audit(action text, entity text, entity_id text, detail jsonb)
 *		RETURNS bigint
 *		Write a row in this transaction; returns its id.
 *
 * Raises 22004, 22023 (empty, too long, an entity like ours), 25006.
 */
Datum
idem_audit(PG_FUNCTION_ARGS)
{
	IdemAuditRow row = {0};
	text	   *entity;

	idem_args_require_writable();
	row.action = text_to_cstring(idem_args_label(fcinfo, 0, "action"));
	entity = idem_args_label(fcinfo, 1, "entity");
	row.entity = text_to_cstring(entity);
	row.entity_id = text_to_cstring(idem_args_label(fcinfo, 2, "entity_id"));
	if (idem_alike_is_ours(entity))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("entity \"%s\" is reserved", row.entity),
				 errdetail("It begins with \"%s\", or looks as if it did.",
						   "idempotency"),
				 errhint("Rows about keys and limiters are written by the extension itself, under a policy with \"audit\".")));
	row.detail = PointerGetDatum(idem_args_detail(fcinfo, 3, "detail"));
	row.effective_role = GetUserNameFromId(GetUserId(), false);
	PG_RETURN_INT64(idem_audit_write(&row));
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
