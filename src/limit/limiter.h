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

/* Columns of idempotency_limiters, the arguments of idem_limiter(). */
typedef enum IdemLimiterColumn
{
	IDEM_LIMITER_NAME,
	IDEM_LIMITER_CAPACITY,
	IDEM_LIMITER_PER,
	IDEM_LIMITER_BACKOFF_BASE,
	IDEM_LIMITER_BACKOFF_MAX,
	IDEM_LIMITER_WHEN_FULL
} IdemLimiterColumn;

#define IDEM_LIMITER_COLUMNS (IDEM_LIMITER_WHEN_FULL + 1)

/* A limiter.  Values only, so that it can be copied. */
typedef struct IdemLimiter
{
	NameData	name;
	uint64		id;				/* in the key of a bucket */
	IdemBucketRule rule;		/* with no byte that is not set */
	bool		allow_when_full;
	int			counters;		/* for idem_counters_add() */
} IdemLimiter;

extern void idem_limiter_get(const char *name, IdemLimiter *limiter);
extern uint64 idem_limiter_id(const char *name);
extern void idem_limiter_init(void);

#endif							/* IDEM_LIMIT_LIMITER_H */
