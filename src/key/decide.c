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

/*
 * idem_state_equal
 *		Whether two byte strings are the same; absent equals only absent.
 *
 * Takes as long for the first different byte as for the last, so that a
 * caller cannot feel its way to a context.  The server's timingsafe_bcmp()
 * came with a minor release and is not in all that this must load into.
 */
bool
idem_state_equal(IdemBytes a, IdemBytes b)
{
	const volatile unsigned char *x = a.data;
	const volatile unsigned char *y = b.data;
	unsigned char differs = 0;
	size_t		i;

	if (a.data == NULL || b.data == NULL)
		return a.data == NULL && b.data == NULL;
	if (a.len != b.len)
		return false;
	for (i = 0; i < a.len; i++)
		differs |= x[i] ^ y[i];
	return differs == 0;
}

/*
 * idem_state_add
 *		A time some microseconds (not negative) later, at most "infinity".
 */
int64
idem_state_add(int64 when, int64 duration)
{
	if (when == DT_NOEND || (when > 0 && duration >= DT_NOEND - when))
		return DT_NOEND;
	return when + duration;
}

/*
 * idem_state_expired
 *		Whether the time of this row is over.
 */
bool
idem_state_expired(const IdemFound *found, int64 now)
{
	return found->expires_at != DT_NOEND && now >= found->expires_at;
}

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
		now < idem_state_add(found->expires_at, found->tombstone);
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

	if (asked->now >= found->lease_until)
		return claim(IDEM_CLAIM_AGAIN, next_attempt(found), true);
	if (asked->owner.data != NULL &&
		idem_state_equal(asked->owner, found->owner))
		decision = claim(IDEM_CLAIM_SAME, 0, false);
	return decision;
}

/*
 * idem_state_decide
 *		What the caller gets.  The order of the tests is the contract.
 */
IdemDecision
idem_state_decide(const IdemFound *found, const IdemAsked *asked)
{
	IdemDecision forbidden = {IDEM_FORBIDDEN, IDEM_OUTCOME_EXPIRED, 0, false};
	bool		expired;

	if (!found->exists)
		return claim(IDEM_CLAIM_FRESH, 1, false);

	expired = idem_state_expired(found, asked->now);
	if (expired && !is_tombstone(found, asked->now))
		return claim(IDEM_CLAIM_FRESH, 1, false);
	if (found->state == IDEM_STATE_RELEASED)
		return claim(IDEM_CLAIM_FRESH,
					 expired ? 1 : next_attempt(found), false);

	if (found->own && found->state == IDEM_STATE_IN_PROGRESS)
	{
		if (asked->owner.data != NULL &&
			idem_state_equal(asked->owner, found->owner))
			return answer(IDEM_OUTCOME_CLAIMED);
		return answer(IDEM_OUTCOME_IN_PROGRESS);
	}
	if (!found->permitted)
		return forbidden;
	if (expired)
		return answer(IDEM_OUTCOME_EXPIRED);
	if (found->reject_repeat && (found->state == IDEM_STATE_COMPLETED ||
								 found->state == IDEM_STATE_FAILED))
		return answer(IDEM_OUTCOME_DUPLICATE);
	if (!idem_state_equal(asked->fingerprint, found->fingerprint) ||
		!idem_state_equal(asked->context, found->context))
		return answer(IDEM_OUTCOME_MISMATCH);
	if (found->state == IDEM_STATE_IN_PROGRESS)
		return decide_in_progress(found, asked);
	if (found->state == IDEM_STATE_RETRYABLE)
		return claim(IDEM_CLAIM_AGAIN, next_attempt(found), false);
	return answer(IDEM_OUTCOME_REPLAYED);
}
