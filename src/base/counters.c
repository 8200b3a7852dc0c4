/*-------------------------------------------------------------------------
 *
 * counters.c
 *	  What is counted for each policy of each database.
 *
 * In shared memory, so only where the library is preloaded; elsewhere every
 * function does nothing.  Which policy an entry counts is written once, with
 * the lock held exclusively, and stays as long as the database does.  The
 * counts are atomics, and need no lock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "port/atomics.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/counters.h"
#include "base/shmem.h"

#define MAX_POLICIES 1024

/* The first entry counts what found no room. */
#define NO_ROOM 0

typedef struct PolicyEntry
{
	Oid			database;		/* InvalidOid: free */
	NameData	policy;
	pg_atomic_uint64 stats_reset;	/* a TimestampTz */
	pg_atomic_uint64 counts[IDEM_NUM_COUNTERS];
} PolicyEntry;

static PolicyEntry *policies = NULL;
static LWLock *lock = NULL;

/*
 * idem_counters_exist
 *		Whether the library was preloaded.
 */
bool
idem_counters_exist(void)
{
	return policies != NULL;
}

static void
clear_entry(PolicyEntry *entry)
{
	int			i;

	pg_atomic_write_u64(&entry->stats_reset, (uint64) GetCurrentTimestamp());
	for (i = 0; i < IDEM_NUM_COUNTERS; i++)
		pg_atomic_write_u64(&entry->counts[i], 0);
}

/*
 * With the lock: the entry of a policy, or a free one for InvalidOid; NO_ROOM
 * if there is none.
 */
static int
find_entry(Oid database, const char *policy)
{
	int			i;

	for (i = NO_ROOM + 1; i < MAX_POLICIES; i++)
		if (policies[i].database == database &&
			(!OidIsValid(database) ||
			 strcmp(NameStr(policies[i].policy), policy) == 0))
			return i;
	return NO_ROOM;
}

/*
 * idem_counters_find
 *		The number under which idem_counters_add() counts for a policy of this
 *		database, good as long as this process lives.
 */
int
idem_counters_find(const char *policy)
{
	int			found;

	if (policies == NULL)
		return NO_ROOM;

	/* held from the search on: two at once make one entry */
	LWLockAcquire(lock, LW_EXCLUSIVE);
	found = find_entry(MyDatabaseId, policy);
	if (found == NO_ROOM &&
		(found = find_entry(InvalidOid, NULL)) != NO_ROOM)
	{
		policies[found].database = MyDatabaseId;
		namestrcpy(&policies[found].policy, policy);
		clear_entry(&policies[found]);
	}
	LWLockRelease(lock);
	return found;
}

/*
 * idem_counters_add
 *		Count something, at once and for good: an abort takes nothing back.
 */
void
idem_counters_add(int policy, IdemCounter counter, uint64 n)
{
	/*
	 * No lock: the entry is freed when the database is gone, which this
	 * process is connected to.
	 */
	if (policies != NULL)
		pg_atomic_fetch_add_u64(&policies[policy].counts[counter], n);
}

/*
 * idem_counters_copy
 *		A copy of all counters.
 */
IdemCounters *
idem_counters_copy(int *number)
{
	IdemCounters *copies = palloc(MAX_POLICIES * sizeof(IdemCounters));
	int			found = 0;
	int			i;
	int			j;

	LWLockAcquire(lock, LW_SHARED);
	for (i = 0; i < MAX_POLICIES; i++)
	{
		PolicyEntry *entry = &policies[i];
		IdemCounters *copy = &copies[found];

		if (i != NO_ROOM && !OidIsValid(entry->database))
			continue;
		copy->database = entry->database;
		copy->policy = entry->policy;

		/* each number is right; that all are of one moment nobody promises */
		copy->stats_reset =
			(TimestampTz) pg_atomic_read_u64(&entry->stats_reset);
		for (j = 0; j < IDEM_NUM_COUNTERS; j++)
			copy->counts[j] = pg_atomic_read_u64(&entry->counts[j]);
		found++;
	}
	LWLockRelease(lock);
	*number = found;
	return copies;
}

/*
 * idem_counters_reset
 *		Let the counters of this database begin anew.
 */
void
idem_counters_reset(void)
{
	int			i;

	if (policies == NULL)
		return;

	/* NO_ROOM is of no database, and goes on */
	LWLockAcquire(lock, LW_EXCLUSIVE);
	for (i = 0; i < MAX_POLICIES; i++)
		if (policies[i].database == MyDatabaseId)
			clear_entry(&policies[i]);
	LWLockRelease(lock);
}

/*
 * idem_counters_databases
 *		The databases that something is counted for.
 */
List *
idem_counters_databases(void)
{
	return idem_shmem_list_oids(&policies[0].database, sizeof(PolicyEntry),
								MAX_POLICIES, lock);
}

/*
 * idem_counters_forget
 *		A database is gone.
 */
void
idem_counters_forget(Oid database)
{
	int			i;

	/* no process is left that could have kept the number of an entry */
	LWLockAcquire(lock, LW_EXCLUSIVE);
	for (i = 0; i < MAX_POLICIES; i++)
		if (policies[i].database == database)
			policies[i].database = InvalidOid;
	LWLockRelease(lock);
}

/* What a clean restart keeps: the entries in use. */
static Size
keep(void *data)
{
	PolicyEntry *kept = data;
	int			i;

	/* NO_ROOM is always the first, which resume() relies on */
	for (i = 0; i < MAX_POLICIES; i++)
		if (i == NO_ROOM || OidIsValid(policies[i].database))
			memcpy(kept++, &policies[i], sizeof(PolicyEntry));
	return (char *) kept - (char *) data;
}

static void
resume(const void *data, Size size)
{
	/* what is behind those that were in use is free, as start() left it */
	memcpy(policies, data, size);
}

static void
start(void *memory, LWLock *its_lock, bool found)
{
	int			i;
	int			j;

	policies = memory;
	lock = its_lock;
	for (i = 0; i < MAX_POLICIES && !found; i++)
	{
		PolicyEntry *entry = &policies[i];

		memset(entry, 0, sizeof(*entry));
		pg_atomic_init_u64(&entry->stats_reset,
						   (uint64) GetCurrentTimestamp());
		for (j = 0; j < IDEM_NUM_COUNTERS; j++)
			pg_atomic_init_u64(&entry->counts[j], 0);
	}
}

/*
 * idem_counters_init
 *		Ask for the memory; once, while libraries are preloaded.
 */
void
idem_counters_init(void)
{
	static const IdemShmemArea area = {
		.name = "idempotency",
		.size = MAX_POLICIES * sizeof(PolicyEntry),
		.start = start,
		.file = PGSTAT_STAT_PERMANENT_DIRECTORY "/idempotency.stat",
		.magic = 0x1DE00005,	/* changes with PolicyEntry */
		.room = MAX_POLICIES * sizeof(PolicyEntry),
		.keep = keep,
		.resume = resume
	};

	idem_shmem_add(&area);
}
