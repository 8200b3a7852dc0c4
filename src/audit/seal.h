/*-------------------------------------------------------------------------
 *
 * seal.h
 *	  Sealing the audit log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_AUDIT_SEAL_H
#define IDEM_AUDIT_SEAL_H

extern bool idem_seal_batch(int64 rows);
extern void idem_seal_key(void);

#endif							/* IDEM_AUDIT_SEAL_H */
