/*-------------------------------------------------------------------------
 *
 * holder.h
 *	  Whose open transaction has a key.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STORE_HOLDER_H
#define IDEM_STORE_HOLDER_H

#include "nodes/pg_list.h"

#include "idem.h"

/* A transaction that has not ended: of a session, or prepared. */
typedef struct IdemHolder
{
	int			pid;			/* 0: prepared */
	TransactionId xid;			/* top-level; of a session by its rows only */
	bool		row;			/* it has a row of the key, or has locked one */
	TimestampTz since;			/* its start, or when it was prepared; 0: not
								 * known */
	char	   *gid;			/* NULL: of a session, or not known */
} IdemHolder;

extern List *idem_store_holders(const IdemKey *id);

#endif							/* IDEM_STORE_HOLDER_H */
