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
#include "utils/snapshot.h"

#include "store/store.h"

extern Snapshot idem_direct_push_snapshot(void);
extern HeapTuple idem_direct_find(const IdemStore *store, const IdemKey *id,
								  Snapshot snapshot, bool insert,
								  bool *entries);

/* direct_write.c */
extern bool idem_direct_insert(IdemStore *store, const IdemKey *id,
							   const IdemRow *row);
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
