/*-------------------------------------------------------------------------
 *
 * bucket_table.h
 *	  The buckets of all subjects, in shared memory.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_LIMIT_BUCKET_TABLE_H
#define IDEM_LIMIT_BUCKET_TABLE_H

#include "limit/token_bucket.h"

/*
 * Whose bucket it is.  Without padding: hashed and compared as bytes.  What
 * stands for a name or a subject is the begin of its SHA-256, so nobody can
 * find two that get one bucket, and of the subject there is nothing here but
 * its log id.
 */
typedef struct IdemBucketKey
{
	uint64		database;		/* 0 in a free entry */
	uint64		limiter;
	uint64		subject[2];
} IdemBucketKey;

/* The most buckets that are taken from together. */
#define IDEM_BUCKETS_MAX_SET	32

/* Whose bucket it is, of one of several takes */
typedef struct IdemBucketAsked
{
	IdemBucketKey key;
	bool		allow_without_room;
	bool		room;			/* set: whether it has a bucket */
} IdemBucketAsked;

/* A bucket as an operator sees it. */
typedef struct IdemBucketSeen
{
	IdemBucketKey key;
	IdemBucketRule rule;
	IdemBucket	bucket;
	int64		allowed;		/* calls since it is there */
	int64		refused;
} IdemBucketSeen;

/* How full the memory is. */
typedef struct IdemBucketsUse
{
	int64		room;
	int64		used;			/* forgettable ones included */
	int64		no_room;		/* calls that found none, since the start; */
	int64		no_room_at;		/* the last of them; 0: none */
} IdemBucketsUse;

extern void idem_buckets_require(void);
extern bool idem_buckets_exist(void);
extern bool idem_buckets_take(const IdemBucketKey *key,
							  const IdemBucketRule *rule, int32 cost,
							  IdemBucketResult *result);
extern bool idem_buckets_peek(const IdemBucketKey *key,
							  const IdemBucketRule *rule, int32 cost,
							  IdemBucketResult *result);
extern bool idem_buckets_take_all(IdemBucketAsked *asked,
								  IdemBucketTake *takes, int number);
extern int32 idem_buckets_return(const IdemBucketKey *key,
								 const IdemBucketRule *rule, int32 cost);
extern void idem_buckets_forget(Oid database, const uint64 *limiter);
extern int	idem_buckets_partitions(int *room);
extern int	idem_buckets_copy(int partition, Oid database,
							  IdemBucketSeen *copies);
extern void idem_buckets_use(IdemBucketsUse *use);
extern void idem_buckets_init(void);

#endif							/* IDEM_LIMIT_BUCKET_TABLE_H */
