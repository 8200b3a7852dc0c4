/*-------------------------------------------------------------------------
 *
 * claim.c
 *	  Claiming a key: from what is asked to what is decided.
 *
 * Owns the loop around the decision table; README.md tells who may run when.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/builtins.h"

#include "base/args.h"
#include "base/bytes.h"
#include "base/digest.h"
#include "base/counters.h"
#include "key/claim.h"
#include "key/fingerprint.h"
#include "key/name.h"
#include "key/outcome.h"
#include "key/owner.h"
#include "key/result.h"
#include "key/xact.h"
#include "store/store.h"

#define MAX_DELAY_MS 50

/* Arguments of idem_claim and idem_require. */
typedef enum ClaimArg
{
	ARG_SCOPE,
	ARG_KEY,
	ARG_REQUEST,
	ARG_FINGERPRINT,
	ARG_POLICY,
	ARG_CONTEXT,
	ARG_OWNER,
	ARG_WAIT,
	ARG_LEASE,
	ARG_TTL
} ClaimArg;

/*
 * idem_claim_too_many_tries
 *		The row came and went at every look; 40001.
 */
void
idem_claim_too_many_tries(const IdemKey *id)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not decide on %s: its row kept changing",
					idem_digest_key(id)),
			 errhint("Repeat the whole transaction with the same key; if it happens again and again, see idem_health().")));
}

/*
 * idem_claim_begin
 *		Set up a claim in a scope under a policy; the key is left to set.
 */
void
idem_claim_begin(IdemClaim *claim, text *scope, const text *policy)
{
	memset(claim, 0, sizeof(*claim));
	idem_policy_get(text_to_cstring(policy), &claim->policy);
	claim->id.scope = scope;
	claim->wait = claim->policy.wait;
	claim->lease = -1;
	claim->ttl = -1;
	INSTR_TIME_SET_CURRENT(claim->started);
}

static IdemBytes
owner_bytes(const pg_uuid_t *owner)
{
	IdemBytes	bytes = {owner, UUID_LEN};

	return bytes;
}

/*
 * idem_claim_judge
 *		Decide on what was read, and set row_policy.
 */
void
idem_claim_judge(IdemClaim *claim)
{
	const IdemRow *row = &claim->row;
	IdemFound	found = {.exists = claim->found};
	IdemAsked	asked;

	if (claim->found)
	{
		/* the policy that the row was claimed under, not the one of the call */
		idem_policy_get_stored(row->policy, &claim->row_policy);
		found.state = row->state;
		found.own = idem_xact_owns(row);
		found.permitted = idem_owner_permits(row->claimed_by);
		found.attempt = row->attempt;
		found.fingerprint = idem_bytes_of(row->fingerprint);
		found.context = idem_bytes_of(row->context);
		found.owner = owner_bytes(row->owner);
		found.lease_until = row->lease_until;
		found.expires_at = row->expires_at;
		found.purge_at = row->purge_at;
		found.reject_repeat = claim->row_policy.reject_repeat;
		found.reject_expired = claim->row_policy.reject_expired;
		found.tombstone = claim->row_policy.tombstone;
	}
	asked.fingerprint = idem_bytes_of(claim->fingerprint);
	asked.context = idem_bytes_of(claim->context);
	asked.owner = owner_bytes(claim->owner);

	/* the wall clock: a transaction may be older than the lease it looks at */
	claim->now = asked.now = idem_xact_now();
	claim->decision = idem_decide(&found, &asked);
}

/* In progress with a row that we cannot or need not see. */
static void
decide_unseen(IdemClaim *claim)
{
	claim->found = false;
	claim->now = idem_xact_now();
	claim->decision.verdict = IDEM_ANSWER;
	claim->decision.outcome = IDEM_OUTCOME_IN_PROGRESS;
}

/* Sleep a little before the next look; false when the time to wait is over. */
static bool
wait_a_little(IdemClaim *claim, long *delay)
{
	instr_time	now;
	int64		left;
	long		sleep;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, claim->started);
	left = claim->wait - (int64) INSTR_TIME_GET_MICROSEC(now);
	if (left <= 0)
		return false;

	/*
	 * Sleep, and do not wait for the rival's lock: that wait would end by
	 * lock_timeout, with an error, or by a timer which may be the caller's.
	 * The first looks come quickly, since most rivals are about to commit.
	 */
	sleep = Min(*delay, (left + 999) / 1000);
	claim->waited = true;
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 sleep, idem_compat_wait_event("IdempotencyClaim"));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	*delay = Min(*delay * 2, MAX_DELAY_MS);
	return true;
}

static void
count_wait(const IdemClaim *claim)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, claim->started);
	idem_counters_add(claim->policy.counters, IDEM_COUNT_WAITS, 1);
	idem_counters_add(claim->policy.counters, IDEM_COUNT_WAIT_USEC,
					  INSTR_TIME_GET_MICROSEC(now));
}

/*
 * idem_claim_count
 *		Count the outcome of a claim; of one that was granted, of its finish,
 *		too.  For the audit log, note a refusal.
 */
void
idem_claim_count(const IdemClaim *claim, IdemOutcome outcome)
{
	bool		granted = idem_claim_granted(claim);
	int			counters = granted || claim->found ?
	claim->row_policy.counters : claim->policy.counters;

	if (granted)
		idem_counters_add(counters, IDEM_COUNT_CLAIMED, 1);
	if (granted && claim->decision.taken_over)
		idem_counters_add(counters, IDEM_COUNT_TAKEN_OVER, 1);
	if (outcome != IDEM_OUTCOME_CLAIMED)
		idem_counters_add(counters, idem_outcomes[outcome].counter, 1);
	if (claim->row_policy.audit && idem_outcomes[outcome].refusal >= 0)
		idem_refusals_note(idem_outcomes[outcome].refusal, &claim->id,
						   &claim->row_policy);
}

/*
 * idem_claim_granted
 *		Whether the decision is to write a claim.
 */
bool
idem_claim_granted(const IdemClaim *claim)
{
	return claim->decision.verdict == IDEM_CLAIM_FRESH ||
		claim->decision.verdict == IDEM_CLAIM_AGAIN;
}

/* Whether the decision rests on nothing but the row's latest version. */
static bool
must_take(const IdemClaim *claim)
{
	return idem_claim_granted(claim) ||
		claim->decision.verdict == IDEM_CLAIM_SAME;
}

/*
 * Make the key ours to write, as it was decided, and decide again on a row
 * that is locked now, or gone.
 */
static IdemStoreTaken
take(IdemClaim *claim, bool check_new)
{
	IdemStoreTaken taken = idem_store_take(&claim->store, &claim->id,
										   claim->found, check_new,
										   &claim->row);

	if (taken == IDEM_STORE_BUSY || taken == IDEM_STORE_CHANGED)
		return taken;

	/*
	 * The row is locked now, and may be another version than was read, or
	 * have come since: its holder has finished, or somebody has taken it
	 * over, or the sweep has it.  So what was read decides nothing, and even
	 * one's own claim may have become a replay.  Specs: claim-same,
	 * claim-takeover, claim-sweep.
	 */
	if (claim->found || taken == IDEM_STORE_ROW)
	{
		claim->found = taken == IDEM_STORE_ROW;
		idem_claim_judge(claim);
	}
	if (must_take(claim))
		return taken;

	/* nobody is to be kept off by one who has nothing to write */
	idem_store_drop(&claim->store);
	return claim->decision.verdict == IDEM_WAIT ? IDEM_STORE_CHANGED : taken;
}

/*
 * idem_claim_decide
 *		Find out what the caller gets, waiting as long as it wants to.
 *
 * When the claim is granted, or is the caller's own, its row is locked, or
 * nobody else may insert one.
 * With check_new it is certain that there was no row; without, the insertion
 * may tell otherwise, which is cheaper.  Raises 42501, 40001.
 */
void
idem_claim_decide(IdemClaim *claim, bool check_new)
{
	long		delay = 1;
	int			tries = 0;

	for (;;)
	{
		IdemStoreTaken taken;

		/*
		 * An idem_run of this very transaction has no row yet, and its key
		 * lock would be given to us again.  Waiting for it would be waiting
		 * for ourselves.  Spec: run-nested.
		 */
		if (idem_xact_is_running(&claim->id))
		{
			decide_unseen(claim);
			break;
		}
		claim->found = idem_store_look(&claim->store, &claim->id, check_new,
									   &claim->row);
		idem_claim_judge(claim);
		if (claim->decision.verdict == IDEM_WAIT)
		{
			/*
			 * The snapshot of a transaction shows the same row for ever:
			 * whoever waits for it to change is told so by 40001.  Spec:
			 * claim-same-wait.
			 */
			if (claim->wait > 0 && claim->found && IsolationUsesXactSnapshot())
				idem_store_require_current(&claim->store, &claim->id,
										   &claim->row);
			if (wait_a_little(claim, &delay))
				continue;
			break;
		}

		/*
		 * Whatever lets nobody work is answered from a plain read: no lock,
		 * no transaction id, no WAL.
		 */
		if (!must_take(claim))
			break;

		/*
		 * Two claimers who both read nothing, or the same row, come this far;
		 * one of them gets it.  The other is told BUSY, and has written
		 * nothing.  Specs: claim-two, claim-two-ends.
		 */
		taken = take(claim, check_new);
		if (taken == IDEM_STORE_BUSY)
		{
			if (wait_a_little(claim, &delay))
				continue;
			decide_unseen(claim);
			break;
		}
		if (taken != IDEM_STORE_CHANGED)
			break;

		/* a row came or went: that is progress of somebody's, but not ours */
		if (++tries == IDEM_MAX_TRIES)
			idem_claim_too_many_tries(&claim->id);
	}
	if (claim->waited)
		count_wait(claim);
	if (claim->decision.verdict == IDEM_FORBIDDEN)
		idem_owner_refuse(&claim->id, &claim->row_policy);
}

/*
 * idem_claim_result
 *		The idem_result of a decided claim.
 */
Datum
idem_claim_result(const IdemClaim *claim, IdemOutcome outcome)
{
	bool		seen = claim->found || idem_claim_granted(claim);

	return idem_result_form(outcome, seen ? &claim->row : NULL,
							claim->row_policy.mismatch_status, claim->now);
}

/*
 * idem_claim_require_fingerprint
 *		Refuse a claim without one under a policy that wants one; 22023.
 */
void
idem_claim_require_fingerprint(const IdemClaim *claim)
{
	if (claim->policy.require_fingerprint && claim->fingerprint == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("policy \"%s\" requires a fingerprint",
						NameStr(claim->policy.name)),
				 errhint("Give the request, or the fingerprint of it.")));
}

/* fingerprint, or that of request, but not both; 22004, 22023. */
static void
read_fingerprint(FunctionCallInfo fcinfo, IdemClaim *claim)
{
	claim->fingerprint = idem_args_digest(fcinfo, ARG_FINGERPRINT, "fingerprint");
	if (!PG_ARGISNULL(ARG_REQUEST))
	{
		if (claim->fingerprint != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("arguments \"request\" and \"fingerprint\" exclude each other"),
					 errhint("Give the request, or the fingerprint that you computed of it.")));
		claim->fingerprint =
			idem_fingerprint_of(PG_GETARG_JSONB_P(ARG_REQUEST));
	}
	idem_claim_require_fingerprint(claim);
}

/* The arguments that both functions share. */
static void
read_arguments(FunctionCallInfo fcinfo, IdemClaim *claim)
{
	int64		wait;

	idem_args_require_writable();
	idem_claim_begin(claim, idem_name_scope(fcinfo, ARG_SCOPE),
					 idem_args_text(fcinfo, ARG_POLICY, "policy"));
	claim->id.key = idem_name_format_key(PG_ARGISNULL(ARG_KEY) ? NULL :
										 PG_GETARG_TEXT_PP(ARG_KEY),
										 &claim->policy);
	read_fingerprint(fcinfo, claim);
	claim->context = idem_args_digest(fcinfo, ARG_CONTEXT, "context");
	if (!PG_ARGISNULL(ARG_OWNER))
		claim->owner = PG_GETARG_UUID_P(ARG_OWNER);
	wait = idem_policy_arg(fcinfo, ARG_WAIT, "wait", idem_policy_wait_usec);
	if (wait >= 0)
		claim->wait = wait;
	claim->lease = idem_policy_arg(fcinfo, ARG_LEASE, "lease",
								   idem_policy_lease_usec);
	claim->ttl = idem_policy_arg(fcinfo, ARG_TTL, "ttl", idem_policy_ttl_usec);
}

/* Write the row; false when a rival without the key lock was first. */
static bool
write_claim(IdemClaim *claim)
{
	if (!claim->found)
		return idem_store_insert(&claim->store, &claim->id, &claim->row);
	idem_store_update(&claim->store, &claim->id, &claim->row);
	return true;
}

/* Decide, and write the claim if it is granted; returns the outcome. */
static IdemOutcome
make_claim(IdemClaim *claim)
{
	int			tries;

	for (tries = 0; tries < IDEM_MAX_TRIES; tries++)
	{
		/* what is counted against a cap must be known to be new */
		idem_claim_decide(claim, claim->policy.max_live_keys > 0);
		if (!idem_claim_granted(claim))
			return claim->decision.outcome;
		idem_claim_start(claim);

		/*
		 * A writer without the key lock, an idem_dedupe or somebody's INSERT,
		 * may have been first after all.  Its row decides, which a new
		 * snapshot shows if it has committed.  Spec: claim-dedupe.
		 */
		if (write_claim(claim))
		{
			idem_claim_written(claim);
			return IDEM_OUTCOME_CLAIMED;
		}
		idem_store_drop(&claim->store);
	}
	idem_claim_too_many_tries(&claim->id);
}

/*
 * A call with the arguments of idem_claim: claim, or find out what became of the
 * key, and count it.  Returns the outcome.
 */
static IdemOutcome
call_claim(FunctionCallInfo fcinfo, IdemClaim *claim)
{
	IdemOutcome outcome;

	read_arguments(fcinfo, claim);
	outcome = make_claim(claim);
	idem_store_close(&claim->store);
	idem_claim_count(claim, outcome);
	return outcome;
}

IDEM_FUNCTION(idem_claim);

/*
 * idem_claim(scope, key, request, fingerprint, policy, context, owner, wait,
 *			  lease, ttl) RETURNS idem_result
 *		Claim a key, or say what became of it.
 *
 * Intervals are microseconds with a day of 24 hours.  Raises 22004, 22023,
 * 25006, 40001, 42501, 42704, ID009, ID012, XX001.  A claim that is granted
 * holds the key lock and the row to the end of the transaction, and so does the
 * repetition of one's own; any other outcome holds nothing, unless the row
 * changed under our eyes and is locked for it.
 */
Datum
idem_claim(PG_FUNCTION_ARGS)
{
	IdemClaim	claim;
	IdemOutcome outcome = call_claim(fcinfo, &claim);

	return idem_claim_result(&claim, outcome);
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
	IdemOutcome outcome = call_claim(fcinfo, &claim);

	if (outcome != IDEM_OUTCOME_CLAIMED)
		idem_outcome_raise(outcome, &claim.id);
	PG_RETURN_INT64(claim.row.token);
}
