/*-------------------------------------------------------------------------
 *
 * stats.h
 *	  What is counted, for an operator to see.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ADMIN_STATS_H
#define IDEM_ADMIN_STATS_H

extern int64 idem_stats_lag(void);

#endif							/* IDEM_ADMIN_STATS_H */
