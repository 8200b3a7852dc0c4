/*-------------------------------------------------------------------------
 *
 * row.c
 *	  A row of the audit log: its columns, and their values.
 *
 * Both ways to the log write what is formed here: nothing is left to a default
 * of the table, or to a function in a statement.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inet.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "audit/row.h"

/* Each by its place: rows are formed from an array of values. */
const IdemColumnShape idem_audit_row_columns[IDEM_AUDIT_COLUMNS] = {
	[AUDIT_ID] = {"id", INT8OID, true},
	[AUDIT_AT] = {"at", TIMESTAMPTZOID, true},
	[AUDIT_XID] = {"xid", XID8OID, true},
	[AUDIT_ACTION] = {"action", TEXTOID, true},
	[AUDIT_ENTITY] = {"entity", TEXTOID, true},
	[AUDIT_ENTITY_ID] = {"entity_id", TEXTOID, true},
	[AUDIT_ATTEMPT] = {"attempt", INT4OID, false},
	[AUDIT_TOKEN] = {"token", INT8OID, false},
	[AUDIT_SESSION_ROLE] = {"session_role", NAMEOID, true},
	[AUDIT_EFFECTIVE_ROLE] = {"effective_role", NAMEOID, true},
	[AUDIT_CLIENT_ADDR] = {"client_addr", INETOID, false},
	[AUDIT_APPLICATION_NAME] = {"application_name", TEXTOID, false},
	[AUDIT_DETAIL] = {"detail", JSONBOID, false}
};

/* What inet_client_addr() says; NULL: not over a network. */
static const inet *
get_client_addr(void)
{
	static inet address;
	static bool known = false;
	static bool remote = false;

	/* it stays what it is for a session, and asking for it is not cheap */
	if (!known)
	{
		LOCAL_FCINFO(call, 0);
		Datum		found;

		InitFunctionCallInfoData(*call, NULL, 0, InvalidOid, NULL, NULL);
		found = inet_client_addr(call);
		remote = !call->isnull;
		if (remote)
			memcpy(&address, DatumGetPointer(found),
				   Min(VARSIZE(DatumGetPointer(found)), sizeof(address)));
		known = true;
	}
	return remote ? &address : NULL;
}

/*
 * idem_audit_row_client_addr
 *		The address of the client as text; empty when it has none.
 */
const char *
idem_audit_row_client_addr(void)
{
	static char text[NAMEDATALEN];
	const inet *address = get_client_addr();

	/* a refusal may come in thousands, too */
	if (address != NULL && text[0] == '\0')
		strlcpy(text, DatumGetCString(DirectFunctionCall1(inet_out,
														  InetPGetDatum(address))),
				sizeof(text));
	return text;
}

static void
set_text(IdemAuditRows *rows, IdemAuditColumn column, const char *value)
{
	rows->values[column] = CStringGetTextDatum(value != NULL ? value : "");
	rows->nulls[column] = false;
}

static void
set_role(IdemAuditRows *rows, IdemAuditColumn column, const char *role)
{
	NameData   *name = palloc0(sizeof(NameData));

	strlcpy(NameStr(*name), role, sizeof(NameData));
	rows->values[column] = NameGetDatum(name);
	rows->nulls[column] = false;
}

static void
set_roles(IdemAuditRows *rows, const IdemAuditRow *row)
{
	Oid			session = GetSessionUserId();

	set_role(rows, AUDIT_EFFECTIVE_ROLE, row->effective_role);
	if (row->session_role != NULL)
		set_role(rows, AUDIT_SESSION_ROLE, row->session_role);
	else if (session != GetUserId())
		set_role(rows, AUDIT_SESSION_ROLE, GetUserNameFromId(session, false));
	else
	{
		/* the same role: not looked up twice */
		rows->values[AUDIT_SESSION_ROLE] = rows->values[AUDIT_EFFECTIVE_ROLE];
		rows->nulls[AUDIT_SESSION_ROLE] = false;
	}
}

static void
set_client(IdemAuditRows *rows, const IdemAuditRow *row)
{
	const inet *address = NULL;

	if (row->client_addr != NULL)
		address = DatumGetInetPP(DirectFunctionCall1(inet_in,
													 CStringGetDatum(row->client_addr)));
	else
		address = get_client_addr();
	if (address != NULL)
	{
		rows->values[AUDIT_CLIENT_ADDR] = InetPGetDatum(address);
		rows->nulls[AUDIT_CLIENT_ADDR] = false;
	}
	set_text(rows, AUDIT_APPLICATION_NAME,
			 row->application_name != NULL ? row->application_name :
			 application_name);
}

/*
 * idem_audit_row_form
 *		The values of rows, but for id and action, in the caller's memory.  As
 *		the caller of the function, whose roles they have.
 */
void
idem_audit_row_form(IdemAuditRows *rows, const IdemAuditRow *row)
{
	memset(rows->nulls, true, sizeof(rows->nulls));
	rows->at = row->at != 0 ? row->at : GetCurrentTimestamp();
	rows->values[AUDIT_AT] = TimestampTzGetDatum(rows->at);
	rows->nulls[AUDIT_AT] = false;
	rows->values[AUDIT_XID] =
		FullTransactionIdGetDatum(GetTopFullTransactionId());
	rows->nulls[AUDIT_XID] = false;
	set_text(rows, AUDIT_ENTITY, row->entity);
	set_text(rows, AUDIT_ENTITY_ID, row->entity_id);
	rows->values[AUDIT_ATTEMPT] = Int32GetDatum(row->attempt);
	rows->nulls[AUDIT_ATTEMPT] = row->attempt == 0;
	rows->values[AUDIT_TOKEN] = Int64GetDatum(row->token);
	rows->nulls[AUDIT_TOKEN] = row->token == 0;
	set_roles(rows, row);
	set_client(rows, row);
	rows->values[AUDIT_DETAIL] = row->detail;
	rows->nulls[AUDIT_DETAIL] = row->detail == (Datum) 0;
}

/*
 * idem_audit_row_choose
 *		Make the values those of one of the rows.
 */
void
idem_audit_row_choose(IdemAuditRows *rows, int i)
{
	rows->values[AUDIT_ID] = Int64GetDatum(rows->ids[i]);
	rows->nulls[AUDIT_ID] = false;
	set_text(rows, AUDIT_ACTION, rows->actions[i]);
}
