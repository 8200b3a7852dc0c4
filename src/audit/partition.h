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

extern bool idem_store_partition_lock(LOCKMODE mode);
extern IdemCell *idem_store_partition_cells(int *number);
extern void idem_store_partition_make(const char *period);
extern int64 idem_store_partition_rows(const IdemCell *cell);
extern bool idem_store_partition_drop(const IdemCell *cell);

#endif							/* IDEM_AUDIT_PARTITION_H */
