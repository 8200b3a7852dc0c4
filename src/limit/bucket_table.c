/*-------------------------------------------------------------------------
 *
 * bucket_table.c
 *	  The buckets of all subjects, in shared memory.
 *
 * Values only, in memory that bucket_memory.c makes; a restart forgets them
 * all.  Buckets are in partitions, by a hash of the key with a seed that nobody
 * outside knows.  All of a partition (its chains, its free list, its buckets,
 * its shares) is read and written with its lock held; no call takes any other
 * lock under one, and nothing can throw there.  Only idem_buckets_take_all()
 * holds several of them, taken in the order of their numbers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "storage/lwlock.h"
#include "utils/timestamp.h"

#include "limit/bucket_memory.h"
#include "limit/bucket_table.h"

static const IdemBucketsMemory *const memory = &idem_buckets_memory;

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

static IdemBucketsPartition *
get_partition(uint64 hash)
{
	return &memory->partitions[hash % memory->head->partitions].partition;
}

static int
get_chain(uint64 hash)
{
	/* other bits than those that chose the partition */
	return idem_buckets_first(get_partition(hash)) +
		(int) ((hash >> 32) % memory->head->room);
}

static uint64
hash_key(const IdemBucketKey *key)
{
	/* without the seed nobody can choose subjects that share a partition */
	return hash_bytes_extended((const unsigned char *) key, sizeof(*key),
							   memory->head->seed);
}

/*
 * All below with the lock of the partition, exclusively.
 */

static IdemBucketEntry *
find_entry(const IdemBucketKey *key, uint64 hash)
{
	int			i;

	for (i = memory->chains[get_chain(hash)]; i != IDEM_BUCKETS_NONE;
		 i = memory->entries[i].next)
		if (memcmp(&memory->entries[i].seen.key, key, sizeof(*key)) == 0)
			return &memory->entries[i];
	return NULL;
}

static void
free_entry(IdemBucketsPartition *partition, IdemBucketEntry *entry)
{
	int			place = entry - memory->entries;
	int		   *link = &memory->chains[entry->head];

	while (*link != place)
		link = &memory->entries[*link].next;
	*link = entry->next;
	idem_shares_remove(idem_buckets_shares(partition), entry->seen.key.database,
					   entry->seen.key.limiter);
	entry->seen.key.database = 0;
	entry->next = partition->free;
	partition->free = place;
	partition->used--;
}

/* What follows from a change of a bucket */
static void
note_change(IdemBucketsPartition *partition, IdemBucketEntry *entry)
{
	entry->full_at = idem_bucket_full_at(&entry->seen.rule,
										 &entry->seen.bucket);

	/* the invariant: no full_at of the partition is less */
	partition->quiet_until = Min(partition->quiet_until, entry->full_at);
}

static bool
has_room(const IdemBucketsPartition *partition, const IdemBucketKey *key)
{
	return partition->free != IDEM_BUCKETS_NONE &&
		idem_shares_permit(idem_buckets_shares(partition), key->database,
						   key->limiter);
}

/* Whether there is room for a bucket: forget all that can be if there is none. */
static bool
make_room(IdemBucketsPartition *partition, const IdemBucketKey *key, int64 now)
{
	int			first = idem_buckets_first(partition);
	int64		quiet_until = PG_INT64_MAX;
	int			i;

	if (has_room(partition, key))
		return true;

	/*
	 * Nothing can be forgotten before quiet_until, unless the clock was set
	 * back: a flood costs as much as so many calls, not as so many searches
	 * (t/051_throttle_flood.pl).
	 */
	if (now >= partition->searched_at - IDEM_BUCKET_CLOCK_SLACK &&
		now < partition->quiet_until)
		return false;
	for (i = first; i < first + memory->head->room; i++)
	{
		IdemBucketEntry *entry = &memory->entries[i];
		IdemBucketSeen *seen = &entry->seen;

		if (seen->key.database == 0)
			continue;			/* free: it is a share that is used up */

		/* where the clock was set back, as in a call for the bucket */
		if (seen->bucket.last - now >= IDEM_BUCKET_CLOCK_SLACK)
		{
			idem_bucket_settle(&seen->rule, &seen->bucket, now);
			note_change(partition, entry);
		}

		/*
		 * Only what a new bucket would be the equal of: no number of other
		 * subjects gives anybody back what he has taken.
		 */
		if (entry->full_at <= now)
			free_entry(partition, entry);
		else
			quiet_until = Min(quiet_until, entry->full_at);
	}
	partition->searched_at = now;
	partition->quiet_until = quiet_until;
	return has_room(partition, key);
}

/* A full bucket, where there is room */
static IdemBucketEntry *
add_entry(IdemBucketsPartition *partition, const IdemBucketKey *key,
		  uint64 hash, const IdemBucketRule *rule, int64 now)
{
	int			place = partition->free;
	IdemBucketEntry *entry = &memory->entries[place];

	partition->free = entry->next;
	partition->used++;
	idem_shares_add(idem_buckets_shares(partition), key->database, key->limiter);
	entry->seen.key = *key;
	entry->seen.rule = *rule;
	entry->seen.allowed = 0;
	entry->seen.refused = 0;

	/* full_at is for note_change() to set, after the take */
	idem_bucket_init(rule, &entry->seen.bucket, now);
	entry->head = get_chain(hash);
	entry->next = memory->chains[entry->head];
	memory->chains[entry->head] = place;
	return entry;
}

static void
change_rule(IdemBucketSeen *seen, const IdemBucketRule *rule, int64 now)
{
	/* as bytes: no rule has any that is not set (form_limiter()) */
	if (memcmp(&seen->rule, rule, sizeof(*rule)) == 0)
		return;

	/*
	 * The time up to now counts by the rule that the bucket was last called
	 * under, whatever the new one says.
	 */
	idem_bucket_settle(&seen->rule, &seen->bucket, now);
	seen->rule = *rule;
}

/* There is no room: nothing is allowed until there may be. */
static void
refuse_without_room(const IdemBucketsPartition *partition, int64 now,
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
	IdemBucketsPartition *partition = get_partition(hash);
	IdemBucketEntry *entry;
	int64		now;

	LWLockAcquire(&partition->lock, LW_EXCLUSIVE);

	/*
	 * The clock is read under the lock, so that no bucket sees it run
	 * backwards because somebody had to wait.
	 */
	now = GetCurrentTimestamp();
	entry = find_entry(key, hash);
	if (entry == NULL && make_room(partition, key, now))
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
 *		What taking would give.
 */
bool
idem_buckets_peek(const IdemBucketKey *key, const IdemBucketRule *rule,
				  int32 cost, IdemBucketResult *result)
{
	uint64		hash = hash_key(key);
	IdemBucketsPartition *partition = get_partition(hash);
	const IdemBucketEntry *entry;
	IdemBucketSeen seen;
	bool		room;
	int64		now;

	/* exclusively, since making room forgets buckets */
	LWLockAcquire(&partition->lock, LW_EXCLUSIVE);
	now = GetCurrentTimestamp();
	entry = find_entry(key, hash);
	room = entry != NULL || make_room(partition, key, now);
	if (entry != NULL)
	{
		/* The change is one of the copy: a look leaves the bucket as it is. */
		seen = entry->seen;
		change_rule(&seen, rule, now);
	}
	else
		idem_bucket_init(rule, &seen.bucket, now);
	if (!room)
		refuse_without_room(partition, now, result);
	LWLockRelease(&partition->lock);
	if (room)
		idem_bucket_peek(rule, &seen.bucket, now, cost, result);
	return room;
}

/* Where one of several buckets is */
typedef struct SetMember
{
	uint64		hash;
	IdemBucketsPartition *partition;
	IdemBucketEntry *entry;		/* NULL: there is no room */
	bool		added;			/* by this call */
	IdemBucket	unkept;			/* of a subject that is allowed without */
} SetMember;

/* The partitions of a set, each once, in the order of their locks */
static int
sort_partitions(const SetMember *members, int number,
				IdemBucketsPartition **partitions)
{
	int			found = 0;
	int			i;
	int			j;

	for (i = 0; i < number; i++)
	{
		IdemBucketsPartition *each = members[i].partition;

		for (j = found; j > 0 && partitions[j - 1] > each; j--)
			 /* its place */ ;
		if (j > 0 && partitions[j - 1] == each)
			continue;
		memmove(&partitions[j + 1], &partitions[j],
				(found++ - j) * sizeof(IdemBucketsPartition *));
		partitions[j] = each;
	}
	return found;
}

/* Make an entry ready for a set, of which no other member may drive it out. */
static void
hold_entry(IdemBucketEntry *entry, const IdemBucketRule *rule, int64 now)
{
	change_rule(&entry->seen, rule, now);

	/* settled, it is not looked at by make_room() for the clock's sake */
	idem_bucket_settle(rule, &entry->seen.bucket, now);
	entry->full_at = PG_INT64_MAX;
}

/* Find or add the buckets of a set, with all locks. */
static void
hold_members(IdemBucketAsked *asked, IdemBucketTake *takes,
			 SetMember *members, int number, int64 now)
{
	int			i;

	/* those that are there first, lest one that is new drive them out */
	for (i = 0; i < number; i++)
	{
		members[i].added = false;
		members[i].entry = find_entry(&asked[i].key, members[i].hash);
		if (members[i].entry != NULL)
			hold_entry(members[i].entry, takes[i].rule, now);
	}
	for (i = 0; i < number; i++)
	{
		SetMember  *each = &members[i];

		if (each->entry == NULL &&
			make_room(each->partition, &asked[i].key, now))
		{
			each->entry = add_entry(each->partition, &asked[i].key, each->hash,
									takes[i].rule, now);
			each->added = true;
			hold_entry(each->entry, takes[i].rule, now);
		}
		asked[i].room = each->entry != NULL;
		takes[i].bucket = asked[i].room ? &each->entry->seen.bucket : NULL;
		if (asked[i].room)
			continue;
		each->partition->no_room++;
		each->partition->no_room_at = now;
		if (asked[i].allow_without_room)
		{
			idem_bucket_init(takes[i].rule, &each->unkept, now);
			takes[i].bucket = &each->unkept;
		}
		else
			refuse_without_room(each->partition, now, &takes[i].result);
	}
}

/* What follows for the buckets of a set; none is held any more. */
static void
release_members(const IdemBucketAsked *asked, IdemBucketTake *takes,
				SetMember *members, int number, bool allowed, int64 now)
{
	bool		room = true;
	int			i;

	for (i = 0; i < number; i++)
		room = room && asked[i].room;

	for (i = 0; i < number; i++)
	{
		SetMember  *each = &members[i];

		takes[i].bucket = NULL;
		if (each->entry == NULL)
			continue;

		each->entry->seen.allowed += allowed;
		each->entry->seen.refused += !takes[i].result.allowed;
		note_change(each->partition, each->entry);

		/*
		 * A new one from which nothing was taken, or where room is short any
		 * that is full, would have each call for such a set search the
		 * partition (README.md).
		 */
		if (each->entry->full_at <= now &&
			((each->added && !allowed) || !room))
			free_entry(each->partition, each->entry);
	}
}

/*
 * idem_buckets_take_all
 *		Take from the buckets of at most IDEM_BUCKETS_MAX_SET subjects, no two
 *		of them the same, or from none; see idem_bucket_take_all().  Of the
 *		takes, rule and cost are given, and the results are set.
 */
bool
idem_buckets_take_all(IdemBucketAsked *asked, IdemBucketTake *takes,
					  int number)
{
	SetMember	members[IDEM_BUCKETS_MAX_SET];
	IdemBucketsPartition *partitions[IDEM_BUCKETS_MAX_SET];
	int			npartitions;
	int64		now;
	bool		allowed;
	int			i;

	for (i = 0; i < number; i++)
	{
		members[i].hash = hash_key(&asked[i].key);
		members[i].partition = get_partition(members[i].hash);
	}
	npartitions = sort_partitions(members, number, partitions);

	/*
	 * In one order whatever that of the arguments, so that two sets never
	 * wait for one another; and all before the first look, so that what was
	 * seen is still so when it is taken (t/052_throttle_sets.pl).
	 */
	for (i = 0; i < npartitions; i++)
		LWLockAcquire(&partitions[i]->lock, LW_EXCLUSIVE);
	now = GetCurrentTimestamp();
	hold_members(asked, takes, members, number, now);
	allowed = idem_bucket_take_all(takes, number, now);
	release_members(asked, takes, members, number, allowed, now);
	for (i = npartitions - 1; i >= 0; i--)
		LWLockRelease(&partitions[i]->lock);
	return allowed;
}

/*
 * idem_buckets_return
 *		Give tokens back to the bucket of a subject; what is there then.  One
 *		that has none has a full one.
 */
int32
idem_buckets_return(const IdemBucketKey *key, const IdemBucketRule *rule,
					int32 cost)
{
	uint64		hash = hash_key(key);
	IdemBucketsPartition *partition = get_partition(hash);
	IdemBucketEntry *entry;
	int32		remaining = rule->capacity;
	int64		now;

	LWLockAcquire(&partition->lock, LW_EXCLUSIVE);
	now = GetCurrentTimestamp();
	entry = find_entry(key, hash);
	if (entry != NULL)
	{
		change_rule(&entry->seen, rule, now);
		remaining = idem_bucket_return(rule, &entry->seen.bucket, now, cost);
		note_change(partition, entry);
	}
	LWLockRelease(&partition->lock);
	return remaining;
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

	/*
	 * This is called at commit, where nothing may fail, and so does not
	 * attach: idem_limiter_changed() has.
	 */
	if (memory->head == NULL)
		return;
	for (number = 0; number < memory->head->partitions; number++)
	{
		IdemBucketsPartition *partition = &memory->partitions[number].partition;
		int			first = idem_buckets_first(partition);

		LWLockAcquire(&partition->lock, LW_EXCLUSIVE);
		for (i = first; i < first + memory->head->room && partition->used > 0; i++)
			if (memory->entries[i].seen.key.database == database &&
				(limiter == NULL || memory->entries[i].seen.key.limiter == *limiter))
				free_entry(partition, &memory->entries[i]);
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
	*room = memory->head->room;
	return memory->head->partitions;
}

/*
 * idem_buckets_copy
 *		The buckets of a database in one partition; returns their number.
 */
int
idem_buckets_copy(int number, Oid database, IdemBucketSeen *copies)
{
	IdemBucketsPartition *partition = &memory->partitions[number].partition;
	int			first = idem_buckets_first(partition);
	int			found = 0;
	int			i;

	/* the caller has memory for all of it: none is allocated under the lock */
	LWLockAcquire(&partition->lock, LW_SHARED);
	for (i = first; i < first + memory->head->room && partition->used > 0; i++)
		if (memory->entries[i].seen.key.database == database)
			copies[found++] = memory->entries[i].seen;
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
	use->room = (int64) memory->head->partitions * memory->head->room;
	for (i = 0; i < memory->head->partitions; i++)
	{
		IdemBucketsPartition *partition = &memory->partitions[i].partition;

		LWLockAcquire(&partition->lock, LW_SHARED);
		use->used += partition->used;
		use->no_room += partition->no_room;
		use->no_room_at = Max(use->no_room_at, partition->no_room_at);
		LWLockRelease(&partition->lock);
	}
}
