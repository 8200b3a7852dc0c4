/*-------------------------------------------------------------------------
 *
 * token_bucket.h
 *	  The arithmetic of a token bucket.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_LIMIT_TOKEN_BUCKET_H
#define IDEM_LIMIT_TOKEN_BUCKET_H

/*
 * Bounds of a rule, for the caller to enforce: within them no value of now,
 * of cost (from 0) or of a pause makes anything overflow.
 */
#define IDEM_BUCKET_MAX_CAPACITY	1000000000
#define IDEM_BUCKET_MAX_PER			(INT64CONST(3660) * 86400 * 1000000)

/*
 * A time this much before the last one, or more, is a clock that was set
 * back; any less is a caller that read the clock and then had to wait.
 */
#define IDEM_BUCKET_CLOCK_SLACK		INT64CONST(1000000)

/* All times are in microseconds. */
typedef struct IdemBucketRule
{
	int32		capacity;		/* tokens, from 1 */
	int64		per;			/* refills capacity tokens evenly, from 1 */
	int64		backoff_base;	/* the first pause; 0: no back-off */
	int64		backoff_max;	/* less than backoff_base counts as that */
} IdemBucketRule;

/*
 * The level is tokens + fraction / per, exactly.  "last" is the only point in
 * time; all else holds as of then.
 */
typedef struct IdemBucket
{
	int64		last;			/* up to when time has been counted */
	int64		fraction;		/* of a token, in 1/per; below per */
	int64		per;			/* the unit of fraction */
	int64		away;			/* since the last refusal */
	int32		tokens;
	int32		strikes;		/* at the last refusal: 0, 1 ... */
} IdemBucket;

typedef struct IdemBucketResult
{
	bool		allowed;
	int32		remaining;		/* whole tokens there, even if in a pause */
	int64		retry_after;	/* 0: allowed; PG_INT64_MAX: never */
} IdemBucketResult;

/* One of several takes that are made together, or none of them. */
typedef struct IdemBucketTake
{
	const IdemBucketRule *rule;
	IdemBucket *bucket;			/* NULL: none, and result is a refusal */
	int32		cost;
	IdemBucketResult result;
} IdemBucketTake;

extern void idem_bucket_init(const IdemBucketRule *rule, IdemBucket *bucket,
							 int64 now);
extern void idem_bucket_settle(const IdemBucketRule *rule,
							   IdemBucket *bucket, int64 now);
extern void idem_bucket_take(const IdemBucketRule *rule, IdemBucket *bucket,
							 int64 now, int32 cost,
							 IdemBucketResult *result);
extern void idem_bucket_peek(const IdemBucketRule *rule,
							 const IdemBucket *bucket, int64 now, int32 cost,
							 IdemBucketResult *result);
extern bool idem_bucket_take_all(IdemBucketTake *takes, int number,
								 int64 now);
extern int	idem_bucket_tell(const IdemBucketTake *takes, int number);
extern int32 idem_bucket_return(const IdemBucketRule *rule,
								IdemBucket *bucket, int64 now, int32 cost);
extern int64 idem_bucket_full_at(const IdemBucketRule *rule,
								 const IdemBucket *bucket);

#endif							/* IDEM_LIMIT_TOKEN_BUCKET_H */
