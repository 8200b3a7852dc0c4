/*-------------------------------------------------------------------------
 *
 * sql_sweep.c
 *	  The SQL way to the key table: removing what is due.  The list of leases is
 *	  swept in the same way, always.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "base/catalog.h"
#include "base/citus.h"
#include "base/spi.h"
#include "store/parts.h"
#include "store/sql.h"

/* Places of rows that are kept in memory at a time. */
#define SWEEP_ROOM 10000

static const Oid due_types[] = {TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID};
static const Oid place_types[] = {OIDOID, TIDOID, TIMESTAMPTZOID, TEXTOID};
static const Oid sweep_types[] = {OIDOID, TIDARRAYOID};

/* A table that is swept, and its statements: oldest first. */
typedef struct SweptTable
{
	IdemPlan	due;
	IdemPlan	sweep;			/* a place means something with its table only */
	Oid			table;
	Oid			owner;
} SweptTable;

#define SWEPT_TABLE { \
	{"SELECT tableoid, ctid, purge_at, policy FROM %1$s" \
		" WHERE purge_at >= $1 AND purge_at <= $2 ORDER BY purge_at LIMIT $3", \
	lengthof(due_types), due_types}, \
	{"DELETE FROM %1$s WHERE tableoid = $1 AND ctid = ANY ($2)", \
	lengthof(sweep_types), sweep_types} \
}

static SweptTable swept_keys = SWEPT_TABLE;
static SweptTable swept_leases = SWEPT_TABLE;

/*
 * Lock rows that are due, oldest first, until there are max_rows; how many.
 * What cannot be had without waiting is passed over, so the rows to look at
 * are as many more.
 */
static int
lock_due(SweptTable *swept, TimestampTz low, TimestampTz now, int64 max_rows,
		 IdemPlace *places)
{
	Datum		values[3];
	int64		limit = max_rows;
	int			count;
	uint64		rows;
	uint64		i;

	idem_spi_from(&swept->due, idem_citus_rows(swept->table));
	values[0] = TimestampTzGetDatum(low);
	values[1] = TimestampTzGetDatum(now);
	do
	{
		IdemPart	part = {NULL, NULL};

		values[2] = Int64GetDatum(limit);
		rows = idem_spi_execute(&swept->due, values, NULL, true, 0);
		idem_spi_require_types(place_types, lengthof(place_types));
		count = 0;
		for (i = 0; i < rows && count < max_rows; i++)
		{
			bool		isnull;
			IdemPlace  *place = &places[count];

			place->table = DatumGetObjectId(idem_spi_value(i, 0, &isnull));
			place->tid = *(ItemPointer)
				DatumGetPointer(idem_spi_value(i, 1, &isnull));
			place->purge_at =
				DatumGetTimestampTz(idem_spi_value(i, 2, &isnull));
			place->policy = idem_spi_value(i, 3, &place->is_default);
			if (idem_store_parts_lock_row(place, &part))
				count++;
		}
		idem_store_parts_close(&part);
		/* so many were passed over: look at more, or the oldest hide the rest */
		limit *= 2;
	} while (count < max_rows && (int64) rows * 2 == limit);
	return count;
}

/* Remove the rows at these places, all of one table; how many. */
static int64
delete_places(SweptTable *swept, const IdemPlace *places, int number,
			  IdemSweepMark *mark, IdemSweepCount count)
{
	Datum		values[2];
	IdemSweptRun run = {count};
	TimestampTz last = mark->purge_at;
	int			rows;
	int			i;

	/* a shard is no part of its table that a statement could be told */
	idem_spi_from(&swept->sweep,
				  psprintf("%s.%s", idem_catalog()->schema,
						   get_rel_name(idem_citus_is_used() ?
										places[0].table : swept->table)));
	values[0] = ObjectIdGetDatum(places[0].table);
	values[1] = idem_store_parts_array(places, number);
	rows = (int) idem_spi_execute(&swept->sweep, values, NULL, false, 0);
	/* all of them, unless a trigger of somebody's has kept one */
	for (i = 0; i < rows; i++)
	{
		idem_store_swept(&run, places[i].policy, places[i].is_default);
		last = Max(last, places[i].purge_at);
	}
	idem_store_swept_end(&run);

	/* a place alone, of which table not being said, is none to go on from */
	*mark = idem_store_sweep_from(last);
	return rows;
}

/* Remove so many rows at the most; how many. */
static int64
sweep_some(SweptTable *swept, IdemSweepMark *mark, TimestampTz now, int max_rows,
		   IdemPlace *places, IdemSweepCount count)
{
	IdemSecctx	saved;
	int			locked;
	int			begin = 0;
	int			i;
	int64		rows = 0;

	idem_spi_begin_as(&saved, swept->owner);
	/* keeps places from being used anew until their rows are locked */
	PushActiveSnapshot(GetTransactionSnapshot());
	locked = lock_due(swept, mark->purge_at, now, max_rows, places);
	PopActiveSnapshot();
	qsort(places, locked, sizeof(IdemPlace), idem_store_parts_compare);
	for (i = 1; i <= locked; i++)
	{
		if (i < locked && places[i].table == places[begin].table)
			continue;
		/* one statement for each table: a ctid means nothing without it */
		rows += delete_places(swept, &places[begin], i - begin, mark, count);
		begin = i;
	}
	idem_spi_end(&saved);
	return rows;
}

/*
 * Remove up to max_rows rows, oldest first; how many.
 *
 * Rows are locked one by one, without waiting, before a statement removes
 * them: FOR UPDATE SKIP LOCKED can wait after all, for the next version of a
 * row whose update commits while it looks (heap_lock_updated_tuple), and was
 * seen in a deadlock with idem_dedupe.  Spec: sweep-changed; t/018, t/026.
 */
static int64
sweep(SweptTable *swept, IdemSweepMark *mark, TimestampTz now, int64 max_rows,
	  IdemSweepCount count)
{
	int			room = (int) Min(max_rows, SWEEP_ROOM);
	IdemPlace  *places;
	int64		rows = 0;
	int64		wanted;
	int64		some;

	if (!idem_store_parts_lock(swept->table))
		return 0;
	places = palloc(sizeof(IdemPlace) * room);
	do
	{
		wanted = Min(max_rows - rows, room);
		some = sweep_some(swept, mark, now, (int) wanted, places, count);
		rows += some;
	} while (some == wanted && rows < max_rows);
	pfree(places);
	return rows;
}

/*
 * idem_sql_sweep
 *		idem_store_sweep in the SQL way.
 */
int64
idem_sql_sweep(IdemStore *store, IdemSweepMark *mark, TimestampTz now,
			   int64 max_rows, IdemSweepCount count)
{
	swept_keys.table = idem_catalog()->keys;
	swept_keys.owner = idem_catalog()->owner;
	return sweep(&swept_keys, mark, now, max_rows, count);
}

static void
count_nothing(const text *policy, int64 rows)
{
}

/*
 * idem_store_sweep_leases
 *		Remove up to so many entries of the list of leases that are past their
 *		time; waits for nobody.
 */
void
idem_store_sweep_leases(TimestampTz now, int64 max_rows)
{
	IdemSweepMark mark = idem_store_sweep_from(DT_NOBEGIN);

	swept_leases.table = idem_catalog()->leases;
	swept_leases.owner = idem_catalog()->leases_owner;
	(void) sweep(&swept_leases, &mark, now, max_rows, count_nothing);
}
