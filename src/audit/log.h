/*-------------------------------------------------------------------------
 *
 * log.h
 *	  The audit log: who writes what, and the ids of rows.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_AUDIT_LOG_H
#define IDEM_AUDIT_LOG_H

#include "audit/row.h"
#include "idem.h"

/* Entities that application code cannot write rows of. */
#define IDEM_ENTITY_KEY		"idempotency_key"
#define IDEM_ENTITY_SCOPE	"idempotency_scope"
#define IDEM_ENTITY_LIMITER	"idempotency_limiter"

extern void idem_audit_transition(const char *action, const IdemKey *id,
								  const IdemRow *key);
extern void idem_audit_transitions(const char *const *actions, int number,
								   const IdemKey *id, const IdemRow *key);
extern int64 idem_audit_write(const IdemAuditRow *row);
extern bool idem_audit_begun(void);
extern int64 idem_audit_origin(void);
extern void idem_audit_adopt(void);
extern int64 idem_audit_last_id(void);

#endif							/* IDEM_AUDIT_LOG_H */
