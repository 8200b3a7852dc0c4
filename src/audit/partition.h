/*-------------------------------------------------------------------------
 *
 * partition.h
 *	  The partitions of the audit log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_AUDIT_PARTITION_H
#define IDEM_AUDIT_PARTITION_H

#include "storage/lockdefs.h"

#include "audit/cell.h"

extern bool idem_partition_lock(LOCKMODE mode);
extern int64 idem_partition_rows(const IdemCell *cell);
extern void idem_partition_drop(const IdemCell *cell);
extern void idem_partition_try(void);
extern bool idem_partition_ensure(void);
extern void idem_partition_init(void);

#endif							/* IDEM_AUDIT_PARTITION_H */
