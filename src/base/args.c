/*-------------------------------------------------------------------------
 *
 * args.c
 *	  Checking the arguments of SQL calls.
 *
 * Raises 22004 for a null and 22023 for a bad value, and never repeats the
 * value: it may be a key or a part of a request.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "common/int.h"
#include "libpq/pqformat.h"
#include "utils/array.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"

#include "base/args.h"
#include "base/compat.h"

/*
 * idem_args_require_writable
 *		Raise 25006 in a read-only transaction and during recovery.
 */
void
idem_args_require_writable(void)
{
	/*
	 * Always, and not only when the call would have written: a caller must
	 * not learn it from the first request that is new.
	 */
	if (XactReadOnly || RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("idempotency keys cannot be claimed or changed in a read-only transaction"),
				 errhint("Repeat the call on the primary, in a read-write transaction; idem_lookup() works here.")));
}

/*
 * idem_args_require
 *		Refuse a null; 22004.
 */
void
idem_args_require(FunctionCallInfo fcinfo, int argno, const char *name)
{
	if (PG_ARGISNULL(argno))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"%s\" must not be null", name)));
}

/*
 * idem_args_text
 *		A text that must not be null, detoasted.
 */
text *
idem_args_text(FunctionCallInfo fcinfo, int argno, const char *name)
{
	idem_args_require(fcinfo, argno, name);
	return PG_GETARG_TEXT_PP(argno);
}

/*
 * idem_args_check_length
 *		Refuse what is empty or longer than max bytes; 22023.
 */
void
idem_args_check_length(const text *value, int max, const char *name)
{
	int			len = VARSIZE_ANY_EXHDR(value);

	if (len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be empty", name),
				 errhint("Give a \"%s\" of 1 to %d bytes.", name, max)));
	if (len > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" is too long", name),
				 errdetail("It has %d bytes, the most are %d.", len, max),
				 errhint("Shorten it, for example to its hash.")));
}

/*
 * idem_args_label
 *		A text that must not be null, empty or long: a name of something.
 */
text *
idem_args_label(FunctionCallInfo fcinfo, int argno, const char *name)
{
	text	   *value = idem_args_text(fcinfo, argno, name);

	idem_args_check_length(value, IDEM_MAX_LABEL_BYTES, name);
	return value;
}

/*
 * idem_args_digest
 *		A fingerprint or a context, or NULL.
 */
bytea *
idem_args_digest(FunctionCallInfo fcinfo, int argno, const char *name)
{
	bytea	   *value;

	if (PG_ARGISNULL(argno))
		return NULL;
	value = PG_GETARG_BYTEA_PP(argno);
	idem_args_check_length(value, IDEM_MAX_DIGEST_BYTES, name);
	return value;
}

/* How long a number is when it is shown: its zeros are not stored. */
static int64
shown_digits(Numeric value)
{
	bytea	   *sent = DatumGetByteaPP(DirectFunctionCall1(numeric_send,
														   NumericGetDatum(value)));
	StringInfoData wire;
	int			weight;
	int			scale;

	/* what numeric.c keeps is known to it alone; what it sends is a format */
	wire.data = VARDATA_ANY(sent);
	wire.len = wire.maxlen = VARSIZE_ANY_EXHDR(sent);
	wire.cursor = 2;			/* behind the number of groups */
	weight = (int16) pq_getmsgint(&wire, 2);	/* of the first group of four */
	(void) pq_getmsgint(&wire, 2);	/* the sign */
	scale = pq_getmsgint(&wire, 2);
	pfree(sent);
	return (int64) Max(weight + 1, 0) * 4 + scale;
}

/* Whether the numbers of a jsonb take more than its bound when shown. */
static bool
shows_too_long(struct varlena *value)
{
	JsonbIterator *it = JsonbIteratorInit(&((Jsonb *) value)->root);
	JsonbIteratorToken token;
	JsonbValue	element;
	int64		digits = 0;

	/* a number of few bytes, such as 1e131071, can be long when it is shown */
	while ((token = JsonbIteratorNext(&it, &element, false)) != WJB_DONE)
		if ((token == WJB_ELEM || token == WJB_VALUE) &&
			element.type == jbvNumeric)
			digits += shown_digits(element.val.numeric);
	return digits > IDEM_MAX_DETAIL_BYTES;
}

/*
 * idem_args_detail
 *		A jsonb of bounded size, stored and shown, detoasted, or NULL.
 */
struct varlena *
idem_args_detail(FunctionCallInfo fcinfo, int argno, const char *name)
{
	struct varlena *value;

	if (PG_ARGISNULL(argno))
		return NULL;
	value = PG_DETOAST_DATUM(PG_GETARG_DATUM(argno));
	if (VARSIZE(value) > IDEM_MAX_DETAIL_BYTES || shows_too_long(value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" is too long", name),
				 errhint("Give at most %d bytes; store the rest elsewhere and refer to it.",
						 IDEM_MAX_DETAIL_BYTES)));
	return value;
}

/*
 * idem_args_usec
 *		An interval as microseconds, where a day is 24 hours and a month has
 *		no length; 22023 for months, for infinity and below zero.
 */
int64
idem_args_usec(const char *what, Datum interval)
{
	Interval   *span = DatumGetIntervalP(interval);
	int64		usec;

	if (!idem_compat_interval_is_finite(span) || span->month != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be given in days or smaller units", what),
				 errhint("Months and years have no fixed length: write '30 days' for '1 month'.")));

	/* days and time may differ in sign: only the sum must not be negative */
	if (pg_mul_s64_overflow(span->day, USECS_PER_DAY, &usec) ||
		pg_add_s64_overflow(usec, span->time, &usec) || usec < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be negative or beyond all bounds", what),
				 errhint("Give an interval such as '90 seconds' or '7 days'.")));
	return usec;
}

/*
 * idem_args_interval
 *		And back: an interval without days.
 */
Datum
idem_args_interval(int64 usec)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->time = usec;
	return IntervalPGetDatum(interval);
}

/*
 * idem_args_check_max
 *		Refuse a duration beyond a setting; 22023.
 */
int64
idem_args_check_max(const char *what, int64 usec, int64 max,
					const char *setting)
{
	if (usec > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s is longer than \"%s\"", what, setting),
				 errhint("Give a shorter interval, or raise \"%s\".", setting)));
	return usec;
}

/*
 * idem_args_components
 *		The elements of a text[] that is argument 0, checked: 22004, 22023.
 */
int
idem_args_components(FunctionCallInfo fcinfo, Datum **components)
{
	bool	   *nulls;
	int			count;
	int			i;

	idem_args_require(fcinfo, 0, "components");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), TEXTOID, -1, false,
					  TYPALIGN_INT, components, &nulls, &count);
	if (count == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("at least one component is needed"),
				 errhint("Give the parts that belong together, such as tenant and route.")));
	for (i = 0; i < count; i++)
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("component %d must not be null", i + 1),
					 errhint("Replace it by a value of your own, such as 'none'.")));
	return count;
}
