/*-------------------------------------------------------------------------
 *
 * row.h
 *	  A row of the audit log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_AUDIT_ROW_H
#define IDEM_AUDIT_ROW_H

#include "idem.h"
#include "store/row.h"

/* The columns of idempotency_audit_log. */
typedef enum IdemAuditColumn
{
	AUDIT_ID,
	AUDIT_AT,
	AUDIT_XID,
	AUDIT_ACTION,
	AUDIT_ENTITY,
	AUDIT_ENTITY_ID,
	AUDIT_ATTEMPT,
	AUDIT_TOKEN,
	AUDIT_SESSION_ROLE,
	AUDIT_EFFECTIVE_ROLE,
	AUDIT_CLIENT_ADDR,
	AUDIT_APPLICATION_NAME,
	AUDIT_DETAIL
} IdemAuditColumn;

#define IDEM_AUDIT_COLUMNS (AUDIT_DETAIL + 1)

/* Rows that may be written at once. */
#define IDEM_AUDIT_MAX_ROWS 2

/* A row of the log, less what the server knows itself. */
typedef struct IdemAuditRow
{
	const char *action;
	const char *entity;
	const char *entity_id;
	int32		attempt;		/* 0: null */
	int64		token;			/* 0: null */
	const char *effective_role;
	Datum		detail;			/* jsonb; 0: null */

	/* of another session; else zero, for the time and session that it is */
	TimestampTz at;
	const char *session_role;
	const char *client_addr;
	const char *application_name;
} IdemAuditRow;

/* Rows of one moment as they are stored; they differ in id and action only. */
typedef struct IdemAuditRows
{
	int			number;
	int64		ids[IDEM_AUDIT_MAX_ROWS];
	const char *actions[IDEM_AUDIT_MAX_ROWS];
	TimestampTz at;
	Datum		values[IDEM_AUDIT_COLUMNS];
	bool		nulls[IDEM_AUDIT_COLUMNS];
} IdemAuditRows;

extern const IdemColumnShape idem_audit_row_columns[IDEM_AUDIT_COLUMNS];

extern const char *idem_audit_row_client_addr(void);
extern void idem_audit_row_form(IdemAuditRows *rows, const IdemAuditRow *row);
extern void idem_audit_row_choose(IdemAuditRows *rows, int i);

#endif							/* IDEM_AUDIT_ROW_H */
