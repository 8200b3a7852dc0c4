/*-------------------------------------------------------------------------
 *
 * stats_store.h
 *	  What monitoring asks of the key table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ADMIN_STATS_STORE_H
#define IDEM_ADMIN_STATS_STORE_H

#include "datatype/timestamp.h"

/* Columns of idem_activity. */
#define IDEM_ACTIVITY_COLUMNS 8

typedef void (*IdemActivitySink) (void *arg, Datum *values, bool *nulls);

extern void idem_store_activity(TimestampTz now, IdemActivitySink sink,
								void *arg);
extern TimestampTz idem_store_oldest_due(TimestampTz now);

#endif							/* IDEM_ADMIN_STATS_STORE_H */
