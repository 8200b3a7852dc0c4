/*-------------------------------------------------------------------------
 *
 * chain.c
 *	  The seals of the audit log.
 *
 * Owns the statements on idempotency_audit_seals, and the snapshot, the user
 * and the settings with which log and seals are read between begin and end.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "storage/lmgr.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "audit/chain.h"
#include "audit/guard.h"
#include "audit/log.h"
#include "base/catalog.h"
#include "base/spi.h"

/* Read at once, with equal ones: who drops a primary key hides nothing. */
#define CHUNK_ROWS 1000

const Oid	idem_chain_types[IDEM_SEAL_COLUMNS] = {
	INT8OID, CHAROID, TIMESTAMPTZOID, INT8OID, INT8OID, XID8OID, XID8OID,
	TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID,
	XID8OID, INT8OID, BOOLOID, INT8OID, BYTEAOID, INT8MULTIRANGEOID, BYTEAOID,
	INT4OID, BYTEAOID, BYTEAOID
};

#define SEAL_LIST \
	"segment, kind, sealed_at, id_from, id_to, xid_from, xid_to, at_from," \
	" at_to, first_at, last_at, next_id, next_xid, origin, closed, rows," \
	" rows_sha256, pruned, previous, key_id, seal, hmac"

static const Oid cell_types[] = {
	TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, XID8OID, XID8OID
};
static const Oid xid_types[] = {XID8OID, INT8OID};
static const Oid id_types[] = {INT8OID};
static const Oid each_types[] = {INT8OID, INT8OID};
static IdemPlan horizon_plan = {
	"SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())"
};
static IdemPlan old_plan = {
	"SELECT max(id_to), max(xid_to) FILTER (WHERE segment = newest),"
	" max(origin) FROM (SELECT id_to, xid_to, origin, segment,"
	" max(segment) OVER () AS newest"
	" FROM %1$s.idempotency_audit_seals WHERE kind = 's' AND origin < $1) o",
	lengthof(id_types), id_types
};
static IdemPlan last_plan = {
	"SELECT xid_from, xid_to, closed FROM %1$s.idempotency_audit_seals"
	" WHERE kind = 's' AND origin >= $1 AND xid_to IS NOT NULL"
	" ORDER BY segment DESC", lengthof(id_types), id_types
};
static IdemPlan low_plan = {
	"SELECT max(next_id) FROM %1$s.idempotency_audit_seals"
	" WHERE kind = 's' AND next_xid <= $1 AND origin >= $2",
	lengthof(xid_types), xid_types
};
static IdemPlan given_plan = {
	"SELECT max(next_id) FROM %1$s.idempotency_audit_seals"
};
static IdemPlan reached_plan = {
	"SELECT max(id_to) FILTER (WHERE origin >= $3 AND xid_from = $4"
	" AND COALESCE(xid_to, '0') = $5), max(id_to) FILTER (WHERE origin < $3)"
	" FROM %1$s.idempotency_audit_seals"
	" WHERE kind = 's' AND at_from < $2 AND at_to > $1",
	lengthof(cell_types), cell_types
};
static IdemPlan newest_plan = {
	"SELECT segment, seal FROM %1$s.idempotency_audit_seals"
	" ORDER BY segment DESC"
};
static IdemPlan each_plan = {
	"SELECT " SEAL_LIST ", EXISTS (SELECT FROM %1$s.idempotency_audit_seals p"
	" WHERE p.kind = 'p' AND p.segment > s.segment AND p.pruned @> s.segment)"
	" FROM %1$s.idempotency_audit_seals s WHERE segment > $1"
	" ORDER BY segment FETCH FIRST $2 ROWS WITH TIES",
	lengthof(each_types), each_types
};
static IdemPlan add_plan = {
	"INSERT INTO %1$s.idempotency_audit_seals (" SEAL_LIST ") VALUES ($1, $2,"
	" $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17,"
	" $18, $19, $20, $21, $22)", IDEM_SEAL_COLUMNS, idem_chain_types
};

/*
 * idem_chain_begin, idem_chain_end
 *		Around all that follows.  Returns the last id taken before the
 *		snapshot.
 */
int64
idem_chain_begin(IdemSecctx *saved)
{
	int64		next_id;

	/* what is hashed is text: as COPY of an export is to have it, too */
	idem_spi_begin_as(saved, idem_catalog()->seals_owner);
	idem_secctx_set("timezone", "UTC");
	idem_secctx_set("datestyle", "ISO, YMD");
	idem_secctx_set("bytea_output", "hex");

	/*
	 * The last id first, and after it what tells which transactions had begun
	 * (idem_chain_horizon): whoever begins later takes greater ids.  The
	 * latest snapshot at any isolation level, to see what the last sealer has
	 * committed.
	 */
	next_id = idem_audit_last_id();
	PushActiveSnapshot(GetLatestSnapshot());
	return next_id;
}

void
idem_chain_end(const IdemSecctx *saved)
{
	PopActiveSnapshot();
	idem_spi_end(saved);
}

/*
 * idem_chain_lock
 *		Be the only one who adds to the chain, to the end of the transaction;
 *		false when somebody else is and we do not wait.  To be called before
 *		idem_chain_begin(): the snapshot must see what was added.  55000 when
 *		log and seals have not one owner.
 */
bool
idem_chain_lock(bool wait)
{
	Oid			seals = idem_catalog()->audit_seals;

	/*
	 * What the owner of the one table has put on it would else run as the
	 * owner of the other (t/033_audit_roles.pl).
	 */
	if (idem_catalog()->audit_owner != idem_catalog()->seals_owner)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("\"%s\" and \"%s\" have different owners",
						"idempotency_audit_log", "idempotency_audit_seals"),
				 errhint("Give both to the superuser that owned them.")));

	/*
	 * The mode is in conflict with itself: there is one sealer at a time.
	 * Readers and writers of the log go on.
	 */
	if (!wait)
		return ConditionalLockRelationOid(seals, ShareRowExclusiveLock);
	LockRelationOid(seals, ShareRowExclusiveLock);
	return true;
}

static uint64
get_xid(int column)
{
	bool		isnull;
	Datum		value = idem_spi_value(0, column, &isnull);

	return isnull ? 0 : idem_chain_xid(value);
}

/*
 * idem_chain_horizon
 *		Transactions before "ended" have ended; none from "next" on had begun
 *		when the last id was read.
 */
void
idem_chain_horizon(uint64 *ended, uint64 *next)
{
	(void) idem_spi_execute(&horizon_plan, NULL, NULL, true, 1);
	*ended = get_xid(0);

	/*
	 * Not the snapshot's xmax: that comes after the last transaction that has
	 * ended, and others run beyond it and have taken ids.
	 */
	*next = U64FromFullTransactionId(ReadNextFullTransactionId());
}

/*
 * idem_chain_head
 *		How far the chain has come.
 */
void
idem_chain_head(IdemSealHead *head)
{
	Datum		origin;

	memset(head, 0, sizeof(*head));
	head->origin = idem_audit_origin();

	/* before there is an origin, all seals are of another cluster */
	origin = Int64GetDatum(head->origin != 0 ? head->origin : PG_INT64_MAX);
	if (idem_spi_execute(&old_plan, &origin, NULL, true, 1) > 0)
	{
		head->old_id = idem_spi_number(0);
		head->old_xid = get_xid(1);
		head->old_origin = idem_spi_number(2);
	}

	/*
	 * A seal of restored rows has no xid_to: it does not say how far the
	 * transactions of this cluster are sealed.
	 */
	if (idem_spi_execute(&last_plan, &origin, NULL, true, 1) > 0)
	{
		bool		isnull;

		head->xid_from = get_xid(0);
		head->xid_to = get_xid(1);
		head->closed = DatumGetBool(idem_spi_value(0, 2, &isnull));
	}
}

/*
 * idem_chain_low_id
 *		No transaction from xid on has taken this id or a smaller one: what a
 *		seal says that was made before they began (see take_id() of log.c).
 */
int64
idem_chain_low_id(const IdemSealHead *head, uint64 xid)
{
	Datum		values[] = {idem_chain_xid_datum(xid),
	Int64GetDatum(head->origin)};

	/* where no seal is that old: from the first id of this cluster on */
	return Max(idem_spi_fetch_number(&low_plan, values), head->origin - 1);
}

/*
 * idem_chain_set_back
 *		Whether ids that were given are given again: somebody has set the
 *		sequence back, and rows with such ids are looked for in no segment.
 */
bool
idem_chain_set_back(void)
{
	int64		given = idem_spi_fetch_number(&given_plan, NULL);

	/* a sequence is not transactional: its value is the latest of all */
	return idem_audit_last_id() < given;
}

/*
 * idem_chain_reached
 *		Up to which id the rows of these transactions at this time are sealed,
 *		and up to which those of this time in another cluster; 0: not begun.
 */
int64
idem_chain_reached(const IdemSealHead *head, const IdemSealRange *range,
				   int64 *before)
{
	Datum		values[lengthof(cell_types)];

	values[0] = TimestampTzGetDatum(range->at_from);
	values[1] = TimestampTzGetDatum(range->at_to);
	values[2] = Int64GetDatum(head->origin);
	values[3] = idem_chain_xid_datum(range->xid_from);
	values[4] = idem_chain_xid_datum(range->xid_to);
	(void) idem_spi_execute(&reached_plan, values, NULL, true, 1);
	*before = idem_spi_number(1);
	return idem_spi_number(0);
}

static void
copy_seal(int row, IdemSeal *seal)
{
	bool		isnull;
	int			i;

	for (i = 0; i < IDEM_SEAL_COLUMNS; i++)
	{
		seal->values[i] = idem_spi_value(row, i, &seal->nulls[i]);
		if (!seal->nulls[i])
			seal->values[i] = datumCopy(seal->values[i],
										get_typbyval(idem_chain_types[i]),
										get_typlen(idem_chain_types[i]));
	}
	seal->was_pruned = DatumGetBool(idem_spi_value(row, IDEM_SEAL_COLUMNS,
												   &isnull));
}

/*
 * idem_chain_copy
 *		The 32 bytes of a column of a seal, or what there is of them.
 */
void
idem_chain_copy(Datum column, uint8 *digest)
{
	bytea	   *value = DatumGetByteaPP(column);

	memset(digest, 0, IDEM_DIGEST_BYTES);
	memcpy(digest, VARDATA_ANY(value),
		   Min(VARSIZE_ANY_EXHDR(value), IDEM_DIGEST_BYTES));
}

/*
 * idem_chain_is
 *		Whether a column is these 32 bytes.
 */
bool
idem_chain_is(const IdemSeal *seal, IdemSealColumn column,
			  const uint8 *digest)
{
	bytea	   *value;

	if (seal->nulls[column])
		return false;

	/* whoever changed a seal may have made it shorter */
	value = DatumGetByteaPP(seal->values[column]);
	return VARSIZE_ANY_EXHDR(value) == IDEM_DIGEST_BYTES &&
		memcmp(VARDATA_ANY(value), digest, IDEM_DIGEST_BYTES) == 0;
}

/*
 * idem_chain_last
 *		The head of the chain.
 */
void
idem_chain_last(IdemSealLast *last)
{
	bool		isnull;

	memset(last, 0, sizeof(*last));
	if (idem_spi_execute(&newest_plan, NULL, NULL, true, 1) == 0)
		return;
	last->segment = idem_spi_number(0);
	idem_chain_copy(idem_spi_value(0, 1, &isnull), last->seal);
}

/*
 * idem_chain_each
 *		All seals in their order, to a sink that may use this room.
 */
void
idem_chain_each(IdemSealSink sink, void *arg)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "idempotency seals",
												  ALLOCSET_DEFAULT_SIZES);
	int64		after = PG_INT64_MIN;
	uint64		count;

	do
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		Datum		values[] = {Int64GetDatum(after),
		Int64GetDatum(CHUNK_ROWS)};
		IdemSeal   *seals;
		uint64		i;

		count = idem_spi_execute(&each_plan, values, NULL, true, 0);
		seals = palloc0(sizeof(IdemSeal) * (count + 1));

		/* copies: the sink executes statements of its own */
		for (i = 0; i < count; i++)
			copy_seal(i, &seals[i]);
		SPI_freetuptable(SPI_tuptable);

		/* in the caller's context: what a sink keeps outlives the chunk */
		MemoryContextSwitchTo(old);
		for (i = 0; i < count; i++)
			sink(arg, &seals[i]);

		/* the chunk has all seals of its last number (t/032_audit_seals.pl) */
		if (count > 0)
			after = DatumGetInt64(seals[count - 1].values[SEAL_SEGMENT]);
		MemoryContextReset(context);
	} while (count > 0);
	MemoryContextDelete(context);
}

/*
 * idem_chain_add
 *		Add to the chain, whose lock must be held.
 */
void
idem_chain_add(const IdemSeal *seal)
{
	char		nulls[IDEM_SEAL_COLUMNS];
	int			i;

	for (i = 0; i < IDEM_SEAL_COLUMNS; i++)
		nulls[i] = seal->nulls[i] ? 'n' : ' ';

	/* a trigger that returns null, or a rule, would lose it without a word */
	if (idem_guard_change(&add_plan, (Datum *) seal->values, nulls) != 1)
	{
		/* a plan that a rule has left empty is invalidated by nothing */
		add_plan.generation = 0;
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a seal of the audit log was suppressed"),
				 errhint("Drop foreign triggers and rules on \"%s\"; see idem_health().",
						 "idempotency_audit_seals")));
	}
}
