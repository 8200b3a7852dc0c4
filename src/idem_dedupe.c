/*-------------------------------------------------------------------------
 *
 * idem_dedupe.c
 *	  The inbox of a message consumer: many keys in one call.
 *
 * Takes no key lock.  Keys are written in one global order, that of their
 * bytes: first all new ones are inserted, then expired ones are claimed
 * afresh, each in order.  A call in its first part waits for rivals in
 * either, one in its second only for rivals in their second, so two calls
 * cannot wait for one another.  Spec: dedupe-order.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "idem_answer.h"
#include "idem_args.h"
#include "idem_audit.h"
#include "idem_claim.h"
#include "idem_digest.h"
#include "idem_role.h"
#include "idem_store.h"
#include "idem_xact.h"

/* A key of the call; of equal ones only the first is worked on. */
typedef struct DedupeKey
{
	text	   *key;			/* in the form of the policy */
	int			ord;			/* place in the array, from 0 */
	bool		pending;		/* not yet decided */
	bool		free;			/* pending, and its row seems to be free */
	bool		first;
} DedupeKey;

typedef struct IdemDedupe
{
	IdemClaim	claim;			/* its row is the one to write for each key */
	DedupeKey  *keys;			/* sorted by bytes, then by place */
	int			nkeys;
} IdemDedupe;

static int
compare_text(const text *a, const text *b)
{
	int			alen = VARSIZE_ANY_EXHDR(a);
	int			blen = VARSIZE_ANY_EXHDR(b);
	int			order = memcmp(VARDATA_ANY(a), VARDATA_ANY(b), Min(alen, blen));

	return order != 0 ? order : alen - blen;
}

static int
compare_keys(const void *a, const void *b)
{
	const DedupeKey *x = a;
	const DedupeKey *y = b;
	int			order = compare_text(x->key, y->key);

	return order != 0 ? order : x->ord - y->ord;
}

/* The key of the array, checked; 22004, 22023. */
static text *
check_key(const IdemDedupe *dedupe, Datum value, bool isnull)
{
	text	   *key;

	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"keys\" must not contain a null"),
				 errhint("Give a key for each message.")));
	key = idem_args_format_key(DatumGetTextPP(value), &dedupe->claim.policy);
	return key;
}

/* The keys of the call, sorted, each distinct one pending once. */
static void
read_keys(IdemDedupe *dedupe, ArrayType *array)
{
	Datum	   *values;
	bool	   *nulls;
	int			i;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT,
					  &values, &nulls, &dedupe->nkeys);
	dedupe->keys = palloc(sizeof(DedupeKey) * Max(dedupe->nkeys, 1));
	for (i = 0; i < dedupe->nkeys; i++)
	{
		dedupe->keys[i].key = check_key(dedupe, values[i], nulls[i]);
		dedupe->keys[i].ord = i;
		dedupe->keys[i].free = false;
		dedupe->keys[i].first = false;
	}
	qsort(dedupe->keys, dedupe->nkeys, sizeof(DedupeKey), compare_keys);
	for (i = 0; i < dedupe->nkeys; i++)
	{
		IdemKey		id;

		id.scope = dedupe->claim.id.scope;
		id.key = dedupe->keys[i].key;
		dedupe->keys[i].pending =
			(i == 0 || compare_text(id.key, dedupe->keys[i - 1].key) != 0) &&
			!idem_xact_is_running(&id);
	}
}

/* The pending keys as an array, in order; how many. */
static int
pending_keys(const IdemDedupe *dedupe, ArrayType **array)
{
	Datum	   *values = palloc(sizeof(Datum) * Max(dedupe->nkeys, 1));
	int			count = 0;
	int			i;

	for (i = 0; i < dedupe->nkeys; i++)
		if (dedupe->keys[i].pending)
			values[count++] = PointerGetDatum(dedupe->keys[i].key);
	*array = construct_array(values, count, TEXTOID, -1, false, TYPALIGN_INT);
	pfree(values);
	return count;
}

static DedupeKey *
find_key(const IdemDedupe *dedupe, text *key)
{
	int			low = 0;
	int			high = dedupe->nkeys - 1;

	/* the lowest of equal ones, which is the one that is worked on */
	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (compare_text(dedupe->keys[middle].key, key) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	if (low > high || compare_text(dedupe->keys[low].key, key) != 0)
		elog(ERROR, "idem_dedupe read a key that it did not ask for");
	return &dedupe->keys[low];
}

static void
decide_first(IdemDedupe *dedupe, DedupeKey *key, bool first)
{
	key->pending = false;
	key->free = false;
	key->first = first;
	if (first && dedupe->claim.row_policy.audit)
	{
		IdemKey		id;

		id.scope = dedupe->claim.id.scope;
		id.key = key->key;
		idem_audit_transition("completed", &id, &dedupe->claim.row);
	}
}

/* Soft, as for idem_claim: the keys of the call that turned out new. */
static void
check_live_keys(const IdemDedupe *dedupe, int inserted)
{
	const IdemClaim *claim = &dedupe->claim;
	int64		limit = claim->policy.max_live_keys;

	if (limit > 0 && inserted > 0 &&
		idem_store_count_live(claim->id.scope, claim->now, limit + 1) > limit)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_TOO_MANY_KEYS),
				 errmsg("scope %s holds as many live keys as policy \"%s\" allows",
						idem_digest_log_id(claim->id.scope),
						NameStr(claim->policy.name)),
				 errhint("Wait until keys expire, or raise \"max_live_keys\" of the policy.")));
}

/* First part: insert all that are new. */
static void
insert_new(IdemDedupe *dedupe, ArrayType *pending, int count)
{
	text	  **inserted = palloc(sizeof(text *) * count);
	int			ninserted;
	int			i;

	ninserted = idem_store_insert_many(dedupe->claim.id.scope, pending,
									   &dedupe->claim.row, inserted);
	check_live_keys(dedupe, ninserted);
	for (i = 0; i < ninserted; i++)
		decide_first(dedupe, find_key(dedupe, inserted[i]), true);
	pfree(inserted);
}

/* Whether a key that has a row is free: released, or expired for good. */
static bool
is_free(const IdemStoreBrief *brief, TimestampTz now)
{
	IdemPolicy	policy;
	IdemFound	found;
	IdemAsked	asked;

	idem_policy_get_stored(brief->policy, &policy);
	memset(&found, 0, sizeof(found));
	memset(&asked, 0, sizeof(asked));
	found.exists = true;
	found.state = brief->state;
	found.lease_until = DT_NOEND;	/* an ended lease frees no message */
	found.expires_at = brief->expires_at;
	found.purge_at = brief->purge_at;
	found.reject_expired = policy.reject_expired;
	found.tombstone = policy.tombstone;
	asked.now = now;
	return idem_state_decide(&found, &asked).verdict == IDEM_CLAIM_FRESH;
}

/* Second part: a key whose time is over is first again, if it still is. */
static void
renew(IdemDedupe *dedupe, DedupeKey *key)
{
	IdemKey		id;
	IdemRow		old;
	IdemRow		row = dedupe->claim.row;
	IdemStoreBrief brief;

	id.scope = dedupe->claim.id.scope;
	id.key = key->key;
	key->free = false;
	if (!idem_store_lock(&id, &old))
		return;					/* swept: insert it in the next round */
	brief.state = old.state;
	brief.expires_at = old.expires_at;
	brief.purge_at = old.purge_at;
	brief.policy = old.policy;
	if (is_free(&brief, idem_xact_now()))
	{
		row.token = idem_xact_token(dedupe->claim.now, old.token);
		idem_store_update(&id, &row);
		decide_first(dedupe, key, true);
		return;
	}
	idem_role_require(&id, old.claimed_by);
	decide_first(dedupe, key, false);
}

/* Look at the rows that were in the way of the first part. */
static void
look_at_rest(IdemDedupe *dedupe)
{
	ArrayType  *pending;
	int			count = pending_keys(dedupe, &pending);
	IdemStoreBrief *found;
	int			i;

	if (count == 0)
		return;
	found = palloc(sizeof(IdemStoreBrief) * count);
	count = idem_store_read_many(dedupe->claim.id.scope, pending, found);
	for (i = 0; i < count; i++)
	{
		DedupeKey  *key = find_key(dedupe, found[i].key);
		IdemKey		id;

		key->free = is_free(&found[i], idem_xact_now());
		if (key->free)
			continue;
		id.scope = dedupe->claim.id.scope;
		id.key = key->key;
		idem_role_require(&id, found[i].claimed_by);
		decide_first(dedupe, key, false);
	}
	for (i = 0; i < dedupe->nkeys; i++)
		if (dedupe->keys[i].free)
			renew(dedupe, &dedupe->keys[i]);
	pfree(found);
}

/* The row that every first key gets: done, with no answer. */
static void
make_row(IdemDedupe *dedupe)
{
	IdemClaim  *claim = &dedupe->claim;
	IdemAnswer	answer;

	claim->now = idem_xact_now();
	claim->decision.verdict = IDEM_CLAIM_FRESH;
	claim->decision.attempt = 1;
	idem_claim_fill(claim);
	claim->row.lease_until = claim->now;
	claim->row.purge_at = claim->now;
	idem_answer_init(&answer, 200);
	idem_answer_store(&answer, &claim->row);
	idem_answer_finish(&claim->row_policy, &claim->row, IDEM_STATE_COMPLETED,
					   claim->now);
}

static int
compare_places(const void *a, const void *b)
{
	return ((const DedupeKey *) a)->ord - ((const DedupeKey *) b)->ord;
}

static void
put_result(FunctionCallInfo fcinfo, IdemDedupe *dedupe)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int			i;

	InitMaterializedSRF(fcinfo, 0);
	qsort(dedupe->keys, dedupe->nkeys, sizeof(DedupeKey), compare_places);
	for (i = 0; i < dedupe->nkeys; i++)
	{
		Datum		values[3];
		bool		nulls[3] = {0};

		values[0] = Int64GetDatum((int64) i + 1);
		values[1] = PointerGetDatum(dedupe->keys[i].key);
		values[2] = BoolGetDatum(dedupe->keys[i].first);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
}

IDEM_FUNCTION(idem_dedupe);

/*
 * idem_dedupe(scope text, keys text[], policy text)
 *		RETURNS TABLE (ord bigint, key text, first boolean)
 *		Mark keys as done and say which of them came for the first time.
 *
 * Raises 22004, 22023, 25006, 40001, 40P01 (with other calls in the same
 * transaction), 42501, 42704, ID009, XX001.  Holds the rows that it wrote.
 */
Datum
idem_dedupe(PG_FUNCTION_ARGS)
{
	IdemDedupe	dedupe;
	ArrayType  *pending;
	int			count;
	int			tries;

	idem_xact_require_writable();
	memset(&dedupe, 0, sizeof(dedupe));
	idem_claim_begin(&dedupe.claim, idem_args_scope(fcinfo, 0),
					 idem_args_text(fcinfo, 2, "policy"));
	idem_args_require(fcinfo, 1, "keys");
	read_keys(&dedupe, PG_GETARG_ARRAYTYPE_P(1));
	make_row(&dedupe);
	for (tries = 0; (count = pending_keys(&dedupe, &pending)) > 0; tries++)
	{
		if (tries == IDEM_MAX_TRIES)
		{
			dedupe.claim.id.key = dedupe.keys[0].key;
			idem_claim_too_many_tries(&dedupe.claim.id);
		}
		insert_new(&dedupe, pending, count);
		look_at_rest(&dedupe);
	}
	put_result(fcinfo, &dedupe);
	return (Datum) 0;
}
