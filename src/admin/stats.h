/*-------------------------------------------------------------------------
 *
 * stats.h
 *	  What is counted, for an operator to see.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ADMIN_STATS_H
#define IDEM_ADMIN_STATS_H

#include "datatype/timestamp.h"

extern TimestampTz idem_stats_oldest_due(TimestampTz now);

#endif							/* IDEM_ADMIN_STATS_H */
