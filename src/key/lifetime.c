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

/*
 * When a row expires whose retention begins at "since": after the time given
 * with its claim, else after the policy's for completed or failed.
 */
static TimestampTz
expiry(const IdemPolicy *policy, const IdemRow *row, bool completed,
	   TimestampTz since)
{
	int64		ttl = completed ? policy->completed_ttl : policy->failed_ttl;

	if (row->ttl >= 0)
		ttl = row->ttl;
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
	row->expires_at = expiry(policy, row, false, end);
	bound = purge_time(policy, Max(row->expires_at,
								   expiry(policy, row, true, end)));
	row->purge_at = Max(row->purge_at, bound);
}

/*
 * idem_lifetime_finish
 *		Make a row finished now.  purge_at moves only when it must.
 */
void
idem_lifetime_finish(const IdemPolicy *policy, IdemRow *row, IdemState state,
					 TimestampTz now)
{
	TimestampTz purge_at;

	/* from the finish on, as the policy says for what it has become */
	row->state = state;
	row->finished_at = now;
	row->expires_at = expiry(policy, row, state == IDEM_STATE_COMPLETED, now);
	purge_at = purge_time(policy, row->expires_at);
	row->purge_at = Max(row->purge_at, purge_at);
}
