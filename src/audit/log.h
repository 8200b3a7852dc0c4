/*-------------------------------------------------------------------------
 *
 * log.h
 *	  The audit log: its rows, their ids, and who may write them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_AUDIT_LOG_H
#define IDEM_AUDIT_LOG_H

#include "base/spi.h"
#include "idem.h"

/* Entities that application code cannot write rows of. */
#define IDEM_ENTITY_KEY		"idempotency_key"
#define IDEM_ENTITY_LIMITER	"idempotency_limiter"

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

extern void idem_audit_transition(const char *action, const IdemKey *id,
								  const IdemRow *row);
extern int64 idem_audit_write(const IdemAuditRow *row);
extern uint64 idem_audit_change(IdemPlan *plan, Datum *values,
								const char *nulls);
extern bool idem_audit_begun(void);
extern int64 idem_audit_origin(void);
extern void idem_audit_adopt(void);
extern int64 idem_audit_last_id(void);

#endif							/* IDEM_AUDIT_LOG_H */
