/*-------------------------------------------------------------------------
 *
 * idem_audit.h
 *	  The audit log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_AUDIT_H
#define IDEM_AUDIT_H

#include "idem.h"

extern void idem_audit_transition(const char *action, const IdemKey *id,
								  const IdemRow *row);

#endif							/* IDEM_AUDIT_H */
