/*-------------------------------------------------------------------------
 *
 * idempotency.c
 *	  Requests that are safe to repeat: the module and the map of its wings.
 *
 * A claim on (scope, key), the work and the answer are written in one
 * transaction, so that they share one fate.  Calls go down:
 *
 *	admin			health, figures, rights
 *	http, sweep		HTTP and PostgREST; removal of what is over, by workers too
 *	key, limit		claims, work and answers; rate limiters
 *	audit			the append-only log and its seals
 *	store, rule		the key table; named rules, such as policies
 *	base			what is the same for all of them
 *
 * Each is a wing, a folder under src/ with a README of its own.  A wing calls
 * what is on a lower floor and nothing beside or above it (t/042_house.pl).
 * doc/design.md tells why it is all so.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/guc.h"

#include "src/audit/index_guard.h"
#include "src/audit/partition.h"
#include "src/audit/refusal_queue.h"
#include "src/audit/whitelist.h"
#include "src/base/catalog.h"
#include "src/base/citus.h"
#include "src/base/compat.h"
#include "src/base/counters.h"
#include "src/base/databases.h"
#include "src/key/xact.h"
#include "src/limit/bucket_table.h"
#include "src/limit/limiter.h"
#include "src/rule/policy_values.h"
#include "src/store/whitelist.h"
#include "src/sweep/launcher.h"
#include "src/sweep/sweep.h"

IDEM_COMPAT_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

/*
 * _PG_init
 *		Define settings and register callbacks; works with and without
 *		shared_preload_libraries.  pg_upgrade may preload us, too: nothing is
 *		started there.
 */
void
_PG_init(void)
{
	if (IsBinaryUpgrade)
		return;
	idem_policy_values_init();
	idem_limiter_init();
	idem_buckets_init();
	idem_sweep_init();
	idem_partition_init();
	idem_audit_index_init();
	idem_catalog_init();
	idem_citus_init();
	idem_xact_init();
	idem_whitelist_init();
	idem_audit_whitelist_init();
	idem_launcher_init();
	if (process_shared_preload_libraries_in_progress)
	{
		idem_counters_init();
		idem_databases_init();
		idem_refusals_init();
	}
	MarkGUCPrefixReserved("idempotency");
}
