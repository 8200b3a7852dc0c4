/*-------------------------------------------------------------------------
 *
 * idempotency.c
 *	  Requests that are safe to repeat: the module and the map of its rooms.
 *
 * A claim on (scope, key), the work and the answer are written in one
 * transaction, so that they share one fate.  Calls go one way:
 *
 *	entry points	idem_claim		claim a key: the loop around the decision
 *					idem_require	the same, with errors for other outcomes
 *					idem_run		claim, work and answer in one statement
 *					idem_http_run	the same for an API function of PostgREST
 *					idem_dedupe		many keys of a message consumer
 *					idem_finish		complete, fail, extend, release, look up
 *					idem_sweep		remove what is past its retention
 *					idem_launcher, idem_worker	the same in the background
 *					idem_throttle	take from the token bucket of a subject
 *					idem_stats		what is counted, and how the sweeps go
 *					idem_audit		the append-only log
 *					idem_audit_index	indexes that it must not have
					idem_seal, idem_seal_verify	its seals
					idem_seal_partition	when it gets its next partition
 *					idem_secret		secrets and contexts
 *					idem_text		scopes, headers, names for logs
 *					idem_http		refusals and headers as HTTP has them
 *					idem_grant		who may call what
 *					idem_health		checks of the installation
 *	what they use	idem_state		the decision table, pure
 *					idem_answer		answers and their bytes
 *					idem_result		the composite idem_result
 *					idem_policy, idem_limiter	named rules
 *					idem_role		whose key it is
 *					idem_bucket		the arithmetic of a token bucket, pure
 *					idem_canonical	canonical JSON, pure
 *					idem_fingerprint, idem_digest	SHA-256
 *					idem_hmac		HMACs with keys derived from the secrets
 *					idem_foreign	C functions of other extensions
 *					idem_args		checks of arguments
 *					idem_alike		names that look like ours
 *					idem_pairs		names and texts in JSON
 *					idem_xact		what this transaction claims and runs
 *	storage			idem_store_*	the one door to our tables
 *	ground			idem_shmem		areas of shared memory, over a clean restart
 *					idem_counters	counters of the policies
 *					idem_databases	known databases, and how their sweeps go
 *					idem_buckets	all token buckets, likewise
 *					idem_refusals	refused calls, on their way to the audit log
 *					idem_task		what the background processes share
					idem_cache		what a backend remembers of named rules
 *					idem_try		doing what may fail
					idem_secctx		the switch to the owner of the tables
 *					idem_catalog	our objects in this database
 *					base/compat.h	differences between majors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/guc.h"

#include "src/audit/index_guard.h"
#include "src/audit/refusal_queue.h"
#include "src/audit/partition.h"
#include "src/base/catalog.h"
#include "src/base/compat.h"
#include "src/base/counters.h"
#include "src/base/databases.h"
#include "src/key/xact.h"
#include "src/limit/bucket_table.h"
#include "src/limit/limiter.h"
#include "src/rule/policy.h"
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
	idem_policy_init();
	idem_policy_values_init();
	idem_limiter_init();
	idem_buckets_init();
	idem_sweep_init();
	idem_partition_init();
	idem_audit_index_init();
	idem_catalog_init();
	idem_xact_init();
	idem_whitelist_init();
	idem_launcher_init();
	if (process_shared_preload_libraries_in_progress)
	{
		idem_counters_init();
		idem_databases_init();
		idem_refusals_init();
	}
	MarkGUCPrefixReserved("idempotency");
}
