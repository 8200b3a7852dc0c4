/*-------------------------------------------------------------------------
 *
 * direct.h
 *	  The direct way to the audit log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_AUDIT_DIRECT_H
#define IDEM_AUDIT_DIRECT_H

#include "audit/row.h"

extern bool idem_audit_direct_insert(IdemAuditRows *rows);

#endif							/* IDEM_AUDIT_DIRECT_H */
