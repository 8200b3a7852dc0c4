/*-------------------------------------------------------------------------
 *
 * store.h
 *	  The one door to the key table.
 *
 * A call opens one handle, which holds the way to the table; see README.md.
 * A row is handed out in the memory context of the caller.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STORE_STORE_H
#define IDEM_STORE_STORE_H

#include "nodes/pg_list.h"
#include "storage/itemptr.h"
#include "storage/lock.h"
#include "utils/rel.h"

#include "idem.h"
#include "store/whitelist.h"

/* One of many keys: what is asked for, and what has become of it. */
typedef struct IdemStoreItem
{
	text	   *key;
	bool		traced;			/* direct way: the index has entries */
	bool		inserted;		/* by the last insertion of many */
	bool		found;			/* at the last look: there is a row, this one */
	IdemState	state;
	TimestampTz expires_at;
	TimestampTz purge_at;
	text	   *claimed_by;
	text	   *policy;
} IdemStoreItem;

/* What a try at a key came to. */
typedef enum IdemStoreTaken
{
	IDEM_STORE_NEW,				/* there is no row */
	IDEM_STORE_ROW,				/* the row is locked */
	IDEM_STORE_BUSY,			/* another transaction is at the key */
	IDEM_STORE_CHANGED			/* not what the look found: look again */
} IdemStoreTaken;

/* How far a sweep has come: the last row that it removed. */
typedef struct IdemSweepMark
{
	TimestampTz purge_at;		/* DT_NOBEGIN: begin with the oldest */
	ItemPointerData tid;		/* invalid: begin with all of purge_at */
} IdemSweepMark;

/* What a sweep is told of rows that it removed; policy as in IdemRow. */
typedef void (*IdemSweepCount) (const text *policy, int64 rows);

/* Rows of one policy that were removed one after the other. */
typedef struct IdemSweptRun
{
	IdemSweepCount count;
	text	   *policy;			/* as in IdemRow */
	int64		rows;			/* 0: none yet */
} IdemSweptRun;

/*
 * The handle of a call.  All zero: not opened yet.  Whoever has used it closes
 * it, also before user code runs; after an error the transaction does.
 */
typedef struct IdemStore
{
	const struct IdemStoreWay *way;
	LOCKMODE	lockmode;		/* NoLock: not opened */
	uint64		changes;		/* of the table, up to the choice of the way */

	/* direct way: the table, open; NULL in the SQL way */
	Relation	keys;
	Oid			pkey;
	Oid			purge_index;	/* on purge_at; InvalidOid: there is none */

	/* what a claimer holds of its key besides the row */
	bool		locked;			/* the key lock, */
	LOCKTAG		tag;			/* which is this one */
	bool		absent;			/* direct way: the look found no trace of it */
	ItemPointerData row;		/* direct way: the row, locked; or invalid */
	uint64		ended;			/* SQL way: transactions ended at the look */
} IdemStore;

/* A way to the table; what each routine does says its wrapper below. */
typedef struct IdemStoreWay
{
	bool		(*read) (IdemStore *store, const IdemKey *id, IdemRow *row);
	bool		(*peek) (IdemStore *store, const IdemKey *id, IdemRow *row);
	bool		(*lock) (IdemStore *store, const IdemKey *id, IdemRow *row);
	IdemStoreTaken (*try_lock) (IdemStore *store, const IdemKey *id,
								IdemRow *row);
	bool		(*hold) (IdemStore *store, const IdemKey *id, IdemRow *row);
	bool		(*look) (IdemStore *store, const IdemKey *id, bool check_new,
						 IdemRow *row);
	IdemStoreTaken (*take) (IdemStore *store, const IdemKey *id, bool found,
							bool check_new, IdemRow *row);
	IdemStoreTaken (*take_row) (IdemStore *store, const IdemKey *id,
								IdemRow *row);
	bool		(*insert) (IdemStore *store, const IdemKey *id,
						   const IdemRow *row);
	void		(*insert_new) (IdemStore *store, const IdemKey *id,
							   const IdemRow *row);
	bool		(*update) (IdemStore *store, const IdemKey *id,
						   const IdemRow *row);
	bool		(*delete) (IdemStore *store, const IdemKey *id);
	void		(*read_many) (IdemStore *store, text *scope,
							  IdemStoreItem **items, int number);
	void		(*insert_many) (IdemStore *store, text *scope,
								IdemStoreItem **items, int number,
								const IdemRow *row);
	int64		(*sweep) (IdemStore *store, IdemSweepMark *mark,
						  TimestampTz now, int64 max_rows,
						  IdemSweepCount count);
} IdemStoreWay;

extern const IdemStoreWay idem_store_direct;
extern const IdemStoreWay idem_store_sql;

extern void idem_store_open(IdemStore *store, LOCKMODE lockmode);
extern void idem_store_close(IdemStore *store);

/* To begin with what is due since then. */
static inline IdemSweepMark
idem_store_sweep_from(TimestampTz purge_at)
{
	IdemSweepMark mark;

	mark.purge_at = purge_at;
	ItemPointerSetInvalid(&mark.tid);
	return mark;
}

/* sql_sweep.c */
extern void idem_store_sweep_leases(TimestampTz now, int64 max_rows);

/* lock.c */
extern void idem_store_key_tag(const IdemKey *id, LOCKTAG *tag);
extern bool idem_store_lock_key(const IdemKey *id, LOCKTAG *tag, bool wait);
extern void idem_store_unlock_key(const LOCKTAG *tag);

/* Give the key lock back.  A row stays locked to the end of the transaction. */
static inline void
idem_store_drop(IdemStore *store)
{
	if (store->locked)
		idem_store_unlock_key(&store->tag);
	store->locked = false;
}

/*
 * Have the table locked as the next step needs it, and the way chosen by what
 * the table is now.
 */
static inline const IdemStoreWay *
idem_store_way(IdemStore *store, LOCKMODE lockmode)
{
	if (store->lockmode < lockmode ||
		store->changes != idem_whitelist_changes)
		idem_store_open(store, lockmode);
	return store->way;
}

/* Read a row as it is now, where the isolation level lets us; no lock. */
static inline bool
idem_store_read(IdemStore *store, const IdemKey *id, IdemRow *row)
{
	return idem_store_way(store, AccessShareLock)->read(store, id, row);
}

/* Read a row as the calling statement sees it; works in recovery. */
static inline bool
idem_store_peek(IdemStore *store, const IdemKey *id, IdemRow *row)
{
	return idem_store_way(store, AccessShareLock)->peek(store, id, row);
}

/*
 * Read a row FOR UPDATE, waiting for it; false when there is none.  40001 when
 * the snapshot of the transaction is older than its last change.
 */
static inline bool
idem_store_lock(IdemStore *store, const IdemKey *id, IdemRow *row)
{
	return idem_store_way(store, RowShareLock)->lock(store, id, row);
}

/*
 * Without waiting.  In the SQL way, where an insertion could wait, no row is
 * BUSY, too.
 */
static inline IdemStoreTaken
idem_store_try_lock(IdemStore *store, const IdemKey *id, IdemRow *row)
{
	return idem_store_way(store, RowShareLock)->try_lock(store, id, row);
}

/*
 * Lock the row of a key for one who is going to change it; false when there is
 * none.  Waits for the end of a claim that has not committed, too; 40001 when
 * the snapshot of the transaction is too old to see the row.
 */
static inline bool
idem_store_hold(IdemStore *store, const IdemKey *id, IdemRow *row)
{
	return idem_store_way(store, RowShareLock)->hold(store, id, row);
}

/*
 * The first look of a claim: reads, and locks nothing.  check_new as for
 * idem_store_take, which comes next if the claim is granted.
 */
static inline bool
idem_store_look(IdemStore *store, const IdemKey *id, bool check_new,
				IdemRow *row)
{
	return idem_store_way(store, AccessShareLock)->look(store, id, check_new,
														row);
}

/*
 * After a look, make the key ours to write, waiting for nobody.  With check_new
 * it is certain that there is no row when the answer is NEW; without,
 * idem_store_insert may still find one.  40001 where the snapshot of the
 * transaction is too old to tell.
 */
static inline IdemStoreTaken
idem_store_take(IdemStore *store, const IdemKey *id, bool found,
				bool check_new, IdemRow *row)
{
	LOCKMODE	lockmode = found ? RowShareLock : AccessShareLock;

	return idem_store_way(store, lockmode)->take(store, id, found, check_new,
												 row);
}

/*
 * The same of a row that a look found, for one who would rather have another
 * key: it waits for nobody in the SQL way, too, where no row is BUSY.
 */
static inline IdemStoreTaken
idem_store_take_row(IdemStore *store, const IdemKey *id, IdemRow *row)
{
	return idem_store_way(store, RowShareLock)->take_row(store, id, row);
}

/*
 * Insert the row of a key that was taken as new, or nobody locked; false when
 * there is one.
 */
static inline bool
idem_store_insert(IdemStore *store, const IdemKey *id, const IdemRow *row)
{
	return idem_store_way(store, RowExclusiveLock)->insert(store, id, row);
}

/* Insert it where work has been done already: 40001 when there is one. */
static inline void
idem_store_insert_new(IdemStore *store, const IdemKey *id, const IdemRow *row)
{
	idem_store_way(store, RowExclusiveLock)->insert_new(store, id, row);
}

/*
 * Look at many keys of a scope, sorted by their bytes, no two the same, as
 * idem_store_look at each.  Every one that has no row is to be inserted next.
 */
static inline void
idem_store_read_many(IdemStore *store, text *scope, IdemStoreItem **items,
					 int number)
{
	if (number > 0)
		idem_store_way(store, AccessShareLock)->read_many(store, scope, items,
														  number);
}

/*
 * Insert a row for each of many keys, sorted, where there is none.  Waits for
 * rivals, and then for none that has a key below one that was inserted.  40001
 * where the snapshot of the transaction cannot see the row that is in the way.
 */
static inline void
idem_store_insert_many(IdemStore *store, text *scope, IdemStoreItem **items,
					   int number, const IdemRow *row)
{
	if (number > 0)
		idem_store_way(store, RowExclusiveLock)->insert_many(store, scope,
															 items, number,
															 row);
}

/* store.c */
extern void idem_store_update(IdemStore *store, const IdemKey *id,
							  const IdemRow *row);
extern void idem_store_delete(IdemStore *store, const IdemKey *id);
extern bool idem_store_is_new(const IdemKey *id);
extern void idem_store_require_current(IdemStore *store, const IdemKey *id,
									   const IdemRow *row);
extern void idem_store_swept(IdemSweptRun *run, Datum policy, bool isnull);
extern void idem_store_swept_end(IdemSweptRun *run);
extern int64 idem_store_sweep(IdemSweepMark *mark, TimestampTz now,
							  int64 max_rows, IdemSweepCount count);

/* sql_many.c */
extern int64 idem_store_count_live(const text *scope, TimestampTz now,
								   int64 limit);

#endif							/* IDEM_STORE_STORE_H */
