/*-------------------------------------------------------------------------
 *
 * idem_store_audit.c
 *	  The audit log: writing a row, and the pass that lets it in.
 *
 * Owns the statement on idempotency_audit_log.  Its trigger refuses every
 * row but the one that this room is inserting at the moment.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "idem_store.h"
#include "idem_store_spi.h"

/*
 * The row that is being inserted; NULL at any other time.  Good for one row:
 * a trigger of a user's on the log that inserts a second one finds the pass
 * spent.
 */
static const IdemStoreAudit *expected = NULL;

static const Oid insert_types[] = {
	TIMESTAMPTZOID, TEXTOID, TEXTOID, TEXTOID, INT4OID, INT8OID, NAMEOID,
	NAMEOID, JSONBOID
};

static IdemPlan insert_plan = {
	"INSERT INTO %1$s.idempotency_audit_log (at, xid, action, entity,"
	" entity_id, attempt, token, session_role, effective_role, client_addr,"
	" application_name, detail)"
	" VALUES ($1, pg_catalog.pg_current_xact_id(), $2, $3, $4, $5, $6, $7, $8,"
	" pg_catalog.inet_client_addr(),"
	" pg_catalog.current_setting('application_name'), $9)"
	" RETURNING id",
	lengthof(insert_types), insert_types
};

static Datum
name_datum(const char *name)
{
	return DirectFunctionCall1(namein, CStringGetDatum(name));
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
	bool		isnull;
	int64		id;

	memset(nulls, ' ', sizeof(nulls));
	values[0] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[1] = CStringGetTextDatum(audit->action);
	values[2] = CStringGetTextDatum(audit->entity);
	values[3] = CStringGetTextDatum(audit->entity_id);
	values[4] = Int32GetDatum(audit->attempt);
	nulls[4] = audit->attempt == 0 ? 'n' : ' ';
	values[5] = Int64GetDatum(audit->token);
	nulls[5] = audit->token == 0 ? 'n' : ' ';
	values[6] = name_datum(GetUserNameFromId(GetSessionUserId(), false));
	values[7] = name_datum(audit->effective_role);
	values[8] = audit->detail;
	nulls[8] = audit->detail == (Datum) 0 ? 'n' : ' ';

	idem_store_spi_begin(&saved);
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
	id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
									 SPI_tuptable->tupdesc, 1, &isnull));
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
