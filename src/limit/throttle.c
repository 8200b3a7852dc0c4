/*-------------------------------------------------------------------------
 *
 * throttle.c
 *	  Rate limiting: taking from the bucket of a subject, and looking at it.
 *
 * Takes no lock but that of a partition of the buckets (bucket_table.c),
 * writes no row and no WAL, and works in a read-only transaction and on a
 * standby, which has buckets of its own.  What was taken stays taken when the
 * transaction aborts.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "audit/refusal_queue.h"
#include "base/args.h"
#include "base/counters.h"
#include "base/digest.h"
#include "limit/bucket_table.h"
#include "limit/limiter.h"
#include "limit/throttle.h"

/* The limiter of a name, and the bucket of a subject that is checked; 42704. */
static void
find_asked(const text *name, const text *subject, IdemLimiter *limiter,
		   IdemBucketKey *key)
{
	uint8		digest[IDEM_DIGEST_BYTES];

	idem_limiter_get(text_to_cstring(name), limiter);

	/* nothing else of the subject goes into shared memory */
	idem_digest(VARDATA_ANY(subject), VARSIZE_ANY_EXHDR(subject), digest);
	key->database = MyDatabaseId;
	key->limiter = limiter->id;
	memcpy(key->subject, digest, sizeof(key->subject));
}

/* The limiter and the subject, the first two arguments; 22004, 22023, 42704. */
static void
get_asked(FunctionCallInfo fcinfo, IdemLimiter *limiter, IdemBucketKey *key)
{
	text	   *name = idem_args_text(fcinfo, 0, "limiter");
	text	   *subject = idem_args_label(fcinfo, 1, "subject");

	find_asked(name, subject, limiter, key);
}

static Datum
put_result(FunctionCallInfo fcinfo, const IdemBucketResult *result)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Datum		values[] = {
		BoolGetDatum(result->allowed),
		Int32GetDatum(result->remaining),
		idem_args_interval(result->retry_after)
	};
	bool		nulls[] = {
		false, false,
		result->allowed || result->retry_after == PG_INT64_MAX
	};

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	return (Datum) 0;
}

/* A subject without a bucket, that is not to be refused for that. */
static void
allow_without_room(const IdemLimiter *limiter, int32 cost,
				   IdemBucketResult *result)
{
	IdemBucket	bucket;

	/*
	 * Full at every call and kept by nobody, so that any time will do for now
	 * (t/051_throttle_flood.pl).
	 */
	idem_bucket_init(&limiter->rule, &bucket, 0);
	idem_bucket_take(&limiter->rule, &bucket, 0, cost, result);
}

/* Take, count, and note a refusal; 55000. */
static void
take(const IdemLimiter *limiter, const IdemBucketKey *key, int32 cost,
	 IdemBucketResult *result)
{
	bool		room;

	idem_buckets_require();
	room = idem_buckets_take(key, &limiter->rule, cost, result);
	if (!room && limiter->allow_when_full)
		allow_without_room(limiter, cost, result);

	/*
	 * Counted at once and for good, as tokens are taken: an abort takes
	 * nothing back (t/050_throttle.pl).
	 */
	if (!room || !result->allowed)
		idem_counters_add(limiter->counters, IDEM_COUNT_THROTTLED, 1);
	if (!result->allowed)
		idem_refusals_note_limited(NameStr(limiter->name), &limiter->id,
								   key->subject, limiter->counters);
}

/*
 * idem_throttle_take
 *		What idem_throttle() does, of a cost and a subject that are checked;
 *		42704, 55000.
 */
void
idem_throttle_take(const text *name, const text *subject, int32 cost,
				   IdemBucketResult *result)
{
	IdemLimiter limiter;
	IdemBucketKey key;

	find_asked(name, subject, &limiter, &key);
	take(&limiter, &key, cost, result);
}

IDEM_FUNCTION(idem_throttle);

/*
 * idem_throttle(limiter text, subject text, cost integer DEFAULT 1)
 *		RETURNS TABLE (allowed boolean, remaining integer,
 *		retry_after interval)
 *		Take that many tokens from the bucket of a subject, all or none.  When
 *		to ask again is null where nothing was refused, and for a cost that the
 *		bucket can never have.
 *
 * Raises 22004, 22023 (negative cost, a subject empty or too long), 42704 and
 * 55000.  A refusal, and a call that found no room, is counted; a refusal is
 * noted for the audit log, if policy "default" has "audit".
 */
Datum
idem_throttle(PG_FUNCTION_ARGS)
{
	IdemLimiter limiter;
	IdemBucketKey key;
	IdemBucketResult result;
	int32		cost;

	idem_args_require(fcinfo, 2, "cost");
	cost = PG_GETARG_INT32(2);
	if (cost < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("cost must not be negative"),
				 errhint("Give the number of tokens to take; none can be given back.")));

	/* an unknown limiter is 42704, with buckets or without */
	get_asked(fcinfo, &limiter, &key);
	take(&limiter, &key, cost, &result);
	return put_result(fcinfo, &result);
}

IDEM_FUNCTION(idem_throttle_peek);

/*
 * idem_throttle_peek(limiter text, subject text) RETURNS TABLE (allowed
 *		boolean, remaining integer, retry_after interval)
 *		What idem_throttle() would say to a cost of 1.  Takes nothing, and
 *		counts nothing against the subject.
 *
 * Raises 22004, 22023, 42704, 55000.
 */
Datum
idem_throttle_peek(PG_FUNCTION_ARGS)
{
	IdemLimiter limiter;
	IdemBucketKey key;
	IdemBucketResult result;

	get_asked(fcinfo, &limiter, &key);
	idem_buckets_require();
	if (!idem_buckets_peek(&key, &limiter.rule, &result) &&
		limiter.allow_when_full)
		allow_without_room(&limiter, 0, &result);
	return put_result(fcinfo, &result);
}

/* Names of this database's limiters, with what stands for them in a key. */
typedef struct LimiterName
{
	uint64		id;
	const char *name;
} LimiterName;

static LimiterName *
get_names(int *number)
{
	List	   *rows = idem_rule_read(&idem_limiter_table, NULL);
	LimiterName *names = palloc(list_length(rows) * sizeof(LimiterName));
	ListCell   *cell;

	*number = 0;
	foreach(cell, rows)
	{
		const IdemRuleRow *row = lfirst(cell);
		LimiterName *each = &names[(*number)++];

		each->name = TextDatumGetCString(row->values[0]);
		each->id = idem_limiter_id(each->name);
	}
	return names;
}

static void
put_activity(ReturnSetInfo *rsinfo, const char *limiter,
			 const IdemBucketSeen *seen, const IdemBucketResult *now)
{
	Datum		values[] = {
		limiter != NULL ? CStringGetTextDatum(limiter) : (Datum) 0,
		CStringGetTextDatum(idem_digest_short(seen->key.subject)),
		Int32GetDatum(now->remaining),
		idem_args_interval(now->retry_after),
		Int64GetDatum(seen->allowed),
		Int64GetDatum(seen->refused),
		TimestampTzGetDatum(seen->bucket.last)
	};
	bool		nulls[lengthof(values)] = {limiter == NULL};

	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

IDEM_FUNCTION(idem_throttle_activity_values);

/*
 * idem_throttle_activity_values() RETURNS TABLE (limiter text, subject_id
 *		text, remaining integer, pause_left interval, allowed bigint, refused
 *		bigint, last_call timestamptz)
 *		The buckets of this database; none where there is no shared memory.  A
 *		limiter that has been dropped is null.
 */
Datum
idem_throttle_activity_values(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	IdemBucketSeen *copies;
	LimiterName *names;
	int			nnames;
	int			partitions;
	int			room;
	int			i;

	InitMaterializedSRF(fcinfo, 0);
	if (!idem_buckets_exist())
		return (Datum) 0;
	names = get_names(&nnames);
	partitions = idem_buckets_partitions(&room);
	copies = palloc(room * sizeof(IdemBucketSeen));
	for (i = 0; i < partitions; i++)
	{
		int			found = idem_buckets_copy(i, MyDatabaseId, copies);
		TimestampTz now = GetCurrentTimestamp();
		int			j;
		int			k;

		CHECK_FOR_INTERRUPTS();
		for (j = 0; j < found; j++)
		{
			IdemBucketSeen *seen = &copies[j];
			IdemBucketResult result;

			for (k = 0; k < nnames; k++)
				if (names[k].id == seen->key.limiter)
					break;
			idem_bucket_peek(&seen->rule, &seen->bucket, now, 0, &result);
			put_activity(rsinfo, k < nnames ? names[k].name : NULL, seen,
						 &result);
		}
	}
	return (Datum) 0;
}
