/*-------------------------------------------------------------------------
 *
 * sql.c
 *	  The SQL way to the key table.
 *
 * Owns the statements on idempotency_keys: those on one key are pinned to the
 * full primary key, those on many to its scope, all but the sweep.  Values are
 * parameters, and no function in them is volatile.  It
 * is right for every kind of table, whatever triggers, policies or planner
 * hooks are on it.  Nothing is decided here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "utils/snapmgr.h"

#include "base/catalog.h"
#include "base/digest.h"
#include "base/spi.h"
#include "store/parts.h"
#include "store/row.h"
#include "store/sql.h"
#include "store/store.h"

/* The columns after scope and key, in the order of IdemColumn. */
#define ROW_COLUMNS \
	"state, attempt, token, claim_xid, created_at, finished_at, lease_until, " \
	"expires_at, purge_at, ttl, status_code, owner, policy, claimed_by, " \
	"fingerprint, context, headers, content_type, body_size, body_sha256, " \
	"body, recovery_point, checkpoint"

/* Places of rows that are kept in memory at a time. */
#define SWEEP_ROOM 10000

static const Oid key_types[] = {TEXTOID, TEXTOID};
static const Oid count_types[] = {TEXTOID, TIMESTAMPTZOID, INT8OID};
static const Oid due_types[] = {TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID};
static const Oid place_types[] = {OIDOID, TIDOID};
static const Oid sweep_types[] = {OIDOID, TIDARRAYOID};
static const Oid swept_types[] = {TEXTOID, INT8OID, TIMESTAMPTZOID};
static const Oid many_types[] = {TEXTOID, TEXTARRAYOID};
static const Oid brief_types[] = {
	TEXTOID, CHAROID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, TEXTOID
};
static const Oid insert_many_types[] = {
	TEXTOID, TEXTARRAYOID, CHAROID, INT4OID, INT8OID, XID8OID, TIMESTAMPTZOID,
	TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT4OID,
	TEXTOID, TEXTOID
};

static IdemPlan read_plan = {
	"SELECT " ROW_COLUMNS " FROM %1$s.idempotency_keys"
	" WHERE scope = $1 AND key = $2",
	lengthof(key_types), key_types
};

#define LOCK_ROW \
	"SELECT " ROW_COLUMNS " FROM %1$s.idempotency_keys" \
	" WHERE scope = $1 AND key = $2 FOR UPDATE"

static IdemPlan lock_plan = {
	LOCK_ROW,
	lengthof(key_types), key_types
};

static IdemPlan try_lock_plan = {
	LOCK_ROW " SKIP LOCKED",
	lengthof(key_types), key_types
};

/*
 * ON CONFLICT without a target: whatever unique index there is, of a partition,
 * of a rebuild under way or of a user's, says "no row", never 23505.
 */
static IdemPlan insert_plan = {
	"INSERT INTO %1$s.idempotency_keys (scope, key, " ROW_COLUMNS ")"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,"
	" $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25)"
	" ON CONFLICT DO NOTHING",
	IDEM_NUM_COLUMNS, idem_store_row_types
};

static IdemPlan update_plan = {
	"UPDATE %1$s.idempotency_keys SET (" ROW_COLUMNS ")"
	" = ($3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17,"
	" $18, $19, $20, $21, $22, $23, $24, $25)"
	" WHERE scope = $1 AND key = $2",
	IDEM_NUM_COLUMNS, idem_store_row_types
};

static IdemPlan delete_plan = {
	"DELETE FROM %1$s.idempotency_keys WHERE scope = $1 AND key = $2",
	lengthof(key_types), key_types
};

static IdemPlan count_plan = {
	"SELECT count(*) FROM (SELECT FROM %1$s.idempotency_keys"
	" WHERE scope = $1 AND expires_at > $2 AND state <> 'x' LIMIT $3) AS live",
	lengthof(count_types), count_types
};

/* Oldest first. */
static IdemPlan due_plan = {
	"SELECT tableoid, ctid FROM %1$s.idempotency_keys"
	" WHERE purge_at >= $1 AND purge_at <= $2 ORDER BY purge_at LIMIT $3",
	lengthof(due_types), due_types
};

/* A place means something together with its table only. */
static IdemPlan sweep_plan = {
	"WITH swept AS (DELETE FROM %1$s.idempotency_keys"
	" WHERE tableoid = $1 AND ctid = ANY ($2) RETURNING policy, purge_at)"
	" SELECT policy, count(*), max(purge_at) FROM swept GROUP BY policy",
	lengthof(sweep_types), sweep_types
};

/* The keys come sorted: rows are inserted in the order of the array. */
static IdemPlan insert_many_plan = {
	"INSERT INTO %1$s.idempotency_keys (scope, key, state, attempt, token,"
	" claim_xid, created_at, finished_at, lease_until, expires_at, purge_at,"
	" status_code, policy, claimed_by)"
	" SELECT $1, k, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14"
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
 * The row that was read, in the context given.  A toast pointer stays one: the
 * snapshot of the calling statement is older than the row was read and keeps
 * what it points to.
 */
static void
form_row(IdemRow *row, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	Datum		values[IDEM_NUM_COLUMNS];
	bool		nulls[IDEM_NUM_COLUMNS];

	idem_store_spi_require_types(&idem_store_row_types[COLUMN_STATE],
								 IDEM_NUM_COLUMNS - COLUMN_STATE);
	heap_deform_tuple(heap_copytuple(SPI_tuptable->vals[0]),
					  SPI_tuptable->tupdesc, &values[COLUMN_STATE],
					  &nulls[COLUMN_STATE]);
	idem_store_row_form(row, values, nulls);
	MemoryContextSwitchTo(old);
}

static bool
read_row(IdemPlan *plan, const IdemKey *id, bool read_only, IdemRow *row)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[2];
	IdemSecctx	saved;
	uint64		rows;

	values[0] = PointerGetDatum(id->scope);
	values[1] = PointerGetDatum(id->key);
	idem_store_spi_begin(&saved);
	rows = idem_store_spi_execute(plan, values, NULL, read_only, 2);
	if (rows > 1)
		idem_store_row_raise_twins(id);
	if (rows == 1)
		form_row(row, context);
	idem_store_spi_end(&saved);
	return rows == 1;
}

/*
 * idem_store_sql_read
 *		Read a row as it is now, where the isolation level lets us; no lock.
 */
bool
idem_store_sql_read(const IdemKey *id, IdemRow *row)
{
	return read_row(&read_plan, id, false, row);
}

/*
 * idem_store_sql_peek
 *		Read a row as the calling statement sees it; works in recovery.
 */
bool
idem_store_sql_peek(const IdemKey *id, IdemRow *row)
{
	return read_row(&read_plan, id, true, row);
}

/*
 * idem_store_sql_is_there
 *		Whether there is a row now, though the snapshot of the transaction may
 *		be too old to see it.
 */
bool
idem_store_sql_is_there(const IdemKey *id)
{
	IdemRow		row;
	bool		found;

	PushActiveSnapshot(idem_store_spi_latest());
	found = read_row(&read_plan, id, true, &row);
	PopActiveSnapshot();
	return found;
}

/*
 * idem_store_sql_lock, idem_store_sql_try_lock
 *		Read a row FOR UPDATE, or only if nobody else has it; 40001 when the
 *		snapshot of the transaction is older than its last change.
 */
bool
idem_store_sql_lock(const IdemKey *id, IdemRow *row)
{
	return read_row(&lock_plan, id, false, row);
}

bool
idem_store_sql_try_lock(const IdemKey *id, IdemRow *row)
{
	return read_row(&try_lock_plan, id, false, row);
}

/* Whether one row was written: a trigger or a rule may have been at it. */
static bool
write_row(IdemPlan *plan, const IdemKey *id, const IdemRow *row)
{
	Datum		values[IDEM_NUM_COLUMNS];
	bool		isnull[IDEM_NUM_COLUMNS];
	char		nulls[IDEM_NUM_COLUMNS];
	IdemSecctx	saved;
	uint64		rows;
	int			i;

	idem_store_row_values(id, row, values, isnull);
	for (i = 0; i < IDEM_NUM_COLUMNS; i++)
		nulls[i] = isnull[i] ? 'n' : ' ';
	idem_store_spi_begin(&saved);
	rows = idem_store_spi_execute(plan, values, nulls, false, 0);
	idem_store_spi_end(&saved);
	if (rows > 1)
		idem_store_row_raise_twins(id);
	return rows == 1;
}

/* Without its primary key the table would take any number of claims. */
static void
require_primary_key(void)
{
	if (!idem_catalog()->keys_unique)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("table \"%s\" has no valid primary key on (scope, key)",
						"idempotency_keys"),
				 errhint("Restore the primary key; see idem_health().")));
}

/*
 * idem_store_sql_insert
 *		Insert a row; false when there is one, committed or our own.
 *
 * Waits for a rival that is not behind a key lock.  40001 when the snapshot
 * of the transaction cannot see the row that is in the way.  A row in the way
 * may be gone when we look for it; one that is never seen is XX001.
 */
bool
idem_store_sql_insert(const IdemKey *id, const IdemRow *row)
{
	int			tries;

	require_primary_key();
	for (tries = 0; tries < IDEM_MAX_TRIES; tries++)
	{
		if (write_row(&insert_plan, id, row))
			return true;
		if (idem_store_sql_is_there(id))
			return false;
	}
	idem_store_row_raise_suppressed(id);
}

/*
 * idem_store_sql_update, idem_store_sql_delete
 *		Change or remove a row that this transaction has locked; whether one
 *		was there.
 */
bool
idem_store_sql_update(const IdemKey *id, const IdemRow *row)
{
	return write_row(&update_plan, id, row);
}

bool
idem_store_sql_delete(const IdemKey *id)
{
	Datum		values[2];
	IdemSecctx	saved;
	uint64		rows;

	values[0] = PointerGetDatum(id->scope);
	values[1] = PointerGetDatum(id->key);
	idem_store_spi_begin(&saved);
	rows = idem_store_spi_execute(&delete_plan, values, NULL, false, 0);
	idem_store_spi_end(&saved);
	if (rows > 1)
		idem_store_row_raise_twins(id);
	return rows == 1;
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
	idem_store_spi_begin(&saved);
	(void) idem_store_spi_execute(&count_plan, values, NULL, false, 0);
	count = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
										SPI_tuptable->tupdesc, 1, &isnull));
	idem_store_spi_end(&saved);
	return count;
}

/*
 * Lock rows that are due, oldest first, until there are max_rows; how many.
 * What cannot be had without waiting is passed over, so the rows to look at
 * are as many more.
 */
static int
lock_due(TimestampTz low, TimestampTz now, int64 max_rows, IdemPlace *places)
{
	Datum		values[3];
	int64		limit = max_rows;
	int			count;
	uint64		rows;
	uint64		i;

	values[0] = TimestampTzGetDatum(low);
	values[1] = TimestampTzGetDatum(now);
	do
	{
		IdemPart	part = {NULL, NULL};

		values[2] = Int64GetDatum(limit);
		rows = idem_store_spi_execute(&due_plan, values, NULL, true, 0);
		idem_store_spi_require_types(place_types, lengthof(place_types));
		count = 0;
		for (i = 0; i < rows && count < max_rows; i++)
		{
			bool		isnull;
			IdemPlace  *place = &places[count];

			place->table = DatumGetObjectId(idem_store_spi_value(i, 0, &isnull));
			place->tid = *(ItemPointer)
				DatumGetPointer(idem_store_spi_value(i, 1, &isnull));
			if (idem_store_parts_lock_row(place, &part))
				count++;
		}
		idem_store_parts_close(&part);
		limit *= 2;
	} while (count < max_rows && (int64) rows * 2 == limit);
	return count;
}

/* Remove the rows at these places, all of one table; how many. */
static int64
delete_places(const IdemPlace *places, int number, TimestampTz *low,
			  IdemSweepCount count)
{
	Datum		values[2];
	uint64		policies;
	uint64		i;
	int64		rows = 0;

	values[0] = ObjectIdGetDatum(places[0].table);
	values[1] = idem_store_parts_array(places, number);
	policies = idem_store_spi_execute(&sweep_plan, values, NULL, false, 0);
	idem_store_spi_require_types(swept_types, lengthof(swept_types));
	for (i = 0; i < policies; i++)
	{
		Datum		row[3];
		bool		nulls[3];

		heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
						  row, nulls);
		count(DatumGetTextPP(row[0]), DatumGetInt64(row[1]));
		rows += DatumGetInt64(row[1]);
		*low = Max(*low, DatumGetTimestampTz(row[2]));
	}
	return rows;
}

/* Remove so many rows at the most; how many. */
static int64
sweep_some(TimestampTz *low, TimestampTz now, int max_rows, IdemPlace *places,
		   IdemSweepCount count)
{
	IdemSecctx	saved;
	int			locked;
	int			begin = 0;
	int			i;
	int64		rows = 0;

	idem_store_spi_begin(&saved);
	PushActiveSnapshot(GetTransactionSnapshot());
	locked = lock_due(*low, now, max_rows, places);
	PopActiveSnapshot();
	qsort(places, locked, sizeof(IdemPlace), idem_store_parts_compare);
	for (i = 1; i <= locked; i++)
	{
		if (i < locked && places[i].table == places[begin].table)
			continue;
		rows += delete_places(&places[begin], i - begin, low, count);
		begin = i;
	}
	idem_store_spi_end(&saved);
	return rows;
}

/*
 * idem_store_sql_sweep
 *		Remove up to max_rows rows whose purge_at is over; how many.
 *
 * Rows are locked one by one, without waiting, before a statement removes
 * them: FOR UPDATE SKIP LOCKED can wait after all, for the next version of a
 * row whose update commits while it looks (heap_lock_updated_tuple), and was
 * seen in a deadlock with idem_dedupe.  Spec: sweep-changed; t/018, t/026.
 */
int64
idem_store_sql_sweep(TimestampTz *low, TimestampTz now, int64 max_rows,
					 IdemSweepCount count)
{
	int			room = (int) Min(max_rows, SWEEP_ROOM);
	IdemPlace  *places = palloc(sizeof(IdemPlace) * room);
	int64		rows = 0;
	int64		wanted;
	int64		some;

	do
	{
		wanted = Min(max_rows - rows, room);
		some = sweep_some(low, now, (int) wanted, places, count);
		rows += some;
	} while (some == wanted && rows < max_rows);
	pfree(places);
	return rows;
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
	IdemSecctx	saved;
	int			rows;
	int			i;

	require_primary_key();
	values[0] = PointerGetDatum(scope);
	values[1] = PointerGetDatum(keys);
	values[2] = CharGetDatum(row->state);
	values[3] = Int32GetDatum(row->attempt);
	values[4] = Int64GetDatum(row->token);
	values[5] = UInt64GetDatum(row->claim_xid);
	values[6] = TimestampTzGetDatum(row->created_at);
	values[7] = TimestampTzGetDatum(row->finished_at);
	values[8] = TimestampTzGetDatum(row->lease_until);
	values[9] = TimestampTzGetDatum(row->expires_at);
	values[10] = TimestampTzGetDatum(row->purge_at);
	values[11] = Int32GetDatum(row->status_code);
	values[12] = PointerGetDatum(row->policy);
	values[13] = PointerGetDatum(row->claimed_by);
	idem_store_spi_begin(&saved);
	rows = (int) idem_store_spi_execute(&insert_many_plan, values, NULL,
										false, 0);
	idem_store_spi_require_types(key_types, 1);
	for (i = 0; i < rows; i++)
		inserted[i] = copy_text(SPI_tuptable->vals[i], 1, context);
	idem_store_spi_end(&saved);
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
	brief->policy = copy_text(tuple, 6, context);
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
	idem_store_spi_begin(&saved);
	rows = (int) idem_store_spi_execute(&read_many_plan, values, NULL,
										false, 0);
	if (rows > max)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("more than one row for a key in scope %s",
						idem_digest_log_id(scope)),
				 errhint("Restore the primary key of \"%s\"; see idem_health().",
						 "idempotency_keys")));
	idem_store_spi_require_types(brief_types, lengthof(brief_types));
	for (i = 0; i < rows; i++)
		form_brief(SPI_tuptable->vals[i], &found[i], context);
	idem_store_spi_end(&saved);
	return rows;
}
