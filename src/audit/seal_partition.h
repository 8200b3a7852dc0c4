/*-------------------------------------------------------------------------
 *
 * seal_partition.h
 *	  When the audit log gets its next partition.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_AUDIT_SEAL_PARTITION_H
#define IDEM_AUDIT_SEAL_PARTITION_H

extern void idem_seal_try_partitions(void);
extern void idem_seal_partitions(void);
extern void idem_seal_partition_init(void);

#endif							/* IDEM_AUDIT_SEAL_PARTITION_H */
