/*-------------------------------------------------------------------------
 *
 * seal.c
 *	  Sealing the audit log.
 *
 * Owns which rows are sealed when, in segments of which size, and which are
 * removed again (README, "Sealing").
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "utils/fmgroids.h"
#include "utils/timestamp.h"

#include "audit/cell.h"
#include "audit/chain.h"
#include "audit/log.h"
#include "audit/partition.h"
#include "audit/seal.h"
#include "base/args.h"
#include "base/compat.h"
#include "base/hmac.h"
#include "idem.h"

#define SEGMENT_ROWS	10000

/* A step of sealing. */
typedef struct SealStep
{
	IdemSealLast chain;
	IdemSealHead head;
	int64		next_id;		/* as in the table */
	uint64		next_xid;
	int64		budget;			/* rows that may yet be sealed, or more of a
								 * segment */
	int64		sealed;
	bool		pending;		/* a segment, complete but for "closed": */
	IdemSealRange range;
	IdemSealRows rows;
} SealStep;

static Datum
digest_datum(const uint8 *digest)
{
	bytea	   *value = palloc(VARHDRSZ + IDEM_DIGEST_BYTES);

	SET_VARSIZE(value, VARHDRSZ + IDEM_DIGEST_BYTES);
	memcpy(VARDATA(value), digest, IDEM_DIGEST_BYTES);
	return PointerGetDatum(value);
}

static void
set_column(IdemSeal *seal, IdemSealColumn column, Datum value)
{
	seal->values[column] = value;
	seal->nulls[column] = false;
}

static void
set_xid(IdemSeal *seal, IdemSealColumn column, uint64 xid)
{
	set_column(seal, column, idem_chain_xid_datum(xid));
}

/* A seal with nothing in it yet. */
static void
init_seal(IdemSeal *seal, char kind, int64 rows)
{
	memset(seal, 0, sizeof(*seal));
	memset(seal->nulls, true, sizeof(seal->nulls));
	set_column(seal, SEAL_KIND, CharGetDatum(kind));
	set_column(seal, SEAL_ROWS, Int64GetDatum(rows));
}

/* Put it behind the last seal of the chain, whose lock is held. */
static void
add_seal(IdemSealLast *chain, IdemSeal *seal)
{
	IdemSecret	secret;
	bool		signs = idem_secret_live(IDEM_PURPOSE_AUDIT, &secret, 1) > 0;

	set_column(seal, SEAL_PREVIOUS, digest_datum(chain->seal));
	chain->segment++;
	set_column(seal, SEAL_SEGMENT, Int64GetDatum(chain->segment));
	set_column(seal, SEAL_SEALED_AT,
			   TimestampTzGetDatum(GetCurrentTimestamp()));

	/* the HMAC is over the seal, which is over the key id */
	if (signs)
		set_column(seal, SEAL_KEY_ID, Int32GetDatum(secret.key_id));
	idem_sealed_digest(seal, chain->seal);
	set_column(seal, SEAL_SEAL, digest_datum(chain->seal));
	if (signs)
		set_column(seal, SEAL_HMAC,
				   PointerGetDatum(idem_hmac(chain->seal, IDEM_DIGEST_BYTES,
											 secret.secret, IDEM_HMAC_SEAL)));
	idem_chain_add(seal);
}

/* Seal the segment that is waiting for it. */
static void
flush_segment(SealStep *step, bool closed)
{
	IdemSeal	seal;

	if (!step->pending)
		return;
	init_seal(&seal, IDEM_SEAL_ROWS, step->rows.count);
	set_column(&seal, SEAL_ID_FROM, Int64GetDatum(step->range.id_from));
	set_column(&seal, SEAL_ID_TO, Int64GetDatum(step->rows.last_id));
	set_xid(&seal, SEAL_XID_FROM, step->range.xid_from);
	if (step->range.xid_to != 0)
		set_xid(&seal, SEAL_XID_TO, step->range.xid_to);
	set_column(&seal, SEAL_AT_FROM, TimestampTzGetDatum(step->range.at_from));
	set_column(&seal, SEAL_AT_TO, TimestampTzGetDatum(step->range.at_to));
	set_column(&seal, SEAL_FIRST_AT, TimestampTzGetDatum(step->rows.first_at));
	set_column(&seal, SEAL_LAST_AT, TimestampTzGetDatum(step->rows.last_at));
	set_column(&seal, SEAL_NEXT_ID, Int64GetDatum(step->next_id));
	set_xid(&seal, SEAL_NEXT_XID, step->next_xid);
	set_column(&seal, SEAL_ORIGIN, Int64GetDatum(step->head.origin));
	set_column(&seal, SEAL_CLOSED, BoolGetDatum(closed));
	set_column(&seal, SEAL_ROWS_SHA256, digest_datum(step->rows.sha256));
	add_seal(&step->chain, &seal);
	step->sealed += step->rows.count;
	step->budget -= step->rows.count;
	step->pending = false;
}

/*
 * Seal the rows of a range, all in one partition, segment by segment; false
 * when the budget is used up and there are more.  The last segment waits.
 */
static bool
seal_cell(SealStep *step, IdemSealRange range)
{
	IdemSealRows rows;
	int64		limit;

	do
	{
		/*
		 * The last segment waits until it is known whether anything follows:
		 * it says whether these transactions are done with ("closed").
		 */
		limit = step->budget - (step->pending ? step->rows.count : 0);
		if (limit <= 0)
			return !idem_sealed_exists(&range);
		limit = Min(limit, SEGMENT_ROWS);
		idem_sealed_hash(&range, limit, &rows);
		if (rows.count == 0)
			break;
		flush_segment(step, false);
		step->pending = true;
		step->range = range;
		step->rows = rows;
		range.id_from = rows.last_id;
	} while (rows.count >= limit);
	return true;
}

/* A bound of its own in each partition: what another cluster had sealed. */
typedef enum SealBound
{
	BOUND_NONE,
	BOUND_UP_TO_BEFORE,
	BOUND_AFTER_BEFORE
} SealBound;

/*
 * Seal the rows of some transactions in all partitions: from id_from, or where
 * an earlier step left off, to id_to.
 */
static bool
seal_range(SealStep *step, IdemSealRange range, SealBound bound)
{
	int			number;
	IdemCell   *cells = idem_cell_list(&number);
	int			i;

	for (i = 0; i < number; i++)
	{
		IdemSealRange cell = range;
		int64		before;
		int64		reached;

		cell.at_from = cells[i].from;
		cell.at_to = cells[i].to;

		/* an earlier batch may have ended in the middle of these cells */
		reached = idem_chain_reached(&step->head, &cell, &before);
		cell.id_from = Max(cell.id_from, reached);
		if (bound == BOUND_UP_TO_BEFORE)
			cell.id_to = Min(cell.id_to, before);
		else if (bound == BOUND_AFTER_BEFORE)
			cell.id_from = Max(cell.id_from, before);
		if (cell.id_from < cell.id_to && !seal_cell(step, cell))
			return false;
	}
	return true;
}

/*
 * The rows that came with a restore, as far as they are not sealed.  Those
 * with ids before the origin of the cluster that sealed last came to it in the
 * same way: it has sealed them, and their transactions are of yet another one.
 */
static bool
seal_restored(SealStep *step)
{
	IdemSealRange range = {0, step->head.origin - 1};

	if (step->head.origin <= 1)
		return true;
	if (step->head.old_xid != 0)
	{
		range.id_from = step->head.old_origin - 1;
		range.xid_from = step->head.old_xid;
		if (!seal_range(step, range, BOUND_UP_TO_BEFORE))
			return false;
	}
	range.id_from = 0;
	range.xid_from = 0;
	return seal_range(step, range, BOUND_AFTER_BEFORE);
}

/* The rows of transactions that have ended, [from, to). */
static bool
seal_ended(SealStep *step, uint64 from, uint64 to)
{
	IdemSealRange range = {0};
	bool		complete;

	/*
	 * All these transactions have ended: nobody can add a row that would
	 * belong beside theirs.  Writers take no lock for that and wait for
	 * nobody: one that commits late has a later transaction id than the
	 * range, whatever the ids of its rows (t/034_audit_sealing.pl).
	 */
	range.id_from = idem_chain_low_id(&step->head, from);
	range.id_to = idem_audit_last_id();
	range.xid_from = from;
	range.xid_to = to;
	range.at_from = DT_NOBEGIN;
	range.at_to = DT_NOEND;

	/*
	 * A batch of fewer transactions, so that each of them is whole.  Half of
	 * the budget, since the bound takes in later rows of theirs, too.
	 */
	if (to != step->head.xid_to && step->budget < PG_INT64_MAX)
		range.xid_to = idem_sealed_bound(&range, step->budget / 2);
	complete = seal_range(step, range, BOUND_NONE);
	flush_segment(step, complete);
	return complete && range.xid_to == to;
}

/*
 * Seal what can be sealed, up to some rows; how many were.  The lock must be
 * held.
 */
static int64
seal_rows(int64 budget, bool *more)
{
	IdemSecctx	saved;
	SealStep	step;
	uint64		ended;
	bool		complete;

	memset(&step, 0, sizeof(step));
	step.next_id = idem_chain_begin(&saved);

	/* rows with ids that were given before would be in no segment */
	if (idem_chain_set_back())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("sequence \"%s\" was set back",
						"idempotency_audit_log_id_seq"),
				 errhint("As a superuser, set it to the greatest \"next_id\" of \"%s\" at least.",
						 "idempotency_audit_seals")));
	idem_chain_last(&step.chain);
	step.budget = budget;
	idem_chain_horizon(&ended, &step.next_xid);
	idem_chain_head(&step.head);
	complete = step.head.origin == 0 || seal_restored(&step);
	flush_segment(&step, complete);
	if (complete && step.head.origin != 0)
	{
		/* one transaction wrote more than a batch: go on with it */
		if (!step.head.closed && step.head.xid_to != 0)
			complete = seal_ended(&step, step.head.xid_from, step.head.xid_to);
		if (complete && step.head.xid_to < ended)
			complete = seal_ended(&step, step.head.xid_to, ended);
	}
	idem_chain_end(&saved);
	*more = !complete;
	return step.sealed;
}

IDEM_FUNCTION(idem_audit_seal);

/*
 * idem_audit_seal() RETURNS bigint
 *		Seal the rows of all transactions before the oldest that runs; how
 *		many.  Outside a transaction block, see to the next partition, too;
 *		with a warning if that fails.
 *
 * Raises 25006; 55000 when there is a secret and pgcrypto is missing, or the
 * sequence was set back.  Waits for another sealer; holds SHARE ROW EXCLUSIVE
 * on the seals to the end of the transaction.
 */
Datum
idem_audit_seal(PG_FUNCTION_ARGS)
{
	IdemSecctx	saved;
	int64		sealed;
	bool		more;

	idem_args_require_writable();
	idem_chain_lock(true);

	/* with a snapshot of its own: sealing is to see the origin */
	(void) idem_chain_begin(&saved);
	idem_audit_adopt();
	idem_chain_end(&saved);
	sealed = seal_rows(PG_INT64_MAX, &more);

	/* else its locks would be held until the caller commits */
	if (!IsTransactionBlock())
		idem_partition_try();
	PG_RETURN_INT64(sealed);
}

/*
 * idem_seal_batch
 *		For the worker: seal up to some rows; true when there are more.
 */
bool
idem_seal_batch(int64 rows)
{
	bool		more = false;

	/* it waits for nobody, and seals nothing while a restore goes on */
	if (!idem_audit_begun() ||
		!idem_partition_lock(AccessShareLock) ||
		!idem_chain_lock(false))
		return false;
	(void) seal_rows(rows, &more);
	return more;
}

/*
 * idem_seal_key
 *		Put the newest secret into the chain.
 */
void
idem_seal_key(void)
{
	IdemSecctx	saved;
	IdemSealLast chain;
	IdemSeal	seal;

	idem_chain_lock(true);
	(void) idem_chain_begin(&saved);
	idem_chain_last(&chain);
	init_seal(&seal, IDEM_SEAL_KEY, 0);
	add_seal(&chain, &seal);
	idem_chain_end(&saved);
}

/* Sealed segments that are to go. */
typedef struct Pruning
{
	TimestampTz before;
	List	   *segments;		/* of PrunedSegment, in their order */
	int64		rows;
} Pruning;

typedef struct PrunedSegment
{
	int64		segment;
	int64		rows;
	IdemSealRange range;
} PrunedSegment;

static void
collect_segment(void *arg, const IdemSeal *seal)
{
	Pruning    *pruning = arg;
	PrunedSegment *segment;
	IdemSealRange range;
	IdemSealRows rows;

	if (seal->was_pruned || !idem_sealed_range(seal, &range) ||
		DatumGetTimestampTz(seal->values[SEAL_LAST_AT]) >= pruning->before)
		return;
	segment = palloc0(sizeof(PrunedSegment));
	segment->range = range;
	segment->segment = DatumGetInt64(seal->values[SEAL_SEGMENT]);

	/* what was tampered with is evidence, and stays */
	idem_sealed_hash(&segment->range, PG_INT64_MAX, &rows);
	if (!idem_chain_is(seal, SEAL_ROWS_SHA256, rows.sha256))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("segment %lld of the audit log is not as it was sealed",
						(long long) segment->segment),
				 errhint("Look into it first: SELECT * FROM idem_audit_verify().")));
	segment->rows = rows.count;
	pruning->rows += rows.count;
	pruning->segments = lappend(pruning->segments, segment);
}

/* Drop the partition of a stretch of time, if all of its rows are to go. */
static void
prune_cell(Pruning *pruning, const IdemCell *cell)
{
	int64		rows = 0;
	ListCell   *lc;

	/* never the one that is written to now, whatever "before" is */
	if (cell->to > pruning->before || cell->to > GetCurrentTimestamp())
		return;
	foreach(lc, pruning->segments)
	{
		PrunedSegment *segment = lfirst(lc);

		if (segment->range.at_from == cell->from &&
			segment->range.at_to == cell->to)
			rows += segment->rows;
	}

	/* rows that are not sealed yet, or not old enough, keep the partition */
	if (idem_partition_rows(cell) == rows)
		idem_partition_drop(cell);
}

/* What was removed, for the chain. */
static void
seal_pruning(const Pruning *pruning)
{
	StringInfoData ranges;
	ListCell   *lc;
	IdemSealLast chain;
	IdemSeal	seal;

	initStringInfo(&ranges);
	foreach(lc, pruning->segments)
	{
		PrunedSegment *segment = lfirst(lc);

		appendStringInfo(&ranges, "%s[" INT64_FORMAT "," INT64_FORMAT "]",
						 ranges.len == 0 ? "{" : ",", segment->segment,
						 segment->segment);
	}
	appendStringInfoChar(&ranges, '}');
	init_seal(&seal, IDEM_SEAL_PRUNED, pruning->rows);
	set_column(&seal, SEAL_PRUNED,
			   OidInputFunctionCall(F_MULTIRANGE_IN, ranges.data,
									INT8MULTIRANGEOID, -1));
	idem_chain_last(&chain);
	add_seal(&chain, &seal);
}

IDEM_FUNCTION(idem_audit_prune);

/*
 * idem_audit_prune(before timestamptz) RETURNS bigint
 *		Remove the segments whose rows are all older; how many rows.  The
 *		seals stay, and say so.
 *
 * A partition of which nothing is left is dropped, unless somebody uses the
 * log at this moment: then its rows are removed.  Raises 22004, 25006, and
 * 55000 for a segment that is not as it was sealed.  Holds SHARE ROW EXCLUSIVE
 * on the seals to the end of the transaction, and ACCESS EXCLUSIVE on the log
 * if it has dropped a partition.
 */
Datum
idem_audit_prune(PG_FUNCTION_ARGS)
{
	IdemSecctx	saved;
	Pruning		pruning = {0};
	IdemCell   *cells;
	int			number;
	ListCell   *lc;
	int			i;

	idem_args_require(fcinfo, 0, "before");
	idem_args_require_writable();
	pruning.before = PG_GETARG_TIMESTAMPTZ(0);
	idem_chain_lock(true);
	(void) idem_chain_begin(&saved);
	idem_chain_each(collect_segment, &pruning);

	/* whole partitions first; what they do not remove is deleted */
	cells = idem_cell_list(&number);
	for (i = 0; i < number; i++)
		prune_cell(&pruning, &cells[i]);
	foreach(lc, pruning.segments)
		idem_sealed_remove(&((PrunedSegment *) lfirst(lc))->range);
	if (pruning.segments != NIL)
		seal_pruning(&pruning);
	idem_chain_end(&saved);
	PG_RETURN_INT64(pruning.rows);
}
