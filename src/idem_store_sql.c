/*-------------------------------------------------------------------------
 *
 * idem_store_sql.c
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
#include "storage/lmgr.h"
#include "utils/datum.h"

#include "idem_catalog.h"
#include "idem_digest.h"
#include "idem_store.h"
#include "idem_store_spi.h"

/* The columns after scope and key; IdemColumn and row_values() follow. */
#define ROW_COLUMNS \
	"state, attempt, token, claim_xid, created_at, finished_at, lease_until, " \
	"expires_at, purge_at, ttl, status_code, owner, policy, claimed_by, " \
	"fingerprint, context, headers, content_type, body_size, body_sha256, " \
	"body, recovery_point, checkpoint"

typedef enum IdemColumn
{
	COLUMN_SCOPE,
	COLUMN_KEY,
	COLUMN_STATE,
	COLUMN_ATTEMPT,
	COLUMN_TOKEN,
	COLUMN_CLAIM_XID,
	COLUMN_CREATED_AT,
	COLUMN_FINISHED_AT,
	COLUMN_LEASE_UNTIL,
	COLUMN_EXPIRES_AT,
	COLUMN_PURGE_AT,
	COLUMN_TTL,
	COLUMN_STATUS_CODE,
	COLUMN_OWNER,
	COLUMN_POLICY,
	COLUMN_CLAIMED_BY,
	COLUMN_FINGERPRINT,
	COLUMN_CONTEXT,
	COLUMN_HEADERS,
	COLUMN_CONTENT_TYPE,
	COLUMN_BODY_SIZE,
	COLUMN_BODY_SHA256,
	COLUMN_BODY,
	COLUMN_RECOVERY_POINT,
	COLUMN_CHECKPOINT
} IdemColumn;

#define NUM_COLUMNS	(COLUMN_CHECKPOINT + 1)
#define FIRST_COLUMN COLUMN_STATE	/* in a row that was read */

static const Oid row_types[NUM_COLUMNS] = {
	TEXTOID, TEXTOID, CHAROID, INT4OID, INT8OID, XID8OID, TIMESTAMPTZOID,
	TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID,
	INT4OID, UUIDOID, TEXTOID, TEXTOID, BYTEAOID, BYTEAOID, JSONOID, TEXTOID,
	INT8OID, BYTEAOID, BYTEAOID, TEXTOID, JSONBOID
};

static const Oid key_types[] = {TEXTOID, TEXTOID};
static const Oid count_types[] = {TEXTOID, TIMESTAMPTZOID, INT8OID};
static const Oid sweep_types[] = {TIMESTAMPTZOID, INT8OID};
static const Oid many_types[] = {TEXTOID, TEXTARRAYOID};
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

static IdemPlan lock_plan = {
	"SELECT " ROW_COLUMNS " FROM %1$s.idempotency_keys"
	" WHERE scope = $1 AND key = $2 FOR UPDATE",
	lengthof(key_types), key_types
};

#define INSERT_ROW \
	"INSERT INTO %1$s.idempotency_keys (scope, key, " ROW_COLUMNS ")" \
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14," \
	" $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25)"

static IdemPlan insert_plan = {
	INSERT_ROW " ON CONFLICT (scope, key) DO NOTHING",
	NUM_COLUMNS, row_types
};

static IdemPlan insert_new_plan = {
	INSERT_ROW,
	NUM_COLUMNS, row_types
};

static IdemPlan update_plan = {
	"UPDATE %1$s.idempotency_keys SET (" ROW_COLUMNS ")"
	" = ($3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17,"
	" $18, $19, $20, $21, $22, $23, $24, $25)"
	" WHERE scope = $1 AND key = $2",
	NUM_COLUMNS, row_types
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

/* Oldest first; a row that somebody works on stays for the next batch. */
static IdemPlan sweep_plan = {
	"DELETE FROM %1$s.idempotency_keys WHERE ctid = ANY (ARRAY("
	"SELECT ctid FROM %1$s.idempotency_keys WHERE purge_at <= $1"
	" ORDER BY purge_at LIMIT $2 FOR UPDATE SKIP LOCKED))",
	lengthof(sweep_types), sweep_types
};

/* The keys come sorted: rows are inserted in the order of the array. */
static IdemPlan insert_many_plan = {
	"INSERT INTO %1$s.idempotency_keys (scope, key, state, attempt, token,"
	" claim_xid, created_at, finished_at, lease_until, expires_at, purge_at,"
	" status_code, policy, claimed_by)"
	" SELECT $1, k, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14"
	" FROM unnest($2) AS k ON CONFLICT (scope, key) DO NOTHING RETURNING key",
	lengthof(insert_many_types), insert_many_types
};

static IdemPlan read_many_plan = {
	"SELECT key, state, expires_at, purge_at, claimed_by, policy"
	" FROM %1$s.idempotency_keys WHERE scope = $1 AND key = ANY ($2)",
	lengthof(many_types), many_types
};

/*
 * Copies of a column that outlive the SPI connection: as it was read, toast
 * pointers included, or detoasted.  The snapshot of the calling statement is
 * older than the row was read and keeps what such a pointer points to.
 */
static void *
copy_column(Datum *values, bool *nulls, IdemColumn column,
			MemoryContext context)
{
	MemoryContext old;
	void	   *copy;

	if (nulls[column - FIRST_COLUMN])
		return NULL;
	old = MemoryContextSwitchTo(context);
	copy = DatumGetPointer(datumCopy(values[column - FIRST_COLUMN], false, -1));
	MemoryContextSwitchTo(old);
	return copy;
}

static void *
detoast_column(Datum *values, bool *nulls, IdemColumn column,
			   MemoryContext context)
{
	MemoryContext old;
	void	   *copy;

	if (nulls[column - FIRST_COLUMN])
		return NULL;
	old = MemoryContextSwitchTo(context);
	copy = PG_DETOAST_DATUM_COPY(values[column - FIRST_COLUMN]);
	MemoryContextSwitchTo(old);
	return copy;
}

#define FIXED(column, get, if_null) \
	(nulls[(column) - FIRST_COLUMN] ? (if_null) : \
	 get(values[(column) - FIRST_COLUMN]))

/* The row that was read, in the context given. */
static void
form_row(IdemRow *row, MemoryContext context)
{
	Datum		values[NUM_COLUMNS - FIRST_COLUMN];
	bool		nulls[NUM_COLUMNS - FIRST_COLUMN];

	heap_deform_tuple(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
					  values, nulls);
	row->state = (IdemState) FIXED(COLUMN_STATE, DatumGetChar, 0);
	row->attempt = FIXED(COLUMN_ATTEMPT, DatumGetInt32, 0);
	row->token = FIXED(COLUMN_TOKEN, DatumGetInt64, 0);
	row->claim_xid = FIXED(COLUMN_CLAIM_XID, DatumGetUInt64, 0);
	row->created_at = FIXED(COLUMN_CREATED_AT, DatumGetTimestampTz, 0);
	row->finished_at = FIXED(COLUMN_FINISHED_AT, DatumGetTimestampTz,
							 DT_NOBEGIN);
	row->lease_until = FIXED(COLUMN_LEASE_UNTIL, DatumGetTimestampTz, 0);
	row->expires_at = FIXED(COLUMN_EXPIRES_AT, DatumGetTimestampTz, 0);
	row->purge_at = FIXED(COLUMN_PURGE_AT, DatumGetTimestampTz, 0);
	row->ttl = FIXED(COLUMN_TTL, DatumGetInt64, -1);
	row->status_code = FIXED(COLUMN_STATUS_CODE, DatumGetInt32, 0);
	row->has_owner = !nulls[COLUMN_OWNER - FIRST_COLUMN];
	if (row->has_owner)
		row->owner = *DatumGetUUIDP(values[COLUMN_OWNER - FIRST_COLUMN]);
	row->policy = detoast_column(values, nulls, COLUMN_POLICY, context);
	row->claimed_by = detoast_column(values, nulls, COLUMN_CLAIMED_BY, context);
	row->fingerprint = detoast_column(values, nulls, COLUMN_FINGERPRINT,
									  context);
	row->context = detoast_column(values, nulls, COLUMN_CONTEXT, context);
	row->headers = copy_column(values, nulls, COLUMN_HEADERS, context);
	row->content_type = copy_column(values, nulls, COLUMN_CONTENT_TYPE,
									context);
	row->body_size = FIXED(COLUMN_BODY_SIZE, DatumGetInt64, -1);
	row->body_sha256 = copy_column(values, nulls, COLUMN_BODY_SHA256, context);
	row->body = copy_column(values, nulls, COLUMN_BODY, context);
	row->recovery_point = copy_column(values, nulls, COLUMN_RECOVERY_POINT,
									  context);
	row->checkpoint = copy_column(values, nulls, COLUMN_CHECKPOINT, context);
}

static void
put_pointer(Datum *values, char *nulls, IdemColumn column, const void *pointer)
{
	values[column] = PointerGetDatum(pointer);
	nulls[column] = pointer == NULL ? 'n' : ' ';
}

/* A row as the parameters of an INSERT or UPDATE. */
static void
row_values(const IdemKey *id, const IdemRow *row, Datum *values, char *nulls)
{
	memset(nulls, ' ', NUM_COLUMNS);
	put_pointer(values, nulls, COLUMN_SCOPE, id->scope);
	put_pointer(values, nulls, COLUMN_KEY, id->key);
	values[COLUMN_STATE] = CharGetDatum(row->state);
	values[COLUMN_ATTEMPT] = Int32GetDatum(row->attempt);
	values[COLUMN_TOKEN] = Int64GetDatum(row->token);
	values[COLUMN_CLAIM_XID] = UInt64GetDatum(row->claim_xid);
	values[COLUMN_CREATED_AT] = TimestampTzGetDatum(row->created_at);
	values[COLUMN_FINISHED_AT] = TimestampTzGetDatum(row->finished_at);
	nulls[COLUMN_FINISHED_AT] =
		TIMESTAMP_IS_NOBEGIN(row->finished_at) ? 'n' : ' ';
	values[COLUMN_LEASE_UNTIL] = TimestampTzGetDatum(row->lease_until);
	values[COLUMN_EXPIRES_AT] = TimestampTzGetDatum(row->expires_at);
	values[COLUMN_PURGE_AT] = TimestampTzGetDatum(row->purge_at);
	values[COLUMN_TTL] = Int64GetDatum(row->ttl);
	nulls[COLUMN_TTL] = row->ttl < 0 ? 'n' : ' ';
	values[COLUMN_STATUS_CODE] = Int32GetDatum(row->status_code);
	nulls[COLUMN_STATUS_CODE] = row->status_code == 0 ? 'n' : ' ';
	put_pointer(values, nulls, COLUMN_OWNER,
				row->has_owner ? &row->owner : NULL);
	put_pointer(values, nulls, COLUMN_POLICY, row->policy);
	put_pointer(values, nulls, COLUMN_CLAIMED_BY, row->claimed_by);
	put_pointer(values, nulls, COLUMN_FINGERPRINT, row->fingerprint);
	put_pointer(values, nulls, COLUMN_CONTEXT, row->context);
	put_pointer(values, nulls, COLUMN_HEADERS, row->headers);
	put_pointer(values, nulls, COLUMN_CONTENT_TYPE, row->content_type);
	values[COLUMN_BODY_SIZE] = Int64GetDatum(row->body_size);
	nulls[COLUMN_BODY_SIZE] = row->body_size < 0 ? 'n' : ' ';
	put_pointer(values, nulls, COLUMN_BODY_SHA256, row->body_sha256);
	put_pointer(values, nulls, COLUMN_BODY, row->body);
	put_pointer(values, nulls, COLUMN_RECOVERY_POINT, row->recovery_point);
	put_pointer(values, nulls, COLUMN_CHECKPOINT, row->checkpoint);
}

/* Two rows for one key: somebody dropped the primary key. */
static void
check_unique(const IdemKey *id, uint64 rows)
{
	if (rows > 1)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("more than one row for key %s in scope %s",
						idem_digest_log_id(id->key),
						idem_digest_log_id(id->scope)),
				 errhint("Restore the primary key of \"%s\"; see idem_health().",
						 "idempotency_keys")));
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
	check_unique(id, rows);
	if (rows == 1)
		form_row(row, context);
	idem_store_spi_end(&saved);
	return rows == 1;
}

/*
 * idem_store_read
 *		Read a row as it is now, where the isolation level lets us; no lock.
 */
bool
idem_store_read(const IdemKey *id, IdemRow *row)
{
	return read_row(&read_plan, id, false, row);
}

/*
 * idem_store_peek
 *		Read a row as the calling statement sees it; works in recovery.
 */
bool
idem_store_peek(const IdemKey *id, IdemRow *row)
{
	return read_row(&read_plan, id, true, row);
}

/*
 * idem_store_lock
 *		Read a row FOR UPDATE; 40001 when the snapshot of the transaction is
 *		older than its last change.
 */
bool
idem_store_lock(const IdemKey *id, IdemRow *row)
{
	return read_row(&lock_plan, id, false, row);
}

static uint64
write_row(IdemPlan *plan, const IdemKey *id, const IdemRow *row)
{
	Datum		values[NUM_COLUMNS];
	char		nulls[NUM_COLUMNS];
	IdemSecctx	saved;
	uint64		rows;

	row_values(id, row, values, nulls);
	idem_store_spi_begin(&saved);
	rows = idem_store_spi_execute(plan, values, nulls, false, 0);
	idem_store_spi_end(&saved);
	return rows;
}

/* One row, or a trigger or a rule has been at it. */
static void
check_written(const IdemKey *id, uint64 rows)
{
	check_unique(id, rows);
	if (rows != 1)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a change of key %s in scope %s was suppressed",
						idem_digest_log_id(id->key),
						idem_digest_log_id(id->scope)),
				 errhint("Drop foreign triggers and rules on \"%s\"; see idem_health().",
						 "idempotency_keys")));
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
 * idem_store_insert
 *		Insert a row; false when there is one, committed or our own.
 *
 * Waits for a rival that is not behind a key lock.  40001 when the snapshot
 * of the transaction cannot see the row that is in the way.
 */
bool
idem_store_insert(const IdemKey *id, const IdemRow *row)
{
	require_primary_key();
	return write_row(&insert_plan, id, row) == 1;
}

/*
 * idem_store_insert_new
 *		Insert a row where there must be none; 40001 when there is.  Waits as
 *		above.  Cheaper: nothing is inserted speculatively.
 */
void
idem_store_insert_new(const IdemKey *id, const IdemRow *row)
{
	require_primary_key();
	check_written(id, write_row(&insert_new_plan, id, row));
}

/*
 * idem_store_update, idem_store_delete
 *		Change or remove a row that this transaction has locked.
 */
void
idem_store_update(const IdemKey *id, const IdemRow *row)
{
	check_written(id, write_row(&update_plan, id, row));
}

void
idem_store_delete(const IdemKey *id)
{
	Datum		values[2];
	IdemSecctx	saved;
	uint64		rows;

	values[0] = PointerGetDatum(id->scope);
	values[1] = PointerGetDatum(id->key);
	idem_store_spi_begin(&saved);
	rows = idem_store_spi_execute(&delete_plan, values, NULL, false, 0);
	idem_store_spi_end(&saved);
	check_written(id, rows);
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
 * idem_store_sweep
 *		Remove up to max_rows rows whose purge_at is over; how many.
 *
 * Waits for nobody: rows that are locked are skipped, and when the table
 * itself is locked against writers (ALTER TABLE, CLUSTER) nothing is done.
 */
int64
idem_store_sweep(TimestampTz now, int64 max_rows)
{
	Datum		values[2];
	IdemSecctx	saved;
	uint64		rows;

	if (!ConditionalLockRelationOid(idem_catalog()->keys, RowExclusiveLock))
		return 0;
	values[0] = TimestampTzGetDatum(now);
	values[1] = Int64GetDatum(max_rows);
	idem_store_spi_begin(&saved);
	rows = idem_store_spi_execute(&sweep_plan, values, NULL, false, 0);
	idem_store_spi_end(&saved);
	return (int64) rows;
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
	for (i = 0; i < rows; i++)
		form_brief(SPI_tuptable->vals[i], &found[i], context);
	idem_store_spi_end(&saved);
	return rows;
}
