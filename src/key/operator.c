/*-------------------------------------------------------------------------
 *
 * operator.c
 *	  What an operator does with any key.
 *
 * Free of the rule whose key it is (owner.c): EXECUTE, of level operator, is
 * the right to do it.  No answer is shown, and each call that finds or changes
 * something is audited under every policy, in its own transaction: if the row
 * of the log cannot be written, the call fails.  What waits, waits for locks of
 * the server, within lock_timeout.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/formatting.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "audit/log.h"
#include "base/args.h"
#include "base/digest.h"
#include "key/leases.h"
#include "key/lifetime.h"
#include "key/name.h"
#include "key/xact.h"
#include "rule/policy.h"
#include "store/holder.h"
#include "store/search.h"
#include "store/store.h"

/* Stands for all scopes in the audit log. */
#define ANY_SCOPE "*"

#define LOG_ID_LENGTH 16

/* A key being worked on, its row locked. */
typedef struct IdemOperated
{
	IdemStore	store;
	IdemKey		id;
	IdemRow		row;
	IdemPolicy	policy;			/* of the row */
	bool		own;			/* claimed by this very transaction */
} IdemOperated;

/* Lock the row of the key that arguments 0 and 1 name; false: there is none. */
static bool
hold(FunctionCallInfo fcinfo, IdemOperated *held)
{
	memset(held, 0, sizeof(*held));
	idem_args_require_writable();
	held->id.scope = idem_name_scope(fcinfo, 0);
	held->id.key = idem_name_key(fcinfo, 1);

	/* the key of a running idem_run has none: what is found it will replace */
	if (!idem_store_hold(&held->store, &held->id, &held->row) ||
		idem_xact_is_running(&held->id))
		return false;
	idem_policy_get_stored(held->row.policy, &held->policy);
	held->own = idem_xact_owns(&held->row);
	return true;
}

/* Record a call that is not about one row of a key; the detail is JSON. */
static void
write_audit(const char *action, const char *entity, const char *entity_id,
			const char *detail)
{
	IdemAuditRow row = {
		.action = action,
		.entity = entity,
		.entity_id = entity_id,
		.effective_role = GetUserNameFromId(GetUserId(), false),
		.detail = DirectFunctionCall1(jsonb_in, CStringGetDatum(detail))
	};

	(void) idem_audit_write(&row);
}

/* How many rows at the most; 22004, 22023. */
static int64
read_max_rows(FunctionCallInfo fcinfo, int argno)
{
	idem_args_require(fcinfo, argno, "max_rows");
	if (PG_GETARG_INT32(argno) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be greater than zero", "max_rows"),
				 errhint("Leave it out for what is usual.")));
	return PG_GETARG_INT32(argno);
}

/* A log id, or NULL; 22023. */
static const char *
read_log_id(FunctionCallInfo fcinfo, int argno, const char *name)
{
	char	   *id;

	if (PG_ARGISNULL(argno))
		return NULL;
	id = text_to_cstring(PG_GETARG_TEXT_PP(argno));
	if (strlen(id) != LOG_ID_LENGTH ||
		strspn(id, "0123456789abcdefABCDEF") != LOG_ID_LENGTH)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" is no log id", name),
				 errhint("Give the %d hexadecimal digits that idem_activity, the audit log or an error message shows, or idem_log_id() makes.",
						 LOG_ID_LENGTH)));
	return asc_tolower(id, LOG_ID_LENGTH);
}

/* A word for a state, or NULL; 22023. */
static const char *
read_state(FunctionCallInfo fcinfo, int argno)
{
	char	   *state;

	if (PG_ARGISNULL(argno))
		return NULL;
	state = text_to_cstring(PG_GETARG_TEXT_PP(argno));
	if (!idem_store_is_state(state))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument \"%s\"", "state"),
				 errhint("Available values: \"in_progress\", \"completed\", \"failed\", \"released\", \"expired\".")));
	return state;
}

/* Record what was sought, by log ids, and how many were found. */
static void
audit_search(const IdemSearch *search, int64 rows)
{
	const char *scope_id = search->scope == NULL ? search->scope_id :
	idem_digest_log_id(search->scope);
	StringInfoData detail;

	/* no value has a character that JSON would escape */
	initStringInfo(&detail);
	appendStringInfoChar(&detail, '{');
	if (search->scope != NULL && search->scope_id != NULL)
		appendStringInfo(&detail, "\"scope_id\": \"%s\", ", search->scope_id);
	if (search->key_id != NULL)
		appendStringInfo(&detail, "\"key_id\": \"%s\", ", search->key_id);
	if (search->state != NULL)
		appendStringInfo(&detail, "\"state\": \"%s\", ", search->state);
	appendStringInfo(&detail,
					 "\"max_rows\": " INT64_FORMAT ", \"rows\": " INT64_FORMAT "}",
					 search->max_rows, rows);
	write_audit("found", IDEM_ENTITY_SCOPE,
				scope_id != NULL ? scope_id : ANY_SCOPE, detail.data);
}

IDEM_FUNCTION(idem_find);

/*
 * idem_find(scope_id text, key_id text, scope text, state text, max_rows
 *		integer) RETURNS TABLE (scope text, key text, state text, policy text,
 *		attempt integer, claimed_by text, created_at timestamptz, lease_until
 *		timestamptz, expires_at timestamptz, recovery_point text, checkpoint
 *		jsonb)
 *		Keys in clear, by log ids, scope or state, as the calling statement sees
 *		them; all where nothing is asked for.  In the order of scope and key.
 *
 * Reads a range of the primary key where the scope is given, else all keys.
 * Raises 22004, 22023, 25006.
 */
Datum
idem_find(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	IdemSearch	search = {0};

	idem_args_require_writable();
	search.scope_id = read_log_id(fcinfo, 0, "scope_id");
	search.key_id = read_log_id(fcinfo, 1, "key_id");
	if (!PG_ARGISNULL(2))
		search.scope = idem_name_scope(fcinfo, 2);
	search.state = read_state(fcinfo, 3);
	search.max_rows = read_max_rows(fcinfo, 4);
	InitMaterializedSRF(fcinfo, 0);
	audit_search(&search,
				 idem_store_search(&search, GetCurrentTimestamp(),
								   rsinfo->setResult, rsinfo->setDesc));
	return (Datum) 0;
}

/* In a word, what a transaction has of a key. */
static const char *
describe_holder(const IdemHolder *holder)
{
	if (holder->pid != 0)
		return holder->row ? "row" : "key lock";
	if (holder->gid == NULL)
		return "prepared transaction";
	return psprintf("prepared transaction %s",
					quote_literal_cstr(holder->gid));
}

static void
put_holder(ReturnSetInfo *rsinfo, const IdemHolder *holder)
{
	Datum		values[3];
	bool		nulls[lengthof(values)] = {0};

	values[0] = Int32GetDatum(holder->pid);
	nulls[0] = holder->pid == 0;
	values[1] = TimestampTzGetDatum(holder->since);
	nulls[1] = holder->since == 0;
	values[2] = CStringGetTextDatum(describe_holder(holder));
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

IDEM_FUNCTION(idem_holder);

/*
 * idem_holder(scope text, key text) RETURNS TABLE (pid integer, since
 *		timestamptz, how text)
 *		Whose open transaction has the key, that of the caller included: no row
 *		when nobody's has.
 *
 * Waits for nobody.  Raises 22004, 22023, 25006, 55P03, ID012.
 */
Datum
idem_holder(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	IdemKey		id;
	List	   *holders;
	ListCell   *cell;

	idem_args_require_writable();
	id.scope = idem_name_scope(fcinfo, 0);
	id.key = idem_name_key(fcinfo, 1);
	InitMaterializedSRF(fcinfo, 0);
	holders = idem_store_holders(&id);
	foreach(cell, holders)
	{
		put_holder(rsinfo, lfirst(cell));
	}
	write_audit("holder_found", IDEM_ENTITY_KEY, idem_digest_log_ids(&id),
				psprintf("{\"rows\": %d}", list_length(holders)));
	return (Datum) 0;
}

IDEM_FUNCTION(idem_end_lease);

/*
 * idem_end_lease(scope text, key text) RETURNS boolean
 *		Let the lease of a committed claim end now; false when there is none
 *		with a running lease.  The next claim takes over.
 *
 * Waits for a transaction that has the key, within lock_timeout.  Raises 22004,
 * 22023, 25006, 40001, ID012.
 */
Datum
idem_end_lease(PG_FUNCTION_ARGS)
{
	IdemOperated held;
	TimestampTz now;
	bool		found = hold(fcinfo, &held);

	/* after the wait for the row, before which a lease may have ended */
	now = idem_xact_now();
	found = found && !held.own && held.row.state == IDEM_STATE_IN_PROGRESS &&
		!idem_lifetime_is_over(held.row.lease_until, now);
	if (found)
	{
		/*
		 * As with a lease of no length that begins now: the row stays as long
		 * as an abandoned one does from here on.  Token and attempt stay, so
		 * until somebody takes over the holder may finish, or extend the
		 * lease.
		 */
		idem_lifetime_lease(&held.policy, &held.row, now, 0);
		idem_store_update(&held.store, &held.id, &held.row);
	}
	idem_store_close(&held.store);
	if (found && held.policy.recoverable)
		idem_leases_put(&held.id, &held.row);
	if (found)
		idem_audit_transition("lease_ended", &held.id, &held.row);
	PG_RETURN_BOOL(found);
}

IDEM_FUNCTION(idem_forget);

/*
 * idem_forget(scope text, key text) RETURNS boolean
 *		Remove a key in any state; false when there is none.
 *
 * Waits for a transaction that has the key, within lock_timeout.  Raises 22004,
 * 22023, 25006, 40001, ID012.
 */
Datum
idem_forget(PG_FUNCTION_ARGS)
{
	IdemOperated held;
	bool		found = hold(fcinfo, &held);

	if (found)
		idem_store_delete(&held.store, &held.id);
	idem_store_close(&held.store);
	if (found && held.row.state == IDEM_STATE_IN_PROGRESS)
	{
		if (held.own)
			idem_xact_closed(&held.id, &held.row);
		if (held.policy.recoverable)
			idem_leases_drop(&held.id, IDEM_NO_TOKEN);
	}
	if (found)
		idem_audit_transition("forgotten", &held.id, &held.row);
	PG_RETURN_BOOL(found);
}

IDEM_FUNCTION(idem_forget_scope);

/*
 * idem_forget_scope(scope text, max_rows integer) RETURNS bigint
 *		Remove up to max_rows keys of a scope that are finished, released or
 *		expired; how many.  What others have locked is passed over.
 *
 * One row of the audit log tells of all.  Raises 22004, 22023, 25006; 40001 at
 * REPEATABLE READ and above.
 */
Datum
idem_forget_scope(PG_FUNCTION_ARGS)
{
	text	   *scope;
	int64		max_rows;
	int64		rows;

	idem_args_require_writable();
	scope = idem_name_scope(fcinfo, 0);
	max_rows = read_max_rows(fcinfo, 1);
	rows = idem_store_delete_finished(scope, GetCurrentTimestamp(), max_rows,
									  idem_xact_running_keys(scope));
	write_audit("forgotten", IDEM_ENTITY_SCOPE, idem_digest_log_id(scope),
				psprintf("{\"max_rows\": " INT64_FORMAT ", \"rows\": " INT64_FORMAT "}",
						 max_rows, rows));
	PG_RETURN_INT64(rows);
}
