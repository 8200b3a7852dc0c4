/*-------------------------------------------------------------------------
 *
 * lifetime.c
 *	  Target of tools/fuzz: src/key/lifetime.c.
 *
 * The life of a row, claimed again and again and finished, under any policy,
 * against sums in 128 bits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "key/lifetime.h"

#include "fuzz.h"

#define LAST_NOW INT64CONST(9000000000000000000)

static int64
clamp(int128 time)
{
	return time >= DT_NOEND ? DT_NOEND : (int64) time;
}

/* A ttl of 0 is for ever, and what is added to for ever is for ever. */
static int64
model_expiry(int64 ttl, int64 since)
{
	return ttl == 0 || since == DT_NOEND ? DT_NOEND :
		clamp((int128) since + ttl);
}

static int64
model_purge(const IdemPolicy *policy, int64 expires_at)
{
	return !policy->reject_expired ? expires_at : expires_at == DT_NOEND ?
		DT_NOEND : clamp((int128) expires_at + policy->tombstone);
}

/* Later than it must be by at most a thousandth of the time that it is kept. */
static void
check_purge(int64 before, int64 purge_at, int64 end, int64 since)
{
	must(purge_at >= before && purge_at >= end);
	if (before >= end)
		must(purge_at == before);
	else if (end == DT_NOEND)
		must(purge_at == DT_NOEND);
	else
	{
		int128		kept = (int128) end - since;
		int128		step = Max(kept / 1000, 1);
		int128		least = end;

		/* the first multiple of the step, found by looking */
		while (least % step != 0 && least - end < 1000)
			least++;
		if (least % step == 0)
			must(purge_at == clamp(least));
		else
			must(purge_at == DT_NOEND ? (int128) end + step > DT_NOEND :
				 purge_at % step == 0 && purge_at - end < step);
	}
}

static void
try_lease(const IdemPolicy *policy, IdemRow *row, int64 now, int64 lease)
{
	int64		before = row->purge_at;
	int64		end = clamp((int128) now + lease);
	int64		failed = model_expiry(row->ttl >= 0 ? row->ttl :
									  policy->failed_ttl, end);
	int64		completed = model_expiry(row->ttl >= 0 ? row->ttl :
										 policy->completed_ttl, end);

	idem_lifetime_lease(policy, row, now, lease);
	must(row->lease_until == end);
	must(row->expires_at == failed);
	check_purge(before, row->purge_at,
				model_purge(policy, Max(failed, completed)), now);
}

static void
try_finish(const IdemPolicy *policy, IdemRow *row, IdemState state, int64 ttl,
		   int64 now)
{
	bool		anew = ttl >= 0 || row->purge_at == DT_NOEND;
	int64		before = anew ? DT_NOBEGIN : row->purge_at;
	int64		due = ttl >= 0 ? ttl : row->ttl >= 0 ? row->ttl :
	state == IDEM_STATE_COMPLETED ? policy->completed_ttl :
	policy->failed_ttl;

	idem_lifetime_finish(policy, row, state, ttl, now);
	must(row->state == state && row->finished_at == now);
	must(row->expires_at == model_expiry(due, now));
	check_purge(before, row->purge_at, model_purge(policy, row->expires_at),
				now);
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	static IdemPolicy policy;
	FuzzInput	in = fuzz_begin(data, size);
	uint8		flags = fuzz_byte(&in);
	IdemRow		row;
	int64		now;

	memset(&row, 0, sizeof(row));
	policy.reject_expired = flags & 1;
	policy.completed_ttl = fuzz_magnitude(&in, PG_INT64_MAX);
	policy.failed_ttl = fuzz_magnitude(&in, PG_INT64_MAX);
	policy.tombstone = fuzz_magnitude(&in, PG_INT64_MAX);
	row.ttl = flags & 2 ? fuzz_magnitude(&in, PG_INT64_MAX) : -1;
	row.purge_at = DT_NOBEGIN;

	/* there is no clock before the epoch, nor at the end of time */
	now = fuzz_magnitude(&in, LAST_NOW);
	while (fuzz_is_left(&in))
	{
		uint8		step = fuzz_byte(&in);

		now += fuzz_magnitude(&in, LAST_NOW - now);
		if (step % 3 == 0)
			try_finish(&policy, &row, step % 4 == 0 ? IDEM_STATE_COMPLETED :
					   step % 4 == 1 ? IDEM_STATE_FAILED :
					   IDEM_STATE_RETRYABLE,
					   step & 64 ? fuzz_magnitude(&in, PG_INT64_MAX) : -1,
					   now);
		else
			try_lease(&policy, &row, now, fuzz_magnitude(&in, PG_INT64_MAX));
	}
	return 0;
}
