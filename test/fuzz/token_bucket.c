/*-------------------------------------------------------------------------
 *
 * token_bucket.c
 *	  Target of tools/fuzz: src/limit/token_bucket.c.
 *
 * Two buckets with rules that change, takes of one or both, looks and returns,
 * and a clock that jumps, against the model of test/unit.  As an answer is due,
 * its retry_after is tried: a microsecond less is refused, so much is allowed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "limit/token_bucket.h"

#include "fuzz.h"
#include "../unit/token_bucket_model.h"

#define BUCKETS 2

typedef struct Pair
{
	IdemBucketRule rule;
	IdemBucket	bucket;
	Model		model;
} Pair;

static void
pick_rule(FuzzInput *in, IdemBucketRule *rule)
{
	uint8		kind = fuzz_byte(in);

	rule->capacity = (int32) fuzz_positive(in, IDEM_BUCKET_MAX_CAPACITY);
	rule->per = fuzz_positive(in, IDEM_BUCKET_MAX_PER);
	rule->backoff_base = 0;
	rule->backoff_max = 0;
	if (kind % 2 == 0)
		return;

	/*
	 * what is less than the base counts as the base: the model has no word
	 * for it
	 */
	rule->backoff_base = fuzz_positive(in, PG_INT64_MAX);
	rule->backoff_max = rule->backoff_base +
		fuzz_magnitude(in, PG_INT64_MAX - rule->backoff_base);
}

static int32
pick_cost(FuzzInput *in, const IdemBucketRule *rule)
{
	uint8		kind = fuzz_byte(in);

	switch (kind % 4)
	{
		case 0:
			return kind / 4 % 8;
		case 1:
			return rule->capacity - Min(kind / 4 % 4, rule->capacity);
		case 2:
			return (int32) fuzz_magnitude(in, PG_INT32_MAX);
		default:
			return (int32) fuzz_magnitude(in, rule->capacity);
	}
}

static int64
pick_now(FuzzInput *in, int64 now, const Pair *pair, int64 retry_after)
{
	uint8		kind = fuzz_byte(in);

	switch (kind % 8)
	{
		case 0:
			return now;
		case 1:
			return add_clamped(now, kind / 8);
		case 2:
			return add_clamped(now, -(int128) fuzz_magnitude(in, 2 * IDEM_BUCKET_CLOCK_SLACK));
		case 3:
			return add_clamped(now, retry_after);
		case 4:
			return add_clamped(now, (int128) pair->rule.per / pair->rule.capacity * (kind / 8));
		case 5:
			return kind < 16 ? (int64) fuzz_below(in, PG_UINT64_MAX) : now;
		case 6:
			return add_clamped(now, (int128) pair->rule.backoff_base * (kind / 8));
		default:
			return add_clamped(now, fuzz_magnitude(in, PG_INT64_MAX));
	}
}

static void
check_answer(const IdemBucketResult *is, IdemBucketResult due)
{
	must(is->allowed == due.allowed);
	must(is->remaining == due.remaining);
	must(is->retry_after == due.retry_after);
}

static void
check_state(const Pair *pair)
{
	const IdemBucket *bucket = &pair->bucket;

	must(bucket->tokens >= 0 && bucket->tokens <= pair->rule.capacity);
	must(bucket->fraction >= 0 && bucket->fraction < bucket->per);
	must(bucket->tokens < pair->rule.capacity || bucket->fraction == 0);
	must(bucket->away >= 0 && bucket->strikes >= 0 && bucket->strikes <= 64);
}

static void
check_retry(const Pair *pair, int64 now, int32 cost,
			const IdemBucketResult *said)
{
	IdemBucket	copy = pair->bucket;
	IdemBucketResult result;

	if (said->allowed || said->retry_after == PG_INT64_MAX ||
		said->retry_after > PG_INT64_MAX - Max(now, 0))
		return;
	idem_bucket_take(&pair->rule, &copy, now + said->retry_after - 1, cost, &result);
	must(!result.allowed);
	copy = pair->bucket;
	idem_bucket_take(&pair->rule, &copy, now + said->retry_after, cost, &result);
	must(result.allowed);
}

static int64
try_take(Pair *pair, int64 now, int32 cost)
{
	IdemBucket	before = pair->bucket;
	IdemBucketResult result;

	model_pass(&pair->model, now);
	if (now < PG_INT64_MAX)
		must(is_full(&pair->rule, &before, now) == model_is_full(&pair->model, now));
	idem_bucket_peek(&pair->rule, &pair->bucket, now, cost, &result);
	must(memcmp(&before, &pair->bucket, sizeof(before)) == 0);
	check_answer(&result, model_answer(&pair->model, now, cost, false));
	idem_bucket_take(&pair->rule, &pair->bucket, now, cost, &result);
	check_answer(&result, model_answer(&pair->model, now, cost, true));
	check_retry(pair, now, cost, &result);
	return result.allowed ? 0 : result.retry_after;
}

static void
try_both(FuzzInput *in, Pair *pairs, int64 now)
{
	IdemBucketTake takes[BUCKETS];
	IdemBucketResult due[BUCKETS];
	bool		allowed = true;
	int			found = 0;
	int			i;

	for (i = 0; i < BUCKETS; i++)
	{
		memset(&takes[i], 0, sizeof(takes[i]));
		takes[i].rule = &pairs[i].rule;
		takes[i].bucket = fuzz_byte(in) % 8 == 0 ? NULL : &pairs[i].bucket;
		takes[i].cost = pick_cost(in, &pairs[i].rule);
		takes[i].result.remaining = i;
		due[i] = takes[i].result;
		model_pass(&pairs[i].model, now);
		if (takes[i].bucket != NULL)
			due[i] = model_answer(&pairs[i].model, now, takes[i].cost, false);
		else					/* nothing came by there: not its time either */
			model_init(&pairs[i].model, &pairs[i].rule, now);
		allowed = allowed && due[i].allowed;
	}
	for (i = 0; i < BUCKETS; i++)
		if (takes[i].bucket != NULL && due[i].allowed == allowed)
			due[i] = model_answer(&pairs[i].model, now, takes[i].cost, true);
	must(idem_bucket_take_all(takes, BUCKETS, now) == allowed);
	for (i = 0; i < BUCKETS; i++)
	{
		check_answer(&takes[i].result, due[i]);
		if (takes[i].bucket == NULL)
			idem_bucket_init(&pairs[i].rule, &pairs[i].bucket, now);
		else if (due[i].allowed != allowed)
			idem_bucket_settle(&pairs[i].rule, &pairs[i].bucket, now);
	}
	if (due[0].allowed != due[1].allowed)
		found = due[0].allowed;
	else if (allowed)
		found = due[1].remaining < due[0].remaining;
	else
		found = due[1].retry_after > due[0].retry_after;
	must(idem_bucket_tell(takes, BUCKETS) == found);
}

static void
try_return(Pair *pair, int64 now, int32 cost)
{
	model_pass(&pair->model, now);
	pair->model.level += (int128) cost * pair->rule.per;
	model_clamp(&pair->model);
	must(idem_bucket_return(&pair->rule, &pair->bucket, now, cost) ==
		 pair->model.level / pair->rule.per);
}

/* By the new rule from now on; the time until then was by the old one. */
static void
change_rule(FuzzInput *in, Pair *pair, int64 now)
{
	model_pass(&pair->model, now);
	idem_bucket_settle(&pair->rule, &pair->bucket, now);
	pick_rule(in, &pair->rule);
	model_change(&pair->model, &pair->rule);
	idem_bucket_settle(&pair->rule, &pair->bucket, now);
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	FuzzInput	in = fuzz_begin(data, size);
	Pair		pairs[BUCKETS];
	int64		now = fuzz_magnitude(&in, PG_INT64_MAX);
	int64		retry_after = 0;
	int			i;

	for (i = 0; i < BUCKETS; i++)
	{
		pick_rule(&in, &pairs[i].rule);
		memset(&pairs[i].bucket, 0, sizeof(pairs[i].bucket));
		idem_bucket_init(&pairs[i].rule, &pairs[i].bucket, now);
		model_init(&pairs[i].model, &pairs[i].rule, now);
	}
	while (fuzz_is_left(&in))
	{
		uint8		step = fuzz_byte(&in);
		Pair	   *pair = &pairs[step & 1];

		now = pick_now(&in, now, pair, retry_after);
		switch (step / 2 % 8)
		{
			case 0:
				try_both(&in, pairs, now);
				break;
			case 1:
				try_return(pair, now, pick_cost(&in, &pair->rule));
				break;
			case 2:
				change_rule(&in, pair, now);
				break;
			default:
				retry_after = try_take(pair, now, pick_cost(&in, &pair->rule));
		}
		check_state(pair);
	}
	return 0;
}
