/*-------------------------------------------------------------------------
 *
 * shares.h
 *	  How many buckets of a partition belong to a limiter, and to a database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_LIMIT_SHARES_H
#define IDEM_LIMIT_SHARES_H

typedef struct IdemShares IdemShares;

extern Size idem_shares_size(int room);
extern void idem_shares_init(IdemShares *shares, int room);
extern bool idem_shares_permit(const IdemShares *shares, uint64 database,
							   uint64 limiter);
extern void idem_shares_add(IdemShares *shares, uint64 database,
							uint64 limiter);
extern void idem_shares_remove(IdemShares *shares, uint64 database,
							   uint64 limiter);

#endif							/* IDEM_LIMIT_SHARES_H */
