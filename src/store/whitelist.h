/*-------------------------------------------------------------------------
 *
 * whitelist.h
 *	  What the direct way asks of the key table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STORE_WHITELIST_H
#define IDEM_STORE_WHITELIST_H

#include "access/htup.h"
#include "utils/rel.h"

#include "store/row.h"

/*
 * Of an index that is valid and plain: what else stands in the way; NULL if
 * nothing does.
 */
typedef const char *(*IdemIndexCheck) (HeapTuple tuple);

extern uint64 idem_whitelist_changes;

extern bool idem_whitelist_is_asked(void);
extern bool idem_whitelist_passes(Relation keys, Oid *pkey, Oid *purge_index);
extern const char *idem_whitelist_describe(void);
extern void idem_whitelist_init(void);

/* what the log of audit/ asks, too */
extern const char *idem_whitelist_check_heap(Relation table);
extern const char *idem_whitelist_check_columns(TupleDesc desc,
												const IdemColumnShape *shapes,
												int number);
extern const char *idem_whitelist_check_indexes(const List *indexes,
												IdemIndexCheck check);
extern const char *idem_whitelist_check_citus(void);
extern bool idem_whitelist_has_class(HeapTuple tuple, int number, Oid class);
extern void idem_whitelist_keep(List **kept, const List *indexes);

#endif							/* IDEM_STORE_WHITELIST_H */
