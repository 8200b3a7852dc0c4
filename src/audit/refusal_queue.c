/*-------------------------------------------------------------------------
 *
 * refusal_queue.c
 *	  Calls that were refused, on their way to the audit log.
 *
 * A refused caller rolls back, or is rolled back, so that its transaction
 * cannot tell of it.  What the log is to say goes to a queue in shared memory,
 * at once and for good, and the worker of the database writes it down.  Equal
 * refusals are one entry with a count.
 *
 * The queue never makes a caller wait for the worker: where there is no free
 * entry the refusal is dropped, and counted.  Values only; no scope and no
 * key, but their log ids:
 *
 *	entries		a hash table of fixed size.  Entered and counted by whoever
 *				refuses a call; reduced and removed by the worker after the
 *				commit of what it has written, or when the database or the
 *				extension is gone.
 *	serial		of the last entry, by whoever enters one.
 *	writer		the worker that is writing, by its process id; set, and taken
 *				back at its end at the latest, by itself.
 *
 * All that is written with the lock held exclusively.  It is held by a worker
 * for a pass over the queue at most, no other lock is taken under it, and
 * nothing can throw there.
 *
 * Without preload there is a line in the log of the server instead.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/timestamp.h"

#include "audit/log.h"
#include "audit/partition.h"
#include "audit/refusal_queue.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/counters.h"
#include "base/digest.h"
#include "base/shmem.h"

#define NAME "idempotency_refusals"
#define MAX_REFUSALS 1024

typedef struct RefusalQueue
{
	int			writer;			/* 0: none */
	uint64		serial;
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
static HTAB *entries = NULL;	/* of IdemRefused */
static LWLock *lock = NULL;

/* In a worker: what is free when this transaction commits. */
static const IdemRefused *written = NULL;
static int	nwritten = 0;

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
	/* equal ones must be equal byte by byte, with what is between the fields */
	memset(subject, 0, sizeof(*subject));
	subject->database = MyDatabaseId;
	subject->audit_log = idem_catalog()->audit_log;
	subject->action = action;
	strlcpy(subject->entity_id, entity_id, sizeof(subject->entity_id));
	strlcpy(subject->rule, rule, NAMEDATALEN);
	copy_role_name(subject->session_role, GetSessionUserId());
	copy_role_name(subject->effective_role, GetUserId());
	strlcpy(subject->client_addr, idem_audit_row_client_addr(), NAMEDATALEN);
	if (application_name != NULL)
		strlcpy(subject->application_name, application_name, NAMEDATALEN);
}

/* With the lock: the entry of a subject; NULL when there is no room. */
static IdemRefused *
enter(const IdemRefusalSubject *subject, TimestampTz now)
{
	IdemRefused *entry = hash_search(entries, subject, HASH_FIND, NULL);

	/*
	 * Half of the room is not for rate limits: whoever calls in the name of
	 * many would drive out what is said of keys.
	 */
	if (entry != NULL || hash_get_num_entries(entries) >=
		(subject->action == IDEM_REFUSAL_LIMITED ?
		 MAX_REFUSALS / 2 : MAX_REFUSALS))
		return entry;

	/*
	 * All entries were allocated when the server started, so this one costs
	 * nothing; NULL is for a table that has fewer than it was asked for.
	 */
	entry = hash_search(entries, subject, HASH_ENTER_NULL, NULL);
	if (entry == NULL)
		return NULL;
	entry->serial = ++queue->serial;
	entry->count = 0;
	entry->first_at = now;
	entry->last_at = now;
	return entry;
}

/* False when there is no room. */
static bool
enqueue(const IdemRefusalSubject *subject)
{
	TimestampTz now = GetCurrentTimestamp();
	IdemRefused *entry;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	entry = enter(subject, now);
	if (entry != NULL)
	{
		entry->count++;

		/* times may come in another order than that in which we had the lock */
		entry->last_at = Max(entry->last_at, now);
	}
	LWLockRelease(lock);
	return entry != NULL;
}

static void
log_refusal(const IdemRefusalSubject *subject)
{
	/* the statement, and the context of a function's, could have the key */
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
 *		it; whatever becomes of the transaction.  May be called right before an
 *		error is raised.
 */
void
idem_refusals_note(IdemRefusal action, const IdemKey *id,
				   const IdemPolicy *policy)
{
	IdemRefusalSubject subject;

	/* a standby has no log of its own, and what only reads is not audited */
	if (!policy->audit || XactReadOnly || RecoveryInProgress())
		return;
	fill_subject(&subject, action, idem_digest_log_ids(id),
				 NameStr(policy->name));
	note(&subject, policy->counters);
}

/*
 * idem_refusals_note_limited
 *		Likewise of a subject that a rate limiter refuses, if policy "default"
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

/* Remove what was written, less what has been counted meanwhile. */
static void
remove_written(void)
{
	int			i;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	for (i = 0; i < nwritten; i++)
	{
		const IdemRefused *done = &written[i];
		IdemRefused *entry = hash_search(entries, &done->subject, HASH_FIND,
										 NULL);

		/* forgotten, and perhaps entered again since */
		if (entry == NULL || entry->serial != done->serial)
			continue;

		/* what callers have counted while we wrote stays, and began later */
		entry->count -= done->count;
		entry->first_at = done->last_at;
		if (entry->count == 0)
			(void) hash_search(entries, &done->subject, HASH_REMOVE, NULL);
	}
	LWLockRelease(lock);
}

static void
at_transaction_event(XactEvent event, void *arg)
{
	if (nwritten == 0)
		return;

	/*
	 * Interrupts are held off from the commit until here, so that a worker
	 * that is terminated has written and removed, or neither
	 * (t/031_refusals.pl).
	 */
	if (event == XACT_EVENT_COMMIT)
		remove_written();
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

/*
 * With the lock, or alone: copy what is queued for a database, or for all,
 * oldest first.  There is room for MAX_REFUSALS.
 */
static int
copy_queue(IdemRefused *copies, Oid database)
{
	HASH_SEQ_STATUS status;
	IdemRefused *entry;
	int			number = 0;

	hash_seq_init(&status, entries);
	while ((entry = hash_seq_search(&status)) != NULL)
		if (database == InvalidOid || entry->subject.database == database)
			copies[number++] = *entry;
	qsort(copies, number, sizeof(IdemRefused), compare_serials);
	return number;
}

/*
 * idem_refusals_end
 *		The worker writes no more.
 */
void
idem_refusals_end(void)
{
	LWLockAcquire(lock, LW_EXCLUSIVE);

	/* it may be another worker, to which this one has left the queue */
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
	IdemRefused *copies;

	*number = 0;
	if (queue == NULL)
		return NULL;

	/*
	 * However this worker ends: the next one must find the place free.  After
	 * a crash the queue is made anew.
	 */
	before_shmem_exit(end_at_exit, (Datum) 0);
	RegisterXactCallback(at_transaction_event, NULL);
	copies = palloc(MAX_REFUSALS * sizeof(IdemRefused));

	/*
	 * A launcher that came after the first worker's had gone may start a
	 * second one: that must not write the same.
	 */
	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (queue->writer == 0)
	{
		queue->writer = MyProcPid;
		*number = copy_queue(copies, MyDatabaseId);
	}
	LWLockRelease(lock);
	return copies;
}

/* By which rule, how often and, if more than once, until when. */
static Datum
describe(const IdemRefused *refused)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfo(&json, "{\"%s\": ",
					 refused->subject.action == IDEM_REFUSAL_LIMITED ?
					 "limiter" : "policy");
	escape_json(&json, refused->subject.rule);
	appendStringInfo(&json, ", \"count\": " INT64_FORMAT, refused->count);
	if (refused->count > 1)
	{
		/* in UTC, after RFC 3339 */
		Datum		format = CStringGetTextDatum("YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"");
		Datum		last_at = DirectFunctionCall2(timestamp_to_char,
												  TimestampGetDatum(refused->last_at),
												  format);

		appendStringInfo(&json, ", \"last_at\": \"%s\"",
						 TextDatumGetCString(last_at));
	}
	appendStringInfoChar(&json, '}');
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
}

static void
write_row(const IdemRefused *refused)
{
	const IdemRefusalSubject *subject = &refused->subject;
	IdemAuditRow row = {
		.action = names[subject->action],
		.entity = subject->action == IDEM_REFUSAL_LIMITED ?
		IDEM_ENTITY_LIMITER : IDEM_ENTITY_KEY,
		.entity_id = subject->entity_id,
		.effective_role = subject->effective_role,
		.detail = describe(refused),
		.at = refused->first_at,
		.session_role = subject->session_role,
		.client_addr = subject->client_addr[0] != '\0' ?
		subject->client_addr : NULL,
		.application_name = subject->application_name
	};

	(void) idem_audit_write(&row);
}

/*
 * idem_refusals_write
 *		For a worker: write these to the log; they leave the queue with the
 *		commit, and must stay where they are until then.  55P03 when somebody
 *		has locked the log.
 */
void
idem_refusals_write(const IdemRefused *refused, int number)
{
	int			i;

	/*
	 * No wait for who has locked the log: the refusals stay in the queue, and
	 * a later run writes them (t/031_refusals.pl).
	 */
	if (!idem_partition_lock(RowExclusiveLock))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("the audit log is locked")));

	/* those of a log that has been dropped since are passed over */
	for (i = 0; i < number; i++)
		if (refused[i].subject.audit_log == idem_catalog()->audit_log)
			write_row(&refused[i]);
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
	IdemRefused *copies;
	List	   *databases = NIL;
	int			number;
	int			i;

	if (queue == NULL)
		return NIL;

	/* before the lock, under which nothing may throw */
	copies = palloc(MAX_REFUSALS * sizeof(IdemRefused));
	LWLockAcquire(lock, LW_SHARED);
	number = copy_queue(copies, InvalidOid);
	LWLockRelease(lock);
	for (i = 0; i < number; i++)
		databases = list_append_unique_oid(databases,
										   copies[i].subject.database);
	pfree(copies);
	return databases;
}

/*
 * idem_refusals_forget
 *		A database is gone, or has the extension no longer.
 */
void
idem_refusals_forget(Oid database)
{
	HASH_SEQ_STATUS status;
	IdemRefused *entry;

	if (queue == NULL)
		return;
	/* an entry that the scan has just returned may be removed */
	LWLockAcquire(lock, LW_EXCLUSIVE);
	hash_seq_init(&status, entries);
	while ((entry = hash_seq_search(&status)) != NULL)
		if (entry->subject.database == database)
			(void) hash_search(entries, &entry->subject, HASH_REMOVE, NULL);
	LWLockRelease(lock);
}

/* What a clean restart keeps, in its order. */
static Size
keep(void *data)
{
	return copy_queue(data, InvalidOid) * sizeof(IdemRefused);
}

static void
resume(const void *data, Size size)
{
	const IdemRefused *kept = data;
	int			i;

	/* in their order, so that their serials have it, too */
	for (i = 0; i < size / sizeof(IdemRefused); i++)
	{
		IdemRefused *entry = enter(&kept[i].subject, kept[i].first_at);

		if (entry == NULL)
			continue;
		entry->count = kept[i].count;
		entry->last_at = kept[i].last_at;
	}
}

static void
start(void *memory, LWLock *its_lock, bool found)
{
	HASHCTL		ctl = {
		.keysize = sizeof(IdemRefusalSubject),
		.entrysize = sizeof(IdemRefused)
	};

	/* each process has its own head of the table, and attaches to the rest */
	entries = idem_compat_shmem_hash(NAME " hash", MAX_REFUSALS, &ctl,
									 HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	queue = memory;
	lock = its_lock;
	if (!found)
		memset(queue, 0, sizeof(*queue));
}

/*
 * idem_refusals_init
 *		Ask for the memory; once, while libraries are preloaded.
 */
void
idem_refusals_init(void)
{
	static IdemShmemArea area = {
		.name = NAME,
		.size = sizeof(RefusalQueue),
		.start = start,
		.file = PGSTAT_STAT_PERMANENT_DIRECTORY "/idempotency.refusals",
		.magic = 0x1DE10002,	/* changes with IdemRefused */
		.room = MAX_REFUSALS * sizeof(IdemRefused),
		.keep = keep,
		.resume = resume
	};

	area.hash_size = hash_estimate_size(MAX_REFUSALS, sizeof(IdemRefused));
	idem_shmem_add(&area);
}
