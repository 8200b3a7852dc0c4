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
		!idem_bytes_equal(asked->context, found->context))
		return answer(IDEM_OUTCOME_MISMATCH);
	if (found->state == IDEM_STATE_IN_PROGRESS)
		return decide_in_progress(found, asked);
	if (found->state == IDEM_STATE_RETRYABLE)
		return claim(IDEM_CLAIM_AGAIN, next_attempt(found), false);
	return answer(IDEM_OUTCOME_REPLAYED);
}
