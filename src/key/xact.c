/*-------------------------------------------------------------------------
 *
 * xact.c
 *	  What the running transaction has claimed and is running.
 *
 * Owns the only state that outlives a call, all of it gone with the
 * transaction: the number of claims it leaves in progress, those among them
 * that it must not leave so, and the chain of running idem_run calls.  Nothing
 * here is needed for a decision but that chain; the row of a claim says itself
 * which transaction made it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/bytes.h"
#include "base/citus.h"
#include "base/digest.h"
#include "key/xact.h"

/*
 * Claims made less claims finished, at one nesting level.  A savepoint rolled
 * back takes its level with it, whatever was done in it; a released one is
 * added to the level outside.  A level may be negative: it finished what an
 * outer one claimed.
 */
typedef struct OpenClaims
{
	int			level;
	int64		count;
	int64		guarded;		/* of them, with on_unfinished = 'error' */
	struct OpenClaims *outer;
} OpenClaims;

/* Names a claim in the set below. */
typedef struct GuardedClaim
{
	uint8		digest[IDEM_DIGEST_BYTES];
} GuardedClaim;

static OpenClaims *open_claims = NULL;	/* in TopTransactionContext */

/*
 * The claims of this transaction that were counted as guarded, finished or not.
 * Their policy may change before they are finished, and then says no more what
 * was counted.
 */
static HTAB *guarded_claims = NULL; /* in TopTransactionContext */
static char *guarded_name;		/* of the first, for the message */

static IdemXactRun *running = NULL;

#define UNIX_EPOCH_OFFSET \
	((POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

static OpenClaims *
open_claims_here(void)
{
	int			level = GetCurrentTransactionNestLevel();

	/* lives as long as the transaction, and is unlinked with its level */
	if (open_claims == NULL || open_claims->level < level)
	{
		OpenClaims *inner = MemoryContextAlloc(TopTransactionContext,
											   sizeof(OpenClaims));

		inner->level = level;
		inner->count = 0;
		inner->guarded = 0;
		inner->outer = open_claims;
		open_claims = inner;
	}
	return open_claims;
}

/* A claim as the set has it: a key may be claimed twice, but not a token. */
static void
name_claim(const IdemKey *id, int64 token, GuardedClaim *claim)
{
	int			scope_len = VARSIZE_ANY_EXHDR(id->scope);
	int			key_len = VARSIZE_ANY_EXHDR(id->key);
	char	   *name;
	char	   *end;

	/* a row that its table's owner wrote may be longer than what we let in */
	name = end = palloc(sizeof(token) + sizeof(scope_len) + scope_len + key_len);
	memcpy(end, &token, sizeof(token));
	end += sizeof(token);
	memcpy(end, &scope_len, sizeof(scope_len));
	end += sizeof(scope_len);
	memcpy(end, VARDATA_ANY(id->scope), scope_len);
	end += scope_len;
	memcpy(end, VARDATA_ANY(id->key), key_len);
	end += key_len;
	idem_digest(name, end - name, claim->digest);
	pfree(name);
}

static void
guard(const IdemKey *id, int64 token)
{
	GuardedClaim claim;

	if (guarded_claims == NULL)
	{
		HASHCTL		info = {0};

		info.keysize = sizeof(GuardedClaim);
		info.entrysize = sizeof(GuardedClaim);
		info.hcxt = TopTransactionContext;
		guarded_name = MemoryContextStrdup(TopTransactionContext,
										   idem_digest_key(id));
		guarded_claims = hash_create("claims that must not stay unfinished",
									 16, &info,
									 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	name_claim(id, token, &claim);
	(void) hash_search(guarded_claims, &claim, HASH_ENTER, NULL);
}

static bool
is_guarded(const IdemKey *id, int64 token)
{
	GuardedClaim claim;

	if (guarded_claims == NULL)
		return false;
	name_claim(id, token, &claim);
	return hash_search(guarded_claims, &claim, HASH_FIND, NULL) != NULL;
}

/*
 * idem_xact_opened
 *		This transaction has made a claim; guarded: with which it must not
 *		commit.
 */
void
idem_xact_opened(const IdemKey *id, const IdemRow *row, bool guarded)
{
	OpenClaims *here = open_claims_here();

	if (guarded)
	{
		guard(id, row->token);
		here->guarded++;
	}
	here->count++;
}

/*
 * idem_xact_closed
 *		A claim of this transaction is in progress no more.
 */
void
idem_xact_closed(const IdemKey *id, const IdemRow *row)
{
	OpenClaims *here = open_claims_here();

	here->count--;
	if (is_guarded(id, row->token))
		here->guarded--;
}

static void
forget_transaction(void)
{
	open_claims = NULL;
	guarded_claims = NULL;
	running = NULL;
}

/*
 * Before COMMIT or PREPARE TRANSACTION: ID011 when a claim would stay behind
 * that must not.  The transaction is aborted by it, and the key is free.
 * Returns the number of claims that may stay.
 */
static int64
check_unfinished(void)
{
	OpenClaims *level;
	int64		count = 0;
	int64		guarded = 0;

	for (level = open_claims; level != NULL; level = level->outer)
	{
		count += level->count;
		guarded += level->guarded;
	}
	if (guarded > 0)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_UNFINISHED),
				 errmsg_plural("transaction cannot be committed with " INT64_FORMAT " unfinished claim",
							   "transaction cannot be committed with " INT64_FORMAT " unfinished claims",
							   (unsigned long) guarded, guarded),
				 hash_get_num_entries(guarded_claims) == 1 ?
				 errdetail("The claim on %s was made under a policy with \"on_unfinished\" = \"error\".",
						   guarded_name) :
				 errdetail("They were made under a policy with \"on_unfinished\" = \"error\"."),
				 errhint("Finish each claim by idem_complete(), idem_fail() or idem_release() in the transaction that made it, or roll back.")));
	return count;
}

/* PREPARE TRANSACTION and COMMIT PREPARED flush by themselves. */
static void
at_transaction_event(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_PREPARE:
			(void) check_unfinished();
			break;
		case XACT_EVENT_PRE_COMMIT:

			/*
			 * The holder of a claim acts outside as soon as COMMIT returns; a
			 * crash must not make the server forget that.  t/001_crash.pl
			 */
			if (check_unfinished() > 0)
				ForceSyncCommit();
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			forget_transaction();
			break;
		default:
			break;
	}
}

static void
at_subtransaction_event(SubXactEvent event, SubTransactionId mine,
						SubTransactionId parent, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();
	OpenClaims *inner = open_claims;

	/* nothing was claimed or finished at this level */
	if (inner == NULL || inner->level < level)
		return;

	/* the rows of the level are gone with it; spec: finish-savepoint */
	if (event == SUBXACT_EVENT_ABORT_SUB)
		open_claims = inner->outer;
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		if (inner->outer != NULL && inner->outer->level == level - 1)
		{
			inner->outer->count += inner->count;
			inner->outer->guarded += inner->guarded;
			open_claims = inner->outer;
		}
		else
			inner->level = level - 1;
	}
}

/*
 * idem_xact_now
 *		The wall clock, but not before the start of the transaction: then
 *		every token made by this transaction is at least its start, which
 *		idem_xact_owns() relies on when the clock is set back in between.
 */
TimestampTz
idem_xact_now(void)
{
	return Max(GetCurrentTimestamp(), GetCurrentTransactionStartTimestamp());
}

/*
 * idem_xact_token
 *		A token greater than the last one: microseconds since 1970.
 */
int64
idem_xact_token(TimestampTz now, int64 last)
{
	return Max(now + UNIX_EPOCH_OFFSET, last + 1);
}

/*
 * idem_xact_owns
 *		Whether this very transaction made the claim.
 *
 * A restored row has the transaction id of another cluster, which may be ours
 * by chance; its token, or where nobody was given one its beginning, is from
 * before this transaction began.
 */
bool
idem_xact_owns(const IdemRow *row)
{
	FullTransactionId mine = GetTopFullTransactionIdIfAny();

	/* a transaction without an id has written nothing, and so claimed nothing */
	return FullTransactionIdIsValid(mine) &&
		idem_citus_xid(mine) == row->claim_xid &&
		(row->token == IDEM_NO_TOKEN ? row->created_at :
		 row->token - UNIX_EPOCH_OFFSET) >= GetCurrentTransactionStartTimestamp();
}

/*
 * idem_xact_push_run, idem_xact_pop_run
 *		An idem_run begins and ends; the caller pops on error, too.
 */
void
idem_xact_push_run(IdemXactRun *run, const IdemKey *id)
{
	run->id = id;
	run->outer = running;
	running = run;
}

void
idem_xact_pop_run(IdemXactRun *run)
{
	running = run->outer;
}

/*
 * idem_xact_is_running
 *		Whether an idem_run of this transaction works on the key: it has no
 *		row yet.
 */
bool
idem_xact_is_running(const IdemKey *id)
{
	IdemXactRun *run;

	for (run = running; run != NULL; run = run->outer)
		if (idem_bytes_equal(idem_bytes_of(run->id->key), idem_bytes_of(id->key)) &&
			idem_bytes_equal(idem_bytes_of(run->id->scope), idem_bytes_of(id->scope)))
			return true;
	return false;
}

/*
 * idem_xact_running_keys
 *		The keys of a scope that idem_run works on in this transaction, as an
 *		array.
 */
Datum
idem_xact_running_keys(const text *scope)
{
	ArrayBuildState *keys = initArrayResult(TEXTOID, CurrentMemoryContext,
											false);
	IdemXactRun *run;

	for (run = running; run != NULL; run = run->outer)
		if (idem_bytes_equal(idem_bytes_of(run->id->scope), idem_bytes_of(scope)))
			keys = accumArrayResult(keys, PointerGetDatum(run->id->key), false,
									TEXTOID, CurrentMemoryContext);
	return makeArrayResult(keys, CurrentMemoryContext);
}

/*
 * idem_xact_init
 *		Register the callbacks; once in a process.
 */
void
idem_xact_init(void)
{
	RegisterXactCallback(at_transaction_event, NULL);
	RegisterSubXactCallback(at_subtransaction_event, NULL);
}
