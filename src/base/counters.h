/*-------------------------------------------------------------------------
 *
 * counters.h
 *	  What is counted for each policy of each database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_COUNTERS_H
#define IDEM_BASE_COUNTERS_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

/* What is counted for a policy.  The first are those of IdemOutcome. */
typedef enum IdemCounter
{
	IDEM_COUNT_CLAIMED,
	IDEM_COUNT_COMPLETED,
	IDEM_COUNT_FAILED,
	IDEM_COUNT_REPLAYED,
	IDEM_COUNT_DUPLICATE,
	IDEM_COUNT_IN_PROGRESS,
	IDEM_COUNT_MISMATCH,
	IDEM_COUNT_EXPIRED,
	IDEM_COUNT_TAKEN_OVER,
	IDEM_COUNT_LOST,
	IDEM_COUNT_SWEPT,
	IDEM_COUNT_THROTTLED,
	IDEM_COUNT_REFUSALS_DROPPED,
	IDEM_COUNT_WAITS,
	IDEM_COUNT_WAIT_USEC
} IdemCounter;

#define IDEM_NUM_COUNTERS	(IDEM_COUNT_WAIT_USEC + 1)

/* Counters of one policy in one database, as they are read. */
typedef struct IdemCounters
{
	Oid			database;		/* InvalidOid: what found no room */
	NameData	policy;
	TimestampTz stats_reset;
	uint64		counts[IDEM_NUM_COUNTERS];
} IdemCounters;

/* The name under which is counted what has no policy: rate limiting. */
#define IDEM_COUNTERS_NO_POLICY ""

extern bool idem_counters_exist(void);
extern int	idem_counters_find(const char *policy);
extern void idem_counters_add(int policy, IdemCounter counter, uint64 n);
extern IdemCounters *idem_counters_copy(int *number);
extern void idem_counters_reset(void);
extern List *idem_counters_databases(void);
extern void idem_counters_forget(Oid database);
extern void idem_counters_init(void);

#endif							/* IDEM_BASE_COUNTERS_H */
