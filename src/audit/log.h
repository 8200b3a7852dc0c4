/*-------------------------------------------------------------------------
 *
 * log.h
 *	  The audit log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_AUDIT_LOG_H
#define IDEM_AUDIT_LOG_H

#include "audit/refusal_queue.h"
#include "idem.h"

extern void idem_audit_transition(const char *action, const IdemKey *id,
								  const IdemRow *row);
extern void idem_audit_refused(const IdemRefused *refused, int number);

#endif							/* IDEM_AUDIT_LOG_H */
