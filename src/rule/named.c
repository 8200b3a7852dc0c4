/*-------------------------------------------------------------------------
 *
 * named.c
 *	  The tables of named things: policies and limiters.
 *
 * Owns the statements on them.  Rows are read with the latest snapshot, not
 * with the transaction's: a REPEATABLE READ transaction would fill the cache
 * of its backend with what nobody would correct later.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "base/catalog.h"
#include "base/spi.h"
#include "limit/limiter.h"
#include "rule/policy.h"
#include "store/store.h"

#define POLICIES "%1$s.idempotency_policies"
#define POLICY_COLUMNS \
	"name, completed_ttl, failed_ttl, lease, wait, on_repeat, on_expiry, " \
	"tombstone, require_fingerprint, key_format, max_key_bytes, " \
	"mismatch_status, release_statuses, max_body_bytes, on_oversize, " \
	"owner_role, max_live_keys, audit"
#define POLICY_VALUES \
	"$1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, " \
	"$16, $17, $18"

static const Oid policy_types[IDEM_POLICY_COLUMNS] = {
	TEXTOID, INTERVALOID, INTERVALOID, INTERVALOID, INTERVALOID, TEXTOID,
	TEXTOID, INTERVALOID, BOOLOID, TEXTOID, INT4OID, INT4OID,
	INT4MULTIRANGEOID, INT4OID, TEXTOID, TEXTOID, INT4OID, BOOLOID
};

#define LIMITERS "%1$s.idempotency_limiters"
#define LIMITER_COLUMNS \
	"name, capacity, per, backoff_base, backoff_max, when_full"
#define LIMITER_VALUES "$1, $2, $3, $4, $5, $6"

static const Oid limiter_types[IDEM_LIMITER_COLUMNS] = {
	TEXTOID, INT4OID, INTERVALOID, INTERVALOID, INTERVALOID, TEXTOID
};

#define MAX_COLUMNS Max(IDEM_POLICY_COLUMNS, IDEM_LIMITER_COLUMNS)

/* The first column is the name, and the first parameter of each plan. */
typedef struct NamedTable
{
	const char *title;
	int			ncolumns;
	const Oid  *types;
	IdemPlan	read;
	IdemPlan	names;
	IdemPlan	insert;
	IdemPlan	update;
	IdemPlan	delete;
} NamedTable;

#define NAMED_TABLE(title, table, columns, values, types) { \
	title, \
	lengthof(types), \
	types, \
	{"SELECT " columns " FROM " table " WHERE name = $1", 1, types}, \
	{"SELECT name FROM " table " ORDER BY name", 0, NULL}, \
	{"INSERT INTO " table " (" columns ") VALUES (" values ")", \
	lengthof(types), types}, \
	{"UPDATE " table " SET (" columns ") = (" values ") WHERE name = $1", \
	lengthof(types), types}, \
	{"DELETE FROM " table " WHERE name = $1", 1, types} \
}

static NamedTable tables[] = {
	[IDEM_STORE_POLICIES] =
	NAMED_TABLE("policies", POLICIES, POLICY_COLUMNS, POLICY_VALUES,
				policy_types),
	[IDEM_STORE_LIMITERS] =
	NAMED_TABLE("limiters", LIMITERS, LIMITER_COLUMNS, LIMITER_VALUES,
				limiter_types)
};

/*
 * idem_store_named_lock
 *		Keep off other changes of the table until the transaction ends.
 */
void
idem_store_named_lock(IdemStoreNamed table)
{
	LockRelationOid(table == IDEM_STORE_POLICIES ? idem_catalog()->policies :
					idem_catalog()->limiters, ShareRowExclusiveLock);
}

/*
 * idem_store_named_read
 *		The columns of one row; false when it is not there.
 */
bool
idem_store_named_read(IdemStoreNamed table, const char *name, Datum *values,
					  bool *nulls)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext old;
	Datum		arg = CStringGetTextDatum(name);
	IdemSecctx	saved;
	uint64		rows;

	idem_store_spi_begin(&saved);
	PushActiveSnapshot(idem_store_spi_latest());
	rows = idem_store_spi_execute(&tables[table].read, &arg, NULL, true, 0);
	PopActiveSnapshot();
	if (rows > 0)
	{
		idem_store_spi_require_types(tables[table].types,
									 tables[table].ncolumns);
		old = MemoryContextSwitchTo(context);
		heap_deform_tuple(heap_copytuple(SPI_tuptable->vals[0]),
						  SPI_tuptable->tupdesc, values, nulls);
		MemoryContextSwitchTo(old);
	}
	idem_store_spi_end(&saved);
	return rows > 0;
}

/*
 * idem_store_named_names
 *		The names of all rows, as C strings, in their order.
 */
List *
idem_store_named_names(IdemStoreNamed table)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext old;
	List	   *names = NIL;
	IdemSecctx	saved;
	uint64		rows;
	uint64		i;

	idem_store_spi_begin(&saved);
	PushActiveSnapshot(idem_store_spi_latest());
	rows = idem_store_spi_execute(&tables[table].names, NULL, NULL, true, 0);
	PopActiveSnapshot();
	idem_store_spi_require_types(tables[table].types, 1);
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
 * idem_store_named_write
 *		Insert or overwrite a row, under idem_store_named_lock; 40001 when
 *		the snapshot of the transaction is older than the one that exists.
 */
void
idem_store_named_write(IdemStoreNamed table, const Datum *values,
					   const bool *nulls, bool exists)
{
	NamedTable *named = &tables[table];
	char		sql_nulls[MAX_COLUMNS];
	IdemSecctx	saved;
	uint64		rows;
	int			i;

	for (i = 0; i < named->ncolumns; i++)
		sql_nulls[i] = nulls[i] ? 'n' : ' ';
	idem_store_spi_begin(&saved);
	rows = idem_store_spi_execute(exists ? &named->update : &named->insert,
								  (Datum *) values, sql_nulls, false, 0);
	if (rows == 0)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to a concurrent change of %s",
						named->title),
				 errhint("Repeat the whole transaction.")));
	idem_store_spi_end(&saved);
}

/*
 * idem_store_named_delete
 *		Remove a row; false when it is not there.
 */
bool
idem_store_named_delete(IdemStoreNamed table, const text *name)
{
	Datum		arg = PointerGetDatum(name);
	IdemSecctx	saved;
	uint64		rows;

	idem_store_spi_begin(&saved);
	rows = idem_store_spi_execute(&tables[table].delete, &arg, NULL, false, 0);
	idem_store_spi_end(&saved);
	return rows > 0;
}
