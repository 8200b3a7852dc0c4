/*-------------------------------------------------------------------------
 *
 * idem_buckets.c
 *	  The buckets of all subjects, in shared memory.
 *
 * Made once, of a size that then stays: when the server starts, if the
 * library is preloaded; else, from 17 on, by the first session that needs it,
 * as a named segment.  Values only; a restart forgets them all.
 *
 *	buckets		in partitions, by a hash of the key with a seed that nobody
 *				outside knows.  All of a partition (its chains, its free list,
 *				its buckets) is read and written with its lock held; no call
 *				holds two of them, nor takes any other lock under one, and
 *				nothing can throw there.
 *	the rest	written once, before anybody can see it.
 *
 * The clock is read with the lock held, so that no bucket sees it run
 * backwards because somebody had to wait.
 *
 * Flooding.  A bucket is forgotten only to make room, and only when it is
 * full and all strikes are forgiven: a new one would be its equal.  So no
 * number of other subjects gives anybody back what he has taken.  When a
 * partition has no such bucket, the new subject has found no room, and the
 * caller decides.  Then quiet_until says when the first of its buckets can be
 * forgotten, and until that time nobody searches the partition again: a flood
 * costs as much as so many calls, not more.
 *
 * The memory has room for max_buckets, and some more where there are several
 * partitions: by chance, one gets more than its share of the subjects.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "idem_buckets.h"
#include "idem_compat.h"
#include "idem_shmem.h"

#define TRANCHE "idempotency_buckets"
#define SEGMENT_HEAD "idempotency"
#define SEGMENT_BUCKETS "idempotency_buckets"

#define MAX_PARTITIONS 128
#define PARTITION_BUCKETS 1024
#define MIN_BUCKETS 16
#define MAX_BUCKETS (16 * 1024 * 1024)

/* End of a chain, or of the free list. */
#define NONE (-1)

typedef struct BucketEntry
{
	IdemBucketSeen seen;
	int64		full_at;		/* idem_bucket_full_at() of it */
	int			head;			/* of its chain, within its partition */
	int			next;			/* in its chain, or free */
} BucketEntry;

typedef struct Partition
{
	LWLock		lock;
	int			free;
	int			used;
	int64		searched_at;	/* when no bucket could be forgotten, */
	int64		quiet_until;	/* nor before this: no full_at is less */
	int64		no_room;		/* calls that found none, */
	int64		no_room_at;		/* the last of them then */
} Partition;

/* Each on cache lines of its own. */
typedef union PaddedPartition
{
	Partition	partition;
	char		pad[2 * PG_CACHE_LINE_SIZE];
} PaddedPartition;

/* What the creator decided. */
typedef struct BucketsHead
{
	uint64		seed;
	int			tranche;
	int			partitions;
	int			room;			/* buckets of a partition, and its chains */
} BucketsHead;

static int	max_buckets = 65536;
static uint64 new_seed;

static const BucketsHead *head = NULL;
static PaddedPartition *partitions;
static int *chains;
static BucketEntry *entries;

/* With the standard deviation of what falls on a partition, six of them. */
static void
plan_memory(BucketsHead *plan)
{
	int			share;

	plan->partitions = Min(Max(max_buckets / PARTITION_BUCKETS, 1),
						   MAX_PARTITIONS);
	share = (max_buckets + plan->partitions - 1) / plan->partitions;
	plan->room = plan->partitions == 1 ? share :
		share + (int) ceil(6 * sqrt(share));
}

static Size
measure_memory(const BucketsHead *plan)
{
	Size		buckets = (Size) plan->partitions * plan->room;

	return plan->partitions * sizeof(PaddedPartition) +
		buckets * sizeof(BucketEntry) + MAXALIGN(buckets * sizeof(int));
}

static void
attach(const BucketsHead *its_head, void *memory)
{
	Size		buckets = (Size) its_head->partitions * its_head->room;

	partitions = memory;
	entries = (BucketEntry *) (partitions + its_head->partitions);
	chains = (int *) (entries + buckets);
	head = its_head;
}

/* The place of a partition's first bucket, and of its first chain */
static int
get_first(const Partition *partition)
{
	return (int) ((const PaddedPartition *) partition - partitions) *
		head->room;
}

static void
init_partition(int number)
{
	Partition  *partition = &partitions[number].partition;
	int			first = get_first(partition);
	int			i;

	memset(partition, 0, sizeof(*partition));
	LWLockInitialize(&partition->lock, head->tranche);
	partition->free = first;
	for (i = first; i < first + head->room; i++)
	{
		memset(&entries[i], 0, sizeof(BucketEntry));
		entries[i].next = i + 1 < first + head->room ? i + 1 : NONE;
		chains[i] = NONE;
	}
}

static void
init_buckets(const BucketsHead *its_head, void *memory)
{
	int			i;

	attach(its_head, memory);
	for (i = 0; i < head->partitions; i++)
		init_partition(i);
}

static void
make_seed(void)
{
	if (!pg_strong_random(&new_seed, sizeof(new_seed)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate a random seed"),
				 errhint("See what the operating system's source of randomness lacks.")));
}

/*
 * Preloaded: the head, then the buckets, in one area.
 */

static void
start(void *memory, LWLock *lock, bool found)
{
	BucketsHead *its_head = memory;
	void	   *rest = (char *) memory + MAXALIGN(sizeof(BucketsHead));

	if (found)
	{
		attach(its_head, rest);
		return;
	}
	make_seed();
	plan_memory(its_head);
	its_head->seed = new_seed;
	its_head->tranche = lock->tranche;
	init_buckets(its_head, rest);
}

/*
 * Not preloaded: two segments, since the size of the second is as the creator
 * of the first has it, whatever max_buckets is now.  Nothing may throw while
 * they are being made.
 */

static void
init_head_segment(void *memory)
{
	BucketsHead *its_head = memory;

	plan_memory(its_head);
	its_head->seed = new_seed;
	its_head->tranche = idem_compat_new_tranche(TRANCHE);
}

static const BucketsHead *segment_head;

static void
init_buckets_segment(void *memory)
{
	init_buckets(segment_head, memory);
}

static void
attach_segments(void)
{
	void	   *memory;

	make_seed();
	segment_head = idem_compat_named_segment(SEGMENT_HEAD,
											 sizeof(BucketsHead),
											 init_head_segment);
	if (segment_head == NULL)
		return;
	idem_compat_register_tranche(segment_head->tranche, TRANCHE);
	memory = idem_compat_named_segment(SEGMENT_BUCKETS,
									   measure_memory(segment_head),
									   init_buckets_segment);
	attach(segment_head, memory);
}

/*
 * idem_buckets_exist
 *		Whether there are buckets; makes them where that can be done now.
 */
bool
idem_buckets_exist(void)
{
	if (head == NULL)
		attach_segments();
	return head != NULL;
}

/*
 * idem_buckets_require
 *		Raise 55000 if there are none.
 */
void
idem_buckets_require(void)
{
	if (!idem_buckets_exist())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("rate limiting needs shared memory"),
				 errhint("Add \"idempotency\" to \"shared_preload_libraries\" and restart the server; from PostgreSQL 17 on it works without.")));
}

static Partition *
get_partition(uint64 hash)
{
	return &partitions[hash % head->partitions].partition;
}

static int
get_chain(uint64 hash)
{
	return get_first(get_partition(hash)) + (int) ((hash >> 32) % head->room);
}

static uint64
hash_key(const IdemBucketKey *key)
{
	return hash_bytes_extended((const unsigned char *) key, sizeof(*key),
							   head->seed);
}

/*
 * All below with the lock of the partition, exclusively.
 */

static BucketEntry *
find_entry(const IdemBucketKey *key, uint64 hash)
{
	int			i;

	for (i = chains[get_chain(hash)]; i != NONE; i = entries[i].next)
		if (memcmp(&entries[i].seen.key, key, sizeof(*key)) == 0)
			return &entries[i];
	return NULL;
}

static void
free_entry(Partition *partition, BucketEntry *entry)
{
	int			place = entry - entries;
	int		   *link = &chains[entry->head];

	while (*link != place)
		link = &entries[*link].next;
	*link = entry->next;
	entry->seen.key.database = 0;
	entry->next = partition->free;
	partition->free = place;
	partition->used--;
}

/* What follows from a change of a bucket */
static void
note_change(Partition *partition, BucketEntry *entry)
{
	entry->full_at = idem_bucket_full_at(&entry->seen.rule,
										 &entry->seen.bucket);
	partition->quiet_until = Min(partition->quiet_until, entry->full_at);
}

/*
 * Whether there is room for a bucket: forget all that can be if there is
 * none.  Where the clock was set back, buckets go back with it, as they would
 * in a call for them.
 */
static bool
make_room(Partition *partition, int64 now)
{
	int			first = get_first(partition);
	int64		quiet_until = PG_INT64_MAX;
	int			i;

	if (partition->free != NONE)
		return true;
	if (now >= partition->searched_at - IDEM_BUCKET_CLOCK_SLACK &&
		now < partition->quiet_until)
		return false;
	for (i = first; i < first + head->room; i++)
	{
		BucketEntry *entry = &entries[i];
		IdemBucketSeen *seen = &entry->seen;

		if (seen->bucket.last - now >= IDEM_BUCKET_CLOCK_SLACK)
		{
			idem_bucket_settle(&seen->rule, &seen->bucket, now);
			note_change(partition, entry);
		}
		if (entry->full_at <= now)
			free_entry(partition, entry);
		else
			quiet_until = Min(quiet_until, entry->full_at);
	}
	partition->searched_at = now;
	partition->quiet_until = quiet_until;
	return partition->free != NONE;
}

/* A full bucket, where there is room */
static BucketEntry *
add_entry(Partition *partition, const IdemBucketKey *key, uint64 hash,
		  const IdemBucketRule *rule, int64 now)
{
	int			place = partition->free;
	BucketEntry *entry = &entries[place];

	partition->free = entry->next;
	partition->used++;
	entry->seen.key = *key;
	entry->seen.rule = *rule;
	entry->seen.allowed = 0;
	entry->seen.refused = 0;
	idem_bucket_init(rule, &entry->seen.bucket, now);
	entry->head = get_chain(hash);
	entry->next = chains[entry->head];
	chains[entry->head] = place;
	return entry;
}

/*
 * The time up to now counts by the rule that the bucket was last called
 * under, whatever a new one says.
 */
static void
change_rule(IdemBucketSeen *seen, const IdemBucketRule *rule, int64 now)
{
	if (memcmp(&seen->rule, rule, sizeof(*rule)) == 0)
		return;
	idem_bucket_settle(&seen->rule, &seen->bucket, now);
	seen->rule = *rule;
}

/* There is no room: nothing is allowed until there may be. */
static void
refuse_without_room(const Partition *partition, int64 now,
					IdemBucketResult *result)
{
	result->allowed = false;
	result->remaining = 0;
	result->retry_after = partition->quiet_until == PG_INT64_MAX ?
		PG_INT64_MAX : Max(partition->quiet_until - now, 1);
}

/*
 * idem_buckets_take
 *		Take tokens from the bucket of a subject.  The rule has no bytes that
 *		are not set.  False when the subject has none and there is no room: the
 *		result is a refusal then, and nothing was taken.
 */
bool
idem_buckets_take(const IdemBucketKey *key, const IdemBucketRule *rule,
				  int32 cost, IdemBucketResult *result)
{
	uint64		hash = hash_key(key);
	Partition  *partition = get_partition(hash);
	BucketEntry *entry;
	int64		now;

	LWLockAcquire(&partition->lock, LW_EXCLUSIVE);
	now = GetCurrentTimestamp();
	entry = find_entry(key, hash);
	if (entry == NULL && make_room(partition, now))
		entry = add_entry(partition, key, hash, rule, now);
	if (entry != NULL)
	{
		change_rule(&entry->seen, rule, now);
		idem_bucket_take(rule, &entry->seen.bucket, now, cost, result);
		entry->seen.allowed += result->allowed;
		entry->seen.refused += !result->allowed;
		note_change(partition, entry);
	}
	else
	{
		refuse_without_room(partition, now, result);
		partition->no_room++;
		partition->no_room_at = now;
	}
	LWLockRelease(&partition->lock);
	return entry != NULL;
}

/*
 * idem_buckets_peek
 *		What taking one token would give.
 */
bool
idem_buckets_peek(const IdemBucketKey *key, const IdemBucketRule *rule,
				  IdemBucketResult *result)
{
	uint64		hash = hash_key(key);
	Partition  *partition = get_partition(hash);
	const BucketEntry *entry;
	IdemBucketSeen seen;
	bool		room = true;
	int64		now;

	LWLockAcquire(&partition->lock, LW_EXCLUSIVE);
	now = GetCurrentTimestamp();
	entry = find_entry(key, hash);
	if (entry != NULL)
		seen = entry->seen;
	else if (make_room(partition, now))
	{
		seen.rule = *rule;
		idem_bucket_init(rule, &seen.bucket, now);
	}
	else
	{
		refuse_without_room(partition, now, result);
		room = false;
	}
	LWLockRelease(&partition->lock);
	if (!room)
		return false;
	change_rule(&seen, rule, now);
	idem_bucket_peek(rule, &seen.bucket, now, 1, result);
	return true;
}

/*
 * idem_buckets_forget
 *		Forget the buckets of a limiter, or of all of a database: they are gone.
 */
void
idem_buckets_forget(Oid database, const uint64 *limiter)
{
	int			number;
	int			i;

	if (head == NULL)
		return;
	for (number = 0; number < head->partitions; number++)
	{
		Partition  *partition = &partitions[number].partition;
		int			first = get_first(partition);

		LWLockAcquire(&partition->lock, LW_EXCLUSIVE);
		for (i = first; i < first + head->room && partition->used > 0; i++)
			if (entries[i].seen.key.database == database &&
				(limiter == NULL || entries[i].seen.key.limiter == *limiter))
				free_entry(partition, &entries[i]);
		LWLockRelease(&partition->lock);
	}
}

/*
 * idem_buckets_partitions
 *		How many there are, and how many buckets fit into one.
 */
int
idem_buckets_partitions(int *room)
{
	*room = head->room;
	return head->partitions;
}

/*
 * idem_buckets_copy
 *		The buckets of a database in one partition; returns their number.
 */
int
idem_buckets_copy(int number, Oid database, IdemBucketSeen *copies)
{
	Partition  *partition = &partitions[number].partition;
	int			first = get_first(partition);
	int			found = 0;
	int			i;

	LWLockAcquire(&partition->lock, LW_SHARED);
	for (i = first; i < first + head->room && partition->used > 0; i++)
		if (entries[i].seen.key.database == database)
			copies[found++] = entries[i].seen;
	LWLockRelease(&partition->lock);
	return found;
}

/*
 * idem_buckets_use
 *		How full the memory is.
 */
void
idem_buckets_use(IdemBucketsUse *use)
{
	int			i;

	memset(use, 0, sizeof(*use));
	use->room = (int64) head->partitions * head->room;
	for (i = 0; i < head->partitions; i++)
	{
		Partition  *partition = &partitions[i].partition;

		LWLockAcquire(&partition->lock, LW_SHARED);
		use->used += partition->used;
		use->no_room += partition->no_room;
		use->no_room_at = Max(use->no_room_at, partition->no_room_at);
		LWLockRelease(&partition->lock);
	}
}

/*
 * idem_buckets_init
 *		Define the setting and, while libraries are preloaded, ask for the
 *		memory; once in a process.
 */
void
idem_buckets_init(void)
{
	static IdemShmemArea area = {TRANCHE, 0, start, NULL};
	BucketsHead plan;

	DefineCustomIntVariable("idempotency.max_buckets",
							"Subjects that the rate limiters can remember.",
							"Memory for them is taken once, about 150 bytes each.",
							&max_buckets,
							65536, MIN_BUCKETS, MAX_BUCKETS,
							process_shared_preload_libraries_in_progress ?
							PGC_POSTMASTER : PGC_SIGHUP,
							0,
							NULL, NULL, NULL);
	if (!process_shared_preload_libraries_in_progress)
		return;
	plan_memory(&plan);
	area.size = MAXALIGN(sizeof(BucketsHead)) + measure_memory(&plan);
	idem_shmem_add(&area);
}
