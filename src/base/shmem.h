/*-------------------------------------------------------------------------
 *
 * shmem.h
 *	  Areas of shared memory, and files that keep them over a clean restart.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_SHMEM_H
#define IDEM_BASE_SHMEM_H

#include "nodes/pg_list.h"
#include "storage/lwlock.h"

/* A piece of shared memory, with a lock of its own. */
typedef struct IdemShmemArea
{
	const char *name;			/* of the memory, and of the lock's tranche */
	Size		size;
	void		(*start) (void *memory, LWLock *lock, bool found);

	/* What of it outlives a clean restart; without a file, nothing. */
	const char *file;
	uint32		magic;			/* changes with what is kept */
	Size		room;			/* bytes, at most */
	Size		(*keep) (void *data);	/* how many it is, perhaps none */
	void		(*resume) (const void *data, Size size);

	Size		hash_size;		/* of the hash table that start() makes */
} IdemShmemArea;

extern void idem_shmem_add(const IdemShmemArea *area);
extern List *idem_shmem_list_oids(const Oid *first, Size stride, int number,
								  LWLock *lock);

#endif							/* IDEM_BASE_SHMEM_H */
