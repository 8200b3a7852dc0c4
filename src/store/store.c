/*-------------------------------------------------------------------------
 *
 * store.c
 *	  The one door to a row of the key table.
 *
 * Behind it are two ways: SQL (sql.c), right for every kind of
 * table, and direct (direct.c), where the table is as it was
 * created (whitelist.c).  Both keep to the same rules, so sessions that
 * take different ways agree on every key, and one may change its way in the
 * middle of a transaction:
 *
 *	- Only the unique index makes a key one.
 *	- An existing row is changed by who has locked it FOR UPDATE.
 *	- A key without a row is claimed under its key lock.
 *
 * What differs is when the key lock is given back.  In the SQL way a rival
 * that finds an uncommitted row would have to wait for it, so the lock is kept
 * to the end of the transaction, and taken for existing rows, too: it says
 * "busy" at once.  In the direct way a row says that itself.
 *
 * Statements on many keys of a scope (idem_dedupe, counting) are SQL in both.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "storage/lmgr.h"
#include "utils/snapmgr.h"

#include "base/catalog.h"
#include "base/spi.h"
#include "store/direct.h"
#include "store/parts.h"
#include "store/row.h"
#include "store/sql.h"
#include "store/store.h"

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

/*
 * idem_store_read
 *		Read a row as it is now, where the isolation level lets us; no lock.
 */
bool
idem_store_read(const IdemKey *id, IdemRow *row)
{
	IdemDirect	direct;
	bool		found;

	if (!idem_store_direct_open(&direct, AccessShareLock))
		return idem_store_sql_read(id, row);
	found = idem_store_direct_read(&direct, id, row);
	idem_store_direct_close(&direct);
	return found;
}

/*
 * idem_store_peek
 *		Read a row as the calling statement sees it; works in recovery.
 */
bool
idem_store_peek(const IdemKey *id, IdemRow *row)
{
	IdemDirect	direct;
	bool		found;

	if (!idem_store_direct_open(&direct, AccessShareLock))
		return idem_store_sql_peek(id, row);
	found = idem_store_direct_peek(&direct, id, row);
	idem_store_direct_close(&direct);
	return found;
}

/*
 * idem_store_lock
 *		Read a row FOR UPDATE, waiting for it; false when there is none.  40001
 *		when the snapshot of the transaction is older than its last change.
 */
bool
idem_store_lock(const IdemKey *id, IdemRow *row)
{
	IdemDirect	direct;
	IdemDirectLocked locked;

	if (!idem_store_direct_open(&direct, RowShareLock))
		return idem_store_sql_lock(id, row);
	locked = idem_store_direct_lock(&direct, id, true, row);
	idem_store_direct_close(&direct);
	return locked == IDEM_DIRECT_LOCKED;
}

/*
 * idem_store_try_lock
 *		The same without waiting: the row is locked, there is none, or it is
 *		BUSY.  In the SQL way, where an insertion could wait, none is BUSY, too.
 */
IdemStoreTaken
idem_store_try_lock(const IdemKey *id, IdemRow *row)
{
	IdemDirect	direct;
	IdemDirectLocked locked;

	if (!idem_store_direct_open(&direct, RowShareLock))
		return idem_store_sql_try_lock(id, row) ?
			IDEM_STORE_ROW : IDEM_STORE_BUSY;
	locked = idem_store_direct_lock(&direct, id, false, row);
	idem_store_direct_close(&direct);
	return locked == IDEM_DIRECT_LOCKED ? IDEM_STORE_ROW :
		locked == IDEM_DIRECT_BUSY ? IDEM_STORE_BUSY : IDEM_STORE_NEW;
}

/*
 * idem_store_try_insert
 *		Insert a row where there was none, without a key lock and without
 *		waiting; false when another transaction has the key.
 */
bool
idem_store_try_insert(const IdemKey *id, const IdemRow *row)
{
	IdemStoreGrip none = {0};

	return idem_store_insert(&none, id, row);
}

/* Whether this very transaction claimed the key. */
static bool
claimed_here(const IdemKey *id)
{
	FullTransactionId mine = GetTopFullTransactionIdIfAny();
	IdemRow		row;

	return FullTransactionIdIsValid(mine) && idem_store_sql_read(id, &row) &&
		row.claim_xid == U64FromFullTransactionId(mine);
}

/*
 * The key lock, then the row.  A claim that this transaction made in the
 * direct way is without its lock, and who has that now may be waiting for us:
 * then the row has to do.  Spec: ways-change.  (Of a row that an earlier
 * transaction claimed and this one has changed in the direct way, before its
 * way changed, nothing tells that: the deadlock detector ends that, 40P01.)
 */
static bool
hold_sql(const IdemKey *id, IdemRow *row)
{
	LOCKTAG		tag;
	bool		locked = idem_store_lock_key(id, &tag, false);

	if (!locked && !claimed_here(id))
		locked = idem_store_lock_key(id, &tag, true);
	if (idem_store_sql_lock(id, row))
		return true;
	if (IsolationUsesXactSnapshot() && idem_store_sql_is_there(id))
		idem_store_row_raise_rival();
	if (locked)
		idem_store_unlock_key(&tag);
	return false;
}

/*
 * A key without a row that can be seen: an idem_run may be at it, which gives
 * the key lock back when it has inserted one, or a claim that has not
 * committed.  Whoever waits for that must not keep others off.
 */
static bool
hold_unseen(const IdemDirect *direct, const IdemKey *id, IdemRow *row)
{
	LOCKTAG		tag;

	(void) idem_store_lock_key(id, &tag, true);
	idem_store_unlock_key(&tag);
	if (idem_store_direct_rival(direct, id, true) == IDEM_RIVAL_COMMITTED &&
		IsolationUsesXactSnapshot())
		idem_store_row_raise_rival();
	return idem_store_direct_lock(direct, id, true, row) == IDEM_DIRECT_LOCKED;
}

/*
 * idem_store_hold
 *		The same for one who is going to change it.  Waits for the end of a
 *		claim that has not committed, too; 40001 when the snapshot of the
 *		transaction is too old to see the row.
 */
bool
idem_store_hold(const IdemKey *id, IdemRow *row)
{
	IdemDirect	direct;
	bool		held;

	if (!idem_store_direct_open(&direct, RowShareLock))
		return hold_sql(id, row);
	held = idem_store_direct_lock(&direct, id, true, row) == IDEM_DIRECT_LOCKED;
	if (!held)
		held = hold_unseen(&direct, id, row);
	idem_store_direct_close(&direct);
	return held;
}

/*
 * idem_store_is_new
 *		Whether a statement need not read a key before it inserts it, since the
 *		snapshot shows none.
 *
 * For SERIALIZABLE, where reading would lock the page of the index to which the
 * key belongs against the insertion of its neighbours; sessions whose keys grow
 * with time insert into one and the same page.  That no rival has the key is
 * for the unique insertion to tell.  Spec: claim-serializable.
 */
bool
idem_store_is_new(const IdemKey *id)
{
	if (!IsolationIsSerializable())
		return false;
	CommandCounterIncrement();
	return !idem_store_parts_may_show(id, GetTransactionSnapshot());
}

/*
 * idem_store_look
 *		The first look of a claim, as idem_store_read; check_new as for
 *		idem_store_take, which comes next if the claim is granted.
 *
 * With check_new the direct way takes the key lock before it looks, if it can
 * have it: where there is no trace of the key then, it need not look again.
 */
bool
idem_store_look(IdemStoreGrip *grip, const IdemKey *id, bool check_new,
				IdemRow *row)
{
	IdemDirect	direct;
	bool		found;

	memset(grip, 0, sizeof(*grip));
	if (!idem_store_direct_open(&direct, AccessShareLock))
	{
		grip->ended = ended_transactions();
		return !idem_store_is_new(id) && idem_store_sql_read(id, row);
	}
	if (check_new)
		grip->locked = idem_store_lock_key(id, &grip->tag, false);
	found = idem_store_direct_look(&direct, id, row, &grip->absent);
	if (!grip->absent)
		idem_store_drop(grip);
	idem_store_direct_close(&direct);
	return found;
}

/*
 * Whether a key that had no row at the look is worth another: only if it must
 * not turn out later, and a transaction has ended since, which may have been a
 * rival that had the lock.  A snapshot that would not show its row is 40001.
 */
static bool
look_again(const IdemStoreGrip *grip, const IdemKey *id, bool check_new)
{
	if (!check_new)
		return false;
	if (!IsolationUsesXactSnapshot())
		return grip->ended != ended_transactions();
	if (idem_store_parts_may_show(id, GetLatestSnapshot()) &&
		idem_store_sql_is_there(id))
		idem_store_row_raise_rival();
	return false;
}

/* With the key lock held, take the row, if there is one, FOR UPDATE. */
static IdemStoreTaken
take_sql(IdemStoreGrip *grip, const IdemKey *id, bool found, bool check_new,
		 IdemRow *row)
{
	if (!grip->locked)
		grip->locked = idem_store_lock_key(id, &grip->tag, false);
	if (!grip->locked)
		return IDEM_STORE_BUSY;
	if ((found || look_again(grip, id, check_new)) &&
		idem_store_sql_lock(id, row))
		return IDEM_STORE_ROW;
	return IDEM_STORE_NEW;
}

static IdemStoreTaken
take_row(const IdemDirect *direct, const IdemKey *id, IdemRow *row)
{
	switch (idem_store_direct_lock(direct, id, false, row))
	{
		case IDEM_DIRECT_LOCKED:
			return IDEM_STORE_ROW;
		case IDEM_DIRECT_BUSY:
			return IDEM_STORE_BUSY;
		case IDEM_DIRECT_GONE:
			break;
	}
	return IDEM_STORE_CHANGED;
}

/*
 * A row that cannot be seen has an entry in the index.  If the look found
 * none, a rival may have inserted since, but not under our lock; where that
 * need not be known now, the insertion will tell.
 */
static IdemStoreTaken
take_new(const IdemDirect *direct, IdemStoreGrip *grip, const IdemKey *id,
		 bool check_new)
{
	IdemDirectRival rival;

	grip->locked = idem_store_lock_key(id, &grip->tag, false);
	if (!grip->locked)
		return IDEM_STORE_BUSY;
	if (grip->absent && !check_new)
		return IDEM_STORE_NEW;
	rival = idem_store_direct_rival(direct, id, false);
	if (rival == IDEM_RIVAL_NONE)
		return IDEM_STORE_NEW;
	idem_store_drop(grip);
	if (rival == IDEM_RIVAL_OPEN)
		return IDEM_STORE_BUSY;
	if (IsolationUsesXactSnapshot())
		idem_store_row_raise_rival();
	return IDEM_STORE_CHANGED;
}

/*
 * idem_store_take
 *		After a look, make the key ours to write, waiting for nobody.
 *
 * With check_new it is certain that there is no row when the answer is NEW;
 * without, idem_store_insert may still find one.  40001 where the snapshot of
 * the transaction is too old to tell.
 */
IdemStoreTaken
idem_store_take(IdemStoreGrip *grip, const IdemKey *id, bool found,
				bool check_new, IdemRow *row)
{
	IdemDirect	direct;
	IdemStoreTaken taken;

	if (grip->locked && grip->absent)
		return IDEM_STORE_NEW;	/* looked with the key lock */
	if (!idem_store_direct_open(&direct,
								found ? RowShareLock : AccessShareLock))
		return take_sql(grip, id, found, check_new, row);
	taken = found ? take_row(&direct, id, row) :
		take_new(&direct, grip, id, check_new);
	idem_store_direct_close(&direct);
	return taken;
}

/*
 * idem_store_drop
 *		Give the key lock back.  A row stays locked to the end of the
 *		transaction.
 */
void
idem_store_drop(IdemStoreGrip *grip)
{
	if (grip->locked)
		idem_store_unlock_key(&grip->tag);
	grip->locked = false;
}

/*
 * idem_store_require_current
 *		Raise 40001 when a row has changed since the snapshot of the transaction,
 *		by which it was read.
 */
void
idem_store_require_current(const IdemKey *id, const IdemRow *row)
{
	IdemDirect	direct;
	IdemRow		now;
	bool		found;

	PushActiveSnapshot(idem_store_spi_latest());
	if (idem_store_direct_open(&direct, AccessShareLock))
	{
		found = idem_store_direct_peek(&direct, id, &now);
		idem_store_direct_close(&direct);
	}
	else
		found = idem_store_sql_peek(id, &now);
	PopActiveSnapshot();
	if (!found || now.state != row->state || now.token != row->token ||
		now.claim_xid != row->claim_xid ||
		now.lease_until != row->lease_until ||
		now.finished_at != row->finished_at)
		idem_store_row_raise_rival();
}

/*
 * idem_store_insert
 *		Insert the row of a key that was taken as new; false when there is one.
 *
 * In the direct way the row tells rivals itself from now on: the key lock has
 * done its work.
 */
bool
idem_store_insert(IdemStoreGrip *grip, const IdemKey *id, const IdemRow *row)
{
	IdemDirect	direct;
	bool		inserted;

	if (!idem_store_direct_open(&direct, RowExclusiveLock))
		return idem_store_sql_insert(id, row);
	inserted = idem_store_direct_insert(&direct, id, row);
	idem_store_direct_close(&direct);
	idem_store_drop(grip);
	return inserted;
}

/*
 * idem_store_insert_new
 *		The same where work has been done already: 40001 when there is one.
 */
void
idem_store_insert_new(IdemStoreGrip *grip, const IdemKey *id,
					  const IdemRow *row)
{
	IdemDirect	direct;

	if (!idem_store_direct_open(&direct, RowExclusiveLock))
	{
		if (!idem_store_sql_insert(id, row))
			idem_store_row_raise_rival();
		return;
	}
	idem_store_direct_insert_new(&direct, id, row);
	idem_store_direct_close(&direct);
	idem_store_drop(grip);
}

/*
 * idem_store_update, idem_store_delete
 *		Change or remove a row that this transaction has locked.
 */
void
idem_store_update(const IdemKey *id, const IdemRow *row)
{
	IdemDirect	direct;
	bool		written;

	if (!idem_store_direct_open(&direct, RowExclusiveLock))
		written = idem_store_sql_update(id, row);
	else
	{
		written = idem_store_direct_update(&direct, id, row);
		idem_store_direct_close(&direct);
	}
	if (!written)
		idem_store_row_raise_suppressed(id);
}

void
idem_store_delete(const IdemKey *id)
{
	IdemDirect	direct;
	bool		written;

	if (!idem_store_direct_open(&direct, RowExclusiveLock))
		written = idem_store_sql_delete(id);
	else
	{
		written = idem_store_direct_delete(&direct, id);
		idem_store_direct_close(&direct);
	}
	if (!written)
		idem_store_row_raise_suppressed(id);
}

/*
 * idem_store_sweep
 *		Remove up to max_rows rows whose purge_at is over, oldest first; how
 *		many.
 *
 * Begins at "low" (DT_NOBEGIN: the oldest), which becomes the purge_at of the
 * last one removed.  Waits for nobody: rows that are locked are skipped, and
 * when the table itself, a partition or an index is locked against writers
 * (ALTER TABLE, CLUSTER, ALTER INDEX) nothing is done.
 */
int64
idem_store_sweep(TimestampTz *low, TimestampTz now, int64 max_rows,
				 IdemSweepCount count)
{
	IdemDirect	direct;
	int64		rows = -1;

	if (!ConditionalLockRelationOid(idem_catalog()->keys, RowExclusiveLock))
		return 0;
	if (idem_store_direct_open(&direct, RowExclusiveLock))
	{
		if (OidIsValid(direct.purge_index))
			rows = ConditionalLockRelationOid(direct.purge_index,
											  RowExclusiveLock) ?
				idem_store_direct_sweep(&direct, low, now, max_rows, count) : 0;
		idem_store_direct_close(&direct);
	}
	if (rows >= 0)
		return rows;
	return idem_store_parts_lock() ?
		idem_store_sql_sweep(low, now, max_rows, count) : 0;
}
