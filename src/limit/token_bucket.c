/*-------------------------------------------------------------------------
 *
 * token_bucket.c
 *	  The arithmetic of a token bucket.
 *
 * Pure functions of (rule, bucket, now, cost).  No SPI, no lock, no setting,
 * no memory, no clock, no server function: test/unit/token_bucket.c links this
 * file alone and compares it with a simple model.  The caller holds whatever
 * lock keeps the bucket to itself, and has refused rules beyond the bounds of
 * the header and negative costs.
 *
 * Exact: the level is kept as whole tokens and a rest in 1/per of a token, in
 * which all that is added or taken is an integer.  See README.md for this, for
 * back-off, the clock and a changed rule.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "limit/token_bucket.h"

/* Digits of a multiplication; a divisor has up to 49 bits: 64 in all. */
#define DIGIT_BITS	15
#define DIGIT_MASK	((UINT64CONST(1) << DIGIT_BITS) - 1)

/*
 * a * b / divisor, and what remains, for a <= divisor.
 *
 * By long multiplication and division together, from the highest digit of b
 * down: a times the digits so far is quotient * divisor + rest.
 */
static uint64
multiply_divide(uint64 a, uint64 b, uint64 divisor, uint64 *remainder)
{
	uint64		quotient = 0;
	uint64		rest = 0;
	int			shift = 0;

	while (b >> shift > DIGIT_MASK)
		shift += DIGIT_BITS;
	for (; shift >= 0; shift -= DIGIT_BITS)
	{
		/*
		 * The divisor, and so a and the rest, are below 2^49: neither of
		 * these has more than 64 bits.  The quotient is at most b.
		 */
		uint64		carried = rest << DIGIT_BITS;
		uint64		added = a * ((b >> shift) & DIGIT_MASK);

		quotient = (quotient << DIGIT_BITS) + carried / divisor +
			added / divisor;
		rest = carried % divisor + added % divisor;
		if (rest >= divisor)
		{
			rest -= divisor;
			quotient++;
		}
	}
	*remainder = rest;
	return quotient;
}

/* a + b, at most PG_INT64_MAX; unsigned, where the room has up to 64 bits */
static int64
add_times(int64 a, uint64 b)
{
	uint64		room = (uint64) PG_INT64_MAX - (uint64) a;

	return b > room ? PG_INT64_MAX : (int64) ((uint64) a + b);
}

/*
 * Time since "last", 0 where the clock is behind it.  Unsigned: all of the
 * range of a timestamp may lie between.
 */
static uint64
measure_elapsed(const IdemBucket *bucket, int64 now)
{
	return now > bucket->last ? (uint64) now - (uint64) bucket->last : 0;
}

/* By how much the clock is behind "last", 0 where it is not */
static uint64
measure_behind(const IdemBucket *bucket, int64 now)
{
	return now < bucket->last ? (uint64) bucket->last - (uint64) now : 0;
}

static void
fill(const IdemBucketRule *rule, IdemBucket *bucket)
{
	bucket->tokens = rule->capacity;
	bucket->fraction = 0;
}

/* Let time flow into the bucket. */
static void
refill(const IdemBucketRule *rule, IdemBucket *bucket, uint64 elapsed)
{
	uint64		whole;
	uint64		part;

	/* the product below would not be bounded */
	if (elapsed >= (uint64) rule->per)
	{
		fill(rule, bucket);
		return;
	}
	whole = multiply_divide(elapsed, rule->capacity, rule->per, &part);
	part += bucket->fraction;
	if (part >= (uint64) rule->per)
	{
		part -= rule->per;
		whole++;
	}
	if (whole + bucket->tokens >= (uint64) rule->capacity)
	{
		fill(rule, bucket);
		return;
	}
	bucket->tokens += (int32) whole;
	bucket->fraction = (int64) part;
}

/* The pause that so many strikes (from 1) give */
static int64
measure_pause(const IdemBucketRule *rule, int32 strikes)
{
	int64		most = Max(rule->backoff_base, rule->backoff_max);

	/* shifted the other way: the pause may not fit into an int64 */
	if (strikes > 63 || rule->backoff_base > most >> (strikes - 1))
		return most;
	return rule->backoff_base << (strikes - 1);
}

/* One more strike, unless the pause does not grow by it */
static int32
add_strike(const IdemBucketRule *rule, int32 strikes)
{
	if (strikes > 0 &&
		measure_pause(rule, strikes) >= rule->backoff_max)
		return strikes;
	return strikes + 1;
}

/*
 * The strikes at the last refusal, less those that do not count by this rule,
 * which may have come since and double less often.  There are at most 64, one
 * for each bit of a pause.
 */
static int32
count_all_strikes(const IdemBucketRule *rule, const IdemBucket *bucket)
{
	int32		strikes = rule->backoff_base > 0 ? bucket->strikes : 0;

	while (strikes > 1 && add_strike(rule, strikes - 1) < strikes)
		strikes--;
	return strikes;
}

/* The strikes not forgiven yet, and in *pause what is left of the pause */
static int32
count_strikes(const IdemBucketRule *rule, const IdemBucket *bucket,
			  int64 *pause)
{
	int32		strikes = count_all_strikes(rule, bucket);
	int64		away = bucket->away;
	int64		length;

	*pause = 0;
	if (strikes == 0)
		return 0;
	length = measure_pause(rule, strikes);
	if (away < length)
	{
		*pause = length - away;
		return strikes;
	}
	away -= length;
	while (strikes > 0 && away >= (length = measure_pause(rule, strikes)))
	{
		away -= length;
		strikes--;
	}
	return strikes;
}

/* How long until all strikes are forgiven */
static int64
measure_healing(const IdemBucketRule *rule, const IdemBucket *bucket)
{
	int32		strikes = count_all_strikes(rule, bucket);
	int32		step = strikes > 0 ? strikes + 1 : 0;
	int64		away = bucket->away;
	int64		healing = 0;

	/* First the pause, then a step for each strike, as long as its pause. */
	for (; step > 0; step--)
	{
		int64		length = measure_pause(rule, Min(step, strikes));
		int64		past = Min(away, length);

		away -= past;
		healing = add_times(healing, length - past);
	}
	return healing;
}

/* How long until the tokens for a cost within the capacity are there */
static int64
measure_wait(const IdemBucketRule *rule, const IdemBucket *bucket, int32 cost)
{
	uint64		wait;
	uint64		rest;
	uint64		fraction = bucket->fraction;

	if (cost <= bucket->tokens)
		return 0;

	/*
	 * What is missing in 1/per of a token, divided by the capacity, upwards:
	 * (missing tokens * per - fraction) / capacity.
	 */
	wait = multiply_divide(cost - bucket->tokens, rule->per, rule->capacity,
						   &rest);
	if (rest > fraction)
		wait++;
	else
		wait -= (fraction - rest) / rule->capacity;
	return (int64) wait;
}

/* What a settled bucket says to a cost; the clock may be behind it */
static void
judge(const IdemBucketRule *rule, const IdemBucket *bucket, int64 now,
	  int32 cost, IdemBucketResult *result)
{
	int64		wait = PG_INT64_MAX;
	int64		pause;

	count_strikes(rule, bucket, &pause);

	/* else there is no use in waiting */
	if (cost <= rule->capacity)
		wait = Max(measure_wait(rule, bucket, cost), pause);
	result->allowed = wait == 0;
	result->remaining = bucket->tokens;
	result->retry_after = wait == 0 ? 0 :
		add_times(wait, measure_behind(bucket, now));
}

/*
 * idem_bucket_init
 *		A full bucket of a subject of whom nothing is known.
 */
void
idem_bucket_init(const IdemBucketRule *rule, IdemBucket *bucket, int64 now)
{
	bucket->last = now;
	bucket->per = rule->per;
	bucket->away = 0;
	bucket->strikes = 0;
	fill(rule, bucket);
}

/*
 * idem_bucket_settle
 *		Count the time up to now, by this rule.
 */
void
idem_bucket_settle(const IdemBucketRule *rule, IdemBucket *bucket, int64 now)
{
	uint64		elapsed = measure_elapsed(bucket, now);
	uint64		ignored;

	/* the unit of the rest has changed; rounded down */
	if (bucket->per != rule->per)
	{
		bucket->fraction = (int64) multiply_divide(bucket->fraction, rule->per,
												   bucket->per, &ignored);
		bucket->per = rule->per;
	}
	refill(rule, bucket, elapsed);
	bucket->away = add_times(bucket->away, elapsed);
	if (rule->backoff_base <= 0)
		bucket->strikes = 0;

	/*
	 * A caller that read the clock and then had to wait leaves "last" where
	 * it is, lest the same time be counted twice.  A clock that was set back
	 * takes "last" with it: all else is relative to it, so refill and pause
	 * go on from where they were.
	 */
	if (elapsed > 0 ||
		measure_behind(bucket, now) >= (uint64) IDEM_BUCKET_CLOCK_SLACK)
		bucket->last = now;
}

/*
 * idem_bucket_take
 *		Take tokens, all or none; a refusal counts where there is back-off.
 */
void
idem_bucket_take(const IdemBucketRule *rule, IdemBucket *bucket, int64 now,
				 int32 cost, IdemBucketResult *result)
{
	int64		pause;

	idem_bucket_settle(rule, bucket, now);
	judge(rule, bucket, now, cost, result);
	if (result->allowed)
	{
		bucket->tokens -= cost;
		result->remaining = bucket->tokens;
	}
	else if (rule->backoff_base > 0 && cost <= rule->capacity)
	{
		/*
		 * Strikes are counted anew from what is not forgiven.  Being allowed
		 * forgives none: a token taken now and then would let a subject that
		 * hammers start afresh.
		 */
		bucket->strikes = add_strike(rule,
									 count_strikes(rule, bucket, &pause));
		bucket->away = 0;
		judge(rule, bucket, now, cost, result);
	}
}

/*
 * idem_bucket_peek
 *		What taking would give, without the strike that a refusal would be.
 *
 * That the clock was set back is not kept in the bucket, as by a take: until
 * there is one, retry_after is counted from each look anew.
 */
void
idem_bucket_peek(const IdemBucketRule *rule, const IdemBucket *bucket,
				 int64 now, int32 cost, IdemBucketResult *result)
{
	IdemBucket	copy = *bucket;

	idem_bucket_settle(rule, &copy, now);
	judge(rule, &copy, now, cost, result);
}

/*
 * idem_bucket_take_all
 *		Take from all of several buckets, no two of them the same, or from
 *		none.  A refusal is one of those that refuse, and counts with them
 *		alone; the others say what they would have allowed.
 */
bool
idem_bucket_take_all(IdemBucketTake *takes, int number, int64 now)
{
	bool		allowed = true;
	int			i;

	for (i = 0; i < number; i++)
	{
		IdemBucketTake *each = &takes[i];

		if (each->bucket != NULL)
			idem_bucket_peek(each->rule, each->bucket, now, each->cost,
							 &each->result);
		allowed = allowed && each->result.allowed;
	}

	/* at the same time each answers as it has, now for good */
	for (i = 0; i < number; i++)
	{
		IdemBucketTake *each = &takes[i];

		if (each->bucket != NULL && each->result.allowed == allowed)
			idem_bucket_take(each->rule, each->bucket, now, each->cost,
							 &each->result);
	}
	return allowed;
}

/*
 * idem_bucket_tell
 *		Which of the answers of idem_bucket_take_all() speaks for all of them:
 *		the refusal with the longest wait, else the one with the least left;
 *		the first of equals.
 */
int
idem_bucket_tell(const IdemBucketTake *takes, int number)
{
	int			found = 0;
	int			i;

	for (i = 1; i < number; i++)
	{
		const IdemBucketResult *best = &takes[found].result;
		const IdemBucketResult *each = &takes[i].result;

		if (each->allowed != best->allowed ? best->allowed :
			each->allowed ? each->remaining < best->remaining :
			each->retry_after > best->retry_after)
			found = i;
	}
	return found;
}

/*
 * idem_bucket_return
 *		Give tokens back, up to a full bucket; what is there then.  Strikes and
 *		a pause stay: only staying away undoes them.
 */
int32
idem_bucket_return(const IdemBucketRule *rule, IdemBucket *bucket, int64 now,
				   int32 cost)
{
	idem_bucket_settle(rule, bucket, now);
	if (cost >= rule->capacity - bucket->tokens)
		fill(rule, bucket);
	else
		bucket->tokens += cost;
	return bucket->tokens;
}

/*
 * idem_bucket_full_at
 *		From when on a settled bucket may be forgotten, if nobody calls: a new
 *		one would be its equal.  PG_INT64_MAX: never.
 */
int64
idem_bucket_full_at(const IdemBucketRule *rule, const IdemBucket *bucket)
{
	int64		wait = measure_wait(rule, bucket, rule->capacity);
	int64		healing = measure_healing(rule, bucket);

	return add_times(bucket->last, Max(wait, healing));
}
