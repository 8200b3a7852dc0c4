/*-------------------------------------------------------------------------
 *
 * entries.h
 *	  Index entries for rows that are written directly.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STORE_ENTRIES_H
#define IDEM_STORE_ENTRIES_H

#include "executor/tuptable.h"
#include "nodes/execnodes.h"

#include "base/compat.h"

/* The indexes of a table, open. */
typedef struct IdemEntries
{
	ResultRelInfo result;		/* the table, with its indexes open */
	IndexUniqueCheck check;		/* of unique indexes */
} IdemEntries;

extern void idem_entries_open(IdemEntries *entries, Relation table,
							  IndexUniqueCheck check);
extern bool idem_entries_insert(const IdemEntries *entries,
								TupleTableSlot *slot, bool update,
								IdemCompatIndexes indexes);
extern void idem_entries_close(IdemEntries *entries);

#endif							/* IDEM_STORE_ENTRIES_H */
