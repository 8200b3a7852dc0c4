/*-------------------------------------------------------------------------
 *
 * parts.h
 *	  The tables that hold the rows of the key table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STORE_PARTS_H
#define IDEM_STORE_PARTS_H

#include "access/skey.h"
#include "executor/tuptable.h"
#include "nodes/pg_list.h"
#include "storage/itemptr.h"
#include "storage/lockdefs.h"
#include "utils/rel.h"
#include "utils/snapshot.h"

#include "idem.h"

/* Names a row: a place is unique in its table only. */
typedef struct IdemPlace
{
	Oid			table;
	ItemPointerData tid;
	TimestampTz purge_at;		/* of the row, */
	Datum		policy;			/* in memory of SPI */
	bool		is_default;		/* no policy */
} IdemPlace;

/* The table at hand, while rows are locked; both NULL before. */
typedef struct IdemPart
{
	Relation	table;
	TupleTableSlot *slot;
} IdemPart;

#define IDEM_PARTS_SCAN_KEYS 3

extern bool idem_store_parts_lock(Oid table);
extern bool idem_store_parts_is_of_key(Relation table, Relation index);
extern int	idem_store_parts_scan_keys(const IdemKey *id,
									   ScanKeyData *entries);
extern List *idem_store_parts_of_key(const IdemKey *id, LOCKMODE lockmode);
extern bool idem_store_parts_may_show(const IdemKey *id, Snapshot snapshot);
extern bool idem_store_parts_lock_row(IdemPlace *place, IdemPart *part);
extern void idem_store_parts_close(IdemPart *part);
extern int	idem_store_parts_compare(const void *a, const void *b);
extern Datum idem_store_parts_array(const IdemPlace *places, int number);

#endif							/* IDEM_STORE_PARTS_H */
