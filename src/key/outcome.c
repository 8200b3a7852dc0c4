/*-------------------------------------------------------------------------
 *
 * outcome.c
 *	  What each outcome of a claim means, to SQL, HTTP, the audit log and the
 *	  counters.
 *
 * A new outcome is a row here, a value of IdemOutcome, and a label in the
 * install script; which key has it, says decide.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_enum.h"
#include "utils/syscache.h"

#include "base/catalog.h"
#include "base/digest.h"
#include "key/outcome.h"

#define HTTP_CONFLICT 409
#define HTTP_MISMATCH 422		/* as "mismatch_status" is shipped */

const IdemOutcomeMeaning idem_outcomes[IDEM_NUM_OUTCOMES] = {
	[IDEM_OUTCOME_CLAIMED] = {
		.label = "claimed",
		.counter = IDEM_COUNT_CLAIMED,
		.action = "claimed",
		.refusal = -1
	},
	[IDEM_OUTCOME_COMPLETED] = {
		.label = "completed",
		.counter = IDEM_COUNT_COMPLETED,
		.action = "completed",
		.refusal = -1
	},
	[IDEM_OUTCOME_FAILED] = {
		.label = "failed",
		.counter = IDEM_COUNT_FAILED,
		.action = "failed",
		.refusal = -1
	},
	[IDEM_OUTCOME_REPLAYED] = {
		.label = "replayed",
		.counter = IDEM_COUNT_REPLAYED,
		.refusal = -1,
		.sqlstate = ERRCODE_IDEM_FINISHED,
		.message = "is already finished",
		.hint = "Get the stored answer with idem_claim() or idem_lookup()."
	},
	[IDEM_OUTCOME_DUPLICATE] = {
		.label = "duplicate",
		.counter = IDEM_COUNT_DUPLICATE,
		.refusal = IDEM_REFUSAL_DUPLICATE,
		.sqlstate = ERRCODE_IDEM_DUPLICATE,
		.message = "is a duplicate",
		.hint = "The request was processed before; use a new key for a new one.",
		.http_status = HTTP_CONFLICT,
		.problem = {
			"idempotency_key_duplicate",
			"urn:idempotency:key-duplicate",
			"Duplicate request",
			"The request with this Idempotency-Key has already been processed. Do not repeat it; use a new key for a new request."
		}
	},
	[IDEM_OUTCOME_IN_PROGRESS] = {
		.label = "in_progress",
		.counter = IDEM_COUNT_IN_PROGRESS,
		.refusal = -1,
		.sqlstate = ERRCODE_IDEM_IN_PROGRESS,
		.message = "is in progress elsewhere",
		.hint = "Repeat the call with the same key a little later.",
		.http_status = HTTP_CONFLICT,
		.problem = {
			"idempotency_key_in_progress",
			"urn:idempotency:key-in-progress",
			"Request in progress",
			"A request with this Idempotency-Key is being processed. Send the same request again, not before the time in Retry-After."
		}
	},
	[IDEM_OUTCOME_MISMATCH] = {
		.label = "mismatch",
		.counter = IDEM_COUNT_MISMATCH,
		.refusal = IDEM_REFUSAL_MISMATCH,
		.sqlstate = ERRCODE_IDEM_MISMATCH,
		.message = "was used with another request or context",
		.hint = "Use a new key for a new request.",
		.problem = {
			"idempotency_key_reused",
			"urn:idempotency:key-reused",
			"Idempotency-Key reused",
			"This Idempotency-Key came with another request before. Send that request unchanged, or use a new key for a new request."
		}
	},
	[IDEM_OUTCOME_EXPIRED] = {
		.label = "expired",
		.counter = IDEM_COUNT_EXPIRED,
		.refusal = IDEM_REFUSAL_EXPIRED,
		.sqlstate = ERRCODE_IDEM_EXPIRED,
		.message = "has expired",
		.hint = "Find out what became of the first request; use a new key for a new one.",
		.http_status = HTTP_CONFLICT,
		.problem = {
			"idempotency_key_expired",
			"urn:idempotency:key-expired",
			"Idempotency-Key expired",
			"The request with this Idempotency-Key is too old to be repeated and was not processed again. Find out what became of it, and use a new key for a new request."
		}
	}
};

/*
 * idem_outcome_label
 *		The label of the enum idem_outcome, as a value of that type.
 */
Oid
idem_outcome_label(IdemOutcome outcome)
{
	static uint64 generation = 0;
	static Oid	labels[IDEM_NUM_OUTCOMES];
	Oid			type;
	int			i;

	/* good until the extension is created anew, with another type */
	if (generation == idem_catalog_generation())
		return labels[outcome];
	type = idem_catalog()->outcome_type;
	for (i = 0; i < IDEM_NUM_OUTCOMES; i++)
	{
		labels[i] = GetSysCacheOid2(ENUMTYPOIDNAME, Anum_pg_enum_oid,
									ObjectIdGetDatum(type),
									CStringGetDatum(idem_outcomes[i].label));
		if (!OidIsValid(labels[i]))
			elog(ERROR, "enum idem_outcome has no label \"%s\"",
				 idem_outcomes[i].label);
	}
	generation = idem_catalog_generation();
	return labels[outcome];
}

/*
 * idem_outcome_problem
 *		The problem of an error_code, and its status where no policy has
 *		another; NULL when it is of no outcome.
 */
const IdemProblem *
idem_outcome_problem(const char *code, int *status)
{
	int			i;

	for (i = 0; i < IDEM_NUM_OUTCOMES; i++)
		if (idem_outcomes[i].problem.code != NULL &&
			strcmp(idem_outcomes[i].problem.code, code) == 0)
		{
			*status = idem_outcomes[i].http_status;
			if (*status == 0)
				*status = HTTP_MISMATCH;
			return &idem_outcomes[i].problem;
		}
	return NULL;
}

/*
 * idem_outcome_raise
 *		Raise the error that stands for an outcome: ID003 to ID007.
 */
void
idem_outcome_raise(IdemOutcome outcome, const IdemKey *id)
{
	const IdemOutcomeMeaning *meaning = &idem_outcomes[outcome];

	ereport(ERROR,
			(errcode(meaning->sqlstate),
			 errmsg("%s %s",
					idem_digest_key(id),
					meaning->message),
			 errhint("%s", meaning->hint)));
}
