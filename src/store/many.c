/*-------------------------------------------------------------------------
 *
 * many.c
 *	  Statements on many keys of a scope, the same in both ways.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"

#include "base/catalog.h"
#include "base/digest.h"
#include "base/spi.h"
#include "store/sql.h"

static const Oid key_types[] = {TEXTOID};
static const Oid count_types[] = {TEXTOID, TIMESTAMPTZOID, INT8OID};
static const Oid many_types[] = {TEXTOID, TEXTARRAYOID};
static const Oid brief_types[] = {
	TEXTOID, CHAROID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, TEXTOID
};
static const Oid insert_many_types[] = {
	TEXTOID, TEXTARRAYOID, CHAROID, XID8OID, TIMESTAMPTZOID, TIMESTAMPTZOID,
	TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, TEXTOID
};

static IdemPlan count_plan = {
	"SELECT count(*) FROM (SELECT FROM %1$s.idempotency_keys"
	" WHERE scope = $1 AND expires_at > $2 AND state <> 'x' LIMIT $3) AS live",
	lengthof(count_types), count_types
};

/* The keys come sorted: rows are inserted in the order of the array. */
static IdemPlan insert_many_plan = {
	"INSERT INTO %1$s.idempotency_keys (scope, key, state, claim_xid,"
	" created_at, finished_at, expires_at, purge_at, policy, claimed_by)"
	" SELECT $1, k, $3, $4, $5, $6, $7, $8, $9, $10"
	" FROM unnest($2) AS k ON CONFLICT DO NOTHING RETURNING key",
	lengthof(insert_many_types), insert_many_types
};

/*
 * One probe of the primary key for each, whatever the planner knew of the table
 * when it made the plan: OFFSET 0 keeps the two apart.  "key = ANY" would be a
 * filter over the whole scope in a plan that is older than its rows.
 */
static IdemPlan read_many_plan = {
	"SELECT r.* FROM unnest($2) AS k CROSS JOIN LATERAL ("
	"SELECT key, state, expires_at, purge_at, claimed_by, policy"
	" FROM %1$s.idempotency_keys WHERE scope = $1 AND key = k OFFSET 0) AS r",
	lengthof(many_types), many_types
};

/*
 * idem_store_require_primary_key
 *		Refuse to insert without one, XX001: the table would take any number
 *		of claims.
 */
void
idem_store_require_primary_key(void)
{
	if (!idem_catalog()->keys_unique)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("table \"%s\" has no valid primary key on (scope, key)",
						"idempotency_keys"),
				 errhint("See idem_health().")));
}

/*
 * idem_store_count_live
 *		How many live keys a scope has, counted up to a limit.
 */
int64
idem_store_count_live(const text *scope, TimestampTz now, int64 limit)
{
	Datum		values[3];
	IdemSecctx	saved;
	int64		count;
	bool		isnull;

	values[0] = PointerGetDatum(scope);
	values[1] = TimestampTzGetDatum(now);
	values[2] = Int64GetDatum(limit);
	/* with a fresh snapshot: what this transaction has claimed counts, too */
	idem_spi_begin(&saved);
	(void) idem_spi_execute(&count_plan, values, NULL, false, 0);
	count = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
										SPI_tuptable->tupdesc, 1, &isnull));
	idem_spi_end(&saved);
	return count;
}

static text *
copy_text(HeapTuple tuple, int column, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	bool		isnull;
	Datum		value = SPI_getbinval(tuple, SPI_tuptable->tupdesc, column,
									  &isnull);
	text	   *copy = DatumGetTextPCopy(value);

	MemoryContextSwitchTo(old);
	return copy;
}

/*
 * idem_store_insert_many
 *		Insert a finished row for each key, in the order of the array; fills
 *		"inserted" with the keys for which there was none.  Returns how many.
 *
 * Waits for rivals, in the order of the array, too.
 */
int
idem_store_insert_many(const text *scope, ArrayType *keys, const IdemRow *row,
					   text **inserted)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[lengthof(insert_many_types)];
	char		nulls[lengthof(insert_many_types)];
	IdemSecctx	saved;
	int			rows;
	int			i;

	/* without the primary key ON CONFLICT would find no conflict */
	idem_store_require_primary_key();
	values[0] = PointerGetDatum(scope);
	values[1] = PointerGetDatum(keys);
	values[2] = CharGetDatum(row->state);
	values[3] = UInt64GetDatum(row->claim_xid);
	values[4] = TimestampTzGetDatum(row->created_at);
	values[5] = TimestampTzGetDatum(row->finished_at);
	values[6] = TimestampTzGetDatum(row->expires_at);
	values[7] = TimestampTzGetDatum(row->purge_at);
	values[8] = PointerGetDatum(row->policy);
	values[9] = PointerGetDatum(row->claimed_by);
	memset(nulls, ' ', sizeof(nulls));
	nulls[8] = row->policy == NULL ? 'n' : ' ';
	idem_spi_begin(&saved);
	rows = (int) idem_spi_execute(&insert_many_plan, values, nulls,
								  false, 0);
	idem_spi_require_types(key_types, 1);
	for (i = 0; i < rows; i++)
		inserted[i] = copy_text(SPI_tuptable->vals[i], 1, context);
	idem_spi_end(&saved);
	return rows;
}

static void
form_brief(HeapTuple tuple, IdemStoreBrief *brief, MemoryContext context)
{
	TupleDesc	desc = SPI_tuptable->tupdesc;
	Datum		values[6];
	bool		nulls[6];

	heap_deform_tuple(tuple, desc, values, nulls);
	brief->key = copy_text(tuple, 1, context);
	brief->state = (IdemState) DatumGetChar(values[1]);
	brief->expires_at = DatumGetTimestampTz(values[2]);
	brief->purge_at = DatumGetTimestampTz(values[3]);
	brief->claimed_by = copy_text(tuple, 5, context);
	brief->policy = nulls[5] ? NULL : copy_text(tuple, 6, context);
}

/*
 * idem_store_read_many
 *		Read the rows of the keys, at most one for each, in no order.
 */
int
idem_store_read_many(const text *scope, ArrayType *keys, IdemStoreBrief *found)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[2];
	IdemSecctx	saved;
	int			rows;
	int			max = ArrayGetNItems(ARR_NDIM(keys), ARR_DIMS(keys));
	int			i;

	values[0] = PointerGetDatum(scope);
	values[1] = PointerGetDatum(keys);
	idem_spi_begin(&saved);
	rows = (int) idem_spi_execute(&read_many_plan, values, NULL,
								  false, 0);
	/* one probe for each key: more rows than keys are twins of somebody's */
	if (rows > max)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("more than one row for a key in scope %s",
						idem_digest_log_id(scope)),
				 errhint("Restore the primary key of \"%s\"; see idem_health().",
						 "idempotency_keys")));
	idem_spi_require_types(brief_types, lengthof(brief_types));
	for (i = 0; i < rows; i++)
		form_brief(SPI_tuptable->vals[i], &found[i], context);
	idem_spi_end(&saved);
	return rows;
}
