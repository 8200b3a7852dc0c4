/*-------------------------------------------------------------------------
 *
 * databases.c
 *	  The databases that use the extension, and what the worker did there.
 *
 * In shared memory, so only where the library is preloaded; elsewhere every
 * function does nothing and finds nothing.  An entry is made by the first
 * backend that uses a policy in a database, for the launcher to see, and
 * written by whoever has swept there; the launcher's process id is written by
 * itself.  All with the lock held exclusively.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "utils/timestamp.h"

#include "base/databases.h"
#include "base/shmem.h"

#define MAX_DATABASES 1024

typedef struct Databases
{
	int			launcher;		/* its process id; 0: none */
	IdemSweepState states[MAX_DATABASES];
} Databases;

static Databases *shared = NULL;
static LWLock *lock = NULL;

/* With the lock: the entry of a database, or NULL. */
static IdemSweepState *
find_state(Oid database)
{
	int			i;

	for (i = 0; i < MAX_DATABASES; i++)
		if (shared->states[i].database == database)
			return &shared->states[i];
	return NULL;
}

static void
init_state(IdemSweepState *state, Oid database)
{
	memset(state, 0, sizeof(*state));
	state->database = database;
	state->known_at = GetCurrentTimestamp();
	state->last_worker = DT_NOBEGIN;
	state->last_run = DT_NOBEGIN;
	state->low = DT_NOBEGIN;
	state->full_due = DT_NOBEGIN;
}

/* With the lock: that of a database, a new one if need be; NULL: no room. */
static IdemSweepState *
enter_state(Oid database)
{
	IdemSweepState *state = find_state(database);

	if (state == NULL)
	{
		state = find_state(InvalidOid);
		if (state != NULL)
			init_state(state, database);
	}
	return state;
}

/*
 * idem_databases_know
 *		Tell the launcher that this database uses the extension.
 */
void
idem_databases_know(void)
{
	if (shared == NULL)
		return;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	(void) enter_state(MyDatabaseId);
	LWLockRelease(lock);
}

/*
 * idem_databases_get, idem_databases_put
 *		How the sweeps of a database go; false when nothing is known of it.
 */
bool
idem_databases_get(Oid database, IdemSweepState *state)
{
	const IdemSweepState *found;

	init_state(state, database);
	if (shared == NULL)
		return false;
	LWLockAcquire(lock, LW_SHARED);
	found = find_state(database);
	if (found != NULL)
		*state = *found;
	LWLockRelease(lock);
	return found != NULL;
}

void
idem_databases_put(const IdemSweepState *state)
{
	IdemSweepState *entry;

	if (shared == NULL)
		return;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	entry = enter_state(state->database);

	/*
	 * What idem_databases_note_sweep() wrote while the worker ran is
	 * overwritten: it is the older news.
	 */
	if (entry != NULL)
		*entry = *state;
	LWLockRelease(lock);
}

/*
 * idem_databases_note_sweep
 *		A sweep of this database that somebody called.
 */
void
idem_databases_note_sweep(TimestampTz start, int64 rows)
{
	int64		duration = GetCurrentTimestamp() - start;
	IdemSweepState *state;

	if (shared == NULL)
		return;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	state = enter_state(MyDatabaseId);
	if (state != NULL)
	{
		/* where the worker goes on, and its error, are none of this */
		state->last_run = start;
		state->last_duration = duration;
		state->last_rows = rows;
	}
	LWLockRelease(lock);
}

/*
 * idem_databases_forget
 *		A database is gone, or has the extension no longer.
 */
void
idem_databases_forget(Oid database)
{
	IdemSweepState *state;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	state = find_state(database);
	if (state != NULL)
		state->database = InvalidOid;
	LWLockRelease(lock);
}

/*
 * idem_databases_list
 *		The databases that are known.
 */
List *
idem_databases_list(void)
{
	return idem_shmem_list_oids(&shared->states[0].database,
								sizeof(IdemSweepState), MAX_DATABASES, lock);
}

/*
 * idem_databases_set_launcher, idem_databases_launcher
 *		The process id of the launcher, 0 if there is none.
 */
void
idem_databases_set_launcher(int pid)
{
	LWLockAcquire(lock, LW_EXCLUSIVE);
	shared->launcher = pid;
	LWLockRelease(lock);
}

int
idem_databases_launcher(void)
{
	int			pid;

	if (shared == NULL)
		return 0;
	LWLockAcquire(lock, LW_SHARED);
	pid = shared->launcher;
	LWLockRelease(lock);
	return pid;
}

/* What a clean restart keeps: the entries in use. */
static Size
keep(void *data)
{
	IdemSweepState *kept = data;
	int			i;

	for (i = 0; i < MAX_DATABASES; i++)
		if (OidIsValid(shared->states[i].database))
			*kept++ = shared->states[i];
	return (char *) kept - (char *) data;
}

static void
resume(const void *data, Size size)
{
	memcpy(shared->states, data, size);
}

static void
start(void *memory, LWLock *its_lock, bool found)
{
	shared = memory;
	lock = its_lock;
	if (!found)
		memset(shared, 0, sizeof(*shared));
}

/*
 * idem_databases_init
 *		Ask for the memory; once, while libraries are preloaded.
 */
void
idem_databases_init(void)
{
	static const IdemShmemArea area = {
		.name = "idempotency_databases",
		.size = sizeof(Databases),
		.start = start,
		.file = PGSTAT_STAT_PERMANENT_DIRECTORY "/idempotency.databases",
		.magic = 0x1DE20001,	/* changes with IdemSweepState */
		.room = MAX_DATABASES * sizeof(IdemSweepState),
		.keep = keep,
		.resume = resume
	};

	idem_shmem_add(&area);
}
