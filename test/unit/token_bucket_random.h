/*-------------------------------------------------------------------------
 *
 * token_bucket_random.h
 *	  The part of bucket.c that is made of random histories.
 *
 * Shown here: of rules from the smallest to the largest, that change or do
 * not, and with a clock that jumps, each answer is that of a model in which
 * the level is one 128-bit integer; no window of a history lets more through
 * than capacity + rate * time; retry_after is the smallest wait.
 *
 * A part of one program, not a header of its own: bucket.c includes it once.
 * The seed is fixed, and printed.
 *
 *-------------------------------------------------------------------------
 */
#include "random.h"
#include "token_bucket_model.h"

#define SEED			UINT64CONST(20170306)
#define HISTORIES		120000
#define CHANGED			40000
#define STEPS			16

/* From 0 to a limit, both included */
static int64
pick(int64 limit)
{
	return (int64) (next_random() % ((uint64) limit + 1));
}

/* From 1 to a limit, any magnitude as likely as any other */
static int64
pick_magnitude(int64 limit)
{
	int			bits = 0;

	while (bits < 62 && limit >> bits > 1)
		bits++;
	return 1 + pick(Min(limit, INT64CONST(1) << pick(bits)) - 1);
}

/*
 * Random histories
 */

/* What is wrong in how many cases; one test for each. */
typedef struct Wrong
{
	long		takes;
	long		allowed;
	long		refused;
	long		peeked;
	long		answer;
	long		peek;
	long		full;
	long		bounds;
	long		early;
	long		late;
	long		window;
} Wrong;

/* A history in the making */
typedef struct History
{
	IdemBucketRule rule;
	IdemBucket	bucket;
	Model		model;
	int64		now;
	int64		retry_after;	/* of the last refusal */
	int128		worth[STEPS];	/* of all time so far, in 1/60 of a token */
	int32		taken[STEPS];
	int32		most;			/* capacity of all rules so far */
} History;

static void
pick_rule(IdemBucketRule *rule)
{
	static const int64 pers[] = {
		1, 7, SECOND, MINUTE, 60 * MINUTE + 1, IDEM_BUCKET_MAX_PER
	};

	switch (pick(4))
	{
		case 0:
			rule->capacity = 1 + (int32) pick(4);
			rule->per = 1 + pick(20);
			break;
		case 1:
			rule->capacity = pick(1) ? 1 : IDEM_BUCKET_MAX_CAPACITY;
			rule->per = pick(1) ? 1 : IDEM_BUCKET_MAX_PER;
			break;
		case 2:
			rule->capacity = 1 + (int32) pick(99);
			rule->per = pers[pick(lengthof(pers) - 1)];
			break;
		case 3:
			rule->capacity = IDEM_BUCKET_MAX_CAPACITY - (int32) pick(1000);
			rule->per = IDEM_BUCKET_MAX_PER - pick(1000);
			break;
		default:
			rule->capacity = (int32) pick_magnitude(IDEM_BUCKET_MAX_CAPACITY);
			rule->per = pick_magnitude(IDEM_BUCKET_MAX_PER);
			break;
	}
	rule->backoff_base = 0;
	rule->backoff_max = 0;
	if (pick(1) == 0)
		return;
	rule->backoff_base = pick_magnitude(pick(15) ? rule->per * 2 :
										PG_INT64_MAX);
	rule->backoff_max = add_clamped(rule->backoff_base,
									pick(3) == 0 ? 0 :
									(int128) rule->backoff_base * pick(40));
	if (pick(31) == 0)
		rule->backoff_max = PG_INT64_MAX;
}

/* Periods of which 60 is a multiple, so that rates can be added up */
static void
pick_small_rule(IdemBucketRule *rule)
{
	static const int64 pers[] = {1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60};

	pick_rule(rule);
	rule->capacity = 1 + (int32) pick(30);
	rule->per = pers[pick(lengthof(pers) - 1)];
	if (rule->backoff_base > 0)
	{
		rule->backoff_base = 1 + pick(40);
		rule->backoff_max = rule->backoff_base + pick(300);
	}
}

static int128
pick_time(const History *h)
{
	const IdemBucketRule *rule = &h->rule;

	switch (pick(15))
	{
		case 0:
		case 1:
			return 0;
		case 2:
			return 1;
		case 3:
			return pick(rule->per);
		case 4:
			return rule->per + pick(2) - 1;
		case 5:
			return -1 - pick(IDEM_BUCKET_CLOCK_SLACK);
		case 6:
			return pick(3) ? -pick(100) : -pick(PG_INT64_MAX);
		case 7:
			return pick(7) ? pick(1000) : pick(PG_INT64_MAX);
		case 8:
			return pick(rule->backoff_base);
		case 9:
			return rule->backoff_base + (int128) pick(rule->backoff_max);
		case 10:
			return h->retry_after == PG_INT64_MAX ? 0 : h->retry_after;
		case 11:
			return Min(h->retry_after, INT64CONST(1) << 50) - 1;
		case 12:
			return rule->per / rule->capacity;
		default:
			return rule->per / rule->capacity * pick(5) + pick(2);
	}
}

static int32
pick_cost(const IdemBucketRule *rule)
{
	switch (pick(7))
	{
		case 0:
			return rule->capacity;
		case 1:
			return (int32) pick(rule->capacity);
		case 2:
			return (int32) pick_magnitude(rule->capacity);
		case 3:
			return pick(7) ? (rule->capacity + 1) / 2 :
				pick(1) ? rule->capacity + 1 : PG_INT32_MAX;
		case 4:
			return rule->capacity - (int32) pick(Min(2, rule->capacity));
		default:
			return pick(15) == 0 ? 0 : 1;
	}
}

static bool
is_same(const IdemBucketResult *a, const IdemBucketResult *b)
{
	return a->allowed == b->allowed && a->remaining == b->remaining &&
		a->retry_after == b->retry_after;
}

static void
show(const char *what, const History *h, int32 cost,
	 const IdemBucketResult *got, const IdemBucketResult *due)
{
	diag("%s: %d per " INT64_FORMAT ", pause " INT64_FORMAT " to "
		 INT64_FORMAT ", cost %d at " INT64_FORMAT ": got %d %d "
		 INT64_FORMAT ", not %d %d " INT64_FORMAT, what, h->rule.capacity,
		 h->rule.per, h->rule.backoff_base, h->rule.backoff_max, cost, h->now,
		 got->allowed, got->remaining, got->retry_after,
		 due->allowed, due->remaining, due->retry_after);
}

/* A microsecond less is refused, so much is allowed, if nothing else comes */
static void
check_retry(const History *h, const IdemBucket *bucket, int32 cost,
			const IdemBucketResult *said, Wrong *wrong)
{
	IdemBucket	early = *bucket;
	IdemBucket	late = *bucket;
	IdemBucketResult result;

	if (said->allowed || said->retry_after == PG_INT64_MAX ||
		said->retry_after > PG_INT64_MAX - Max(h->now, 0))
		return;
	idem_bucket_take(&h->rule, &early, h->now + said->retry_after - 1, cost,
					 &result);
	wrong->early += result.allowed;
	idem_bucket_take(&h->rule, &late, h->now + said->retry_after, cost,
					 &result);
	wrong->late += !result.allowed;
}

static void
take_step(History *h, int step, Wrong *wrong)
{
	IdemBucket	before = h->bucket;
	IdemBucketResult got;
	IdemBucketResult due;
	int32		cost = pick_cost(&h->rule);
	int128		passed = h->model.time;
	int64		clock = h->model.clock;

	model_pass(&h->model, h->now);
	h->worth[step] = (step > 0 ? h->worth[step - 1] : 0) +
		(h->model.time - passed) * h->rule.capacity *
		(60 % h->rule.per == 0 ? 60 / h->rule.per : 0);

	/* the last microsecond that there is stands for all later ones, too */
	wrong->full += h->now < PG_INT64_MAX &&
		is_full(&h->rule, &before, h->now) != model_is_full(&h->model, h->now);
	due = model_answer(&h->model, h->now, cost, false);
	idem_bucket_peek(&h->rule, &before, h->now, cost, &got);
	wrong->peek += !is_same(&got, &due) ||
		memcmp(&before, &h->bucket, sizeof(before)) != 0;

	/* a look does not keep that the clock was set back */
	if ((int128) clock - h->now < IDEM_BUCKET_CLOCK_SLACK)
	{
		check_retry(h, &before, cost, &got, wrong);
		wrong->peeked++;
	}

	due = model_answer(&h->model, h->now, cost, true);
	idem_bucket_take(&h->rule, &h->bucket, h->now, cost, &got);
	wrong->takes++;
	if (!is_same(&got, &due) && wrong->answer++ < 5)
		show("take", h, cost, &got, &due);
	check_retry(h, &h->bucket, cost, &got, wrong);

	h->taken[step] = got.allowed ? cost : 0;
	wrong->allowed += got.allowed;
	wrong->refused += !got.allowed;
	if (!got.allowed)
		h->retry_after = got.retry_after;
	wrong->bounds += h->bucket.tokens < 0 ||
		h->bucket.tokens > h->rule.capacity || h->bucket.fraction < 0 ||
		h->bucket.fraction >= h->rule.per || h->bucket.away < 0 ||
		h->bucket.strikes < 0 ||
		(h->bucket.tokens == h->rule.capacity && h->bucket.fraction > 0);
}

/* Any two steps: what was taken from the one to the other, both included */
static void
check_windows(const History *h, int steps, const int128 *worth, int128 unit,
			  Wrong *wrong)
{
	int			from;
	int			to;

	for (from = 0; from < steps; from++)
	{
		int128		taken = 0;

		for (to = from; to < steps; to++)
		{
			taken += h->taken[to];
			wrong->window += (taken - h->most) * unit >
				worth[to] - worth[from];
		}
	}
}

static void
run_history(Wrong *wrong, bool changing)
{
	History		h;
	int128		worth[STEPS];
	int			steps = 1 + (int) pick(STEPS - 1);
	int			i;

	if (changing)
		pick_small_rule(&h.rule);
	else
		pick_rule(&h.rule);
	h.now = pick(7) ? pick(YEAR) : (int64) next_random();
	h.retry_after = 0;
	h.most = h.rule.capacity;
	idem_bucket_init(&h.rule, &h.bucket, h.now);
	model_init(&h.model, &h.rule, h.now);
	for (i = 0; i < steps; i++)
	{
		h.now = add_clamped(h.now, pick_time(&h));
		if (changing && pick(3) == 0)
		{
			pick_small_rule(&h.rule);
			model_change(&h.model, &h.rule);
			h.most = Max(h.most, h.rule.capacity);
		}
		take_step(&h, i, wrong);
		worth[i] = h.model.time * h.rule.capacity;
	}
	if (changing)
		check_windows(&h, steps, h.worth, 60, wrong);
	else
		check_windows(&h, steps, worth, h.rule.per, wrong);
}

static void
test_histories(int histories, bool changing)
{
	const char *which = changing ? "changing rules" : "one rule";
	Wrong		wrong;
	int			i;

	memset(&wrong, 0, sizeof(wrong));
	for (i = 0; i < histories; i++)
		run_history(&wrong, changing);
	diag("%s: %d histories, %ld takes, %ld allowed, %ld refused", which,
		 histories, wrong.takes, wrong.allowed, wrong.refused);
	ok(wrong.allowed > histories && wrong.refused > histories,
	   "%s: many were allowed, many refused", which);
	ok(wrong.answer == 0, "%s: each take gets what the model says", which);
	ok(wrong.peek == 0, "%s: so does each look, and changes nothing", which);
	ok(wrong.full == 0, "%s: full when the model is", which);
	ok(wrong.bounds == 0, "%s: the state is within its bounds", which);
	ok(wrong.early == 0, "%s: sooner than retry_after is refused", which);
	ok(wrong.late == 0, "%s: at retry_after is allowed", which);
	ok(wrong.window == 0, "%s: no window lets more through", which);
}
