/*-------------------------------------------------------------------------
 *
 * holder.c
 *	  Whose open transaction has a key.
 *
 * The same in both ways to storage: the key lock tells of who has no row yet,
 * and the header of each version of a row, by whom it is being written or
 * locked.  Nothing here is decided upon: what it says may be past when it is
 * read.  It waits for nobody and writes nothing.  Spec: holder;
 * t/002_twophase.pl.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/multixact.h"
#include "access/subtrans.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/twophase.h"
#include "catalog/pg_am.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"

#include "base/catalog.h"
#include "base/compat.h"
#include "base/spi.h"
#include "store/direct.h"
#include "store/holder.h"
#include "store/parts.h"
#include "store/row.h"

static const Oid prepared_types[] = {XIDOID};
static const Oid prepared_columns[] = {TEXTOID, TIMESTAMPTZOID};

/* The view has no rights of its own, and may have been changed. */
static IdemPlan prepared_plan = {
	"SELECT gid, prepared FROM pg_prepared_xact() WHERE transaction = $1",
	lengthof(prepared_types), prepared_types
};

/* Add a transaction, once; that it has a row says more than the key lock. */
static List *
add_holder(List *holders, int pid, TransactionId xid, bool row)
{
	IdemHolder *holder;
	ListCell   *cell;

	foreach(cell, holders)
	{
		holder = lfirst(cell);
		if (holder->pid == pid && (pid != 0 || holder->xid == xid))
		{
			holder->row |= row;
			return holders;
		}
	}
	holder = palloc0(sizeof(IdemHolder));
	holder->pid = pid;
	holder->xid = xid;
	holder->row = row;
	return lappend(holders, holder);
}

/*
 * The prepared transaction that a virtual one has become.  It keeps the name
 * that it had in the session that made it, or, read back from disk, has its own
 * id in that place.
 */
static TransactionId
find_prepared(VirtualTransactionId vxid)
{
	bool		more;

	return VirtualTransactionIdIsRecoveredPreparedXact(vxid) ?
		vxid.localTransactionId : TwoPhaseGetXidByVirtualXID(vxid, &more);
}

/* Who has the key lock; the caller's own the server does not name. */
static List *
add_of_lock(List *holders, const IdemKey *id)
{
	VirtualTransactionId *vxid;
	LOCKTAG		tag;

	idem_store_key_tag(id, &tag);
	if (idem_compat_lock_is_mine(&tag, ExclusiveLock))
		holders = add_holder(holders, MyProcPid, InvalidTransactionId, false);
	for (vxid = GetLockConflicts(&tag, ExclusiveLock, NULL);
		 VirtualTransactionIdIsValid(*vxid); vxid++)
	{
		int			pid = idem_compat_vxid_pid(*vxid);
		TransactionId xid = pid != 0 ? InvalidTransactionId :
		find_prepared(*vxid);

		if (pid != 0 || TransactionIdIsValid(xid))
			holders = add_holder(holders, pid, xid, false);
	}
	return holders;
}

/* Whose is this transaction id, if it has not ended. */
static List *
add_of_xid(List *holders, TransactionId xid)
{
	if (!TransactionIdIsInProgress(xid))
		return holders;

	/* a savepoint has an id of its own, which names no session */
	xid = SubTransGetTopmostTransaction(xid);
	return add_holder(holders, BackendXidGetPid(xid), xid, true);
}

/* Who is at a version of a row: has inserted, changed, deleted or locked it. */
static List *
add_of_version(List *holders, TupleTableSlot *slot)
{
	BufferHeapTupleTableSlot *in_buffer = (BufferHeapTupleTableSlot *) slot;
	HeapTupleHeader header = in_buffer->base.tuple->t_data;
	bool		taken_back = idem_direct_is_taken_back(slot);
	MultiXactMember *members = NULL;
	int			number = 0;
	TransactionId xmin;
	TransactionId xmax;
	uint16		infomask;
	int			i;

	/* infomask and xmax are one only under the lock of the page */
	LockBuffer(in_buffer->buffer, BUFFER_LOCK_SHARE);
	infomask = header->t_infomask;
	xmin = HeapTupleHeaderGetXmin(header);
	xmax = HeapTupleHeaderGetRawXmax(header);
	if ((infomask & HEAP_XMAX_INVALID) != 0)
		xmax = InvalidTransactionId;
	else if ((infomask & HEAP_XMAX_IS_MULTI) != 0)
	{
		number = GetMultiXactIdMembers(xmax, &members,
									   HEAP_LOCKED_UPGRADED(infomask),
									   HEAP_XMAX_IS_LOCKED_ONLY(infomask));
		xmax = InvalidTransactionId;
	}
	LockBuffer(in_buffer->buffer, BUFFER_LOCK_UNLOCK);

	/* of a row that was not committed nobody else can be at it */
	if (TransactionIdIsInProgress(xmin))
		return taken_back ? holders : add_of_xid(holders, xmin);
	if (!TransactionIdDidCommit(xmin))
		return holders;
	if (TransactionIdIsValid(xmax))
		holders = add_of_xid(holders, xmax);
	for (i = 0; i < number; i++)
		holders = add_of_xid(holders, members[i].xid);
	return holders;
}

static List *
add_of_index(List *holders, Relation table, Relation index, const IdemKey *id)
{
	TupleTableSlot *slot = table_slot_create(table, NULL);
	ScanKeyData entries[IDEM_PARTS_SCAN_KEYS];
	int			number = idem_store_parts_scan_keys(id, entries);
	IndexScanDesc scan = idem_compat_index_beginscan(table, index, SnapshotAny,
													 number);

	index_rescan(scan, entries, number, NULL, 0);
	/* every version, those of a HOT chain, too */
	while (index_getnext_slot(scan, ForwardScanDirection, slot))
		holders = add_of_version(holders, slot);
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	return holders;
}

/* Lock a table or an index, but wait for nobody; 55P03. */
static void
lock_at_once(Oid relid)
{
	if (!ConditionalLockRelationOid(relid, AccessShareLock))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("could not obtain lock on relation \"%s\" at once",
						"idempotency_keys"),
				 errdetail("Another transaction has locked the table, a partition or an index of it, or waits to do so."),
				 errhint("Every claim waits for that one: look for it in pg_locks.")));
}

/* What is no heap, or has no index of the key, tells nothing. */
static List *
add_of_table(List *holders, Oid relid, const IdemKey *id)
{
	Relation	table;
	List	   *indexes = NIL;
	ListCell   *cell;

	lock_at_once(relid);
	table = try_table_open(relid, NoLock);
	if (table == NULL)
		return holders;			/* dropped meanwhile */
	if (table->rd_rel->relam == HEAP_TABLE_AM_OID)
		indexes = RelationGetIndexList(table);
	foreach(cell, indexes)
	{
		Relation	index;
		bool		of_key;

		lock_at_once(lfirst_oid(cell));
		index = index_open(lfirst_oid(cell), NoLock);
		of_key = idem_store_parts_is_of_key(table, index);
		if (of_key)
			holders = add_of_index(holders, table, index, id);
		index_close(index, NoLock);
		if (of_key)
			break;
	}
	table_close(table, NoLock);
	return holders;
}

/* What a session says of its transaction; false when that has ended. */
static bool
ask_session(IdemHolder *holder, TimestampTz looked_at)
{
	int			number = pgstat_fetch_stat_numbackends();
	int			i;

	for (i = 1; i <= number; i++)
	{
		const PgBackendStatus *session = idem_compat_session(i);

		if (session->st_procpid != holder->pid)
			continue;

		/* of a later transaction, or none; nothing without track_activities */
		holder->since = session->st_xact_start_timestamp;
		return holder->since <= looked_at &&
			(holder->since != 0 || session->st_state != STATE_IDLE);
	}
	return false;
}

/* The name of a prepared transaction; false when it has ended. */
static bool
ask_prepared(IdemHolder *holder)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		value = TransactionIdGetDatum(holder->xid);
	IdemSecctx	saved;
	bool		isnull;
	bool		found;

	idem_spi_begin(&saved);
	found = idem_spi_execute(&prepared_plan, &value, NULL, true, 1) == 1;
	if (found)
	{
		idem_spi_require_types(prepared_columns, lengthof(prepared_columns));
		holder->gid =
			MemoryContextStrdup(context,
								TextDatumGetCString(idem_spi_value(0, 0, &isnull)));
		holder->since = DatumGetTimestampTz(idem_spi_value(0, 1, &isnull));
	}
	idem_spi_end(&saved);

	/* one that is just being prepared has no name yet */
	return found || TransactionIdIsInProgress(holder->xid);
}

/*
 * idem_store_holders
 *		The transactions that have not ended and have the key lock, or a row of
 *		the key that they have written or locked: a list of IdemHolder.  That of
 *		the caller is no exception.
 *
 * 55P03 when the table is locked against readers: then everybody waits.
 */
List *
idem_store_holders(const IdemKey *id)
{
	List	   *parts = idem_store_parts_of_key(id, NoLock);
	List	   *holders;
	List	   *found = NIL;
	TimestampTz looked_at;
	ListCell   *cell;

	/* the lock first: who gives it back has a row by then */
	holders = add_of_lock(NIL, id);
	foreach(cell, parts)
	{
		holders = add_of_table(holders, lfirst_oid(cell), id);
	}
	looked_at = GetCurrentTimestamp();

	/* as they are now, and not as this transaction has seen them before */
	pgstat_clear_backend_activity_snapshot();
	foreach(cell, holders)
	{
		IdemHolder *holder = lfirst(cell);

		if (holder->pid == 0 ? ask_prepared(holder) :
			ask_session(holder, looked_at))
			found = lappend(found, holder);
	}
	return found;
}
