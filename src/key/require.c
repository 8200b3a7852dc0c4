/*-------------------------------------------------------------------------
 *
 * require.c
 *	  Claiming a key, with an error for every other outcome.
 *
 * Owns the errors that stand for outcomes.  No message has a key or a scope but
 * by their log ids.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/digest.h"
#include "key/claim.h"

/* What idem_require says for each outcome that is no claim. */
static const struct
{
	int			sqlstate;
	const char *message;
	const char *hint;
}			refusals[IDEM_NUM_OUTCOMES] = {

	[IDEM_OUTCOME_REPLAYED] = {
		ERRCODE_IDEM_FINISHED,
		"key %s in scope %s is already finished",
		"Get the stored answer with idem_claim() or idem_lookup()."
	},
	[IDEM_OUTCOME_IN_PROGRESS] = {
		ERRCODE_IDEM_IN_PROGRESS,
		"key %s in scope %s is in progress elsewhere",
		"Repeat the call with the same key a little later."
	},
	[IDEM_OUTCOME_MISMATCH] = {
		ERRCODE_IDEM_MISMATCH,
		"key %s in scope %s was used with another request or context",
		"Use a new key for a new request."
	},
	[IDEM_OUTCOME_EXPIRED] = {
		ERRCODE_IDEM_EXPIRED,
		"key %s in scope %s has expired",
		"Find out what became of the first request; use a new key for a new one."
	},
	[IDEM_OUTCOME_DUPLICATE] = {
		ERRCODE_IDEM_DUPLICATE,
		"key %s in scope %s is a duplicate",
		"The request was processed before; use a new key for a new one."
	}
};

static void
refuse(const IdemClaim *claim, IdemOutcome outcome)
{
	ereport(ERROR,
			(errcode(refusals[outcome].sqlstate),
			 errmsg(refusals[outcome].message,
					idem_digest_log_id(claim->id.key),
					idem_digest_log_id(claim->id.scope)),
			 errhint("%s", refusals[outcome].hint)));
}

IDEM_FUNCTION(idem_require);

/*
 * idem_require(same arguments) RETURNS bigint
 *		The token of a claim, or the error that stands for its outcome: ID003
 *		to ID007, and whatever idem_claim raises.
 */
Datum
idem_require(PG_FUNCTION_ARGS)
{
	IdemClaim	claim;
	IdemOutcome outcome = idem_claim_call(fcinfo, &claim);

	if (outcome != IDEM_OUTCOME_CLAIMED)
		refuse(&claim, outcome);
	PG_RETURN_INT64(claim.row.token);
}
