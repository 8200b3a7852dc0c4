/*-------------------------------------------------------------------------
 *
 * sql.c
 *	  The SQL way to the key table: statements on one key.
 *
 * Each is pinned to the full primary key; values are parameters, and no
 * function in them is volatile.  It is right for every kind of table, whatever
 * triggers, rules or planner hooks are on it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/citus.h"
#include "base/spi.h"
#include "store/parts.h"
#include "store/row.h"
#include "store/sql.h"

/* Conditions on columns: the parser makes them of the comparison of rows. */
#define ON_KEY(values) "(%2$sscope, key) = (%3$s" values ")"

static const Oid key_types[] = {TEXTOID, TEXTOID};
static Oid	row_types[IDEM_NUM_COLUMNS];

static IdemPlan read_plan = {NULL, lengthof(key_types), key_types, 1};
static IdemPlan lock_plan = {NULL, lengthof(key_types), key_types, 1};
static IdemPlan try_lock_plan = {NULL, lengthof(key_types), key_types, 1};
static IdemPlan insert_plan = {NULL, lengthof(row_types), row_types, COLUMN_SCOPE + 1};
static IdemPlan update_plan = {NULL, lengthof(row_types), row_types, COLUMN_SCOPE + 1};
static IdemPlan delete_plan = {
	"DELETE FROM %1$s.idempotency_keys WHERE " ON_KEY("$1, $2"),
	lengthof(key_types), key_types, 1
};

/*
 * Make the statements that name all columns; once in a process.
 *
 * ON CONFLICT has no target: whatever unique index there is, of a partition, of
 * a rebuild under way or of a user's, says "no row", never 23505.
 */
static void
make_statements(void)
{
	MemoryContext old;
	StringInfoData columns;
	StringInfoData values;
	StringInfoData changes;
	const char *read;
	int			i;

	if (read_plan.sql != NULL)
		return;
	old = MemoryContextSwitchTo(TopMemoryContext);
	initStringInfo(&columns);
	initStringInfo(&values);
	initStringInfo(&changes);
	for (i = 0; i < IDEM_NUM_COLUMNS; i++)
	{
		row_types[i] = idem_store_columns[i].type;
		appendStringInfo(&columns, "%s%s", i > 0 ? ", " : "",
						 idem_store_columns[i].name);
		appendStringInfo(&values, "%s$%d", i > 0 ? ", " : "", i + 1);
		if (idem_store_columns[i].kind != KIND_NAME)
			appendStringInfo(&changes, "%s%s = $%d", i > 0 ? ", " : "",
							 idem_store_columns[i].name, i + 1);
	}
	read = psprintf("SELECT %s FROM %%1$s.idempotency_keys"
					" WHERE %s", columns.data, ON_KEY("$1, $2"));
	lock_plan.sql = psprintf("%s FOR UPDATE", read);
	try_lock_plan.sql = psprintf("%s SKIP LOCKED", lock_plan.sql);
	insert_plan.sql = psprintf("INSERT INTO %%1$s.idempotency_keys"
							   " (%s%s) VALUES (%s%s) ON CONFLICT DO NOTHING",
							   "%2$s", columns.data, "%3$s", values.data);
	update_plan.sql = psprintf("UPDATE %%1$s.idempotency_keys SET %s"
							   " WHERE %s", changes.data,
							   psprintf("(%sscope, key) = (%s$%d, $%d)", "%2$s",
										"%3$s", COLUMN_SCOPE + 1, COLUMN_KEY + 1));
	read_plan.sql = read;		/* the last: all are made */
	MemoryContextSwitchTo(old);
}

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

	idem_spi_require_types(row_types, IDEM_NUM_COLUMNS);
	heap_deform_tuple(heap_copytuple(SPI_tuptable->vals[0]),
					  SPI_tuptable->tupdesc, values, nulls);
	idem_store_row_form(row, values, nulls);
	MemoryContextSwitchTo(old);
}

/* Execute a statement on a key, as the owner of the table; whether on a row. */
static bool
execute(IdemPlan *plan, const IdemKey *id, bool read_only)
{
	Datum		values[] = {
		PointerGetDatum(id->scope), PointerGetDatum(id->key)
	};
	uint64		rows;

	make_statements();
	rows = idem_spi_execute(plan, values, NULL, read_only, 2);
	if (rows > 1)
		idem_store_row_raise_twins(id);
	return rows == 1;
}

static bool
read_row(IdemPlan *plan, const IdemKey *id, bool read_only, IdemRow *row)
{
	MemoryContext context = CurrentMemoryContext;
	IdemSecctx	saved;
	bool		found;

	idem_spi_begin(&saved);
	found = execute(plan, id, read_only);
	if (found)
		form_row(row, context);
	idem_spi_end(&saved);
	return found;
}

static bool
read_now(IdemStore *store, const IdemKey *id, IdemRow *row)
{
	return read_row(&read_plan, id, false, row);
}

static bool
peek(IdemStore *store, const IdemKey *id, IdemRow *row)
{
	return read_row(&read_plan, id, true, row);
}

static bool
lock(IdemStore *store, const IdemKey *id, IdemRow *row)
{
	idem_citus_require_here(id->scope);
	idem_citus_begin(id->scope, id->key);
	return read_row(&lock_plan, id, false, row);
}

static IdemStoreTaken
try_lock(IdemStore *store, const IdemKey *id, IdemRow *row)
{
	idem_citus_require_here(id->scope);
	idem_citus_begin(id->scope, id->key);
	return read_row(&try_lock_plan, id, false, row) ?
		IDEM_STORE_ROW : IDEM_STORE_BUSY;
}

/*
 * Whether there is a row now, though the snapshot of the transaction may be too
 * old to see it.
 */
static bool
is_there(const IdemKey *id)
{
	IdemRow		row;
	bool		found;

	PushActiveSnapshot(idem_spi_latest());
	found = read_row(&read_plan, id, true, &row);
	PopActiveSnapshot();
	return found;
}

/* Whether this very transaction claimed the key. */
static bool
claimed_here(const IdemKey *id)
{
	FullTransactionId mine = GetTopFullTransactionIdIfAny();
	IdemRow		row;

	return FullTransactionIdIsValid(mine) &&
		read_row(&read_plan, id, false, &row) &&
		row.claim_xid == idem_citus_xid(mine);
}

/* The key lock, then the row. */
static bool
hold(IdemStore *store, const IdemKey *id, IdemRow *row)
{
	LOCKTAG		tag;
	bool		locked;

	idem_citus_require_here(id->scope);
	locked = idem_store_lock_key(id, &tag, false);

	/*
	 * A claim that this transaction made in the direct way is without its
	 * lock, and who has that now may be waiting for us: then the row has to
	 * do.  Of a row that an earlier transaction claimed, and this one has
	 * changed in the direct way, nothing tells that: the deadlock detector
	 * ends it, 40P01. Spec: ways-change.
	 */
	if (!locked && !claimed_here(id))
		locked = idem_store_lock_key(id, &tag, true);
	if (lock(store, id, row))
		return true;
	if (IsolationUsesXactSnapshot() && is_there(id))
		idem_store_row_raise_rival();
	if (locked)
		idem_store_unlock_key(&tag);
	return false;
}

/*
 * How many transactions with changes had ended when the snapshot that a
 * statement would use now was taken.  The number grows before an ending
 * transaction gives its locks up.
 */
static uint64
ended_transactions(void)
{
	return GetTransactionSnapshot()->snapXactCompletionCount;
}

static bool
look(IdemStore *store, const IdemKey *id, bool check_new, IdemRow *row)
{
	idem_citus_require_here(id->scope);
	store->locked = false;
	store->absent = false;
	store->ended = ended_transactions();
	return !idem_store_is_new(id) && read_now(store, id, row);
}

/* Whether a key that had no row at the look is worth another look. */
static bool
look_again(const IdemStore *store, const IdemKey *id, bool check_new)
{
	Snapshot	latest;
	bool		may_show;

	if (!check_new)
		return false;

	/*
	 * A rival may have had the lock at our look, and ended before we had it:
	 * then the number of ended transactions has grown, on the node of the
	 * row.
	 */
	if (!idem_citus_is_here(id->scope))
		return true;
	if (!IsolationUsesXactSnapshot())
		return store->ended != ended_transactions();

	/* the snapshot would not show its row, and that is 40001 */
	latest = RegisterSnapshot(GetLatestSnapshot());
	may_show = idem_store_parts_may_show(id, latest);
	UnregisterSnapshot(latest);
	if (may_show && is_there(id))
		idem_store_row_raise_rival();
	return false;
}

/* With the key lock held, take the row, if there is one, FOR UPDATE. */
static IdemStoreTaken
take(IdemStore *store, const IdemKey *id, bool found, bool check_new,
	 IdemRow *row)
{
	/*
	 * For a row that is there, too: a rival would wait for its next version,
	 * where the lock says "busy" at once.
	 */
	if (!store->locked)
		store->locked = idem_store_lock_key(id, &store->tag, false);
	if (!store->locked)
		return IDEM_STORE_BUSY;
	if ((found || look_again(store, id, check_new)) && lock(store, id, row))
		return IDEM_STORE_ROW;
	return IDEM_STORE_NEW;
}

/* A writer in the direct way has no key lock: its row is passed by. */
static IdemStoreTaken
take_row(IdemStore *store, const IdemKey *id, IdemRow *row)
{
	if (!store->locked)
		store->locked = idem_store_lock_key(id, &store->tag, false);
	return store->locked ? try_lock(store, id, row) : IDEM_STORE_BUSY;
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

	idem_citus_require_here(id->scope);
	idem_store_row_values(id, row, values, isnull);
	for (i = 0; i < IDEM_NUM_COLUMNS; i++)
		nulls[i] = isnull[i] ? 'n' : ' ';
	make_statements();
	idem_spi_begin(&saved);
	rows = idem_spi_execute(plan, values, nulls, false, 0);
	idem_spi_end(&saved);
	if (rows > 1)
		idem_store_row_raise_twins(id);
	return rows == 1;
}

/*
 * Insert a row; false when there is one, committed or our own.
 *
 * Waits for a rival that is not behind a key lock.  40001 when the snapshot
 * of the transaction cannot see the row that is in the way.  A row in the way
 * may be gone when we look for it; one that is never seen is XX001.
 */
static bool
insert(IdemStore *store, const IdemKey *id, const IdemRow *row)
{
	int			tries;

	idem_store_require_primary_key();
	for (tries = 0; tries < IDEM_MAX_TRIES; tries++)
	{
		if (write_row(&insert_plan, id, row))
			return true;

		/* what was in the way may be gone by now: an abort, the sweep */
		if (is_there(id))
			return false;
	}
	idem_store_row_raise_suppressed(id);
}

static void
insert_new(IdemStore *store, const IdemKey *id, const IdemRow *row)
{
	if (!insert(store, id, row))
		idem_store_row_raise_rival();
}

static bool
update(IdemStore *store, const IdemKey *id, const IdemRow *row)
{
	return write_row(&update_plan, id, row);
}

static bool
delete(IdemStore *store, const IdemKey *id)
{
	IdemSecctx	saved;
	bool		deleted;

	idem_citus_require_here(id->scope);
	idem_spi_begin(&saved);
	deleted = execute(&delete_plan, id, false);
	idem_spi_end(&saved);
	return deleted;
}

const IdemStoreWay idem_store_sql = {
	.read = read_now,
	.peek = peek,
	.lock = lock,
	.try_lock = try_lock,
	.hold = hold,
	.look = look,
	.take = take,
	.take_row = take_row,
	.insert = insert,
	.insert_new = insert_new,
	.update = update,
	.delete = delete,
	.read_many = idem_sql_read_many,
	.insert_many = idem_sql_insert_many,
	.sweep = idem_sql_sweep
};
