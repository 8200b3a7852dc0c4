/*-------------------------------------------------------------------------
 *
 * token_bucket.c
 *	  Harness for src/limit/token_bucket.c, without a server.
 *
 * cc -I`pg_config --includedir-server` test/unit/token_bucket.c src/limit/token_bucket.c
 *
 * Shown here: a year without drift; then back-off, clock, rules, bounds and
 * giving back by example; then sets, by example and against single takes.  token_bucket_random.h has what is shown with random histories.
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

static void
test_return(void)
{
	IdemBucketRule ten = make_rule(10, 1000, 0, 0);
	IdemBucketRule hard = make_rule(2, 1000000, 100, 700);
	IdemBucketRule big = make_rule(IDEM_BUCKET_MAX_CAPACITY, 1, 0, 0);
	IdemBucket	b;

	idem_bucket_init(&ten, &b, 0);
	ok(idem_bucket_return(&ten, &b, 0, 1) == 10 &&
	   idem_bucket_return(&ten, &b, 0, PG_INT32_MAX) == 10 &&
	   is_full(&ten, &b, 0), "a full bucket stays full");
	ok(gets(&ten, &b, 0, 10, true, 0, 0) &&
	   idem_bucket_return(&ten, &b, 0, 3) == 3 &&
	   idem_bucket_return(&ten, &b, 0, 0) == 3 &&
	   gets(&ten, &b, 0, 4, false, 3, 100) &&
	   gets(&ten, &b, 0, 3, true, 0, 0), "what is given back can be taken");
	ok(idem_bucket_return(&ten, &b, 150, 2) == 3 &&
	   gets(&ten, &b, 150, 4, false, 3, 50),
	   "with what has flowed in, and the rest of a token");
	ok(idem_bucket_return(&ten, &b, 150, 7) == 10 &&
	   gets(&ten, &b, 150, 10, true, 0, 0) &&
	   gets(&ten, &b, 200, 1, false, 0, 50),
	   "never above the capacity, by no part of a token");
	ok(idem_bucket_return(&ten, &b, 200, 11) == 10,
	   "more than there can be fills it");

	idem_bucket_init(&big, &b, 0);
	ok(gets(&big, &b, 0, IDEM_BUCKET_MAX_CAPACITY, true, 0, 0) &&
	   idem_bucket_return(&big, &b, 0, 1) == 1 &&
	   idem_bucket_return(&big, &b, 0, PG_INT32_MAX) ==
	   IDEM_BUCKET_MAX_CAPACITY, "the largest bucket does not overflow");

	idem_bucket_init(&hard, &b, 0);
	ok(gets(&hard, &b, 0, 2, true, 0, 0) &&
	   gets(&hard, &b, 0, 1, false, 0, 500000) &&
	   idem_bucket_return(&hard, &b, 0, 1) == 1 &&
	   gets(&hard, &b, 50, 1, false, 1, 200) &&
	   idem_bucket_return(&hard, &b, 60, 1) == 2 &&
	   gets(&hard, &b, 249, 1, false, 2, 400) &&
	   gets(&hard, &b, 649, 1, true, 1, 0) && b.strikes == 3,
	   "a pause and its strikes stay");
}

#define MOST_MEMBERS 5

/* Sets of random buckets: what went wrong */
typedef struct WrongSets
{
	long		allowed;
	long		refused;
	long		decision;
	long		members;
	long		told;
} WrongSets;

/* Whether a set does what single takes say, all or none of them */
static void
try_set(IdemBucketTake *takes, int number, int64 now, WrongSets *wrong)
{
	IdemBucketResult due[MOST_MEMBERS];
	IdemBucket	after[MOST_MEMBERS];
	bool		allowed = true;
	const IdemBucketResult *told;
	int			i;

	for (i = 0; i < number; i++)
	{
		after[i] = *takes[i].bucket;
		due[i] = take(takes[i].rule, &after[i], now, takes[i].cost);
		allowed = allowed && due[i].allowed;
	}
	for (i = 0; i < number; i++)
		if (due[i].allowed && !allowed)
		{
			after[i] = *takes[i].bucket;
			idem_bucket_peek(takes[i].rule, &after[i], now, takes[i].cost,
							 &due[i]);
		}
	wrong->allowed += allowed;
	wrong->refused += !allowed;
	wrong->decision += idem_bucket_take_all(takes, number, now) != allowed;
	for (i = 0; i < number; i++)
		wrong->members += !is_same(&takes[i].result, &due[i]) ||
			memcmp(takes[i].bucket, &after[i], sizeof(IdemBucket)) != 0;
	told = &takes[idem_bucket_tell(takes, number)].result;
	wrong->told += told->allowed != allowed;
	for (i = 0; i < number; i++)
		if (due[i].allowed == allowed)
			wrong->told += allowed ? due[i].remaining < told->remaining :
				due[i].retry_after > told->retry_after;
}

static void
test_random_sets(void)
{
	WrongSets	wrong = {0};
	int			i;

	for (i = 0; i < 20000; i++)
	{
		IdemBucketRule rules[MOST_MEMBERS];
		IdemBucket	buckets[MOST_MEMBERS];
		IdemBucketTake takes[MOST_MEMBERS];
		int			number = 1 + (int) pick(MOST_MEMBERS - 1);
		int64		now = 0;
		int			step;
		int			j;

		memset(buckets, 0, sizeof(buckets));
		for (j = 0; j < number; j++)
		{
			pick_rule(&rules[j]);
			idem_bucket_init(&rules[j], &buckets[j], now);
			takes[j].rule = &rules[j];
			takes[j].bucket = &buckets[j];
		}
		for (step = 0; step < STEPS; step++)
		{
			now += pick_magnitude(rules[pick(number - 1)].per) - 1;
			for (j = 0; j < number; j++)
				takes[j].cost = (int32) pick(pick(9) > 0 ?
											 Min(rules[j].capacity, 3) :
											 (int64) rules[j].capacity + 1);
			try_set(takes, number, now, &wrong);
		}
	}
	ok(wrong.allowed > 10000 && wrong.refused > 10000,
	   "sets are allowed (%ld) and refused (%ld)", wrong.allowed,
	   wrong.refused);
	ok(wrong.decision == 0, "a set is allowed if all are");
	ok(wrong.members == 0,
	   "else those refuse that would alone, the others are as they were");
	ok(wrong.told == 0, "the longest wait is told, or the least left");
}

static void
test_sets(void)
{
	IdemBucketRule ten = make_rule(10, 1000, 0, 0);
	IdemBucketRule two = make_rule(2, 1000, 100, 700);
	IdemBucket	a;
	IdemBucket	b;
	IdemBucketTake takes[] = {{&ten, &a, 1}, {&two, &b, 1}, {&ten, NULL, 1}};

	idem_bucket_init(&ten, &a, 0);
	idem_bucket_init(&two, &b, 0);
	ok(idem_bucket_take_all(takes, 2, 0) && idem_bucket_tell(takes, 2) == 1 &&
	   idem_bucket_take_all(takes, 2, 0) && a.tokens == 8 && b.tokens == 0,
	   "all take");
	ok(!idem_bucket_take_all(takes, 2, 0) && idem_bucket_tell(takes, 2) == 1 &&
	   takes[0].result.allowed && takes[0].result.remaining == 8 &&
	   takes[1].result.retry_after == 500 && a.tokens == 8 && b.strikes == 1,
	   "none takes, and the strike is of the one that refuses");
	takes[0].cost = 11;
	ok(!idem_bucket_take_all(takes, 2, 0) && idem_bucket_tell(takes, 2) == 0 &&
	   a.strikes == 0 && b.strikes == 2, "never is the longest wait");
	takes[0].cost = 1;
	takes[1].cost = 0;
	takes[2].result.allowed = false;
	takes[2].result.retry_after = 7;
	ok(!idem_bucket_take_all(takes, 3, 2000) &&
	   idem_bucket_tell(takes, 3) == 2 && a.tokens == 8 &&
	   b.strikes == 2, "one without a bucket refuses for all");
	test_random_sets();
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
	test_return();
	test_sets();
	return finish();
}
