/*-------------------------------------------------------------------------
 *
 * lifetime.h
 *	  When a key expires, and when its row may go.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_LIFETIME_H
#define IDEM_KEY_LIFETIME_H

#include "idem.h"
#include "rule/policy.h"

/* A time some microseconds (not negative) later, at most "infinity". */
static inline int64
idem_lifetime_add(int64 when, int64 duration)
{
	if (when == DT_NOEND || (when > 0 && duration >= DT_NOEND - when))
		return DT_NOEND;
	return when + duration;
}

/* Whether a time has come; "infinity" never does. */
static inline bool
idem_lifetime_is_over(int64 until, int64 now)
{
	return until != DT_NOEND && now >= until;
}

extern void idem_lifetime_lease(const IdemPolicy *policy, IdemRow *row,
								TimestampTz now, int64 lease);
extern void idem_lifetime_finish(const IdemPolicy *policy, IdemRow *row,
								 IdemState state, int64 ttl,
								 TimestampTz now);

#endif							/* IDEM_KEY_LIFETIME_H */
