/*-------------------------------------------------------------------------
 *
 * log.c
 *	  The audit log: who writes what, and the ids of rows.
 *
 * Owns the statement that adds to idempotency_audit_log, which takes what the
 * direct way does not.
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
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "audit/alike.h"
#include "audit/direct.h"
#include "audit/guard.h"
#include "audit/log.h"
#include "base/acl.h"
#include "base/args.h"
#include "base/catalog.h"
#include "base/digest.h"

/* In the order of the columns. */
static const Oid insert_types[IDEM_AUDIT_COLUMNS] = {
	INT8OID, TIMESTAMPTZOID, XID8OID, TEXTOID, TEXTOID, TEXTOID, INT4OID,
	INT8OID, NAMEOID, NAMEOID, INETOID, TEXTOID, JSONBOID
};

static IdemPlan insert_plan = {
	"INSERT INTO %1$s.idempotency_audit_log (id, at, xid, action, entity,"
	" entity_id, attempt, token, session_role, effective_role, client_addr,"
	" application_name, detail)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
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

/* One of the rows, as the owner of the log. */
static void
insert_row(IdemAuditRows *rows, int i, const IdemAuditRow *row)
{
	IdemAuditRow one = *row;	/* that the guard knows it by */
	char		nulls[IDEM_AUDIT_COLUMNS];
	IdemSecctx	saved;
	uint64		inserted;
	int			column;

	one.action = rows->actions[i];
	idem_audit_row_choose(rows, i);
	for (column = 0; column < IDEM_AUDIT_COLUMNS; column++)
		nulls[column] = rows->nulls[column] ? 'n' : ' ';
	idem_spi_begin_as(&saved, idem_catalog()->audit_owner);
	inserted = idem_guard_insert(&one, &insert_plan, rows->values, nulls);

	/* a trigger that returns null, or a rule, would lose it without a word */
	if (inserted != 1)
	{
		/* a plan that a rule has left empty is invalidated by nothing */
		insert_plan.generation = 0;
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a row of the audit log was suppressed"),
				 errhint("Drop foreign triggers and rules on \"%s\"; see idem_health().",
						 "idempotency_audit_log")));
	}
	idem_spi_end(&saved);
}

/*
 * Write rows in this transaction, of one moment, which differ in their action
 * only; returns the id of the last.
 */
static int64
write_rows(const IdemAuditRow *row, const char *const *actions, int number)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "idempotency audit rows",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	IdemAuditRows rows;
	int			i;

	Assert(number <= IDEM_AUDIT_MAX_ROWS);
	rows.number = number;
	for (i = 0; i < number; i++)
	{
		rows.ids[i] = take_id();
		rows.actions[i] = actions[i];
	}
	idem_audit_row_form(&rows, row);

	/* before the first row of this cluster, which it is to begin with */
	if (origin_known != idem_catalog_generation())
		ensure_origin(rows.ids[0]);
	if (!idem_audit_direct_insert(&rows))
		for (i = 0; i < number; i++)
			insert_row(&rows, i, row);
	MemoryContextSwitchTo(old);

	/* one statement may write a hundred thousand */
	MemoryContextDelete(context);
	return rows.ids[number - 1];
}

/*
 * idem_audit_write
 *		Write a row in this transaction; returns its id.
 */
int64
idem_audit_write(const IdemAuditRow *row)
{
	return write_rows(row, &row->action, 1);
}

/*
 * idem_audit_transitions, idem_audit_transition
 *		Record what became of a key, in this order.
 */
void
idem_audit_transitions(const char *const *actions, int number,
					   const IdemKey *id, const IdemRow *key)
{
	IdemAuditRow row = {
		.entity = IDEM_ENTITY_KEY,
		.entity_id = idem_digest_log_ids(id),
		.attempt = key->attempt,
		.token = key->token,
		.effective_role = GetUserNameFromId(GetUserId(), false)
	};

	(void) write_rows(&row, actions, number);
}

void
idem_audit_transition(const char *action, const IdemKey *id,
					  const IdemRow *key)
{
	idem_audit_transitions(&action, 1, id, key);
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
