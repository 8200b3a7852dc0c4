/*-------------------------------------------------------------------------
 *
 * seal_partition.c
 *	  When the audit log gets its next partition.
 *
 * Owns the setting; how one is made is known to partition.c.  The
 * log is sealed first: it must go on where nobody may create a table (an event
 * trigger, a full disk).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/guc.h"

#include "audit/chain.h"
#include "audit/partition.h"
#include "audit/seal_partition.h"
#include "base/try.h"
#include "store/store.h"

typedef enum AuditPeriod
{
	PERIOD_DAY,
	PERIOD_WEEK,
	PERIOD_MONTH
} AuditPeriod;

static const struct config_enum_entry periods[] = {
	{"day", PERIOD_DAY, false},
	{"week", PERIOD_WEEK, false},
	{"month", PERIOD_MONTH, false},
	{NULL, 0, false}
};

static int	audit_partition = PERIOD_MONTH;

static void
make_partitions(void *arg)
{
	IdemSealAccess access;

	idem_store_seal_begin(&access);
	idem_store_partition_make(periods[audit_partition].name);
	idem_store_seal_end(&access);
}

/*
 * idem_seal_try_partitions
 *		See to the next partition.  Where none can be made, that is a warning:
 *		what is in the default one is sealed all the same.
 */
void
idem_seal_try_partitions(void)
{
	ErrorData  *error = idem_try(make_partitions, NULL);

	if (error != NULL)
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("rows were sealed, but partitions of the audit log cannot be made: %s",
						error->message),
				 errhint("New rows go to the default partition, and are sealed there; see idem_health().")));
}

/*
 * idem_seal_partitions
 *		For the worker, when nothing is left to seal: see to the next partition.
 */
void
idem_seal_partitions(void)
{
	if (idem_store_audit_begun() &&
		idem_store_partition_lock(AccessShareLock) &&
		idem_store_seal_lock(false))
		make_partitions(NULL);
}

/*
 * idem_seal_partition_init
 *		Define the setting.
 */
void
idem_seal_partition_init(void)
{
	DefineCustomEnumVariable("idempotency.audit_partition",
							 "Stretch of time of one partition of the audit log.",
							 "It holds for partitions that are yet to be made.",
							 &audit_partition,
							 PERIOD_MONTH, periods,
							 PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
}
