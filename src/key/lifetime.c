/*-------------------------------------------------------------------------
 *
 * lifetime.c
 *	  When a key expires, and when its row may go.
 *
 * Pure functions of the row, its policy and now; test/unit/lifetime.c links this
 * file alone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "key/lifetime.h"

/* In how many steps the retention of a row is measured for purge_at. */
#define PURGE_STEPS 1000

/*
 * When a row expires whose retention begins at "since": after the given time,
 * where that is not -1, else after the policy's for completed or failed.
 */
static TimestampTz
expiry(const IdemPolicy *policy, int64 ttl, bool completed, TimestampTz since)
{
	if (ttl < 0)
		ttl = completed ? policy->completed_ttl : policy->failed_ttl;
	return ttl == 0 ? DT_NOEND : idem_lifetime_add(since, ttl);
}

/* When a row that expires then may be removed. */
static TimestampTz
purge_time(const IdemPolicy *policy, TimestampTz expires_at)
{
	return policy->reject_expired ?
		idem_lifetime_add(expires_at, policy->tombstone) : expires_at;
}

/*
 * Have a row, kept from "since" on, stay until "end"; purge_at never moves back.
 *
 * It is rounded up, by at most a thousandth of the time that the row is kept, so
 * that rows of one policy share index entries.
 */
static void
keep_until(IdemRow *row, TimestampTz since, TimestampTz end)
{
	int64		step;

	if (row->purge_at >= end)
		return;
	row->purge_at = end;
	if (end == DT_NOEND)
		return;
	step = Max((end - since) / PURGE_STEPS, 1);
	row->purge_at = idem_lifetime_add(end, (step - end % step) % step);
}

/*
 * idem_lifetime_lease
 *		The times of a claim in progress, whose lease begins now and is that
 *		long.  Abandoned, it is kept as long as a failure.
 *
 * purge_at is indexed.  It is a bound for however the claim ends within its
 * lease, and never moves back, so that its finish can be a HOT update.
 */
void
idem_lifetime_lease(const IdemPolicy *policy, IdemRow *row, TimestampTz now,
					int64 lease)
{
	TimestampTz end = idem_lifetime_add(now, lease);
	TimestampTz bound;

	/* counted from the end of the lease: until then the holder may be at work */
	row->lease_until = end;
	row->expires_at = expiry(policy, row->ttl, false, end);
	bound = purge_time(policy, Max(row->expires_at,
								   expiry(policy, row->ttl, true, end)));
	keep_until(row, now, bound);
}

/*
 * idem_lifetime_finish
 *		Make a row finished now.  The ttl of this answer alone goes before that
 *		of the claim; -1: none.  Without it purge_at moves only when it must.
 */
void
idem_lifetime_finish(const IdemPolicy *policy, IdemRow *row, IdemState state,
					 int64 ttl, TimestampTz now)
{
	/* from the finish on, as the policy says for what it has become */
	row->state = state;
	row->finished_at = now;
	row->expires_at = expiry(policy, ttl >= 0 ? ttl : row->ttl,
							 state == IDEM_STATE_COMPLETED, now);

	/*
	 * The bound of the claim was for ever, or the answer has a time of its
	 * own, which may be much shorter: a row must not outstay it.
	 */
	if (ttl >= 0 || row->purge_at == DT_NOEND)
		row->purge_at = DT_NOBEGIN;
	keep_until(row, now, purge_time(policy, row->expires_at));
}
