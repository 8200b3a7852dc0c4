/*-------------------------------------------------------------------------
 *
 * log.c
 *	  The audit log.
 *
 * Owns what a row says and who may change the log: nobody but a superuser,
 * the owner of the table included, save for the extension's own row.  A row
 * is written in the transaction of what it tells; if it cannot be, that
 * transaction fails.  Refusals are written later, by the worker.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "audit/alike.h"
#include "audit/chain.h"
#include "audit/log.h"
#include "audit/partition.h"
#include "base/args.h"
#include "base/catalog.h"
#include "base/digest.h"
#include "store/store.h"

/*
 * idem_audit_transition
 *		Record what became of a key.
 */
void
idem_audit_transition(const char *action, const IdemKey *id, const IdemRow *row)
{
	IdemStoreAudit audit;

	memset(&audit, 0, sizeof(audit));
	audit.action = action;
	audit.entity = IDEM_ENTITY_KEY;
	audit.entity_id = psprintf("%s/%s", idem_digest_log_id(id->scope),
							   idem_digest_log_id(id->key));
	audit.attempt = row->attempt;
	audit.token = row->token;
	audit.effective_role = GetUserNameFromId(GetUserId(), false);
	(void) idem_store_audit(&audit);
}

/* A time in UTC, after RFC 3339. */
static void
append_time(StringInfo json, TimestampTz when)
{
	struct pg_tm tm;
	fsec_t		fsec;

	if (timestamp2tm(when, NULL, &tm, &fsec, NULL, NULL) != 0)
		elog(ERROR, "timestamp out of range");
	appendStringInfo(json, "\"%04d-%02d-%02dT%02d:%02d:%02d.%06dZ\"",
					 tm.tm_year, tm.tm_mon, tm.tm_mday,
					 tm.tm_hour, tm.tm_min, tm.tm_sec, (int) fsec);
}

/* By which rule, how often and, if more than once, until when. */
static Datum
describe_refused(const IdemRefused *refused)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfo(&json, "{\"%s\": ",
					 refused->subject.action == IDEM_REFUSAL_LIMITED ?
					 "limiter" : "policy");
	escape_json(&json, refused->subject.rule);
	appendStringInfo(&json, ", \"count\": " INT64_FORMAT, refused->count);
	if (refused->count > 1)
	{
		appendStringInfoString(&json, ", \"last_at\": ");
		append_time(&json, refused->last_at);
	}
	appendStringInfoChar(&json, '}');
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
}

/*
 * idem_audit_refused
 *		For a worker: record calls that were refused, in order.  Those of an
 *		audit log that has been dropped since are passed over.  55P03 when
 *		somebody has locked the log.
 */
void
idem_audit_refused(const IdemRefused *refused, int number)
{
	int			i;

	if (!idem_store_partition_lock(RowExclusiveLock))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("the audit log is locked"),
				 errhint("End the transaction that has locked it.")));
	for (i = 0; i < number; i++)
	{
		const IdemRefusalSubject *subject = &refused[i].subject;
		IdemStoreAudit audit;

		if (subject->audit_log != idem_catalog()->audit_log)
			continue;
		memset(&audit, 0, sizeof(audit));
		audit.action = idem_refusals_name(subject->action);
		audit.entity = idem_refusals_entity(subject->action);
		audit.entity_id = subject->entity_id;
		audit.effective_role = subject->effective_role;
		audit.detail = describe_refused(&refused[i]);
		audit.at = refused[i].first_at;
		audit.session_role = subject->session_role;
		audit.client_addr = subject->client_addr[0] != '\0' ?
			subject->client_addr : NULL;
		audit.application_name = subject->application_name;
		(void) idem_store_audit(&audit);
	}
}

IDEM_FUNCTION(idem_audit);

/*
 * idem_audit(action text, entity text, entity_id text, detail jsonb)
 *		RETURNS bigint
 *		Write a row in this transaction; returns its id.
 *
 * Raises 22004, 22023 (empty, too long, an entity like ours), 25006.
 */
Datum
idem_audit(PG_FUNCTION_ARGS)
{
	IdemStoreAudit audit;
	text	   *entity;

	idem_args_require_writable();
	memset(&audit, 0, sizeof(audit));
	audit.action = text_to_cstring(idem_args_label(fcinfo, 0, "action"));
	entity = idem_args_label(fcinfo, 1, "entity");
	audit.entity = text_to_cstring(entity);
	audit.entity_id = text_to_cstring(idem_args_label(fcinfo, 2, "entity_id"));
	if (idem_alike_is_ours(entity))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("entity \"%s\" is reserved", audit.entity),
				 errdetail("It begins with \"%s\", or looks as if it did.",
						   "idempotency"),
				 errhint("Rows about keys and limiters are written by the extension itself, under a policy with \"audit\".")));
	audit.detail = PointerGetDatum(idem_args_detail(fcinfo, 3, "detail"));
	audit.effective_role = GetUserNameFromId(GetUserId(), false);
	PG_RETURN_INT64(idem_store_audit(&audit));
}

/* A column of a row as text; empty for a null. */
static const char *
get_text(HeapTuple tuple, TupleDesc desc, const char *column)
{
	char	   *value = SPI_getvalue(tuple, desc, SPI_fnumber(desc, column));

	return value != NULL ? value : "";
}

/* A number; 0 for a null. */
static int64
get_number(HeapTuple tuple, TupleDesc desc, const char *column)
{
	return strtoll(get_text(tuple, desc, column), NULL, 10);
}

/* Whether the row to be inserted is the one that we are writing. */
static bool
is_own_row(TriggerData *trigdata)
{
	TupleDesc	desc = RelationGetDescr(trigdata->tg_relation);
	HeapTuple	tuple = trigdata->tg_trigtuple;
	IdemStoreAudit row;

	if (!TRIGGER_FIRED_BY_INSERT(trigdata->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) ||
		SPI_fnumber(desc, "entity_id") == SPI_ERROR_NOATTRIBUTE)
		return false;
	memset(&row, 0, sizeof(row));
	row.action = get_text(tuple, desc, "action");
	row.entity = get_text(tuple, desc, "entity");
	row.entity_id = get_text(tuple, desc, "entity_id");
	row.attempt = (int32) get_number(tuple, desc, "attempt");
	row.token = get_number(tuple, desc, "token");
	row.effective_role = get_text(tuple, desc, "effective_role");
	return idem_store_audit_passes(&row);
}

IDEM_FUNCTION(idem_audit_guard);

/*
 * idem_audit_guard() RETURNS trigger
 *		Before INSERT, UPDATE, DELETE and TRUNCATE of the log and its seals;
 *		42501 unless it is our own doing or a superuser's (who restores a dump,
 *		and could drop the trigger anyway).  39P01 when called by itself.
 */
Datum
idem_audit_guard(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager",
						"idem_audit_guard"),
				 errhint("It is for the triggers of \"%s\" only.",
						 "idempotency_audit_log")));
	if (!is_own_row(trigdata) && !idem_store_seal_writes() && !superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("the audit log can only be appended to, by idem_audit()"),
				 errhint("Call idem_audit(action, entity, entity_id, detail).")));
	if (!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event))
		return PointerGetDatum(NULL);
	return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ?
						   trigdata->tg_newtuple : trigdata->tg_trigtuple);
}
