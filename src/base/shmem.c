/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  What all processes share: counters, and how the sweeps go.
 *
 * Exists only where the library is in shared_preload_libraries; elsewhere
 * every function does nothing and finds nothing.  Values only, of fixed size:
 *
 *	policies	which policy of which database an entry counts is written once,
 *				with the lock held exclusively, and stays as long as the
 *				database does, so that a process may keep the number of an
 *				entry and count without a lock.  The counts are atomics.
 *	databases	how the sweeps of a database that has the extension go; written
 *				with the lock held exclusively, by whoever has swept there.
 *	launcher	its process id; written by itself, with the lock.
 *
 * One LWLock guards all that.  It is held for a search of the arrays at most,
 * no other lock is taken under it, and nothing can throw there.
 *
 * Over a clean restart everything is kept in a file (keep.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/keep.h"
#include "base/shmem.h"

#define TRANCHE "idempotency"
#define MAX_AREAS 4
#define MAX_POLICIES 1024
#define MAX_DATABASES 1024

#define FILE_NAME PGSTAT_STAT_PERMANENT_DIRECTORY "/idempotency.stat"
#define FILE_MAGIC 0x1DE00004	/* changes with the structs below */

/* The first entry counts what found no room. */
#define NO_ROOM 0

typedef struct PolicyEntry
{
	Oid			database;		/* InvalidOid: free */
	NameData	policy;
	pg_atomic_uint64 stats_reset;	/* a TimestampTz */
	pg_atomic_uint64 counts[IDEM_NUM_COUNTERS];
}			PolicyEntry;

typedef struct IdemShmem
{
	int			launcher;		/* 0: none */
	PolicyEntry policies[MAX_POLICIES];
	IdemSweepState databases[MAX_DATABASES];
} IdemShmem;

/* What is kept: this, then the entries in use. */
typedef struct KeptHead
{
	uint32		policies;
	uint32		databases;
} KeptHead;

#define KEPT_ROOM (sizeof(KeptHead) + sizeof(((IdemShmem *) NULL)->policies) + \
				   sizeof(((IdemShmem *) NULL)->databases))

static IdemShmem *shmem = NULL;
static LWLock *lock = NULL;


/*
 * idem_shmem_exists
 *		Whether the library was preloaded.
 */
bool
idem_shmem_exists(void)
{
	return shmem != NULL;
}

static void
clear_policy(PolicyEntry * entry)
{
	int			i;

	pg_atomic_write_u64(&entry->stats_reset, (uint64) GetCurrentTimestamp());
	for (i = 0; i < IDEM_NUM_COUNTERS; i++)
		pg_atomic_write_u64(&entry->counts[i], 0);
}

/* With the lock: the entry of a policy, NO_ROOM if it has none. */
static int
find_policy(Oid database, const char *name)
{
	int			i;

	for (i = NO_ROOM + 1; i < MAX_POLICIES; i++)
		if (shmem->policies[i].database == database &&
			strcmp(NameStr(shmem->policies[i].policy), name) == 0)
			return i;
	return NO_ROOM;
}

static int
add_policy(Oid database, const char *name)
{
	int			i;

	for (i = NO_ROOM + 1; i < MAX_POLICIES; i++)
	{
		PolicyEntry *entry = &shmem->policies[i];

		if (OidIsValid(entry->database))
			continue;
		entry->database = database;
		namestrcpy(&entry->policy, name);
		clear_policy(entry);
		return i;
	}
	return NO_ROOM;
}

/*
 * idem_shmem_policy
 *		The number under which idem_shmem_count() counts for a policy of this
 *		database, good as long as this process lives.
 */
int
idem_shmem_policy(const char *name)
{
	int			found;

	if (shmem == NULL)
		return NO_ROOM;
	LWLockAcquire(lock, LW_SHARED);
	found = find_policy(MyDatabaseId, name);
	LWLockRelease(lock);
	if (found != NO_ROOM)
		return found;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	found = find_policy(MyDatabaseId, name);
	if (found == NO_ROOM)
		found = add_policy(MyDatabaseId, name);
	LWLockRelease(lock);
	return found;
}

/*
 * idem_shmem_count
 *		Count something, at once and for good: an abort takes nothing back.
 */
void
idem_shmem_count(int policy, IdemCounter counter, uint64 n)
{
	if (shmem != NULL)
		pg_atomic_fetch_add_u64(&shmem->policies[policy].counts[counter], n);
}

/*
 * idem_shmem_counters
 *		A copy of all counters.
 */
IdemCounters *
idem_shmem_counters(int *number)
{
	IdemCounters *copies = palloc(MAX_POLICIES * sizeof(IdemCounters));
	int			found = 0;
	int			i;
	int			j;

	LWLockAcquire(lock, LW_SHARED);
	for (i = 0; i < MAX_POLICIES; i++)
	{
		PolicyEntry *entry = &shmem->policies[i];
		IdemCounters *copy = &copies[found];

		if (i != NO_ROOM && !OidIsValid(entry->database))
			continue;
		copy->database = entry->database;
		copy->policy = entry->policy;
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
 * idem_shmem_reset_counters
 *		Let the counters of this database begin anew.
 */
void
idem_shmem_reset_counters(void)
{
	int			i;

	if (shmem == NULL)
		return;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	for (i = 0; i < MAX_POLICIES; i++)
		if (shmem->policies[i].database == MyDatabaseId)
			clear_policy(&shmem->policies[i]);
	LWLockRelease(lock);
}

/* With the lock: the entry of a database, or the first free one, or NULL. */
static IdemSweepState *
find_database(Oid database, bool or_free)
{
	IdemSweepState *free = NULL;
	int			i;

	for (i = 0; i < MAX_DATABASES; i++)
	{
		IdemSweepState *entry = &shmem->databases[i];

		if (entry->database == database)
			return entry;
		if (free == NULL && !OidIsValid(entry->database))
			free = entry;
	}
	return or_free ? free : NULL;
}

static void
init_database(IdemSweepState *state, Oid database)
{
	memset(state, 0, sizeof(*state));
	state->database = database;
	state->known_at = GetCurrentTimestamp();
	state->last_worker = DT_NOBEGIN;
	state->last_run = DT_NOBEGIN;
	state->low = DT_NOBEGIN;
	state->full_due = DT_NOBEGIN;
}

/*
 * idem_shmem_know_database
 *		Tell the launcher that this database uses the extension.
 */
void
idem_shmem_know_database(void)
{
	IdemSweepState *entry;

	if (shmem == NULL)
		return;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	entry = find_database(MyDatabaseId, true);
	if (entry != NULL && !OidIsValid(entry->database))
		init_database(entry, MyDatabaseId);
	LWLockRelease(lock);
}

/*
 * idem_shmem_get_sweep, idem_shmem_put_sweep
 *		How the sweeps of a database go; false when nothing is known of it.
 */
bool
idem_shmem_get_sweep(Oid database, IdemSweepState *state)
{
	const IdemSweepState *entry = NULL;

	init_database(state, database);
	if (shmem == NULL)
		return false;
	LWLockAcquire(lock, LW_SHARED);
	entry = find_database(database, false);
	if (entry != NULL)
		*state = *entry;
	LWLockRelease(lock);
	return entry != NULL;
}

void
idem_shmem_put_sweep(const IdemSweepState *state)
{
	IdemSweepState *entry;

	if (shmem == NULL)
		return;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	entry = find_database(state->database, true);
	if (entry != NULL)
		*entry = *state;
	LWLockRelease(lock);
}

/*
 * idem_shmem_note_sweep
 *		A sweep of this database that somebody called.
 */
void
idem_shmem_note_sweep(TimestampTz start, int64 rows)
{
	int64		duration = GetCurrentTimestamp() - start;
	IdemSweepState *entry;

	if (shmem == NULL)
		return;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	entry = find_database(MyDatabaseId, true);
	if (entry != NULL)
	{
		if (!OidIsValid(entry->database))
			init_database(entry, MyDatabaseId);
		entry->last_run = start;
		entry->last_duration = duration;
		entry->last_rows = rows;
	}
	LWLockRelease(lock);
}

/*
 * idem_shmem_forget
 *		A database has the extension no longer.
 */
void
idem_shmem_forget(Oid database)
{
	IdemSweepState *entry;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	entry = find_database(database, false);
	if (entry != NULL)
		entry->database = InvalidOid;
	LWLockRelease(lock);
}

/*
 * idem_shmem_databases
 *		The databases that anything belongs to.
 */
List *
idem_shmem_databases(void)
{
	Oid		   *found = palloc((MAX_POLICIES + MAX_DATABASES) * sizeof(Oid));
	List	   *databases = NIL;
	int			number = 0;
	int			i;

	LWLockAcquire(lock, LW_SHARED);
	for (i = 0; i < MAX_POLICIES; i++)
		found[number++] = shmem->policies[i].database;
	for (i = 0; i < MAX_DATABASES; i++)
		found[number++] = shmem->databases[i].database;
	LWLockRelease(lock);
	for (i = 0; i < number; i++)
		if (OidIsValid(found[i]))
			databases = list_append_unique_oid(databases, found[i]);
	pfree(found);
	return databases;
}

/*
 * idem_shmem_drop_database
 *		Free what belongs to a database that is gone.  No process is left that
 *		could have kept the number of an entry.
 */
void
idem_shmem_drop_database(Oid database)
{
	int			i;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	for (i = 0; i < MAX_POLICIES; i++)
		if (shmem->policies[i].database == database)
			shmem->policies[i].database = InvalidOid;
	for (i = 0; i < MAX_DATABASES; i++)
		if (shmem->databases[i].database == database)
			shmem->databases[i].database = InvalidOid;
	LWLockRelease(lock);
}

/*
 * idem_shmem_set_launcher, idem_shmem_launcher
 *		The process id of the launcher, 0 if there is none.
 */
void
idem_shmem_set_launcher(int pid)
{
	LWLockAcquire(lock, LW_EXCLUSIVE);
	shmem->launcher = pid;
	LWLockRelease(lock);
}

int
idem_shmem_launcher(void)
{
	int			pid = 0;

	if (shmem == NULL)
		return 0;
	LWLockAcquire(lock, LW_SHARED);
	pid = shmem->launcher;
	LWLockRelease(lock);
	return pid;
}

/* on_shmem_exit of the postmaster, when no other process is left. */
static void
save(int code, Datum arg)
{
	KeptHead	head = {0, 0};
	char	   *data;
	char	   *end;
	int			i;

	if (code != 0 || shmem == NULL)
		return;
	data = palloc(KEPT_ROOM);
	end = data + sizeof(head);
	for (i = 0; i < MAX_POLICIES; i++)
		if (i == NO_ROOM || OidIsValid(shmem->policies[i].database))
		{
			memcpy(end, &shmem->policies[i], sizeof(PolicyEntry));
			end += sizeof(PolicyEntry);
			head.policies++;
		}
	for (i = 0; i < MAX_DATABASES; i++)
		if (OidIsValid(shmem->databases[i].database))
		{
			memcpy(end, &shmem->databases[i], sizeof(IdemSweepState));
			end += sizeof(IdemSweepState);
			head.databases++;
		}
	memcpy(data, &head, sizeof(head));
	idem_keep_write(FILE_NAME, FILE_MAGIC, data, end - data);
}

/* What a clean shutdown left. */
static void
restore(void)
{
	char	   *data = palloc(KEPT_ROOM);
	KeptHead	head;
	Size		size;

	if (idem_keep_read(FILE_NAME, FILE_MAGIC, data, KEPT_ROOM, &size))
	{
		Size		policies;

		memcpy(&head, data, sizeof(head));
		policies = head.policies * sizeof(PolicyEntry);
		memcpy(shmem->policies, data + sizeof(head), policies);
		memcpy(shmem->databases, data + sizeof(head) + policies,
			   head.databases * sizeof(IdemSweepState));
	}
	pfree(data);
}

static void
init(void)
{
	int			i;

	memset(shmem, 0, sizeof(*shmem));
	for (i = 0; i < MAX_POLICIES; i++)
	{
		int			j;

		pg_atomic_init_u64(&shmem->policies[i].stats_reset,
						   (uint64) GetCurrentTimestamp());
		for (j = 0; j < IDEM_NUM_COUNTERS; j++)
			pg_atomic_init_u64(&shmem->policies[i].counts[j], 0);
	}
}

static void
start(void *memory, LWLock *its_lock, bool found)
{
	shmem = memory;
	lock = its_lock;
	if (found)
		return;
	init();
	restore();
}

/* The areas, and who had the hooks before. */
static const IdemShmemArea *areas[MAX_AREAS];
static int	nareas = 0;
static shmem_request_hook_type prev_request_hook = NULL;
static shmem_startup_hook_type prev_startup_hook = NULL;

static void
request(void)
{
	int			i;

	if (prev_request_hook)
		prev_request_hook();
	for (i = 0; i < nareas; i++)
	{
		RequestAddinShmemSpace(MAXALIGN(areas[i]->size));
		RequestNamedLWLockTranche(areas[i]->name, 1);
	}
}

/* Runs in the postmaster, again after a crash. */
static void
startup(void)
{
	int			i;

	if (prev_startup_hook)
		prev_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	for (i = 0; i < nareas; i++)
	{
		const IdemShmemArea *area = areas[i];
		bool		found;
		void	   *memory = ShmemInitStruct(area->name, area->size, &found);

		area->start(memory, &GetNamedLWLockTranche(area->name)->lock, found);
	}
	LWLockRelease(AddinShmemInitLock);
	for (i = 0; i < nareas && !IsUnderPostmaster; i++)
		if (areas[i]->save != NULL)
			on_shmem_exit(areas[i]->save, (Datum) 0);
}

/*
 * idem_shmem_add
 *		Ask for an area; while libraries are preloaded.
 */
void
idem_shmem_add(const IdemShmemArea *area)
{
	if (nareas == 0)
	{
		prev_request_hook = shmem_request_hook;
		shmem_request_hook = request;
		prev_startup_hook = shmem_startup_hook;
		shmem_startup_hook = startup;
	}
	Assert(nareas < MAX_AREAS);
	areas[nareas++] = area;
}

/*
 * idem_shmem_init
 *		Ask for that of this room.
 */
void
idem_shmem_init(void)
{
	static const IdemShmemArea area = {TRANCHE, sizeof(IdemShmem), start, save};

	idem_shmem_add(&area);
}
