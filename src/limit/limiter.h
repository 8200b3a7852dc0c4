/*-------------------------------------------------------------------------
 *
 * limiter.h
 *	  Rate limiters: what they say.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_LIMIT_LIMITER_H
#define IDEM_LIMIT_LIMITER_H

#include "limit/token_bucket.h"
#include "rule/rule_table.h"

/* A limiter.  Values only, so that it can be copied. */
typedef struct IdemLimiter
{
	NameData	name;
	uint64		id;				/* in the key of a bucket */
	IdemBucketRule rule;		/* with no byte that is not set */
	bool		allow_when_full;
	int			counters;		/* for idem_counters_add() */
} IdemLimiter;

extern IdemRuleTable idem_limiter_table;

extern void idem_limiter_get(const char *name, IdemLimiter *limiter);
extern uint64 idem_limiter_id(const char *name);
extern void idem_limiter_init(void);

#endif							/* IDEM_LIMIT_LIMITER_H */
