/*-------------------------------------------------------------------------
 *
 * token_bucket_model.h
 *	  A model of src/limit/token_bucket.c: slow, simple, in 128 bits.
 *
 * The level is one integer in 1/per of a token, times are what they are.  Shares
 * no code with what it is compared with.  Used by token_bucket_random.h and by
 * test/fuzz/token_bucket.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_TOKEN_BUCKET_MODEL_H
#define IDEM_TOKEN_BUCKET_MODEL_H

static int64
add_clamped(int64 a, int128 b)
{
	int128		sum = a + b;

	return sum > PG_INT64_MAX ? PG_INT64_MAX :
		sum < PG_INT64_MIN ? PG_INT64_MIN : (int64) sum;
}

/*
 * The model: what is there, in 1/per of a token, and times as they are.
 * "time" is all that has passed, whatever the clock did.
 */
typedef struct Model
{
	IdemBucketRule rule;
	int128		level;
	int128		time;
	int64		clock;
	int128		refused_at;
	int			strikes;
} Model;

static void
model_init(Model *m, const IdemBucketRule *rule, int64 now)
{
	m->rule = *rule;
	m->level = (int128) rule->capacity * rule->per;
	m->time = 0;
	m->clock = now;
	m->refused_at = 0;
	m->strikes = 0;
}

static void
model_clamp(Model *m)
{
	int128		full = (int128) m->rule.capacity * m->rule.per;

	if (m->level > full)
		m->level = full;
}

static int128
model_pause(const Model *m, int strikes)
{
	int128		pause = m->rule.backoff_base;

	while (--strikes > 0 && pause < m->rule.backoff_max)
		pause = Min(pause * 2, m->rule.backoff_max);
	return pause;
}

static void
model_change(Model *m, const IdemBucketRule *rule)
{
	m->level = m->level * rule->per / m->rule.per;
	m->rule = *rule;
	model_clamp(m);
	if (rule->backoff_base == 0)
		m->strikes = 0;
}

static void
model_pass(Model *m, int64 now)
{
	if (now > m->clock)
	{
		int128		elapsed = (int128) now - m->clock;

		m->time += elapsed;
		m->level += elapsed * m->rule.capacity;
		model_clamp(m);
		m->clock = now;
	}
	else if ((int128) m->clock - now >= IDEM_BUCKET_CLOCK_SLACK)
		m->clock = now;
}

/* Now, as a bucket has it, which counts no more than that since a refusal */
static int128
model_time(const Model *m)
{
	return Min(m->time, m->refused_at + PG_INT64_MAX);
}

/* Strikes left and the end of the pause */
static int
model_strikes(const Model *m, int128 *until)
{
	int			strikes = m->strikes;
	int128		forgiven;

	*until = m->refused_at;
	if (strikes == 0)
		return 0;
	while (strikes > 1 &&
		   model_pause(m, strikes - 1) == model_pause(m, strikes))
		strikes--;
	*until += model_pause(m, strikes);
	forgiven = *until + model_pause(m, strikes);
	while (strikes > 0 && model_time(m) >= forgiven)
		forgiven += model_pause(m, --strikes);
	return strikes;
}

/* The answer; a refusal is counted where it is a take's */
static IdemBucketResult
model_ask(Model *m, int32 cost, bool take)
{
	IdemBucketResult result;
	int128		need = (int128) cost * m->rule.per;
	int128		wait = 0;
	int128		until;
	int			strikes = model_strikes(m, &until);
	bool		never = cost > m->rule.capacity;

	result.allowed = m->level >= need && model_time(m) >= until;
	if (result.allowed && take)
		m->level -= need;
	if (!result.allowed && take && !never && m->rule.backoff_base > 0)
	{
		if (strikes == 0 ||
			model_pause(m, strikes + 1) > model_pause(m, strikes))
			strikes++;
		m->strikes = strikes;
		m->refused_at = m->time;
		model_strikes(m, &until);
	}
	result.remaining = (int32) (m->level / m->rule.per);
	if (!result.allowed)
	{
		if (need > m->level)
			wait = (need - m->level + m->rule.capacity - 1) /
				m->rule.capacity;
		wait = Max(wait, until - model_time(m));
	}
	result.retry_after = never ? PG_INT64_MAX :
		add_clamped(0, wait);
	return result;
}

/* The same, with what the clock is behind in retry_after */
static IdemBucketResult
model_answer(Model *m, int64 now, int32 cost, bool take)
{
	IdemBucketResult result = model_ask(m, cost, take);

	if (!result.allowed && now < m->clock)
		result.retry_after = add_clamped(result.retry_after,
										 (int128) m->clock - now);
	return result;
}

static bool
model_is_full(const Model *m, int64 now)
{
	int128		until;

	return m->level == (int128) m->rule.capacity * m->rule.per &&
		model_strikes(m, &until) == 0 && now >= m->clock;
}

/* Whether the bucket may be forgotten */
static bool
is_full(const IdemBucketRule *rule, const IdemBucket *bucket, int64 now)
{
	IdemBucket	copy = *bucket;

	idem_bucket_settle(rule, &copy, now);
	return idem_bucket_full_at(rule, &copy) <= now;
}

#endif							/* IDEM_TOKEN_BUCKET_MODEL_H */
