/*-------------------------------------------------------------------------
 *
 * token_bucket.c
 *	  Harness for src/limit/token_bucket.c, without a server.
 *
 * cc -I`pg_config --includedir-server` test/unit/token_bucket.c src/limit/token_bucket.c
 *
 * Shown here: a year without drift; then back-off, clock, rules and bounds by
 * example.  token_bucket_random.h has what is shown with random histories.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "../../src/limit/token_bucket.h"
#include "tap.h"

#define SECOND			INT64CONST(1000000)
#define MINUTE			(60 * SECOND)
#define YEAR			(365 * 24 * 60 * MINUTE)

#include "token_bucket_random.h"

/*
 * Examples
 */

static IdemBucketRule
make_rule(int32 capacity, int64 per, int64 base, int64 max)
{
	IdemBucketRule rule = {capacity, per, base, max};

	return rule;
}

static IdemBucketResult
take(const IdemBucketRule *rule, IdemBucket *bucket, int64 now, int32 cost)
{
	IdemBucketResult result;

	idem_bucket_take(rule, bucket, now, cost, &result);
	return result;
}

/* Whether a take gets just this */
static bool
gets(const IdemBucketRule *rule, IdemBucket *bucket, int64 now, int32 cost,
	 bool allowed, int32 remaining, int64 retry_after)
{
	IdemBucketResult due = {allowed, remaining, retry_after};
	IdemBucketResult got = take(rule, bucket, now, cost);

	if (is_same(&got, &due))
		return true;
	diag("got %d %d " INT64_FORMAT ", not %d %d " INT64_FORMAT,
		 got.allowed, got.remaining, got.retry_after,
		 allowed, remaining, retry_after);
	return false;
}

/*
 * Take all there is for some time: calls in even steps (or when told to come
 * back, for step 0), and at the end whatever is left.
 */
static int64
take_greedily(const IdemBucketRule *rule, int64 length, int64 step)
{
	IdemBucket	bucket;
	IdemBucketResult result;
	int64		now = 0;
	int64		taken = 0;

	idem_bucket_init(rule, &bucket, now);
	while (now <= length)
	{
		idem_bucket_take(rule, &bucket, now, 1, &result);
		taken += result.allowed;
		if (!result.allowed)
			now += step > 0 ? step : result.retry_after;
	}
	for (;;)
	{
		idem_bucket_take(rule, &bucket, length, 1, &result);
		if (!result.allowed)
			return taken;
		taken++;
	}
}

static void
test_year(void)
{
	static const struct
	{
		int32		capacity;
		int64		per;
		int64		length;
		int64		step;
	}			cases[] = {
		{20, MINUTE, YEAR, 0},
		{20, MINUTE, YEAR, 17 * SECOND + 1},
		{7, 60 * MINUTE + 1, YEAR, 0},
		{7, 60 * MINUTE + 1, YEAR, 7 * SECOND + 77777},
		{1, MINUTE - 1, YEAR, 0},
		{1000003, 1440 * MINUTE - 1, YEAR / 100, 0},
		{3, 7, 3 * SECOND, 0},
		{3, 7, 3 * SECOND, 1},
		{1, IDEM_BUCKET_MAX_PER, INT64CONST(100) * YEAR, YEAR / 7},
		{1000, IDEM_BUCKET_MAX_PER, INT64CONST(100) * YEAR, 0}
	};
	int			i;

	for (i = 0; i < (int) lengthof(cases); i++)
	{
		IdemBucketRule rule = make_rule(cases[i].capacity, cases[i].per, 0, 0);
		int128		length = cases[i].length;
		int128		due = rule.capacity + length * rule.capacity / rule.per;
		int64		taken = take_greedily(&rule, cases[i].length,
										  cases[i].step);

		if (!ok(taken == due, "no drift: %d per " INT64_FORMAT " for "
				INT64_FORMAT " by " INT64_FORMAT, rule.capacity, rule.per,
				cases[i].length, cases[i].step))
			diag(INT64_FORMAT " taken, not " INT64_FORMAT, taken,
				 (int64) due);
	}
}

static void
test_backoff(void)
{
	IdemBucketRule rule = make_rule(1, 1, 100, 700);
	IdemBucketRule plain = make_rule(1, 10, 0, 0);
	IdemBucket	b;

	idem_bucket_init(&plain, &b, 0);
	ok(gets(&plain, &b, 0, 1, true, 0, 0) &&
	   gets(&plain, &b, 4, 1, false, 0, 6) &&
	   gets(&plain, &b, 9, 1, false, 0, 1) &&
	   gets(&plain, &b, 10, 1, true, 0, 0), "without back-off no pause");

	idem_bucket_init(&rule, &b, 0);
	ok(gets(&rule, &b, 0, 1, true, 0, 0) &&
	   gets(&rule, &b, 0, 1, false, 0, 100) &&
	   gets(&rule, &b, 99, 1, false, 1, 200) &&
	   gets(&rule, &b, 99, 0, false, 1, 400) &&
	   gets(&rule, &b, 498, 1, false, 1, 700) &&
	   gets(&rule, &b, 499, 1, false, 1, 700),
	   "a pause doubles up to its most, from each refusal on");
	ok(gets(&rule, &b, 1199, 1, true, 0, 0) &&
	   gets(&rule, &b, 1199, 1, false, 0, 700),
	   "to be allowed once forgives nothing");
	ok(gets(&rule, &b, 1899 + 699, 1, true, 0, 0) &&
	   gets(&rule, &b, 1899 + 699, 1, false, 0, 700),
	   "nor does less than a pause's length after it");
	ok(gets(&rule, &b, 2598 + 700 + 700, 1, true, 0, 0) &&
	   gets(&rule, &b, 3998, 1, false, 0, 700) &&
	   gets(&rule, &b, 3998 + 1400 + 400, 1, true, 0, 0) &&
	   gets(&rule, &b, 5798, 1, false, 0, 400),
	   "a strike is forgiven for each pause's length away");

	/* at 5798: three strikes, 400 of pause, then 400, 200, 100 */
	ok(!is_full(&rule, &b, 5798 + 1099) &&
	   is_full(&rule, &b, 5798 + 1100),
	   "full tokens are not enough to be forgotten, healed they are");
	ok(gets(&rule, &b, 6898, 1, true, 0, 0) &&
	   gets(&rule, &b, 6898, 1, false, 0, 100),
	   "who stayed away long enough starts afresh");
}

/* What is no strike, and what is one only */
static void
test_strikes(void)
{
	IdemBucketRule rule = make_rule(1, 1, 100, 700);
	IdemBucket	b;

	idem_bucket_init(&rule, &b, 0);
	ok(gets(&rule, &b, 0, 2, false, 1, PG_INT64_MAX) &&
	   gets(&rule, &b, 0, 1, true, 0, 0), "what can never be is no strike");

	rule = make_rule(1, 1, 100, 0);
	idem_bucket_init(&rule, &b, 0);
	ok(gets(&rule, &b, 0, 1, true, 0, 0) &&
	   gets(&rule, &b, 0, 1, false, 0, 100) &&
	   gets(&rule, &b, 50, 1, false, 1, 100) &&
	   gets(&rule, &b, 150, 1, true, 0, 0) &&
	   !is_full(&rule, &b, 249) &&
	   is_full(&rule, &b, 250),
	   "a most below the base counts as the base");

	rule = make_rule(1, 1000, 10, 700);
	idem_bucket_init(&rule, &b, 0);
	ok(gets(&rule, &b, 0, 1, true, 0, 0) &&
	   gets(&rule, &b, 1, 1, false, 0, 999) &&
	   gets(&rule, &b, 1000, 1, true, 0, 0) &&
	   gets(&rule, &b, 1000, 1, false, 0, 1000) && b.strikes == 1,
	   "who comes back when told to has one strike at most");
}

/* No more than this after a last refusal is all forgiven */
static void
test_healing_bound(void)
{
	long		wrong = 0;
	int			i;

	for (i = 0; i < 20000; i++)
	{
		int64		base = pick_magnitude(YEAR);
		int64		max = base + pick(base * pick(100));
		IdemBucketRule rule = make_rule(1, 1, base, max);
		IdemBucket	b;
		int			refusals = (int) pick(100);

		idem_bucket_init(&rule, &b, 0);
		while (refusals-- >= 0)
			take(&rule, &b, 0, 1);
		wrong += !is_full(&rule, &b, 4 * max);
		wrong += refusals >= 0 && is_full(&rule, &b, base);
	}
	ok(wrong == 0, "all is forgiven in four times the longest pause");
}

static void
test_clock(void)
{
	IdemBucketRule rule = make_rule(10, 10 * SECOND, 0, 0);
	IdemBucketRule paused = make_rule(1, SECOND, MINUTE, 10 * MINUTE);
	IdemBucket	b;
	int64		noon = 100 * YEAR;
	int64		now;
	int64		taken = 0;
	int			i;

	idem_bucket_init(&rule, &b, noon);
	ok(gets(&rule, &b, noon, 10, true, 0, 0) &&
	   gets(&rule, &b, noon - 9, 1, false, 0, SECOND + 9) &&
	   gets(&rule, &b, noon, 1, false, 0, SECOND) &&
	   gets(&rule, &b, noon + SECOND, 1, true, 0, 0),
	   "slightly back: no time passes until the clock is there again");
	ok(gets(&rule, &b, noon - YEAR, 1, false, 0, SECOND) &&
	   gets(&rule, &b, noon - YEAR + SECOND - 1, 1, false, 0, 1) &&
	   gets(&rule, &b, noon - YEAR + SECOND, 1, true, 0, 0),
	   "far back: no token more, no wait longer");

	idem_bucket_init(&paused, &b, noon);
	ok(gets(&paused, &b, noon, 1, true, 0, 0) &&
	   gets(&paused, &b, noon, 1, false, 0, MINUTE) &&
	   gets(&paused, &b, noon - YEAR, 2, false, 0, PG_INT64_MAX) &&
	   gets(&paused, &b, noon - YEAR + MINUTE, 1, true, 0, 0),
	   "far back: a pause is no longer than it was");

	/* readers that wait for a lock in any order, for ten minutes */
	idem_bucket_init(&rule, &b, 0);
	for (now = 0; now < 10 * MINUTE; now += 1000)
		for (i = 0; i < 3; i++)
			taken += take(&rule, &b, Max(now - pick(5000), 0), 1).allowed;
	ok(taken >= 609 && taken <= 610,
	   "a clock read out of order lets nothing more through");

	idem_bucket_init(&rule, &b, 50);
	ok(!is_full(&rule, &b, 49) &&
	   is_full(&rule, &b, 50) &&
	   is_full(&rule, &b, 50 - SECOND),
	   "a bucket ahead of the clock is not forgotten");
}

static void
test_rules(void)
{
	IdemBucketRule ten = make_rule(10, 1000, 0, 0);
	IdemBucketRule hundred = make_rule(100, 1000, 0, 0);
	IdemBucketRule five = make_rule(5, 1000, 0, 0);
	IdemBucketRule slow = make_rule(10, 1000000, 0, 0);
	IdemBucketRule hard = make_rule(1, 1, 100, 6400);
	IdemBucketRule mild = make_rule(1, 1, 10, 40);
	IdemBucketRule none = make_rule(1, 1, 0, 0);
	IdemBucketResult seen;
	IdemBucket	b;
	int			i;

	idem_bucket_init(&ten, &b, 0);
	ok(gets(&hundred, &b, 0, 11, false, 10, 10) &&
	   gets(&hundred, &b, 10, 11, true, 0, 0),
	   "a raised capacity adds nothing at once");
	idem_bucket_init(&ten, &b, 0);
	ok(gets(&five, &b, 0, 1, true, 4, 0) && gets(&ten, &b, 0, 4, true, 0, 0),
	   "a lowered one cuts");
	idem_bucket_init(&ten, &b, 0);
	ok(gets(&ten, &b, 0, 10, true, 0, 0) &&
	   gets(&ten, &b, 99, 1, false, 0, 1) &&
	   gets(&slow, &b, 99, 1, false, 0, 1000) &&
	   gets(&slow, &b, 1098, 1, false, 0, 1) &&
	   gets(&ten, &b, 1098, 1, false, 0, 1),
	   "a part of a token stays that part");
	idem_bucket_init(&slow, &b, 0);
	take(&slow, &b, 0, 10);
	idem_bucket_settle(&slow, &b, 500000);
	ok(gets(&ten, &b, 500000, 6, false, 5, 100),
	   "settled by the old rule, the time before counts by it");

	idem_bucket_init(&hard, &b, 0);
	for (i = 0; i < 20; i++)
		take(&hard, &b, 0, 1);
	idem_bucket_peek(&mild, &b, 1, 1, &seen);
	ok(seen.retry_after == 39, "a pause is cut to the new rule's most");
	ok(gets(&mild, &b, 80, 1, true, 0, 0) &&
	   gets(&mild, &b, 80, 1, false, 0, 40),
	   "and its strikes to as many as that has");
	ok(gets(&none, &b, 81, 1, true, 0, 0), "without back-off it is gone");
}

static void
test_extremes(void)
{
	IdemBucketRule big = make_rule(IDEM_BUCKET_MAX_CAPACITY,
								   IDEM_BUCKET_MAX_PER, 0, 0);
	IdemBucketRule fast = make_rule(IDEM_BUCKET_MAX_CAPACITY, 1, 0, 0);
	IdemBucketRule slow = make_rule(1, IDEM_BUCKET_MAX_PER, 1, PG_INT64_MAX);
	IdemBucket	b;
	int32		most = IDEM_BUCKET_MAX_CAPACITY;
	int64		pause = 0;
	int			i;

	idem_bucket_init(&big, &b, PG_INT64_MIN);
	ok(gets(&big, &b, PG_INT64_MIN, most, true, 0, 0) &&
	   gets(&big, &b, PG_INT64_MIN, most, false, 0, IDEM_BUCKET_MAX_PER) &&
	   gets(&big, &b, PG_INT64_MIN + IDEM_BUCKET_MAX_PER - 1, most, false,
			most - 1, 1) &&
	   gets(&big, &b, PG_INT64_MIN + IDEM_BUCKET_MAX_PER, most, true, 0, 0),
	   "the largest bucket from the earliest time on");
	ok(gets(&big, &b, PG_INT64_MAX, most, true, 0, 0) &&
	   gets(&big, &b, PG_INT64_MIN, most, false, 0, IDEM_BUCKET_MAX_PER) &&
	   gets(&big, &b, PG_INT64_MAX, PG_INT32_MAX, false, most, PG_INT64_MAX),
	   "through all of time, back and again");
	idem_bucket_init(&fast, &b, 0);
	ok(gets(&fast, &b, 0, most, true, 0, 0) &&
	   gets(&fast, &b, 0, 1, false, 0, 1) &&
	   gets(&fast, &b, 1, most, true, 0, 0), "the fastest refill");

	idem_bucket_init(&slow, &b, 0);
	take(&slow, &b, 0, 1);
	for (i = 0; i < 100; i++)
		pause = take(&slow, &b, 0, 1).retry_after;
	ok(pause == PG_INT64_MAX, "the longest pause");
	ok(gets(&slow, &b, PG_INT64_MAX, 0, true, 1, 0), "ends");
	ok(sizeof(IdemBucket) <= 40, "the state is small");
}

int
main(void)
{
	plan(0);
	seed_random(SEED);
	diag("seed " UINT64_FORMAT, SEED);
	test_histories(HISTORIES, false);
	test_histories(CHANGED, true);
	test_year();
	test_backoff();
	test_strikes();
	test_healing_bound();
	test_clock();
	test_rules();
	test_extremes();
	return finish();
}
