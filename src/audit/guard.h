/*-------------------------------------------------------------------------
 *
 * guard.h
 *	  Who may write to the audit log and its seals.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_AUDIT_GUARD_H
#define IDEM_AUDIT_GUARD_H

#include "audit/row.h"
#include "base/spi.h"

extern uint64 idem_guard_insert(const IdemAuditRow *row, IdemPlan *plan,
								Datum *values, const char *nulls);
extern uint64 idem_guard_change(IdemPlan *plan, Datum *values,
								const char *nulls);
extern bool idem_guard_is_it(Oid function);

#endif							/* IDEM_AUDIT_GUARD_H */
