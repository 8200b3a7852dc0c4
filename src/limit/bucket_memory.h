/*-------------------------------------------------------------------------
 *
 * bucket_memory.h
 *	  The memory of the buckets: how it is made and laid out.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_LIMIT_BUCKET_MEMORY_H
#define IDEM_LIMIT_BUCKET_MEMORY_H

#include "storage/lwlock.h"

#include "limit/bucket_table.h"
#include "limit/shares.h"

/* End of a chain, or of the free list. */
#define IDEM_BUCKETS_NONE (-1)

typedef struct IdemBucketEntry
{
	IdemBucketSeen seen;
	int64		full_at;		/* idem_bucket_full_at() of it */
	int			head;			/* of its chain, within its partition */
	int			next;			/* in its chain, or free */
} IdemBucketEntry;

typedef struct IdemBucketsPartition
{
	LWLock		lock;
	int			free;
	int			used;
	int64		searched_at;	/* when no bucket could be forgotten, */
	int64		quiet_until;	/* nor before this: no full_at is less */
	int64		no_room;		/* calls that found none, */
	int64		no_room_at;		/* the last of them then */
} IdemBucketsPartition;

/* Each on cache lines of its own. */
typedef union IdemBucketsPadded
{
	IdemBucketsPartition partition;
	char		pad[2 * PG_CACHE_LINE_SIZE];
} IdemBucketsPadded;

/* What the creator decided. */
typedef struct IdemBucketsHead
{
	uint64		seed;
	int			tranche;
	int			partitions;
	int			room;			/* buckets of a partition, and its chains */
} IdemBucketsHead;

/* Where it is; head is NULL before this process is attached. */
typedef struct IdemBucketsMemory
{
	const IdemBucketsHead *head;
	IdemBucketsPadded *partitions;
	int		   *chains;
	IdemBucketEntry *entries;
	char	   *shares;			/* see idem_buckets_shares() */
} IdemBucketsMemory;

extern IdemBucketsMemory idem_buckets_memory;

/* The place of a partition's first bucket, and of its first chain. */
static inline int
idem_buckets_first(const IdemBucketsPartition *partition)
{
	return (int) ((const IdemBucketsPadded *) partition -
				  idem_buckets_memory.partitions) *
		idem_buckets_memory.head->room;
}

/* Who has how much of a partition. */
static inline IdemShares *
idem_buckets_shares(const IdemBucketsPartition *partition)
{
	Size		number = (const IdemBucketsPadded *) partition -
	idem_buckets_memory.partitions;
	Size		size = idem_shares_size(idem_buckets_memory.head->room);

	return (IdemShares *) (idem_buckets_memory.shares + number * size);
}

#endif							/* IDEM_LIMIT_BUCKET_MEMORY_H */
