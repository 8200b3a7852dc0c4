/*-------------------------------------------------------------------------
 *
 * run.c
 *	  Claim, work and answer in one statement.
 *
 * The row of a new key is inserted after the handler, finished, so that an
 * execution writes one row version; a row to be claimed again is locked before
 * the handler and updated once after it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "audit/log.h"
#include "base/args.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "key/claim.h"
#include "key/fingerprint.h"
#include "key/leases.h"
#include "key/lifetime.h"
#include "key/name.h"
#include "key/outcome.h"
#include "key/response.h"
#include "key/run.h"
#include "key/xact.h"
#include "store/store.h"

/* Status of a failure that was recorded. */
#define STATUS_FAILED 500

/* Arguments of idem_run. */
typedef enum RunArg
{
	ARG_HANDLER,
	ARG_SCOPE,
	ARG_KEY,
	ARG_REQUEST,
	ARG_POLICY,
	ARG_CONTEXT,
	ARG_WAIT,
	ARG_ON_ERROR,
	ARG_FINGERPRINT,
	ARG_TTL
} RunArg;

typedef struct IdemRun
{
	const IdemRunRequest *asked;
	IdemClaim	claim;
	FmgrInfo	handler;
	Oid			result_type;
	IdemResponse answer;
	IdemState	state;
} IdemRun;

static void
check_signature(const Form_pg_proc proc)
{
	Oid			result = proc->prorettype;

	if (proc->prokind == PROKIND_FUNCTION && !proc->proretset &&
		proc->pronargs == 1 && proc->proargtypes.values[0] == JSONBOID &&
		(result == JSONOID || result == JSONBOID || result == TEXTOID ||
		 result == BYTEAOID || result == idem_catalog()->response_type))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("function \"%s\" is no handler", NameStr(proc->proname)),
			 errdetail("A handler takes one jsonb and returns json, jsonb, text, bytea or idem_response."),
			 errhint("Wrap it in a function of that signature.")));
}

/* Look the handler up; 22023, 42501, 42883. */
static void
prepare_handler(IdemRun *run)
{
	Oid			oid = run->asked->handler;
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(oid));
	Form_pg_proc proc;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("handler with OID %u does not exist", oid),
				 errhint("Name it as 'schema.function(jsonb)'::regprocedure.")));
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	check_signature(proc);
	if (!idem_compat_may_execute(oid, GetUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", NameStr(proc->proname)),
				 errhint("The caller of idem_run() needs EXECUTE on the handler.")));

	/* what fmgr_security_definer and the executor's function calls do */
	InvokeFunctionExecuteHook(oid);
	if (proc->proisstrict && run->asked->request.isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"request\" must not be null for a strict handler"),
				 errhint("A strict function is not called with a null: give a request, or declare the handler CALLED ON NULL INPUT.")));
	run->result_type = proc->prorettype;
	ReleaseSysCache(tuple);
	fmgr_info(oid, &run->handler);
}

/* Call the handler as the executor would, and make its answer. */
static void
call_handler(IdemRun *run)
{
	LOCAL_FCINFO(call, 1);
	const IdemPolicy *policy = &run->claim.row_policy;
	PgStat_FunctionCallUsage usage;
	Datum		result;

	/*
	 * A snapshot from after the claim, for a STABLE handler, too: what a
	 * rival has written whose end the claim waited for must be visible to the
	 * work. Spec: run-two.
	 */
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	InitFunctionCallInfoData(*call, &run->handler, 1, InvalidOid, NULL, NULL);
	call->args[0] = run->asked->request;
	pgstat_init_function_usage(call, &usage);
	result = FunctionCallInvoke(call);
	pgstat_end_function_usage(&usage, true);
	PopActiveSnapshot();

	/* a null is an answer, too: the work is done, and there is nothing to say */
	idem_response_init(&run->answer, IDEM_STATUS_OK);
	if (!call->isnull && run->result_type == idem_catalog()->response_type)
		idem_response_set_response(&run->answer, result);
	else if (!call->isnull)
		idem_response_set_body(&run->answer, result, run->result_type);
	idem_response_limit(&run->answer, &run->claim.id, policy);
	run->state = idem_policy_releases(policy, run->answer.status) ?
		IDEM_STATE_RETRYABLE : IDEM_STATE_COMPLETED;
}

/* on_error = 'raise': every error passes, and frees the key. */
static void
run_raising(IdemRun *run)
{
	call_handler(run);
	if (run->state != IDEM_STATE_COMPLETED)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_WOULD_FREE),
				 errmsg("the handler answered with status %d, which policy \"%s\" does not keep",
						run->answer.status,
						NameStr(run->claim.row_policy.name)),
				 errhint("Raise an error in the handler, or call idem_run() with on_error => 'record'.")));
}

/* Errors that say nothing of the request: whoever called must see them. */
static bool
must_pass(const ErrorData *error)
{
	int			category = ERRCODE_TO_CATEGORY(error->sqlerrcode);

	switch (error->sqlerrcode)
	{
		case ERRCODE_QUERY_CANCELED:
		case ERRCODE_ADMIN_SHUTDOWN:
		case ERRCODE_CRASH_SHUTDOWN:
		case ERRCODE_CANNOT_CONNECT_NOW:
		case ERRCODE_DATABASE_DROPPED:
		case ERRCODE_IDLE_SESSION_TIMEOUT:
		case ERRCODE_T_R_SERIALIZATION_FAILURE:
		case ERRCODE_T_R_DEADLOCK_DETECTED:
			return true;
	}
	return category == ERRCODE_INSUFFICIENT_RESOURCES ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_SYSTEM_ERROR) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_INTERNAL_ERROR);
}

/* The answer that stands for an error: its SQLSTATE and message, as JSON. */
static void
answer_error(IdemRun *run, const ErrorData *error)
{
	StringInfoData json;
	text	   *body;

	initStringInfo(&json);
	appendStringInfoString(&json, "{\"sqlstate\": ");
	escape_json(&json, unpack_sql_state(error->sqlerrcode));
	appendStringInfoString(&json, ", \"message\": ");
	escape_json(&json, error->message != NULL ? error->message : "");
	appendStringInfoChar(&json, '}');
	body = cstring_to_text_with_len(json.data, json.len);
	idem_response_init(&run->answer, STATUS_FAILED);
	idem_response_set_body(&run->answer, PointerGetDatum(body), JSONOID);
	/* no second error over the first */
	if (idem_response_is_oversize(&run->answer, &run->claim.row_policy))
		idem_response_drop_body(&run->answer);
	run->state = IDEM_STATE_RETRYABLE;
}

/*
 * on_error = 'record': the handler runs in a subtransaction, which is undone
 * when it fails or answers with a status that is not kept.
 */
static void
run_recording(IdemRun *run)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		call_handler(run);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();

	/*
	 * It is ended before an error passes on: whoever catches that ends a
	 * subtransaction of his own.
	 */
	if (error == NULL && run->state == IDEM_STATE_COMPLETED)
		ReleaseCurrentSubTransaction();
	else
		RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (error == NULL)
		return;

	/* of the server or of the transaction: recording it would hide it */
	if (must_pass(error))
		ReThrowError(error);
	answer_error(run, error);
}

/* Run the handler while calls for the same key from within it are refused. */
static void
run_handler(IdemRun *run)
{
	IdemXactRun entry;

	/*
	 * no key lock tells the handler's own calls that this key is being worked
	 * on
	 */
	idem_xact_push_run(&entry, &run->claim.id);
	PG_TRY();
	{
		if (run->asked->record)
			run_recording(run);
		else
			run_raising(run);
	}
	PG_FINALLY();
	{
		idem_xact_pop_run(&entry);
	}
	PG_END_TRY();
}

static IdemOutcome
outcome_of(const IdemRun *run)
{
	return run->state == IDEM_STATE_COMPLETED ?
		IDEM_OUTCOME_COMPLETED : IDEM_OUTCOME_FAILED;
}

/* Write the row with its answer, and what the log wants of it. */
static void
store(IdemRun *run)
{
	IdemClaim  *claim = &run->claim;
	IdemRow    *row = &claim->row;
	IdemRow		written;

	/* written finished: there is no lease, and purge_at no bound for a finish */
	row->lease_until = DT_NOBEGIN;
	if (!claim->found)
		row->purge_at = DT_NOBEGIN;
	idem_response_store(&run->answer, row);
	idem_lifetime_finish(&claim->row_policy, row, run->state, -1,
						 idem_xact_now());

	/*
	 * The key lock has kept off whoever asks for it, and the handler cannot
	 * have claimed the key, which idem_xact says is running.  An idem_dedupe
	 * asks for nothing: if its row is there, or is about to be, the work is
	 * undone with the transaction, by 40001.  Specs: run-dedupe, run-nested.
	 */
	if (claim->found)
		idem_store_update(&claim->store, &claim->id, row);
	else
	{
		/* nobody was given the token, which only the log shows */
		written = *row;
		written.token = IDEM_NO_TOKEN;
		idem_store_insert_new(&claim->store, &claim->id, &written);
	}
	idem_store_close(&claim->store);

	/* of the holder whose lease had ended */
	if (claim->decision.taken_over && claim->row_policy.recoverable)
		idem_leases_drop(&claim->id, IDEM_NO_TOKEN);
	if (claim->row_policy.audit)
	{
		const char *actions[] = {
			idem_claim_action(claim),
			idem_outcomes[outcome_of(run)].action
		};

		idem_audit_transitions(actions, lengthof(actions), &claim->id,
							   row);
	}
}

static bool
read_on_error(FunctionCallInfo fcinfo)
{
	char	   *on_error = text_to_cstring(idem_args_text(fcinfo, ARG_ON_ERROR, "on_error"));

	if (strcmp(on_error, "raise") != 0 && strcmp(on_error, "record") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument \"%s\"", "on_error"),
				 errhint("Available values: \"raise\", \"record\".")));
	return strcmp(on_error, "record") == 0;
}

static void
read_arguments(FunctionCallInfo fcinfo, IdemRunRequest *asked)
{
	idem_args_require_writable();
	idem_args_require(fcinfo, ARG_HANDLER, "handler");
	asked->handler = PG_GETARG_OID(ARG_HANDLER);
	asked->record = read_on_error(fcinfo);
	asked->scope = idem_name_scope(fcinfo, ARG_SCOPE);
	asked->policy = idem_args_text(fcinfo, ARG_POLICY, "policy");
	asked->key = PG_ARGISNULL(ARG_KEY) ? NULL : PG_GETARG_TEXT_PP(ARG_KEY);
	asked->request = fcinfo->args[ARG_REQUEST];
	asked->context = idem_args_digest(fcinfo, ARG_CONTEXT, "context");
	asked->fingerprint = idem_args_digest(fcinfo, ARG_FINGERPRINT, "fingerprint");
	asked->wait = idem_policy_arg(fcinfo, ARG_WAIT, "wait",
								  idem_policy_wait_usec);
	asked->ttl = idem_policy_arg(fcinfo, ARG_TTL, "ttl", idem_policy_ttl_usec);
	asked->admit = NULL;
}

/* Set up the claim and the handler; nothing is read of the key yet. */
static void
begin_run(IdemRun *run, const IdemRunRequest *asked)
{
	IdemClaim  *claim = &run->claim;

	run->asked = asked;
	idem_claim_begin(claim, asked->scope, asked->policy);
	claim->id.key = idem_name_format_key(asked->key, &claim->policy);
	claim->fingerprint = asked->fingerprint;
	if (claim->fingerprint == NULL && !asked->request.isnull)
		claim->fingerprint =
			idem_fingerprint_of(DatumGetJsonbP(asked->request.value));
	idem_claim_require_fingerprint(claim);
	claim->context = asked->context;
	if (asked->wait >= 0)
		claim->wait = asked->wait;
	claim->ttl = asked->ttl;
	prepare_handler(run);
}

/*
 * Whether the work may be done, of a claim that is granted.  Nothing is
 * written yet; what is not admitted leaves nothing.  A key too many is not
 * asked for.
 */
static bool
is_admitted(IdemRun *run)
{
	IdemClaim  *claim = &run->claim;

	if (run->asked->admit == NULL)
		return true;
	if (claim->decision.verdict == IDEM_CLAIM_FRESH)
		idem_claim_check_cap(claim, 1);
	if (run->asked->admit(run->asked->admit_arg))
		return true;
	idem_store_drop(&claim->store);
	return false;
}

/*
 * idem_run_execute
 *		Do what idem_run is asked for; an idem_result, or NULL where the work
 *		was not admitted.
 */
Datum
idem_run_execute(const IdemRunRequest *asked)
{
	IdemRun		run;
	IdemOutcome outcome;

	begin_run(&run, asked);

	/*
	 * It must be known before the handler that there is no row: there is no
	 * looking again when the work is done.  The key lock stays, the table is
	 * closed, since the handler may do anything to it.
	 */
	idem_claim_decide(&run.claim, true);
	idem_store_close(&run.claim.store);
	outcome = run.claim.decision.outcome;
	if (idem_claim_granted(&run.claim))
	{
		if (!is_admitted(&run))
			return (Datum) 0;
		idem_claim_start(&run.claim);
		run_handler(&run);
		store(&run);
		outcome = outcome_of(&run);
	}
	idem_claim_count(&run.claim, outcome);
	return idem_claim_result(&run.claim, outcome);
}

IDEM_FUNCTION(idem_run);

/*
 * idem_run(handler regprocedure, scope text, key text, request jsonb,
 *			policy text, context bytea, wait interval, on_error text,
 *			fingerprint bytea, ttl interval)
 *		RETURNS idem_result
 *		Claim a key, call handler(request), store what it returns, answer.
 *
 * Raises what the handler raises, and 22004, 22023, 22P02, 25006, 40001,
 * 42501, 42704, 42883, ID008, ID009, ID010, ID012, XX001.  An executed call
 * holds the key lock and the row to the end of the transaction.
 */
Datum
idem_run(PG_FUNCTION_ARGS)
{
	IdemRunRequest asked;

	read_arguments(fcinfo, &asked);
	return idem_run_execute(&asked);
}
