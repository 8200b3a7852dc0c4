/*-------------------------------------------------------------------------
 *
 * whitelist.h
 *	  Which of the two ways to the key table is taken.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STORE_WHITELIST_H
#define IDEM_STORE_WHITELIST_H

#include "storage/lockdefs.h"
#include "utils/rel.h"

extern Relation idem_store_way_open(LOCKMODE lockmode, Oid *pkey,
									Oid *purge_index);
extern const char *idem_store_way_describe(void);
extern void idem_store_way_init(void);

#endif							/* IDEM_STORE_WHITELIST_H */
