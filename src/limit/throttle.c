/*-------------------------------------------------------------------------
 *
 * throttle.c
 *	  Rate limiting: taking from the bucket of a subject, and looking at it.
 *
 * Takes no lock but those of partitions of the buckets (bucket_table.c),
 * writes no row and no WAL, and works in a read-only transaction and on a
 * standby, which has buckets of its own.  What was taken stays taken when the
 * transaction aborts.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/int.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

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

/* A cost that is checked; 22023. */
static int32
check_cost(int32 cost)
{
	if (cost < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("cost must not be negative"),
				 errhint("Give the number of tokens to take; idem_throttle_return() gives some back.")));
	return cost;
}

/* The cost, the third argument; 22004, 22023. */
static int32
get_cost(FunctionCallInfo fcinfo)
{
	idem_args_require(fcinfo, 2, "cost");
	return check_cost(PG_GETARG_INT32(2));
}

/* When to ask again, in milliseconds, upwards: not too early */
static Datum
make_wait(const IdemBucketResult *result, bool *isnull)
{
	int64		usec = result->retry_after;

	*isnull = result->allowed || usec == PG_INT64_MAX;
	return Int64GetDatum(usec / 1000 + (usec % 1000 > 0));
}

static Datum
put_result(FunctionCallInfo fcinfo, const IdemBucketResult *result)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Datum		values[] = {
		BoolGetDatum(result->allowed),
		Int32GetDatum(result->remaining),
		(Datum) 0
	};
	bool		nulls[lengthof(values)] = {false};

	values[2] = make_wait(result, &nulls[2]);
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
 *		retry_after_ms bigint)
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

	cost = get_cost(fcinfo);

	/* an unknown limiter is 42704, with buckets or without */
	get_asked(fcinfo, &limiter, &key);
	take(&limiter, &key, cost, &result);
	return put_result(fcinfo, &result);
}

IDEM_FUNCTION(idem_throttle_peek);

/*
 * idem_throttle_peek(limiter text, subject text, cost integer DEFAULT 1)
 *		RETURNS TABLE (allowed boolean, remaining integer,
 *		retry_after_ms bigint)
 *		What idem_throttle() would say.  Takes nothing, and counts nothing
 *		against the subject.
 *
 * Raises 22004, 22023, 42704, 55000.
 */
Datum
idem_throttle_peek(PG_FUNCTION_ARGS)
{
	IdemLimiter limiter;
	IdemBucketKey key;
	IdemBucketResult result;
	int32		cost;

	cost = get_cost(fcinfo);
	get_asked(fcinfo, &limiter, &key);
	idem_buckets_require();
	if (!idem_buckets_peek(&key, &limiter.rule, cost, &result) &&
		limiter.allow_when_full)
	{
		allow_without_room(&limiter, cost, &result);
		result.remaining = limiter.rule.capacity;	/* nothing was taken */
	}
	return put_result(fcinfo, &result);
}

IDEM_FUNCTION(idem_throttle_return);

/*
 * idem_throttle_return(limiter text, subject text, cost integer DEFAULT 1)
 *		RETURNS integer
 *		Give back what idem_throttle() took, at most up to the capacity; how
 *		much there is then.  No pause ends by it.  A subject without a bucket
 *		has all there can be.
 *
 * Raises 22004, 22023, 42704, 55000.
 */
Datum
idem_throttle_return(PG_FUNCTION_ARGS)
{
	IdemLimiter limiter;
	IdemBucketKey key;
	int32		cost = get_cost(fcinfo);

	get_asked(fcinfo, &limiter, &key);
	idem_buckets_require();
	PG_RETURN_INT32(idem_buckets_return(&key, &limiter.rule, cost));
}

/* Takes that are made together */
typedef struct ThrottleSet
{
	int			number;
	IdemLimiter limiters[IDEM_BUCKETS_MAX_SET];
	IdemBucketAsked asked[IDEM_BUCKETS_MAX_SET];
	IdemBucketTake takes[IDEM_BUCKETS_MAX_SET];
} ThrottleSet;

/* The elements of an array argument: 22004, 22023. */
static int
get_elements(FunctionCallInfo fcinfo, int argno, const char *name, Oid type,
			 Datum **elements)
{
	ArrayType  *array;
	bool	   *nulls;
	int			count;
	int			i;

	idem_args_require(fcinfo, argno, name);
	array = PG_GETARG_ARRAYTYPE_P(argno);
	count = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	if (ARR_NDIM(array) > 1 || count < 1 || count > IDEM_BUCKETS_MAX_SET)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be a plain array of 1 to %d elements",
						name, IDEM_BUCKETS_MAX_SET),
				 errhint("Give one element for each bucket to take from.")));
	deconstruct_array(array, type, type == TEXTOID ? -1 : sizeof(int32),
					  type != TEXTOID, TYPALIGN_INT, elements, &nulls, &count);
	for (i = 0; i < count; i++)
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("element %d of argument \"%s\" must not be null",
							i + 1, name),
					 errhint("Leave out a limiter that is not to be asked, in all of the arrays.")));
	return count;
}

/* Add to a set; the same bucket again is one take for the sum. */
static void
add_to_set(ThrottleSet *set, const text *name, const text *subject, int32 cost)
{
	IdemLimiter *limiter = &set->limiters[set->number];
	IdemBucketAsked *asked = &set->asked[set->number];
	IdemBucketTake *take = &set->takes[set->number];
	int			i;

	find_asked(name, subject, limiter, &asked->key);
	for (i = 0; i < set->number; i++)
		if (memcmp(&set->asked[i].key, &asked->key, sizeof(asked->key)) == 0)
		{
			/* beyond the largest cost it is above any capacity, as before */
			if (pg_add_s32_overflow(set->takes[i].cost, cost,
									&set->takes[i].cost))
				set->takes[i].cost = PG_INT32_MAX;
			return;
		}
	asked->allow_without_room = limiter->allow_when_full;
	take->rule = &limiter->rule;
	take->cost = cost;
	set->number++;
}

/* The arguments of idem_throttle_all(): 22004, 22023, 42704. */
static ThrottleSet *
get_set(FunctionCallInfo fcinfo)
{
	ThrottleSet *set = palloc0(sizeof(ThrottleSet));
	Datum	   *names;
	Datum	   *subjects;
	Datum	   *costs = NULL;
	int			number = get_elements(fcinfo, 0, "limiters", TEXTOID, &names);
	int			i;

	if (get_elements(fcinfo, 1, "subjects", TEXTOID, &subjects) != number ||
		(!PG_ARGISNULL(2) &&
		 get_elements(fcinfo, 2, "costs", INT4OID, &costs) != number))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the arrays differ in length"),
				 errhint("Give as many subjects as limiters, and as many costs, or none.")));
	for (i = 0; i < number; i++)
	{
		text	   *subject = DatumGetTextPP(subjects[i]);

		idem_args_check_length(subject, IDEM_MAX_LABEL_BYTES, "subject");
		add_to_set(set, DatumGetTextPP(names[i]), subject,
				   costs != NULL ? check_cost(DatumGetInt32(costs[i])) : 1);
	}
	return set;
}

/* Count a set, and note each of its refusals, as idem_throttle() does. */
static void
count_set(const ThrottleSet *set, bool allowed)
{
	bool		room = true;
	int			i;

	for (i = 0; i < set->number; i++)
		room = room && set->asked[i].room;
	if (!room || !allowed)
		idem_counters_add(set->limiters[0].counters, IDEM_COUNT_THROTTLED, 1);
	for (i = 0; i < set->number; i++)
	{
		const IdemLimiter *limiter = &set->limiters[i];

		if (!set->takes[i].result.allowed)
			idem_refusals_note_limited(NameStr(limiter->name), &limiter->id,
									   set->asked[i].key.subject,
									   limiter->counters);
	}
}

IDEM_FUNCTION(idem_throttle_all);

/*
 * idem_throttle_all(limiters text[], subjects text[], costs integer[] DEFAULT
 *		NULL) RETURNS TABLE (allowed boolean, limiter text, remaining integer,
 *		retry_after_ms bigint)
 *		Take from the buckets of all of the limiters, or from none.  Told is
 *		what the limiter said that refused with the longest wait, else the one
 *		with the least left.  A refusal is one of those that refused only.
 *
 * Raises 22004, 22023, 42704, 55000.  Counted and noted as by idem_throttle(),
 * the call once, and each limiter that refused.
 */
Datum
idem_throttle_all(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	ThrottleSet *set = get_set(fcinfo);
	const IdemBucketResult *result;
	Datum		values[4];
	bool		nulls[lengthof(values)] = {false};
	bool		allowed;
	int			told;

	idem_buckets_require();
	allowed = idem_buckets_take_all(set->asked, set->takes, set->number);
	count_set(set, allowed);
	told = idem_bucket_tell(set->takes, set->number);
	result = &set->takes[told].result;
	values[0] = BoolGetDatum(allowed);
	values[1] = CStringGetTextDatum(NameStr(set->limiters[told].name));
	values[2] = Int32GetDatum(result->remaining);
	values[3] = make_wait(result, &nulls[3]);
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	return (Datum) 0;
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
