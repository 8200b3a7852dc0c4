/*-------------------------------------------------------------------------
 *
 * idem_store_parts.h
 *	  The tables that hold the rows of the key table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STORE_PARTS_H
#define IDEM_STORE_PARTS_H

#include "storage/itemptr.h"
#include "utils/rel.h"
#include "utils/snapshot.h"

#include "idem.h"

/* Names a row: a place is unique in its table only. */
typedef struct IdemPlace
{
	Oid			table;
	ItemPointerData tid;
} IdemPlace;

extern bool idem_store_parts_lock(void);
extern bool idem_store_parts_may_show(const IdemKey *id, Snapshot snapshot);
extern bool idem_store_parts_lock_row(IdemPlace *place, Relation *table);
extern void idem_store_parts_close(Relation table);
extern void idem_store_parts_arrays(const IdemPlace *places, int number,
									Datum *arrays);

#endif							/* IDEM_STORE_PARTS_H */
