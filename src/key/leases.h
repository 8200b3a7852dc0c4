/*-------------------------------------------------------------------------
 *
 * leases.h
 *	  The list of claims that idem_recover may have to take over.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_LEASES_H
#define IDEM_KEY_LEASES_H

#include "idem.h"

/* An entry of the list, as it was read: its key may be further by now. */
typedef struct IdemLease
{
	TimestampTz lease_until;
	int64		token;
	IdemKey		id;
	text	   *claimed_by;
} IdemLease;

extern void idem_leases_put(const IdemKey *id, const IdemRow *row);
extern void idem_leases_drop(const IdemKey *id, int64 token);
extern int	idem_leases_ended(const char *policy, TimestampTz now,
							  const IdemLease *after, int max_leases,
							  IdemLease *leases);
extern void idem_leases_sweep(TimestampTz now, int64 max_rows);

#endif							/* IDEM_KEY_LEASES_H */
