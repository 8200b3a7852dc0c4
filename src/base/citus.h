/*-------------------------------------------------------------------------
 *
 * citus.h
 *	  Tables of ours that Citus has distributed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_CITUS_H
#define IDEM_BASE_CITUS_H

#include "access/transam.h"
#include "nodes/pg_list.h"

#include "base/catalog.h"

/* Whether the keys are distributed, and have a tenant each. */
static inline bool
idem_citus_is_used(void)
{
	return OidIsValid(idem_catalog()->tenant_type);
}

extern Datum idem_citus_tenant(const text *scope);
extern bool idem_citus_remote_claims(void);
extern bool idem_citus_is_here(const text *scope);
extern void idem_citus_require_here(const text *scope);
extern Oid	idem_citus_shard(Oid table, const text *scope);
extern List *idem_citus_shards(Oid table);
extern const char *idem_citus_rows(Oid table);
extern uint64 idem_citus_xid(FullTransactionId xid);
extern void idem_citus_begin(const text *scope, const text *key);
extern void idem_citus_flush(const text *scope, const text *key);
extern void idem_citus_init(void);

#endif							/* IDEM_BASE_CITUS_H */
