/*-------------------------------------------------------------------------
 *
 * idem_store_policy.c
 *	  The table of policies.
 *
 * Owns the statements on idempotency_policies.  Rows are read with the
 * latest snapshot, not with the transaction's: a REPEATABLE READ transaction
 * would fill the cache of its backend with what nobody would correct later.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "idem_catalog.h"
#include "idem_policy.h"
#include "idem_store.h"
#include "idem_store_spi.h"

#define POLICY_COLUMNS \
	"name, completed_ttl, failed_ttl, lease, wait, on_repeat, on_expiry, " \
	"tombstone, require_fingerprint, key_format, max_key_bytes, " \
	"mismatch_status, release_statuses, max_body_bytes, on_oversize, " \
	"owner_role, max_live_keys, audit"

static const Oid policy_types[IDEM_POLICY_COLUMNS] = {
	TEXTOID, INTERVALOID, INTERVALOID, INTERVALOID, INTERVALOID, TEXTOID,
	TEXTOID, INTERVALOID, BOOLOID, TEXTOID, INT4OID, INT4OID,
	INT4MULTIRANGEOID, INT4OID, TEXTOID, TEXTOID, INT4OID, BOOLOID
};

static IdemPlan read_plan = {
	"SELECT " POLICY_COLUMNS " FROM %1$s.idempotency_policies WHERE name = $1",
	1, policy_types
};

static IdemPlan names_plan = {
	"SELECT name FROM %1$s.idempotency_policies ORDER BY name",
	0, NULL
};

static IdemPlan insert_plan = {
	"INSERT INTO %1$s.idempotency_policies (" POLICY_COLUMNS ")"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,"
	" $15, $16, $17, $18)",
	IDEM_POLICY_COLUMNS, policy_types
};

static IdemPlan update_plan = {
	"UPDATE %1$s.idempotency_policies SET (" POLICY_COLUMNS ")"
	" = ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,"
	" $15, $16, $17, $18) WHERE name = $1",
	IDEM_POLICY_COLUMNS, policy_types
};

static IdemPlan delete_plan = {
	"DELETE FROM %1$s.idempotency_policies WHERE name = $1",
	1, policy_types
};

/*
 * idem_store_policy_lock
 *		Keep off other changes of policies until the transaction ends.
 */
void
idem_store_policy_lock(void)
{
	LockRelationOid(idem_catalog()->policies, ShareRowExclusiveLock);
}

/*
 * idem_store_policy_read
 *		The columns of one policy; false when it is not there.
 */
bool
idem_store_policy_read(const char *name, Datum *values, bool *nulls)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext old;
	Datum		arg = CStringGetTextDatum(name);
	IdemSecctx	saved;
	uint64		rows;

	idem_store_spi_begin(&saved);
	PushActiveSnapshot(idem_store_spi_latest());
	rows = idem_store_spi_execute(&read_plan, &arg, NULL, true, 0);
	PopActiveSnapshot();
	if (rows > 0)
	{
		old = MemoryContextSwitchTo(context);
		heap_deform_tuple(heap_copytuple(SPI_tuptable->vals[0]),
						  SPI_tuptable->tupdesc, values, nulls);
		MemoryContextSwitchTo(old);
	}
	idem_store_spi_end(&saved);
	return rows > 0;
}

/*
 * idem_store_policy_names
 *		The names of all policies that someone has set, as C strings.
 */
List *
idem_store_policy_names(void)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext old;
	List	   *names = NIL;
	IdemSecctx	saved;
	uint64		rows;
	uint64		i;

	idem_store_spi_begin(&saved);
	PushActiveSnapshot(idem_store_spi_latest());
	rows = idem_store_spi_execute(&names_plan, NULL, NULL, true, 0);
	PopActiveSnapshot();
	old = MemoryContextSwitchTo(context);
	for (i = 0; i < rows; i++)
	{
		bool		isnull;
		Datum		name = SPI_getbinval(SPI_tuptable->vals[i],
										 SPI_tuptable->tupdesc, 1, &isnull);

		names = lappend(names, TextDatumGetCString(name));
	}
	MemoryContextSwitchTo(old);
	idem_store_spi_end(&saved);
	return names;
}

/*
 * idem_store_policy_write
 *		Insert or overwrite a policy, under idem_store_policy_lock; 40001 when
 *		the snapshot of the transaction is older than the one that exists.
 */
void
idem_store_policy_write(const Datum *values, const bool *nulls, bool exists)
{
	char		sql_nulls[IDEM_POLICY_COLUMNS];
	IdemSecctx	saved;
	uint64		rows;
	int			i;

	for (i = 0; i < IDEM_POLICY_COLUMNS; i++)
		sql_nulls[i] = nulls[i] ? 'n' : ' ';
	idem_store_spi_begin(&saved);
	rows = idem_store_spi_execute(exists ? &update_plan : &insert_plan,
								  (Datum *) values, sql_nulls, false, 0);
	if (rows == 0)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to a concurrent change of policies"),
				 errhint("Repeat the whole transaction.")));
	idem_store_spi_end(&saved);
}

/*
 * idem_store_policy_delete
 *		Remove a policy; false when it is not there.
 */
bool
idem_store_policy_delete(const text *name)
{
	Datum		arg = PointerGetDatum(name);
	IdemSecctx	saved;
	uint64		rows;

	idem_store_spi_begin(&saved);
	rows = idem_store_spi_execute(&delete_plan, &arg, NULL, false, 0);
	idem_store_spi_end(&saved);
	return rows > 0;
}
