/*-------------------------------------------------------------------------
 *
 * direct.h
 *	  The direct way to a row of the key table; for the door only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STORE_DIRECT_H
#define IDEM_STORE_DIRECT_H

#include "utils/rel.h"

#include "idem.h"
#include "store/store.h"

/* The key table, open and locked, with its indexes. */
typedef struct IdemDirect
{
	Relation	keys;
	Oid			pkey;
	Oid			purge_index;	/* on purge_at; InvalidOid: there is none */
	LOCKMODE	lockmode;
} IdemDirect;

typedef enum IdemDirectLocked
{
	IDEM_DIRECT_LOCKED,
	IDEM_DIRECT_BUSY,			/* another transaction has it */
	IDEM_DIRECT_GONE			/* there is none, or none any more */
} IdemDirectLocked;

/* What is there of a key that our snapshot does not see. */
typedef enum IdemDirectRival
{
	IDEM_RIVAL_NONE,
	IDEM_RIVAL_OPEN,			/* of a transaction that has not ended */
	IDEM_RIVAL_COMMITTED
} IdemDirectRival;

extern bool idem_store_direct_open(IdemDirect *direct, LOCKMODE lockmode);
extern void idem_store_direct_close(IdemDirect *direct);
extern Snapshot idem_store_direct_push_snapshot(void);
extern bool idem_store_direct_read(const IdemDirect *direct, const IdemKey *id,
								   IdemRow *row);
extern bool idem_store_direct_look(const IdemDirect *direct, const IdemKey *id,
								   IdemRow *row, bool *absent);
extern bool idem_store_direct_peek(const IdemDirect *direct, const IdemKey *id,
								   IdemRow *row);
extern IdemDirectLocked idem_store_direct_lock(const IdemDirect *direct,
											   const IdemKey *id, bool wait,
											   IdemRow *row);
extern IdemDirectRival idem_store_direct_rival(const IdemDirect *direct,
											   const IdemKey *id, bool wait);
extern bool idem_store_direct_insert(const IdemDirect *direct,
									 const IdemKey *id, const IdemRow *row);
extern void idem_store_direct_insert_new(const IdemDirect *direct,
										 const IdemKey *id, const IdemRow *row);
extern bool idem_store_direct_update(const IdemDirect *direct,
									 const IdemKey *id, const IdemRow *row);
extern bool idem_store_direct_delete(const IdemDirect *direct,
									 const IdemKey *id);
extern int64 idem_store_direct_sweep(const IdemDirect *direct,
									 TimestampTz *low, TimestampTz now,
									 int64 max_rows, IdemSweepCount count);

#endif							/* IDEM_STORE_DIRECT_H */
