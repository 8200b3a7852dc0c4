/*-------------------------------------------------------------------------
 *
 * refusal_queue.c
 *	  Calls that were refused, on their way to the audit log.
 *
 * A refused caller rolls back, or is rolled back, so that its transaction
 * cannot tell of it.  What the log is to say goes to a queue in shared memory,
 * at once and for good, and the worker of the database (sweep/worker.c) writes
 * it down.  Equal refusals are one entry with a count.
 *
 * The queue never makes a caller wait for the worker: where there is no free
 * entry the refusal is dropped, and counted.  Values only, of fixed size; no
 * scope and no key, but their log ids:
 *
 *	entries		written with the lock held exclusively: added and counted by
 *				whoever refuses a call, reduced and freed by the worker after
 *				the commit of what it has written, or when the database or the
 *				extension is gone.  An entry is in use while its count is not
 *				zero.
 *	buckets, next, free
 *				chains of entries with the same hash, and of the free ones;
 *				changed together with the entries.
 *	writer		the worker that is writing, by its process id; set with the
 *				lock, and taken back by itself, with the lock, at its end at
 *				the latest.  A second one, which a launcher may start that
 *				came after the first one's had gone, must not write the same.
 *
 * One LWLock of a tranche of its own guards all that.  It is held for a chain
 * of a hash, by a worker for a pass over the queue, no other lock is taken
 * under it, and nothing can throw there.
 *
 * Without preload there is a line in the log of the server instead.  Over a
 * clean restart the queue is kept in a file (base/shmem.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "audit/refusal_queue.h"
#include "base/catalog.h"
#include "base/digest.h"
#include "base/counters.h"
#include "base/shmem.h"

#define TRANCHE "idempotency_refusals"
#define MAX_REFUSALS 1024
#define BUCKETS 1024			/* a power of two */
#define NONE (-1)

#define FILE_NAME PGSTAT_STAT_PERMANENT_DIRECTORY "/idempotency.refusals"
#define FILE_MAGIC 0x1DE10001	/* changes with IdemRefused */

typedef struct QueueEntry
{
	IdemRefused refused;
	uint32		hash;
	int			next;			/* in its bucket, or free; NONE: the last */
} QueueEntry;

typedef struct RefusalQueue
{
	int			writer;			/* 0: none */
	int			used;
	int			free;
	uint64		serial;			/* the last one */
	int			buckets[BUCKETS];
	QueueEntry	entries[MAX_REFUSALS];
} RefusalQueue;

static const char *const names[IDEM_NUM_REFUSALS] = {
	[IDEM_REFUSAL_MISMATCH] = "mismatch",
	[IDEM_REFUSAL_EXPIRED] = "expired",
	[IDEM_REFUSAL_DUPLICATE] = "duplicate",
	[IDEM_REFUSAL_LOST] = "lost",
	[IDEM_REFUSAL_FORBIDDEN] = "forbidden",
	[IDEM_REFUSAL_LIMITED] = "limited"
};

static RefusalQueue *queue = NULL;
static LWLock *lock = NULL;

/* In a worker: what is free when this transaction commits. */
static const IdemRefused *written = NULL;
static int	nwritten = 0;

/*
 * idem_refusals_name
 *		As the audit log has it.
 */
const char *
idem_refusals_name(IdemRefusal action)
{
	return names[action];
}

/*
 * idem_refusals_entity
 *		What is refused, as the audit log has it.
 */
const char *
idem_refusals_entity(IdemRefusal action)
{
	return action == IDEM_REFUSAL_LIMITED ? IDEM_ENTITY_LIMITER :
		IDEM_ENTITY_KEY;
}

/* What inet_client_addr() says; asked once in a session. */
static const char *
get_client_addr(void)
{
	static char address[NAMEDATALEN];
	static bool known = false;

	if (!known)
	{
		LOCAL_FCINFO(call, 0);
		Datum		found;

		InitFunctionCallInfoData(*call, NULL, 0, InvalidOid, NULL, NULL);
		found = inet_client_addr(call);
		if (!call->isnull)
			strlcpy(address,
					DatumGetCString(DirectFunctionCall1(inet_out, found)),
					sizeof(address));
		known = true;
	}
	return address;
}

static void
copy_role_name(char *name, Oid role)
{
	char	   *found = GetUserNameFromId(role, true);

	if (found != NULL)
		strlcpy(name, found, NAMEDATALEN);
}

static void
fill_subject(IdemRefusalSubject *subject, IdemRefusal action,
			 const char *entity_id, const char *rule)
{
	memset(subject, 0, sizeof(*subject));
	subject->database = MyDatabaseId;
	subject->audit_log = idem_catalog()->audit_log;
	subject->action = action;
	strlcpy(subject->entity_id, entity_id, sizeof(subject->entity_id));
	strlcpy(subject->rule, rule, NAMEDATALEN);
	copy_role_name(subject->session_role, GetSessionUserId());
	copy_role_name(subject->effective_role, GetUserId());
	strlcpy(subject->client_addr, get_client_addr(), NAMEDATALEN);
	if (application_name != NULL)
		strlcpy(subject->application_name, application_name, NAMEDATALEN);
}

static uint32
hash_subject(const IdemRefusalSubject *subject)
{
	return hash_bytes((const unsigned char *) subject, sizeof(*subject));
}

/* With the lock: the entry of a subject, or NULL. */
static QueueEntry *
find_entry(const IdemRefusalSubject *subject, uint32 hash)
{
	int			i;

	for (i = queue->buckets[hash % BUCKETS]; i != NONE;
		 i = queue->entries[i].next)
	{
		QueueEntry *entry = &queue->entries[i];

		if (entry->hash == hash &&
			memcmp(&entry->refused.subject, subject, sizeof(*subject)) == 0)
			return entry;
	}
	return NULL;
}

/* With the lock: a new entry, not yet counted; NULL when there is no room. */
static QueueEntry *
add_entry(const IdemRefusalSubject *subject, uint32 hash, TimestampTz now)
{
	int			place = queue->free;
	QueueEntry *entry;

	if (place == NONE)
		return NULL;
	entry = &queue->entries[place];
	queue->free = entry->next;
	queue->used++;
	entry->refused.subject = *subject;
	entry->refused.serial = ++queue->serial;
	entry->refused.count = 0;
	entry->refused.first_at = now;
	entry->refused.last_at = now;
	entry->refused.place = place;
	entry->hash = hash;
	entry->next = queue->buckets[hash % BUCKETS];
	queue->buckets[hash % BUCKETS] = place;
	return entry;
}

/* With the lock. */
static void
free_entry(QueueEntry *entry)
{
	int		   *link = &queue->buckets[entry->hash % BUCKETS];

	while (*link != entry->refused.place)
		link = &queue->entries[*link].next;
	*link = entry->next;
	entry->refused.count = 0;
	entry->refused.serial = 0;
	entry->next = queue->free;
	queue->free = entry->refused.place;
	queue->used--;
}

/*
 * With the lock.  Half of the room is not for rate limits: whoever calls in
 * the name of many would drive out what is said of keys.
 */
static bool
has_room_for(IdemRefusal action)
{
	return action != IDEM_REFUSAL_LIMITED || queue->used < MAX_REFUSALS / 2;
}

/* False when there is no room. */
static bool
enqueue(const IdemRefusalSubject *subject)
{
	uint32		hash = hash_subject(subject);
	TimestampTz now = GetCurrentTimestamp();
	QueueEntry *entry;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	entry = find_entry(subject, hash);
	if (entry == NULL && has_room_for(subject->action))
		entry = add_entry(subject, hash, now);
	if (entry != NULL)
	{
		entry->refused.count++;
		entry->refused.last_at = Max(entry->refused.last_at, now);
	}
	LWLockRelease(lock);
	return entry != NULL;
}

/* The statement, and the context of a function's, could have the key. */
static void
log_refusal(const IdemRefusalSubject *subject)
{
	ereport(LOG_SERVER_ONLY,
			(errmsg("%s %s refused: %s",
					subject->action == IDEM_REFUSAL_LIMITED ?
					"rate limiter" : "idempotency key",
					subject->entity_id, names[subject->action]),
			 errdetail("Session role \"%s\", effective role \"%s\".",
					   subject->session_role, subject->effective_role),
			 errhidestmt(true),
			 errhidecontext(true)));
}

static void
note(const IdemRefusalSubject *subject, int counters)
{
	if (queue == NULL)
		log_refusal(subject);
	else if (!enqueue(subject))
		idem_counters_add(counters, IDEM_COUNT_REFUSALS_DROPPED, 1);
}

/*
 * idem_refusals_note
 *		Let the audit log know of a refusal, if the policy of the key wants
 *		it; whatever becomes of the transaction.
 *
 * May be called right before an error is raised.  In a read-only transaction,
 * and on a standby, nothing is noted.
 */
void
idem_refusals_note(IdemRefusal action, const IdemKey *id,
				   const IdemPolicy *policy)
{
	IdemRefusalSubject subject;

	if (!policy->audit || XactReadOnly || RecoveryInProgress())
		return;
	fill_subject(&subject, action, psprintf("%s/%s",
											idem_digest_log_id(id->scope),
											idem_digest_log_id(id->key)),
				 NameStr(policy->name));
	note(&subject, policy->counters);
}

/*
 * idem_refusals_note_limited
 *		The same for a subject that a rate limiter refuses, if policy "default"
 *		has audit; in a read-only transaction, too.
 */
void
idem_refusals_note_limited(const char *limiter, const void *limiter_digest,
						   const void *subject_digest, int counters)
{
	IdemRefusalSubject subject;
	IdemPolicy	policy;

	if (RecoveryInProgress())
		return;
	idem_policy_get(IDEM_POLICY_DEFAULT, &policy);
	if (!policy.audit)
		return;
	fill_subject(&subject, IDEM_REFUSAL_LIMITED,
				 psprintf("%s/%s", idem_digest_short(limiter_digest),
						  idem_digest_short(subject_digest)), limiter);
	note(&subject, counters);
}

/*
 * idem_refusals_note_outcome
 *		The same for an outcome, of which only some refuse.
 */
void
idem_refusals_note_outcome(IdemOutcome outcome, const IdemKey *id,
						   const IdemPolicy *policy)
{
	if (outcome == IDEM_OUTCOME_MISMATCH)
		idem_refusals_note(IDEM_REFUSAL_MISMATCH, id, policy);
	else if (outcome == IDEM_OUTCOME_EXPIRED)
		idem_refusals_note(IDEM_REFUSAL_EXPIRED, id, policy);
	else if (outcome == IDEM_OUTCOME_DUPLICATE)
		idem_refusals_note(IDEM_REFUSAL_DUPLICATE, id, policy);
}

/* Free what was written, less what has been counted meanwhile. */
static void
free_written(void)
{
	int			i;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	for (i = 0; i < nwritten; i++)
	{
		const IdemRefused *done = &written[i];
		QueueEntry *entry = &queue->entries[done->place];

		if (entry->refused.serial != done->serial)
			continue;			/* forgotten, and perhaps used again */
		entry->refused.count -= done->count;
		entry->refused.first_at = done->last_at;
		if (entry->refused.count == 0)
			free_entry(entry);
	}
	LWLockRelease(lock);
}

/*
 * Interrupts are held off from the commit until this has been called, so that
 * a worker that is terminated has written and freed, or neither.
 */
static void
at_transaction_event(XactEvent event, void *arg)
{
	if (nwritten == 0)
		return;
	if (event == XACT_EVENT_COMMIT)
		free_written();
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT)
		nwritten = 0;
}

static int
compare_serials(const void *a, const void *b)
{
	uint64		x = ((const IdemRefused *) a)->serial;
	uint64		y = ((const IdemRefused *) b)->serial;

	return x < y ? -1 : x > y;
}

/* What is queued for this database, oldest first. */
static IdemRefused *
copy_queue(int *number)
{
	IdemRefused *copies = palloc(MAX_REFUSALS * sizeof(IdemRefused));
	int			found = 0;
	int			i;

	LWLockAcquire(lock, LW_SHARED);
	for (i = 0; i < MAX_REFUSALS && queue->used > 0; i++)
	{
		const IdemRefused *refused = &queue->entries[i].refused;

		if (refused->count > 0 && refused->subject.database == MyDatabaseId)
			copies[found++] = *refused;
	}
	LWLockRelease(lock);
	qsort(copies, found, sizeof(IdemRefused), compare_serials);
	*number = found;
	return copies;
}

static bool
become_writer(void)
{
	bool		alone;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	alone = queue->writer == 0;
	if (alone)
		queue->writer = MyProcPid;
	LWLockRelease(lock);
	return alone;
}

/*
 * idem_refusals_end
 *		The worker writes no more.
 */
void
idem_refusals_end(void)
{
	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (queue->writer == MyProcPid)
		queue->writer = 0;
	LWLockRelease(lock);
}

static void
end_at_exit(int code, Datum arg)
{
	idem_refusals_end();
}

/*
 * idem_refusals_begin
 *		For a worker, once in its life: what is queued for its database, oldest
 *		first; NULL when there is nothing, or another worker is writing.
 */
IdemRefused *
idem_refusals_begin(int *number)
{
	*number = 0;
	if (queue == NULL)
		return NULL;
	before_shmem_exit(end_at_exit, (Datum) 0);
	RegisterXactCallback(at_transaction_event, NULL);
	return become_writer() ? copy_queue(number) : NULL;
}

/*
 * idem_refusals_release
 *		Free these when the transaction commits, which is writing them.  They
 *		must stay where they are until then.
 */
void
idem_refusals_release(const IdemRefused *refused, int number)
{
	written = refused;
	nwritten = number;
}

/*
 * idem_refusals_databases
 *		The databases that something is queued for.
 */
List *
idem_refusals_databases(void)
{
	Oid		   *found;
	List	   *databases = NIL;
	int			number = 0;
	int			i;

	if (queue == NULL)
		return NIL;
	found = palloc(MAX_REFUSALS * sizeof(Oid));
	LWLockAcquire(lock, LW_SHARED);
	for (i = 0; i < MAX_REFUSALS && queue->used > 0; i++)
		if (queue->entries[i].refused.count > 0)
			found[number++] = queue->entries[i].refused.subject.database;
	LWLockRelease(lock);
	for (i = 0; i < number; i++)
		databases = list_append_unique_oid(databases, found[i]);
	pfree(found);
	return databases;
}

/*
 * idem_refusals_forget
 *		A database is gone, or has the extension no longer.
 */
void
idem_refusals_forget(Oid database)
{
	int			i;

	if (queue == NULL)
		return;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	for (i = 0; i < MAX_REFUSALS && queue->used > 0; i++)
	{
		QueueEntry *entry = &queue->entries[i];

		if (entry->refused.count > 0 &&
			entry->refused.subject.database == database)
			free_entry(entry);
	}
	LWLockRelease(lock);
}

/* What a clean restart keeps, in its order. */
static Size
keep(void *data)
{
	IdemRefused *kept = data;
	int			number = 0;
	int			i;

	for (i = 0; i < MAX_REFUSALS; i++)
		if (queue->entries[i].refused.count > 0)
			kept[number++] = queue->entries[i].refused;
	qsort(kept, number, sizeof(IdemRefused), compare_serials);
	return number * sizeof(IdemRefused);
}

static void
resume(const void *data, Size size)
{
	const IdemRefused *kept = data;
	int			i;

	for (i = 0; i < size / sizeof(IdemRefused); i++)
	{
		const IdemRefusalSubject *subject = &kept[i].subject;
		QueueEntry *entry = add_entry(subject, hash_subject(subject),
									  kept[i].first_at);

		entry->refused.count = kept[i].count;
		entry->refused.last_at = kept[i].last_at;
	}
}

static void
init(void)
{
	int			i;

	memset(queue, 0, sizeof(*queue));
	for (i = 0; i < BUCKETS; i++)
		queue->buckets[i] = NONE;
	for (i = 0; i < MAX_REFUSALS; i++)
		queue->entries[i].next = i + 1 < MAX_REFUSALS ? i + 1 : NONE;
}

static void
start(void *memory, LWLock *its_lock, bool found)
{
	queue = memory;
	lock = its_lock;
	if (found)
		return;
	init();
}

/*
 * idem_refusals_init
 *		Ask for the memory; once, while libraries are preloaded.
 */
void
idem_refusals_init(void)
{
	static const IdemShmemArea area = {
		.name = TRANCHE,
		.size = sizeof(RefusalQueue),
		.start = start,
		.file = FILE_NAME,
		.magic = FILE_MAGIC,
		.room = MAX_REFUSALS * sizeof(IdemRefused),
		.keep = keep,
		.resume = resume
	};

	idem_shmem_add(&area);
}
