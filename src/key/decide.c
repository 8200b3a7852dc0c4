/*-------------------------------------------------------------------------
 *
 * decide.c
 *	  The decision table: what a claim gets, given what it finds.
 *
 * A pure function of (what was found, what was asked, now).  No SPI, no
 * lock, no setting, no memory, no server function: test/unit/decide.c links
 * this file alone and tries every combination.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/context.h"
#include "key/decide.h"
#include "key/lifetime.h"

/*
 * Whether an expired row is still remembered, to be refused.
 *
 * purge_at, an upper bound made at the claim, is the end in any case: past
 * it the sweep may take the row, and the answer must not depend on whether
 * it has come by.
 */
static bool
is_tombstone(const IdemFound *found, int64 now)
{
	return found->reject_expired && now < found->purge_at &&
		now < idem_lifetime_add(found->expires_at, found->tombstone);
}

static IdemDecision
answer(IdemOutcome outcome)
{
	IdemDecision decision = {IDEM_ANSWER, outcome, 0, false};

	return decision;
}

static IdemDecision
claim(IdemVerdict verdict, int32 attempt, bool taken_over)
{
	IdemDecision decision = {
		verdict, IDEM_OUTCOME_CLAIMED, attempt, taken_over
	};

	return decision;
}

static int32
next_attempt(const IdemFound *found)
{
	return found->attempt < PG_INT32_MAX ? found->attempt + 1 : PG_INT32_MAX;
}

/* In progress, and it is the same request: the lease and the owner decide. */
static IdemDecision
decide_in_progress(const IdemFound *found, const IdemAsked *asked)
{
	IdemDecision decision = {IDEM_WAIT, IDEM_OUTCOME_IN_PROGRESS, 0, false};

	/* an ended lease is anybody's, its last holder's as well */
	if (asked->now >= found->lease_until)
		return claim(IDEM_CLAIM_AGAIN, next_attempt(found), true);
	if (asked->owner.data != NULL &&
		idem_bytes_equal(asked->owner, found->owner))
		decision = claim(IDEM_CLAIM_SAME, 0, false);
	return decision;
}

/*
 * idem_decide_free_attempt
 *		The attempt of a fresh claim; 0 when the key is not free, that is neither
 *		without a row, nor released, nor expired for good.
 */
int32
idem_decide_free_attempt(const IdemFound *found, int64 now)
{
	bool		expired;

	/* swept or not makes no difference: what is over is as if it were gone */
	if (!found->exists)
		return 1;
	expired = idem_lifetime_is_over(found->expires_at, now);
	if (expired && !is_tombstone(found, now))
		return 1;

	/* a released row is there for its token; the attempts go on, too */
	if (found->state == IDEM_STATE_RELEASED)
		return expired ? 1 : next_attempt(found);
	return 0;
}

/* The entry of one secret in what idem_context() returned. */
static IdemBytes
context_entry(IdemBytes context, size_t at)
{
	IdemBytes	entry = {(const char *) context.data + at,
	IDEM_CONTEXT_ENTRY_BYTES};

	return entry;
}

/* Greater than 0: the key id of a is the newer one. */
static int
compare_ids(IdemBytes a, IdemBytes b)
{
	return memcmp(a.data, b.data, IDEM_CONTEXT_ID_BYTES);
}

/* Whether a context can be one of idem_context(). */
static bool
has_entries(IdemBytes context)
{
	size_t		at = IDEM_CONTEXT_MARK_BYTES;

	if (context.data == NULL || context.len <= at ||
		(context.len - at) % IDEM_CONTEXT_ENTRY_BYTES != 0 ||
		memcmp(context.data, IDEM_CONTEXT_MARK, at) != 0)
		return false;
	for (; at + IDEM_CONTEXT_ENTRY_BYTES < context.len; at += IDEM_CONTEXT_ENTRY_BYTES)
		if (compare_ids(context_entry(context, at),
						context_entry(context, at + IDEM_CONTEXT_ENTRY_BYTES)) <= 0)
			return false;
	return true;
}

/*
 * Whether two contexts are of one client.  Secrets may have come and gone
 * between them: those that both were made with must have made the same, and
 * there must be one.  Bytes of an application's own are compared as they are.
 */
static bool
is_same_context(IdemBytes a, IdemBytes b)
{
	size_t		i = IDEM_CONTEXT_MARK_BYTES;
	size_t		j = IDEM_CONTEXT_MARK_BYTES;
	bool		same = false;

	if (!has_entries(a) || !has_entries(b))
		return idem_bytes_equal(a, b);
	while (i < a.len && j < b.len)
	{
		IdemBytes	x = context_entry(a, i);
		IdemBytes	y = context_entry(b, j);
		int			order = compare_ids(x, y);

		if (order == 0 && !idem_bytes_equal(x, y))
			return false;
		same |= order == 0;
		if (order >= 0)
			i += IDEM_CONTEXT_ENTRY_BYTES;
		if (order <= 0)
			j += IDEM_CONTEXT_ENTRY_BYTES;
	}
	return same;
}

/*
 * idem_decide
 *		What the caller gets.  The order of the tests is the contract.
 */
IdemDecision
idem_decide(const IdemFound *found, const IdemAsked *asked)
{
	IdemDecision forbidden = {IDEM_FORBIDDEN, IDEM_OUTCOME_EXPIRED, 0, false};
	int32		free_attempt = idem_decide_free_attempt(found, asked->now);

	if (free_attempt > 0)
		return claim(IDEM_CLAIM_FRESH, free_attempt, false);

	/*
	 * One's own open claim comes before the role and the request are looked
	 * at: waiting for it would be waiting for oneself.
	 */
	if (found->own && found->state == IDEM_STATE_IN_PROGRESS)
	{
		if (asked->owner.data != NULL &&
			idem_bytes_equal(asked->owner, found->owner))
			return answer(IDEM_OUTCOME_CLAIMED);
		return answer(IDEM_OUTCOME_IN_PROGRESS);
	}

	/* whoever may not have the key learns nothing of it, not even its age */
	if (!found->permitted)
		return forbidden;
	if (idem_lifetime_is_over(found->expires_at, asked->now))
		return answer(IDEM_OUTCOME_EXPIRED);

	/* a duplicate is one whatever its request; nothing is given away */
	if (found->reject_repeat && (found->state == IDEM_STATE_COMPLETED ||
								 found->state == IDEM_STATE_FAILED))
		return answer(IDEM_OUTCOME_DUPLICATE);

	/* another request neither gets the answer nor takes the key over */
	if (!idem_bytes_equal(asked->fingerprint, found->fingerprint) ||
		!is_same_context(asked->context, found->context))
		return answer(IDEM_OUTCOME_MISMATCH);
	if (found->state == IDEM_STATE_IN_PROGRESS)
		return decide_in_progress(found, asked);
	if (found->state == IDEM_STATE_RETRYABLE)
		return claim(IDEM_CLAIM_AGAIN, next_attempt(found), false);
	return answer(IDEM_OUTCOME_REPLAYED);
}
