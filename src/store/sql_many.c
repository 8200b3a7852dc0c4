/*-------------------------------------------------------------------------
 *
 * sql_many.c
 *	  The SQL way to the key table: statements on many keys of a scope.
 *
 * The count of live keys is a statement in both ways.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "utils/array.h"

#include "base/bytes.h"
#include "base/catalog.h"
#include "base/citus.h"
#include "base/spi.h"
#include "store/row.h"
#include "store/sql.h"

static const Oid key_types[] = {TEXTOID};
static const Oid count_types[] = {TEXTOID, TIMESTAMPTZOID, INT8OID};
static const Oid many_types[] = {TEXTOID, TEXTARRAYOID};
static const Oid inserted_types[] = {TEXTOID, TEXTARRAYOID, XID8OID};
static const Oid brief_types[] = {
	TEXTOID, CHAROID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, TEXTOID
};
static const Oid insert_many_types[] = {
	TEXTOID, TEXTARRAYOID, CHAROID, XID8OID, TIMESTAMPTZOID, TIMESTAMPTZOID,
	TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, TEXTOID
};

static IdemPlan count_plan = {
	"SELECT count(*) FROM (SELECT 1 FROM %1$s.idempotency_keys"
	" WHERE (%2$sscope) = (%3$s$1)"
	" AND expires_at > $2 AND state <> 'x' LIMIT $3) AS live",
	lengthof(count_types), count_types, 1, true
};

/* The keys come sorted: rows are inserted in the order of the array. */
#define INSERT_MANY \
	"INSERT INTO %1$s.idempotency_keys (%2$sscope, key, state, claim_xid," \
	" created_at, finished_at, expires_at, purge_at, policy, claimed_by)" \
	" SELECT %3$s$1, k, $3, $4, $5, $6, $7, $8, $9, $10" \
	" FROM unnest($2) AS k ON CONFLICT DO NOTHING"

static IdemPlan insert_many_plan = {
	INSERT_MANY " RETURNING key",
	lengthof(insert_many_types), insert_many_types, 1, true
};

/*
 * Citus miscounts the rows that RETURNING gives beside a conflict, of which SPI
 * makes an error: there the rows that were inserted are looked for.
 */
static IdemPlan insert_blindly_plan = {
	INSERT_MANY,
	lengthof(insert_many_types), insert_many_types, 1, true
};
static IdemPlan inserted_plan = {
	"SELECT r.key FROM unnest($2) AS k CROSS JOIN LATERAL ("
	"SELECT key, claim_xid"
	" FROM %1$s.idempotency_keys WHERE (%2$sscope, key) = (%3$s$1, k) OFFSET 0) AS r"
	" WHERE r.claim_xid = $3",
	lengthof(inserted_types), inserted_types, 1, true
};

/*
 * One probe of the primary key for each, whatever the planner knew of the table
 * when it made the plan: OFFSET 0 keeps the two apart.  "key = ANY" would be a
 * filter over the whole scope in a plan that is older than its rows.
 */
static IdemPlan read_many_plan = {
	"SELECT r.* FROM unnest($2) AS k CROSS JOIN LATERAL ("
	"SELECT key, state, expires_at, purge_at, claimed_by, policy"
	" FROM %1$s.idempotency_keys WHERE (%2$sscope, key) = (%3$s$1, k) OFFSET 0) AS r",
	lengthof(many_types), many_types, 1, true
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
 * The keys as an array; with a scope, without those that need not be read.
 * Returns how many.
 */
static int
make_array(IdemStoreItem **items, int number, text *scope, ArrayType **array)
{
	Datum	   *keys = palloc(sizeof(Datum) * number);
	int			count = 0;
	int			i;

	for (i = 0; i < number; i++)
	{
		IdemKey		id = {scope, items[i]->key};

		if (scope == NULL || !idem_store_is_new(&id))
			keys[count++] = PointerGetDatum(items[i]->key);
	}
	*array = construct_array(keys, count, TEXTOID, -1, false, TYPALIGN_INT);
	pfree(keys);
	return count;
}

/* The item of the key that is in the first column of a row. */
static IdemStoreItem *
find_item(IdemStoreItem **items, int number, HeapTuple tuple)
{
	bool		isnull;
	text	   *key = DatumGetTextPP(SPI_getbinval(tuple, SPI_tuptable->tupdesc,
												   1, &isnull));
	int			low = 0;
	int			high = number - 1;

	while (low <= high)
	{
		int			middle = low + (high - low) / 2;
		int			order = idem_bytes_compare(idem_bytes_of(items[middle]->key),
											   idem_bytes_of(key));

		if (order == 0)
			return items[middle];
		if (order < 0)
			low = middle + 1;
		else
			high = middle - 1;
	}
	elog(ERROR, "a statement on many keys gave one that was not asked for");
}

/* Insert the rows; the keys of those that were not there are in SPI_tuptable. */
static int
insert_rows(Datum *values, const char *nulls)
{
	Datum		mine[] = {values[0], values[1], values[3]};

	if (!idem_citus_is_used())
		return (int) idem_spi_execute(&insert_many_plan, values, nulls, false, 0);

	/* of a key that this transaction had before, the row was seen */
	(void) idem_spi_execute(&insert_blindly_plan, values, nulls, false, 0);
	return (int) idem_spi_execute(&inserted_plan, mine, NULL, false, 0);
}

/*
 * idem_sql_insert_many
 *		Insert a row for each of many keys; see idem_store_insert_many().
 */
void
idem_sql_insert_many(IdemStore *store, text *scope, IdemStoreItem **items,
					 int number, const IdemRow *row)
{
	Datum		values[lengthof(insert_many_types)];
	char		nulls[lengthof(insert_many_types)];
	ArrayType  *keys;
	IdemSecctx	saved;
	int			rows;
	int			i;

	idem_citus_require_here(scope);

	/* without the primary key ON CONFLICT would find no conflict */
	idem_store_require_primary_key();
	(void) make_array(items, number, NULL, &keys);
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
	for (i = 0; i < number; i++)
		items[i]->inserted = false;
	idem_spi_begin(&saved);
	rows = insert_rows(values, nulls);
	idem_spi_require_types(key_types, 1);
	for (i = 0; i < rows; i++)
		find_item(items, number, SPI_tuptable->vals[i])->inserted = true;
	idem_spi_end(&saved);
}

/* What was read of a row; every text is copied into the context. */
static void
form_item(HeapTuple tuple, IdemStoreItem *item, MemoryContext context)
{
	TupleDesc	desc = SPI_tuptable->tupdesc;
	Datum		values[6];
	bool		nulls[6];

	heap_deform_tuple(tuple, desc, values, nulls);
	item->found = true;
	item->state = (IdemState) DatumGetChar(values[1]);
	item->expires_at = DatumGetTimestampTz(values[2]);
	item->purge_at = DatumGetTimestampTz(values[3]);
	item->claimed_by = copy_text(tuple, 5, context);
	item->policy = nulls[5] ? NULL : copy_text(tuple, 6, context);
}

/*
 * idem_sql_read_many
 *		Look at many keys; see idem_store_read_many().
 */
void
idem_sql_read_many(IdemStore *store, text *scope, IdemStoreItem **items,
				   int number)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[2];
	ArrayType  *keys;
	IdemSecctx	saved;
	int			rows;
	int			i;

	idem_citus_require_here(scope);
	for (i = 0; i < number; i++)
		items[i]->found = false;
	if (make_array(items, number, scope, &keys) == 0)
		return;
	values[0] = PointerGetDatum(scope);
	values[1] = PointerGetDatum(keys);
	idem_spi_begin(&saved);
	/* one statement for all, whatever their number */
	rows = (int) idem_spi_execute(&read_many_plan, values, NULL,
								  false, 0);
	idem_spi_require_types(brief_types, lengthof(brief_types));
	for (i = 0; i < rows; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		IdemStoreItem *item = find_item(items, number, tuple);
		IdemKey		id = {scope, item->key};

		if (item->found)
			idem_store_row_raise_twins(&id);
		form_item(tuple, item, context);
	}
	idem_spi_end(&saved);
}
