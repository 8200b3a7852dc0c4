/*-------------------------------------------------------------------------
 *
 * bucket_memory.c
 *	  The memory of the buckets: how it is made and laid out.
 *
 * Made once, of a size that then stays: when the server starts, if the
 * library is preloaded; else, from 17 on, by the first session that needs it,
 * as a named segment.  All is written before anybody else can see it.
 *
 * It has room for max_buckets, and some more where there are several
 * partitions: by chance, one gets more than its share of the subjects.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "miscadmin.h"
#include "storage/shmem.h"
#include "utils/guc.h"

#include "base/compat.h"
#include "base/shmem.h"
#include "limit/bucket_memory.h"

#define TRANCHE "idempotency_buckets"
#define SEGMENT_HEAD "idempotency"
#define SEGMENT_BUCKETS "idempotency_buckets"

#define MAX_PARTITIONS 128
#define PARTITION_BUCKETS 1024
#define MIN_BUCKETS 16
#define MAX_BUCKETS (16 * 1024 * 1024)

/* Of this process. */
IdemBucketsMemory idem_buckets_memory;

static int	max_buckets = 65536;
static uint64 new_seed;

static void
plan_memory(IdemBucketsHead *plan)
{
	int			share;

	plan->partitions = Min(Max(max_buckets / PARTITION_BUCKETS, 1),
						   MAX_PARTITIONS);
	share = (max_buckets + plan->partitions - 1) / plan->partitions;

	/*
	 * What falls by chance on one of several has a standard deviation of the
	 * root of its share: there is room for six of them more.
	 */
	plan->room = plan->partitions == 1 ? share :
		share + (int) ceil(6 * sqrt(share));
}

static Size
measure_memory(const IdemBucketsHead *plan)
{
	Size		buckets = (Size) plan->partitions * plan->room;

	/* in the order of attach() */
	return plan->partitions * sizeof(IdemBucketsPadded) +
		buckets * sizeof(IdemBucketEntry) + MAXALIGN(buckets * sizeof(int)) +
		plan->partitions * idem_shares_size(plan->room);
}

static void
attach(const IdemBucketsHead *its_head, void *area)
{
	IdemBucketsMemory *memory = &idem_buckets_memory;
	Size		buckets = (Size) its_head->partitions * its_head->room;

	memory->partitions = area;
	memory->entries = (IdemBucketEntry *) (memory->partitions +
										   its_head->partitions);
	memory->chains = (int *) (memory->entries + buckets);
	memory->shares = (char *) memory->chains + MAXALIGN(buckets * sizeof(int));
	memory->head = its_head;	/* the last: idem_buckets_exist() goes by it */
}

static void
init_buckets(const IdemBucketsHead *its_head, void *area)
{
	IdemBucketsMemory *memory = &idem_buckets_memory;
	int			room = its_head->room;
	int			number;
	int			i;

	attach(its_head, area);
	for (number = 0; number < its_head->partitions; number++)
	{
		IdemBucketsPartition *partition = &memory->partitions[number].partition;
		int			first = idem_buckets_first(partition);

		memset(partition, 0, sizeof(*partition));
		LWLockInitialize(&partition->lock, its_head->tranche);
		partition->free = first;
		idem_shares_init(idem_buckets_shares(partition), room);
		for (i = first; i < first + room; i++)
		{
			memset(&memory->entries[i], 0, sizeof(IdemBucketEntry));
			memory->entries[i].next = i + 1 < first + room ? i + 1 :
				IDEM_BUCKETS_NONE;
			memory->chains[i] = IDEM_BUCKETS_NONE;
		}
	}
}

static void
make_seed(void)
{
	if (!pg_strong_random(&new_seed, sizeof(new_seed)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate a random seed")));
}

/*
 * Preloaded: the head, then the buckets, in one area.
 */

static void
start(void *memory, LWLock *lock, bool found)
{
	IdemBucketsHead *its_head = memory;
	void	   *rest = (char *) memory + MAXALIGN(sizeof(IdemBucketsHead));

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
 * Not preloaded: two segments.
 */

static void
init_head_segment(void *memory)
{
	IdemBucketsHead *its_head = memory;

	plan_memory(its_head);
	its_head->seed = new_seed;
	its_head->tranche = idem_compat_new_tranche(TRANCHE);
}

static const IdemBucketsHead *segment_head;

static void
init_buckets_segment(void *memory)
{
	/* A variable, since the callback is given no argument of ours. */
	init_buckets(segment_head, memory);
}

static void
attach_segments(void)
{
	void	   *memory;

	/* here, since nothing may throw while a segment is being made */
	make_seed();
	segment_head = idem_compat_named_segment(SEGMENT_HEAD,
											 sizeof(IdemBucketsHead),
											 init_head_segment);
	if (segment_head == NULL)
		return;
	idem_compat_register_tranche(segment_head->tranche, TRANCHE);

	/*
	 * The size is as the creator of the head has planned it: max_buckets may
	 * be another one here, or now (t/051_throttle_flood.pl).
	 */
	memory = idem_compat_named_segment(SEGMENT_BUCKETS,
									   measure_memory(segment_head),
									   init_buckets_segment);

	/*
	 * After an error above there is no head yet, and the next call begins
	 * again, with the segments that there are.
	 */
	attach(segment_head, memory);
}

/*
 * idem_buckets_exist
 *		Whether there are buckets; makes them where that can be done now.
 */
bool
idem_buckets_exist(void)
{
	if (idem_buckets_memory.head == NULL)
		attach_segments();
	return idem_buckets_memory.head != NULL;
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
	IdemBucketsHead plan;

	/* PGC_POSTMASTER would be FATAL to a session that loads the library. */
	DefineCustomIntVariable("idempotency.max_buckets",
							"Subjects that the rate limiters can remember.",
							"Memory for them is taken once, about 200 bytes each.",
							&max_buckets,
							65536, MIN_BUCKETS, MAX_BUCKETS,
							process_shared_preload_libraries_in_progress ?
							PGC_POSTMASTER : PGC_SIGHUP,
							0,
							NULL, NULL, NULL);
	if (!process_shared_preload_libraries_in_progress)
		return;
	plan_memory(&plan);
	area.size = MAXALIGN(sizeof(IdemBucketsHead)) + measure_memory(&plan);
	idem_shmem_add(&area);
}
