/*-------------------------------------------------------------------------
 *
 * index_guard.h
 *	  Indexes that the audit log must not have.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_AUDIT_INDEX_GUARD_H
#define IDEM_AUDIT_INDEX_GUARD_H

extern void idem_audit_index_init(void);

#endif							/* IDEM_AUDIT_INDEX_GUARD_H */
