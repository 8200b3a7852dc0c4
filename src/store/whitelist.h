/*-------------------------------------------------------------------------
 *
 * whitelist.h
 *	  What the direct way asks of the key table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STORE_WHITELIST_H
#define IDEM_STORE_WHITELIST_H

#include "utils/rel.h"

extern uint64 idem_whitelist_changes;

extern bool idem_whitelist_is_asked(void);
extern bool idem_whitelist_passes(Relation keys, Oid *pkey, Oid *purge_index);
extern const char *idem_whitelist_describe(void);
extern void idem_whitelist_init(void);

#endif							/* IDEM_STORE_WHITELIST_H */
