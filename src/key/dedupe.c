/*-------------------------------------------------------------------------
 *
 * dedupe.c
 *	  The inbox of a message consumer: many keys in one call.
 *
 * Takes no key lock: there may be a hundred thousand keys.  They are settled in
 * one global order, that of their bytes, each before the next, and a call never
 * waits for a key below one that it has written.  So two calls cannot wait for
 * one another.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "audit/log.h"
#include "base/args.h"
#include "base/bytes.h"
#include "base/counters.h"
#include "key/claim.h"
#include "key/lifetime.h"
#include "key/name.h"
#include "key/owner.h"
#include "key/response.h"
#include "key/xact.h"
#include "store/store.h"

typedef enum DedupeState
{
	DEDUPE_NEW,					/* has no row, as far as we have seen */
	DEDUPE_FREE,				/* has a row whose time is over */
	DEDUPE_SETTLED				/* decided */
} DedupeState;

/* A key of the call; of equal ones only the first is worked on. */
typedef struct DedupeKey
{
	IdemStoreItem item;			/* as it is stored */
	text	   *given;			/* as the caller spells it */
	DedupeState state;
	bool		first;
} DedupeKey;

typedef struct IdemDedupe
{
	IdemClaim	claim;
	IdemRow		written;		/* for each key that has no row; that of the
								 * claim has the token, too */
	DedupeKey  *keys;			/* in the order of the call */
	DedupeKey **sorted;			/* by bytes, then in the order of the call */
	IdemStoreItem **items;		/* room for as many */
	int			nkeys;
} IdemDedupe;

static int
compare_texts(const text *a, const text *b)
{
	return idem_bytes_compare(idem_bytes_of(a), idem_bytes_of(b));
}

static int
compare_keys(const void *a, const void *b)
{
	const DedupeKey *x = *(DedupeKey *const *) a;
	const DedupeKey *y = *(DedupeKey *const *) b;
	int			order = compare_texts(x->item.key, y->item.key);

	/* the order of the call is that of the addresses */
	return order != 0 ? order : x < y ? -1 : x > y;
}

static IdemKey
id_of(const IdemDedupe *dedupe, const DedupeKey *key)
{
	IdemKey		id;

	id.scope = dedupe->claim.id.scope;
	id.key = key->item.key;
	return id;
}

/*
 * The keys of the call, and sorted; ID012.  A repeated one is settled from the
 * start, as is the key of an idem_run in whose handler we are.
 */
static void
read_keys(IdemDedupe *dedupe, ArrayType *array)
{
	Datum	   *values;
	bool	   *nulls;
	int			i;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT,
					  &values, &nulls, &dedupe->nkeys);
	dedupe->keys = palloc0(sizeof(DedupeKey) * Max(dedupe->nkeys, 1));
	dedupe->sorted = palloc(sizeof(DedupeKey *) * Max(dedupe->nkeys, 1));
	dedupe->items = palloc(sizeof(IdemStoreItem *) * Max(dedupe->nkeys, 1));
	for (i = 0; i < dedupe->nkeys; i++)
	{
		DedupeKey  *key = &dedupe->keys[i];

		key->given = nulls[i] ? NULL : DatumGetTextPP(values[i]);
		/* two spellings of one UUID are one key, and given back as they came */
		key->item.key = idem_name_format_key(key->given,
											 &dedupe->claim.policy);
		dedupe->sorted[i] = key;
	}
	qsort(dedupe->sorted, dedupe->nkeys, sizeof(DedupeKey *), compare_keys);
	for (i = 0; i < dedupe->nkeys; i++)
	{
		DedupeKey  *key = dedupe->sorted[i];
		IdemKey		id = id_of(dedupe, key);
		bool		repeated = i > 0 &&
		compare_texts(key->item.key, dedupe->sorted[i - 1]->item.key) == 0;

		key->state = repeated || idem_xact_is_running(&id) ?
			DEDUPE_SETTLED : DEDUPE_NEW;
	}
}

/* List the new ones of some keys, in order; how many. */
static int
list_new(IdemDedupe *dedupe, DedupeKey **keys, int nkeys)
{
	int			count = 0;
	int			i;

	for (i = 0; i < nkeys; i++)
		if (keys[i]->state == DEDUPE_NEW)
			dedupe->items[count++] = &keys[i]->item;
	return count;
}

/* Settle a key: first, with the row that was written, or not, with NULL. */
static void
settle(IdemDedupe *dedupe, DedupeKey *key, const IdemRow *row)
{
	key->state = DEDUPE_SETTLED;
	key->first = row != NULL;
	if (row != NULL && dedupe->claim.row_policy.audit)
	{
		IdemKey		id = id_of(dedupe, key);

		idem_audit_transition("completed", &id, row);
	}
}

/* The attempt that a key with a row would have; 0 when it is not free. */
static int32
free_attempt(const IdemPolicy *policy, IdemState state, int32 attempt,
			 TimestampTz expires_at, TimestampTz purge_at)
{
	IdemFound	found = {.exists = true};

	found.state = state;
	found.attempt = attempt;
	found.expires_at = expires_at;
	found.purge_at = purge_at;
	found.reject_expired = policy->reject_expired;
	found.tombstone = policy->tombstone;
	return idem_decide_free_attempt(&found, idem_xact_now());
}

/* Look at the rows of the new ones of some keys: those are not new. */
static void
look(IdemDedupe *dedupe, DedupeKey **keys, int nkeys)
{
	int			count = list_new(dedupe, keys, nkeys);
	const text *name = NULL;
	const text *permitted = NULL;
	IdemPolicy	policy;
	int			i;

	idem_store_read_many(&dedupe->claim.store, dedupe->claim.id.scope,
						 dedupe->items, count);
	idem_policy_get_stored(name, &policy);
	for (i = 0; i < nkeys; i++)
	{
		const IdemStoreItem *item = &keys[i]->item;
		IdemKey		id = id_of(dedupe, keys[i]);

		if (keys[i]->state != DEDUPE_NEW || !item->found)
			continue;
		/* most rows are of one policy, and of one role */
		if (!idem_bytes_equal(idem_bytes_of(name), idem_bytes_of(item->policy)))
			idem_policy_get_stored(item->policy, &policy);
		name = item->policy;
		if (free_attempt(&policy, item->state, 0, item->expires_at,
						 item->purge_at) > 0)
		{
			keys[i]->state = DEDUPE_FREE;
			continue;
		}
		if (permitted == NULL || compare_texts(permitted, item->claimed_by) != 0)
			idem_owner_require(&id, item->claimed_by, &policy);
		permitted = item->claimed_by;
		settle(dedupe, keys[i], NULL);
	}
}

/* Insert the new ones of some keys; the others of them stay as they are. */
static void
insert_new(IdemDedupe *dedupe, DedupeKey **keys, int nkeys)
{
	int			count = list_new(dedupe, keys, nkeys);
	int			i;

	idem_store_insert_many(&dedupe->claim.store, dedupe->claim.id.scope,
						   dedupe->items, count, &dedupe->written);
	for (i = 0; i < nkeys; i++)
		if (keys[i]->state == DEDUPE_NEW && keys[i]->item.inserted)
			settle(dedupe, keys[i], &dedupe->claim.row);
}

/* Settle a key whose row is locked: it may be taken meanwhile. */
static void
settle_row(IdemDedupe *dedupe, DedupeKey *key, const IdemRow *old)
{
	IdemKey		id = id_of(dedupe, key);
	IdemRow		row = dedupe->claim.row;
	IdemPolicy	policy;

	/* it was free when we looked; the lock may have been waited for since */
	idem_policy_get_stored(old->policy, &policy);
	row.attempt = free_attempt(&policy, old->state, old->attempt,
							   old->expires_at, old->purge_at);
	if (row.attempt == 0)
	{
		idem_owner_require(&id, old->claimed_by, &policy);
		settle(dedupe, key, NULL);
		return;
	}
	row.token = idem_xact_token(dedupe->claim.now, old->token);
	idem_store_update(&dedupe->claim.store, &id, &row);
	settle(dedupe, key, &row);
}

/* Settle a key that is out of order: higher ones have been written. */
static void
settle_late(IdemDedupe *dedupe, DedupeKey *key)
{
	IdemKey		id = id_of(dedupe, key);
	IdemStoreTaken taken;
	IdemRow		old;
	int			tries;

	/*
	 * A rival may hold this key and wait for one that we have written:
	 * waiting for it could be a deadlock.  If it cannot be had at once, all
	 * is to be done again.  Spec: dedupe-late.
	 */
	for (tries = 0; tries < IDEM_MAX_TRIES; tries++)
	{
		taken = idem_store_try_lock(&dedupe->claim.store, &id, &old);
		if (taken == IDEM_STORE_ROW)
		{
			settle_row(dedupe, key, &old);
			return;
		}
		if (taken == IDEM_STORE_BUSY)
			break;
		if (idem_store_insert(&dedupe->claim.store, &id, &dedupe->written))
		{
			settle(dedupe, key, &dedupe->claim.row);
			return;
		}
	}
	idem_claim_too_many_tries(&id);
}

/* Settle a run of new keys. */
static void
settle_new(IdemDedupe *dedupe, DedupeKey **keys, int nkeys)
{
	int			i;

	insert_new(dedupe, keys, nkeys);

	/*
	 * Those that a rival was faster with have a row now, or had one, that has
	 * expired, or was released, forgotten or swept before this look.  Specs:
	 * dedupe-order, dedupe-sweep.
	 */
	look(dedupe, keys, nkeys);
	for (i = 0; i < nkeys; i++)
		if (keys[i]->state != DEDUPE_SETTLED)
			settle_late(dedupe, keys[i]);
}

/* Settle a key whose row seemed to be free: it may be taken, or swept. */
static void
settle_free(IdemDedupe *dedupe, DedupeKey *key)
{
	IdemKey		id = id_of(dedupe, key);
	int			tries;

	for (tries = 0; tries < IDEM_MAX_TRIES; tries++)
	{
		IdemRow		old;

		/* may be waited for: no key above it has been written */
		if (idem_store_lock(&dedupe->claim.store, &id, &old))
		{
			settle_row(dedupe, key, &old);
			return;
		}
		key->state = DEDUPE_NEW;
		insert_new(dedupe, &key, 1);
		if (key->state == DEDUPE_SETTLED)
			return;
	}
	idem_claim_too_many_tries(&id);
}

static void
settle_all(IdemDedupe *dedupe)
{
	DedupeKey **keys = dedupe->sorted;
	int			i = 0;

	look(dedupe, keys, dedupe->nkeys);
	while (i < dedupe->nkeys)
	{
		int			begin = i;
		bool		any = false;

		/* a run of new keys ends before the next one that is free */
		for (; i < dedupe->nkeys && keys[i]->state != DEDUPE_FREE; i++)
			any = any || keys[i]->state == DEDUPE_NEW;
		if (any)
			settle_new(dedupe, &keys[begin], i - begin);
		if (i < dedupe->nkeys)
			settle_free(dedupe, keys[i++]);
	}
}

/* The row that every first key gets: done, with no answer. */
static void
make_row(IdemDedupe *dedupe)
{
	IdemClaim  *claim = &dedupe->claim;
	IdemResponse answer;

	claim->now = idem_xact_now();
	claim->decision.verdict = IDEM_CLAIM_FRESH;
	claim->decision.attempt = 1;
	idem_claim_fill(claim);
	/* written finished: there is no lease, and purge_at no bound for a finish */
	claim->row.lease_until = DT_NOBEGIN;
	claim->row.purge_at = DT_NOBEGIN;
	idem_response_init(&answer, IDEM_STATUS_OK);
	idem_response_store(&answer, &claim->row);
	idem_lifetime_finish(&claim->row_policy, &claim->row, IDEM_STATE_COMPLETED, -1,
						 claim->now);

	/* nobody is given the token, which only the log shows */
	dedupe->written = claim->row;
	dedupe->written.token = IDEM_NO_TOKEN;
}

static void
put_result(FunctionCallInfo fcinfo, IdemDedupe *dedupe)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int			counters = dedupe->claim.policy.counters;
	int			nfirst = 0;
	int			i;

	InitMaterializedSRF(fcinfo, 0);
	for (i = 0; i < dedupe->nkeys; i++)
	{
		Datum		values[3];
		bool		nulls[3] = {0};

		values[0] = Int64GetDatum((int64) i + 1);
		values[1] = PointerGetDatum(dedupe->keys[i].given);
		values[2] = BoolGetDatum(dedupe->keys[i].first);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		nfirst += dedupe->keys[i].first;
	}
	/* they are counted by now, so that none may be on top of the cap */
	if (nfirst > 0)
		idem_claim_check_cap(&dedupe->claim, 0);
	idem_counters_add(counters, IDEM_COUNT_CLAIMED, nfirst);
	idem_counters_add(counters, IDEM_COUNT_COMPLETED, nfirst);
	idem_counters_add(counters, IDEM_COUNT_DUPLICATE, dedupe->nkeys - nfirst);
}

IDEM_FUNCTION(idem_dedupe);

/*
 * idem_dedupe(scope text, keys text[], policy text)
 *		RETURNS TABLE (ord bigint, key text, first boolean)
 *		Mark keys as done and say which of them came for the first time.
 *
 * Gives each key as the caller spells it, which may join it to a message.
 * Raises 22004, 22023, 25006, 40001, 40P01 (with other calls in the same
 * transaction), 42501, 42704, ID009, ID012, XX001.  Holds the rows that it
 * wrote.
 */
Datum
idem_dedupe(PG_FUNCTION_ARGS)
{
	IdemDedupe	dedupe;

	idem_args_require_writable();
	memset(&dedupe, 0, sizeof(dedupe));
	idem_claim_begin(&dedupe.claim, idem_name_scope(fcinfo, 0),
					 idem_args_text(fcinfo, 2, "policy"));
	idem_args_require(fcinfo, 1, "keys");
	read_keys(&dedupe, PG_GETARG_ARRAYTYPE_P(1));
	make_row(&dedupe);
	settle_all(&dedupe);
	idem_store_close(&dedupe.claim.store);
	put_result(fcinfo, &dedupe);
	return (Datum) 0;
}
