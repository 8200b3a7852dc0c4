/*-------------------------------------------------------------------------
 *
 * store_audit.c
 *	  The audit log: writing a row, and the pass that lets it in.
 *
 * Owns the statement that adds to idempotency_audit_log, whose trigger refuses
 * every row but the one that this room is inserting at the moment, and
 * idempotency_audit_origin: the first id that was taken in this cluster.  That
 * table is not dumped, so a restored log has no origin until it is written to:
 * the transaction ids of its rows mean nothing here.
 *
 * A writer takes its transaction id before it takes the id of a row: sealing
 * rests on that (idem_store_seal_low_id).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "audit/acl.h"
#include "base/catalog.h"
#include "base/spi.h"
#include "store/store.h"

/*
 * The row that is being inserted; NULL at any other time.  Good for one row:
 * a trigger of a user's on the log that inserts a second one finds the pass
 * spent.
 */
static const IdemStoreAudit *expected = NULL;

static const Oid insert_types[] = {
	TIMESTAMPTZOID, TEXTOID, TEXTOID, TEXTOID, INT4OID, INT8OID, NAMEOID,
	NAMEOID, JSONBOID, INETOID, TEXTOID, INT8OID
};

static IdemPlan insert_plan = {
	"INSERT INTO %1$s.idempotency_audit_log (id, at, xid, action, entity,"
	" entity_id, attempt, token, session_role, effective_role, client_addr,"
	" application_name, detail)"
	" VALUES ($12, $1, pg_catalog.pg_current_xact_id(), $2, $3, $4, $5, $6,"
	" $7, $8, COALESCE($10, pg_catalog.inet_client_addr()),"
	" COALESCE($11, pg_catalog.current_setting('application_name')), $9)",
	lengthof(insert_types), insert_types
};

static const Oid origin_types[] = {INT8OID};

static IdemPlan origin_plan = {
	"SELECT min(first_id) FROM %1$s.idempotency_audit_origin", 0, NULL
};
static IdemPlan begin_plan = {
	"INSERT INTO %1$s.idempotency_audit_origin VALUES ($1)",
	lengthof(origin_types), origin_types
};

static IdemPlan last_id_plan = {
	"SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END"
	" FROM %1$s.idempotency_audit_log_id_seq", 0, NULL
};

/* Since then (idem_catalog_generation) there is an origin; 0: not known. */
static uint64 origin_known = 0;

/* The transaction of this session that wrote one: it may yet roll back. */
static uint64 origin_written = 0;

static int64
take_id(void)
{
	(void) GetTopTransactionId();
	return nextval_internal(idem_catalog()->audit_sequence, false);
}

static uint64
current_xid(void)
{
	return U64FromFullTransactionId(GetTopFullTransactionIdIfAny());
}

/*
 * idem_store_audit_origin
 *		The first id of this cluster; 0 when it has none yet.
 */
int64
idem_store_audit_origin(void)
{
	int64		origin;

	(void) idem_store_spi_execute(&origin_plan, NULL, NULL, true, 1);
	origin = idem_store_spi_number(0);
	if (origin != 0 &&
		(current_xid() == 0 || current_xid() != origin_written))
		origin_known = idem_catalog_generation();
	return origin;
}

/*
 * idem_store_audit_begun
 *		Whether anything was written here.  Outside of all begin and end.
 */
bool
idem_store_audit_begun(void)
{
	IdemSecctx	saved;
	bool		begun;

	idem_store_spi_begin_as(&saved, idem_catalog()->seals_owner);
	begun = idem_store_audit_origin() != 0;
	idem_store_spi_end(&saved);
	return begun;
}

/*
 * Two that are the first ones both write; the smaller one holds.  Partitions
 * that are there already came with a restore.
 */
static void
begin_origin(int64 id)
{
	Datum		value = Int64GetDatum(id);

	idem_store_acl_restored();
	(void) idem_store_spi_execute(&begin_plan, &value, NULL, false, 0);
	origin_written = current_xid();
}

static void
ensure_origin(int64 id)
{
	IdemSecctx	saved;

	idem_store_spi_begin_as(&saved, idem_catalog()->seals_owner);
	if (idem_store_audit_origin() == 0)
		begin_origin(id);
	idem_store_spi_end(&saved);
}

/*
 * idem_store_audit_adopt
 *		Let the log begin here, if nobody has: a restore is complete.
 */
void
idem_store_audit_adopt(void)
{
	if (idem_store_audit_origin() == 0)
	{
		begin_origin(take_id());
		CommandCounterIncrement();
	}
}

/*
 * idem_store_audit_last_id
 *		The last id that anybody has taken, whatever the snapshot.
 */
int64
idem_store_audit_last_id(void)
{
	(void) idem_store_spi_execute(&last_id_plan, NULL, NULL, true, 1);
	return idem_store_spi_number(0);
}

static Datum
name_datum(const char *name)
{
	return DirectFunctionCall1(namein, CStringGetDatum(name));
}

/* The values that may be another session's; nulls stand for this one's. */
static void
set_session(const IdemStoreAudit *audit, Datum *values, char *nulls)
{
	values[0] = TimestampTzGetDatum(audit->at != 0 ? audit->at :
									GetCurrentTimestamp());
	values[6] = name_datum(audit->session_role != NULL ? audit->session_role :
						   GetUserNameFromId(GetSessionUserId(), false));
	if (audit->client_addr != NULL)
		values[9] = DirectFunctionCall1(inet_in,
										CStringGetDatum(audit->client_addr));
	else
		nulls[9] = 'n';
	if (audit->application_name != NULL)
		values[10] = CStringGetTextDatum(audit->application_name);
	else
		nulls[10] = 'n';
}

/*
 * idem_store_audit
 *		Write a row in this transaction; returns its id.
 */
int64
idem_store_audit(const IdemStoreAudit *audit)
{
	Datum		values[lengthof(insert_types)];
	char		nulls[lengthof(insert_types)];
	IdemSecctx	saved;
	volatile uint64 rows = 0;
	int64		id = take_id();

	memset(nulls, ' ', sizeof(nulls));
	values[1] = CStringGetTextDatum(audit->action);
	values[2] = CStringGetTextDatum(audit->entity);
	values[3] = CStringGetTextDatum(audit->entity_id);
	values[4] = Int32GetDatum(audit->attempt);
	nulls[4] = audit->attempt == 0 ? 'n' : ' ';
	values[5] = Int64GetDatum(audit->token);
	nulls[5] = audit->token == 0 ? 'n' : ' ';
	values[7] = name_datum(audit->effective_role);
	values[8] = audit->detail;
	nulls[8] = audit->detail == (Datum) 0 ? 'n' : ' ';
	set_session(audit, values, nulls);
	values[11] = Int64GetDatum(id);

	if (origin_known != idem_catalog_generation())
		ensure_origin(id);
	idem_store_spi_begin_as(&saved, idem_catalog()->audit_owner);
	PG_TRY();
	{
		expected = audit;
		rows = idem_store_spi_execute(&insert_plan, values, nulls, false, 0);
	}
	PG_FINALLY();
	{
		expected = NULL;
	}
	PG_END_TRY();
	if (rows != 1)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a row of the audit log was suppressed"),
				 errhint("Drop foreign triggers and rules on \"%s\"; see idem_health().",
						 "idempotency_audit_log")));
	idem_store_spi_end(&saved);
	return id;
}

/*
 * idem_store_audit_passes
 *		Whether this is the row being inserted; the pass is spent with it.
 */
bool
idem_store_audit_passes(const IdemStoreAudit *row)
{
	const IdemStoreAudit *pass = expected;

	expected = NULL;
	return pass != NULL &&
		strcmp(row->action, pass->action) == 0 &&
		strcmp(row->entity, pass->entity) == 0 &&
		strcmp(row->entity_id, pass->entity_id) == 0 &&
		strcmp(row->effective_role, pass->effective_role) == 0 &&
		row->attempt == pass->attempt && row->token == pass->token;
}
