/*-------------------------------------------------------------------------
 *
 * partition.h
 *	  The partitions of the audit log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_AUDIT_PARTITION_H
#define IDEM_AUDIT_PARTITION_H

#include "datatype/timestamp.h"
#include "storage/lockdefs.h"

/* A stretch of time, from <= at < to, whose rows are in one partition. */
typedef struct IdemCell
{
	TimestampTz from;
	TimestampTz to;
	Oid			partition;		/* that for any other time, or one of its own */
} IdemCell;

extern bool idem_partition_lock(LOCKMODE mode);
extern IdemCell *idem_partition_cells(int *number);
extern int64 idem_partition_rows(const IdemCell *cell);
extern void idem_partition_drop(const IdemCell *cell);
extern void idem_partition_try(void);
extern void idem_partition_ensure(void);
extern void idem_partition_init(void);

#endif							/* IDEM_AUDIT_PARTITION_H */
