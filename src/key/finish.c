/*-------------------------------------------------------------------------
 *
 * finish.c
 *	  What the holder of a claim does with it, and a look at any key.
 *
 * Every function but idem_lookup takes the row FOR UPDATE and waits for it:
 * nothing is decided on a row that may still change.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "audit/log.h"
#include "audit/refusal_queue.h"
#include "base/args.h"
#include "base/digest.h"
#include "base/counters.h"
#include "key/claim.h"
#include "key/decide.h"
#include "key/leases.h"
#include "key/lifetime.h"
#include "key/name.h"
#include "key/outcome.h"
#include "key/owner.h"
#include "key/response.h"
#include "key/result.h"
#include "key/xact.h"
#include "store/store.h"

/* In place of the argument. */
#define NOT_GIVEN (-1)

/* Arguments of idem_complete and idem_fail. */
typedef enum FinishArg
{
	ARG_SCOPE,
	ARG_KEY,
	ARG_RESPONSE,
	ARG_STATUS_CODE,
	ARG_HEADERS,
	ARG_CONTENT_TYPE,
	ARG_TOKEN,
	ARG_COMPLETE_TTL,
	ARG_RETRYABLE = ARG_COMPLETE_TTL,
	ARG_FAIL_TTL
} FinishArg;

/* A key being worked on: its row, locked, and the policy of that. */
typedef struct IdemHeld
{
	IdemStore	store;
	IdemKey		id;
	IdemRow		row;
	IdemPolicy	policy;
	bool		own;			/* claimed by this very transaction */
} IdemHeld;

/* The key that the arguments 0 and 1 name. */
static void
begin(FunctionCallInfo fcinfo, IdemHeld *held)
{
	memset(held, 0, sizeof(*held));
	held->id.scope = idem_name_scope(fcinfo, ARG_SCOPE);
	held->id.key = idem_name_key(fcinfo, ARG_KEY);
}

/* Lock its row; 42501 when it is another role's.  False when there is none. */
static bool
hold(IdemHeld *held)
{
	/* the key of a running idem_run has none: what is found it will replace */
	if (!idem_store_hold(&held->store, &held->id, &held->row) ||
		idem_xact_is_running(&held->id))
		return false;
	idem_policy_get_stored(held->row.policy, &held->policy);
	idem_owner_require(&held->id, held->row.claimed_by, &held->policy);
	held->own = idem_xact_owns(&held->row);
	return true;
}

/* The row for a finish, which may be a repetition. */
static bool
hold_or_read_finished(IdemHeld *held)
{
	/*
	 * A finished row never changes, so it is compared as it is read, and
	 * nothing is locked or written.  That is looked for only while the
	 * transaction has no id, as when it has done nothing else: afterwards a
	 * lock costs less than a look.
	 */
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()) ||
		!idem_store_read(&held->store, &held->id, &held->row) ||
		!idem_decide_is_finished(held->row.state))
		return hold(held);
	idem_policy_get_stored(held->row.policy, &held->policy);
	idem_owner_require(&held->id, held->row.claimed_by, &held->policy);
	return true;
}

static void
raise_no_claim(const IdemHeld *held)
{
	ereport(ERROR,
			(errcode(ERRCODE_IDEM_NO_CLAIM),
			 errmsg("no claim in progress for %s",
					idem_digest_key(&held->id)),
			 errhint("Claim the key first; a rolled-back transaction or savepoint takes its claim with it.")));
}

/* The token of the call, or NOT_GIVEN; one that cannot be ours is none. */
static int64
read_token(FunctionCallInfo fcinfo, int argno)
{
	return PG_ARGISNULL(argno) ? NOT_GIVEN :
		Max(PG_GETARG_INT64(argno), IDEM_NO_TOKEN);
}

/* The caller must be the holder; ID002. */
static void
require_token(const IdemHeld *held, int64 token)
{
	if (token == NOT_GIVEN ? held->own :
		token != IDEM_NO_TOKEN && token == held->row.token)
		return;
	idem_counters_add(held->policy.counters, IDEM_COUNT_LOST, 1);
	idem_refusals_note(IDEM_REFUSAL_LOST, &held->id, &held->policy);
	ereport(ERROR,
			(errcode(ERRCODE_IDEM_CLAIM_LOST),
			 errmsg("the claim on %s is not the caller's",
					idem_digest_key(&held->id)),
			 token == NOT_GIVEN ?
			 errhint("Give the token of the claim, or finish in the transaction that made it: with autocommit, each statement is a transaction of its own.") :
			 errhint("The token is stale: the lease ended and another caller has taken the key over.")));
}

/* The row must be a claim in progress and the caller's; ID001, ID002. */
static void
require_claim(FunctionCallInfo fcinfo, IdemHeld *held, int64 token)
{
	idem_args_require_writable();
	begin(fcinfo, held);
	if (!hold(held) || held->row.state == IDEM_STATE_RELEASED)
		raise_no_claim(held);
	require_token(held, token);
	if (held->row.state != IDEM_STATE_IN_PROGRESS)
		raise_no_claim(held);
}

static void
write_claim(IdemHeld *held, const char *action)
{
	idem_store_update(&held->store, &held->id, &held->row);
	idem_store_close(&held->store);

	/* one less for which COMMIT would have to be flushed */
	if (held->own && held->row.state != IDEM_STATE_IN_PROGRESS)
		idem_xact_closed(&held->id, &held->row);
	if (held->policy.recoverable)
	{
		if (held->row.state == IDEM_STATE_IN_PROGRESS)
			idem_leases_put(&held->id, &held->row);
		else
			idem_leases_drop(&held->id, IDEM_NO_TOKEN);
	}
	if (action != NULL && held->policy.audit)
		idem_audit_transition(action, &held->id, &held->row);
}

/* The type of the response: there is a function in SQL for each. */
static Oid
response_type(FunctionCallInfo fcinfo)
{
	Oid		   *types;
	int			nargs;

	(void) get_func_signature(fcinfo->flinfo->fn_oid, &types, &nargs);
	return types[ARG_RESPONSE];
}

/* The answer in the arguments; 22004, 22023, 22P02, ID008. */
static void
read_answer(FunctionCallInfo fcinfo, IdemResponse *answer)
{
	idem_args_require(fcinfo, ARG_STATUS_CODE, "status_code");
	idem_response_init(answer, PG_GETARG_INT32(ARG_STATUS_CODE));
	if (!PG_ARGISNULL(ARG_HEADERS))
		idem_response_set_headers(answer, PG_GETARG_DATUM(ARG_HEADERS));
	if (PG_ARGISNULL(ARG_RESPONSE))
		return;
	if (!PG_ARGISNULL(ARG_CONTENT_TYPE))
		idem_response_set_content_type(answer,
									   PG_GETARG_TEXT_PP(ARG_CONTENT_TYPE));
	idem_response_set_body(answer, PG_GETARG_DATUM(ARG_RESPONSE),
						   response_type(fcinfo));
}

/*
 * A status that the policy does not keep makes a completion a retryable
 * failure.  In the claiming transaction that would commit the work and free
 * its key: ID010.
 */
static IdemState
completed_state(const IdemHeld *held, int status)
{
	if (!idem_policy_releases(&held->policy, status))
		return IDEM_STATE_COMPLETED;

	/* in another transaction the work was outside, or is committed already */
	if (held->own)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_WOULD_FREE),
				 errmsg("status %d would free %s and keep the work of this transaction",
						status, idem_digest_key(&held->id)),
				 errhint("Roll the transaction back, or undo the work and call idem_fail().")));
	return IDEM_STATE_RETRYABLE;
}

/* A finished row never changes; ID003 for another answer than it has. */
static void
require_same(const IdemHeld *held, const IdemResponse *answer, IdemState state)
{
	if (state != held->row.state ||
		!idem_response_is_stored(answer, &held->row))
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_FINISHED),
				 errmsg("%s is already finished, with another answer",
						idem_digest_key(&held->id)),
				 errhint("Get the stored answer with idem_lookup().")));
}

/* What a finished row is. */
static IdemOutcome
finished_outcome(IdemState state)
{
	return state == IDEM_STATE_COMPLETED ?
		IDEM_OUTCOME_COMPLETED : IDEM_OUTCOME_FAILED;
}

static void
store_answer(IdemHeld *held, IdemResponse *answer, IdemState state, int64 ttl)
{
	const IdemOutcomeMeaning *meaning = &idem_outcomes[finished_outcome(state)];

	idem_response_limit(answer, &held->id, &held->policy);
	idem_response_store(answer, &held->row);
	idem_lifetime_finish(&held->policy, &held->row, state, ttl,
						 idem_xact_now());
	write_claim(held, meaning->action);
	idem_counters_add(held->policy.counters, meaning->counter, 1);
}

/* Store an answer; the state is COMPLETED or one of the failed ones. */
static Datum
finish(FunctionCallInfo fcinfo, IdemState state, int ttl_argno)
{
	IdemHeld	held;
	IdemResponse answer;
	int64		ttl;

	read_answer(fcinfo, &answer);
	ttl = idem_policy_arg(fcinfo, ttl_argno, "ttl", idem_policy_ttl_usec);
	idem_args_require_writable();
	begin(fcinfo, &held);
	if (!hold_or_read_finished(&held) ||
		held.row.state == IDEM_STATE_RELEASED)
		raise_no_claim(&held);

	/*
	 * The token before anything else: a holder whose lease was taken over can
	 * neither finish nor learn what the newer one has stored.  The row is
	 * locked, so a take-over is either before this or after the finish.
	 * Specs: claim-takeover, claim-takeover-open.
	 */
	require_token(&held, read_token(fcinfo, ARG_TOKEN));
	if (state == IDEM_STATE_COMPLETED)
		state = completed_state(&held, answer.status);
	if (idem_decide_is_finished(held.row.state))
		require_same(&held, &answer, state);
	else
		store_answer(&held, &answer, state, ttl);
	idem_store_close(&held.store);
	return idem_result_form(finished_outcome(state), &held.row,
							held.policy.mismatch_status, idem_xact_now());
}

IDEM_FUNCTION(idem_complete);

/*
 * idem_complete(scope, key, response {text|json|jsonb|bytea}, status_code,
 *				 headers, content_type, token, ttl) RETURNS idem_result
 *		Store the answer of a claim; returns the row as it is now.
 *
 * The ttl is the retention of this answer, in place of the claim's.  Raises 22004, 22023, 22P02, 25006, 40001, 42501, ID001, ID002, ID003, ID008,
 * ID010, ID012.  Holds the key lock and the row to the end of the transaction.
 */
Datum
idem_complete(PG_FUNCTION_ARGS)
{
	return finish(fcinfo, IDEM_STATE_COMPLETED, ARG_COMPLETE_TTL);
}

IDEM_FUNCTION(idem_fail);

/*
 * idem_fail(as idem_complete to token, retryable boolean, ttl)
 *		RETURNS idem_result
 *		Store the failure of a claim.
 */
Datum
idem_fail(PG_FUNCTION_ARGS)
{
	idem_args_require(fcinfo, ARG_RETRYABLE, "retryable");
	return finish(fcinfo, PG_GETARG_BOOL(ARG_RETRYABLE) ?
				  IDEM_STATE_RETRYABLE : IDEM_STATE_FAILED, ARG_FAIL_TTL);
}

IDEM_FUNCTION(idem_extend);

/*
 * idem_extend(scope text, key text, token bigint, lease interval)
 *		RETURNS timestamptz
 *		Heartbeat: the lease ends that long from now; returns when.
 *
 * Raises 22004, 22023, 25006, 40001, 42501, ID001, ID002, ID012.  The commit
 * is flushed whatever synchronous_commit says: the holder relies on it.
 */
Datum
idem_extend(PG_FUNCTION_ARGS)
{
	IdemHeld	held;
	int64		lease;

	idem_args_require(fcinfo, 2, "token");
	idem_args_require(fcinfo, 3, "lease");
	lease = idem_policy_lease_usec("lease",
								   idem_args_usec("lease", PG_GETARG_DATUM(3)));
	require_claim(fcinfo, &held, read_token(fcinfo, 2));
	idem_lifetime_lease(&held.policy, &held.row, idem_xact_now(), lease);
	write_claim(&held, NULL);

	/* the holder goes on working outside as if it had the longer lease */
	ForceSyncCommit();
	PG_RETURN_TIMESTAMPTZ(held.row.lease_until);
}

IDEM_FUNCTION(idem_checkpoint);

/*
 * idem_checkpoint(scope text, key text, token bigint, recovery_point text,
 *				   data jsonb) RETURNS timestamptz
 *		Remember how far the work has come, for a later attempt; returns when
 *		the lease ends, which it leaves as it is.
 *
 * Raises 22004, 22023, 25006, 40001, 42501, ID001, ID002, ID012.  The commit
 * is flushed whatever synchronous_commit says.
 */
Datum
idem_checkpoint(PG_FUNCTION_ARGS)
{
	IdemHeld	held;
	text	   *recovery_point;
	struct varlena *data;

	idem_args_require(fcinfo, 2, "token");
	recovery_point = idem_args_label(fcinfo, 3, "recovery_point");
	data = idem_args_detail(fcinfo, 4, "data");
	require_claim(fcinfo, &held, read_token(fcinfo, 2));
	held.row.recovery_point = recovery_point;
	held.row.checkpoint = data;
	write_claim(&held, NULL);
	ForceSyncCommit();
	PG_RETURN_TIMESTAMPTZ(held.row.lease_until);
}

IDEM_FUNCTION(idem_release);

/*
 * idem_release(scope text, key text, token bigint) RETURNS boolean
 *		Give a claim up; false when the key is free already.
 *
 * Raises 22004, 22023, 25006, 40001, 42501, ID001 (finished), ID002, ID012.
 */
Datum
idem_release(PG_FUNCTION_ARGS)
{
	IdemHeld	held;
	IdemRow    *row = &held.row;

	idem_args_require_writable();
	begin(fcinfo, &held);
	if (!hold(&held) || row->state == IDEM_STATE_RELEASED)
	{
		idem_store_close(&held.store);
		PG_RETURN_BOOL(false);
	}
	require_token(&held, read_token(fcinfo, 2));
	if (row->state != IDEM_STATE_IN_PROGRESS)
		raise_no_claim(&held);

	/*
	 * The row stays, with its token and attempt: a later claim gets a greater
	 * token, and what the released holder still does is told apart.  Spec:
	 * release-claim.
	 */
	row->state = IDEM_STATE_RELEASED;
	row->owner = NULL;
	row->fingerprint = NULL;
	row->context = NULL;
	row->recovery_point = NULL;
	row->checkpoint = NULL;
	write_claim(&held, "released");
	PG_RETURN_BOOL(true);
}

/* The state of a row as an outcome. */
static IdemOutcome
outcome_of(const IdemRow *row, TimestampTz now)
{
	if (idem_lifetime_is_over(row->expires_at, now))
		return IDEM_OUTCOME_EXPIRED;
	if (row->state == IDEM_STATE_IN_PROGRESS)
		return IDEM_OUTCOME_IN_PROGRESS;
	return finished_outcome(row->state);
}

IDEM_FUNCTION(idem_lookup);

/*
 * idem_lookup(scope text, key text) RETURNS idem_result
 *		The state of a key, as the calling statement sees it; null when there
 *		is none, it is free, or its time is so long over that the sweep may
 *		have taken it.
 *
 * Reads only; works on a standby and in a read-only transaction.  Raises
 * 22004, 22023, 42501, ID012.
 */
Datum
idem_lookup(PG_FUNCTION_ARGS)
{
	IdemHeld	held;
	TimestampTz now = GetCurrentTimestamp();
	bool		found;

	begin(fcinfo, &held);
	found = idem_store_peek(&held.store, &held.id, &held.row);
	idem_store_close(&held.store);
	if (!found || held.row.state == IDEM_STATE_RELEASED ||
		idem_lifetime_is_over(held.row.purge_at, now))
		PG_RETURN_NULL();
	idem_policy_get_stored(held.row.policy, &held.policy);
	idem_owner_require(&held.id, held.row.claimed_by, &held.policy);
	return idem_result_form(outcome_of(&held.row, now), &held.row,
							held.policy.mismatch_status, now);
}
