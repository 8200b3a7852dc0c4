/*-------------------------------------------------------------------------
 *
 * decide.h
 *	  The decision table: what a claim gets, given what it finds.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_DECIDE_H
#define IDEM_KEY_DECIDE_H

#include "base/bytes.h"
#include "idem.h"

/* What was found under the key, with the part of its policy that decides. */
typedef struct IdemFound
{
	bool		exists;			/* all else is void when not */
	IdemState	state;
	bool		own;			/* claimed by this very transaction */
	bool		permitted;		/* the caller has the claimer's rights */
	int32		attempt;
	IdemBytes	fingerprint;
	IdemBytes	context;
	IdemBytes	owner;
	int64		lease_until;
	int64		expires_at;
	int64		purge_at;
	bool		reject_repeat;
	bool		reject_expired;
	int64		tombstone;		/* microseconds */
} IdemFound;

/* What the caller brings. */
typedef struct IdemAsked
{
	IdemBytes	fingerprint;
	IdemBytes	context;
	IdemBytes	owner;
	int64		now;
} IdemAsked;

typedef enum IdemVerdict
{
	IDEM_ANSWER,				/* give outcome, write nothing */
	IDEM_WAIT,					/* in progress elsewhere: wait, or say so */
	IDEM_FORBIDDEN,				/* another role's key */
	IDEM_CLAIM_FRESH,			/* write a row with nothing old in it */
	IDEM_CLAIM_AGAIN,			/* claim the row once more */
	IDEM_CLAIM_SAME				/* the caller's own claim: write nothing, but
								 * only on the row's latest version, locked */
} IdemVerdict;

typedef struct IdemDecision
{
	IdemVerdict verdict;
	IdemOutcome outcome;
	int32		attempt;		/* of the claim, where one is made */
	bool		taken_over;		/* from a holder whose lease has ended */
} IdemDecision;

extern IdemDecision idem_decide(const IdemFound *found,
								const IdemAsked *asked);
extern int32 idem_decide_free_attempt(const IdemFound *found, int64 now);

/* Finished: an answer is stored, or was too large to be. */
static inline bool
idem_decide_is_finished(IdemState state)
{
	return state == IDEM_STATE_COMPLETED || state == IDEM_STATE_RETRYABLE ||
		state == IDEM_STATE_FAILED;
}

#endif							/* IDEM_KEY_DECIDE_H */
