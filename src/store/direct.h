/*-------------------------------------------------------------------------
 *
 * direct.h
 *	  The direct way to the key table, among its own files.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STORE_DIRECT_H
#define IDEM_STORE_DIRECT_H

#include "access/htup.h"
#include "nodes/execnodes.h"
#include "storage/itemptr.h"
#include "utils/snapshot.h"

#include "store/entries.h"
#include "store/store.h"

/* What there is of a key that our snapshot does not see. */
typedef enum IdemRival
{
	IDEM_RIVAL_NONE,
	IDEM_RIVAL_OPEN,			/* of a transaction that has not ended */
	IDEM_RIVAL_COMMITTED
} IdemRival;

extern Snapshot idem_direct_push_snapshot(void);
extern HeapTuple idem_direct_find(const IdemStore *store, const IdemKey *id,
								  Snapshot snapshot, bool insert,
								  bool *entries);
extern bool idem_direct_is_taken_back(TupleTableSlot *slot);
extern IdemRival idem_direct_find_rival(const IdemStore *store,
										const IdemKey *id, bool wait,
										ItemPointer own);

/* direct_many.c */
extern void idem_direct_read_many(IdemStore *store, text *scope,
								  IdemStoreItem **items, int number);
extern void idem_direct_insert_many(IdemStore *store, text *scope,
									IdemStoreItem **items, int number,
									const IdemRow *row);

/* direct_write.c */
extern TupleTableSlot *idem_direct_make_slot(IdemStore *store,
											 const IdemKey *id,
											 const IdemRow *row);
extern bool idem_direct_insert(IdemStore *store, const IdemKey *id,
							   const IdemRow *row);
extern bool idem_direct_insert_slot(IdemStore *store, const IdemKey *id,
									TupleTableSlot *slot,
									IdemEntries *entries);
extern void idem_direct_take_back(IdemStore *store, TupleTableSlot *slot,
								  CommandId cid);
extern void idem_direct_insert_new(IdemStore *store, const IdemKey *id,
								   const IdemRow *row);
extern bool idem_direct_update(IdemStore *store, const IdemKey *id,
							   const IdemRow *row);
extern bool idem_direct_delete(IdemStore *store, const IdemKey *id);

/* direct_sweep.c */
extern int64 idem_direct_sweep(IdemStore *store, IdemSweepMark *mark,
							   TimestampTz now, int64 max_rows,
							   IdemSweepCount count);

#endif							/* IDEM_STORE_DIRECT_H */
