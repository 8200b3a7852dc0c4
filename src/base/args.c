/*-------------------------------------------------------------------------
 *
 * args.c
 *	  Checking the arguments of SQL calls.
 *
 * Raises 22004 for a null and 22023 for a bad value, ID012 for a key in either
 * case, and never repeats the value: it may be a key or a part of a request.
 *
 * Owns how a key is spelled: every function that takes one gets it from here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/int.h"
#include "libpq/pqformat.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"

#include "base/args.h"
#include "base/compat.h"

#define UUID_TEXT_LEN 36

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
				 errmsg("argument \"%s\" must not be null", name),
				 errhint("Give a value for \"%s\".", name)));
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

static void
check_length(const text *value, int max, const char *name)
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

	check_length(value, IDEM_MAX_LABEL_BYTES, name);
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
	check_length(value, IDEM_MAX_DIGEST_BYTES, name);
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

	wire.data = VARDATA_ANY(sent);
	wire.len = wire.maxlen = VARSIZE_ANY_EXHDR(sent);
	wire.cursor = 2;			/* behind the number of groups */
	weight = (int16) pq_getmsgint(&wire, 2);	/* of the first group of four */
	(void) pq_getmsgint(&wire, 2);	/* the sign */
	scale = pq_getmsgint(&wire, 2);
	pfree(sent);
	return (int64) Max(weight + 1, 0) * 4 + scale;
}

/* A number of few bytes, such as 1e131071, can be long when it is shown. */
static bool
shows_too_long(struct varlena *value)
{
	JsonbIterator *it = JsonbIteratorInit(&((Jsonb *) value)->root);
	JsonbIteratorToken token;
	JsonbValue	element;
	int64		digits = 0;

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
 * idem_args_scope
 *		Whose key it is, and for what; 22004, 22023.
 */
text *
idem_args_scope(FunctionCallInfo fcinfo, int argno)
{
	text	   *scope = idem_args_text(fcinfo, argno, "scope");

	check_length(scope, IDEM_MAX_SCOPE_BYTES, "scope");
	return scope;
}

/* A key must be there, and of 1 to max bytes; ID012. */
static void
check_key(const text *key, int max)
{
	int			len = key == NULL ? 0 : VARSIZE_ANY_EXHDR(key);

	if (len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_BAD_KEY),
				 key == NULL ? errmsg("the key is missing") :
				 errmsg("the key is empty"),
				 errhint("Send a key of 1 to %d bytes, such as a UUID.", max)));
	if (len > max)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_BAD_KEY),
				 errmsg("the key is too long"),
				 errdetail("It has %d bytes, the most are %d.", len, max),
				 errhint("Shorten it, for example to its hash.")));
}

/* 8-4-4-4-12 hexadecimal digits, in any case. */
static bool
is_uuid(const text *key)
{
	const char *c = VARDATA_ANY(key);
	int			i;

	if (VARSIZE_ANY_EXHDR(key) != UUID_TEXT_LEN)
		return false;
	for (i = 0; i < UUID_TEXT_LEN; i++)
	{
		if (i == 8 || i == 13 || i == 18 || i == 23)
		{
			if (c[i] != '-')
				return false;
		}
		else if (!isxdigit((unsigned char) c[i]))
			return false;
	}
	return true;
}

/*
 * The key in the one spelling in which it is stored and compared: that of a
 * UUID in lower case.  No policy has a say in it, for a policy can change, and
 * then a repeat would not find its key.
 */
static text *
spell_key(text *key)
{
	text	   *spelled;
	char	   *c;
	int			i;

	if (!is_uuid(key))
		return key;
	spelled = cstring_to_text_with_len(VARDATA_ANY(key), UUID_TEXT_LEN);
	c = VARDATA(spelled);
	for (i = 0; i < UUID_TEXT_LEN; i++)
		c[i] = pg_ascii_tolower((unsigned char) c[i]);
	return spelled;
}

/*
 * idem_args_key
 *		A key as it is stored; ID012.
 */
text *
idem_args_key(FunctionCallInfo fcinfo, int argno)
{
	text	   *key = PG_ARGISNULL(argno) ? NULL : PG_GETARG_TEXT_PP(argno);

	check_key(key, IDEM_MAX_KEY_BYTES);
	return spell_key(key);
}

/* RFC 9562: the version is the 13th digit, the variant in the 17th. */
static bool
uuid_has_version(const text *key, char version)
{
	const char *c = VARDATA_ANY(key);

	return c[14] == version && strchr("89abAB", c[19]) != NULL;
}

/* The version that a UUID must have; 0: any. */
static char
required_version(IdemKeyFormat format)
{
	switch (format)
	{
		case IDEM_KEY_UUIDV4:
			return '4';
		case IDEM_KEY_UUIDV7:
			return '7';
		case IDEM_KEY_ANY:
		case IDEM_KEY_UUID:
			break;
	}
	return '\0';
}

/*
 * idem_args_formatted_key
 *		The key as it is stored, or NULL if it is not one that the policy
 *		takes.
 */
text *
idem_args_formatted_key(text *key, const IdemPolicy *policy)
{
	char		version = required_version(policy->key_format);
	int			len = VARSIZE_ANY_EXHDR(key);

	if (len == 0 || len > policy->max_key_bytes)
		return NULL;
	if (policy->key_format != IDEM_KEY_ANY &&
		(!is_uuid(key) ||
		 (version != '\0' && !uuid_has_version(key, version))))
		return NULL;
	return spell_key(key);
}

/*
 * idem_args_format_key
 *		The same for a key that must be right, NULL included; ID012.
 */
text *
idem_args_format_key(text *key, const IdemPolicy *policy)
{
	char		version = required_version(policy->key_format);
	text	   *stored;

	check_key(key, policy->max_key_bytes);
	stored = idem_args_formatted_key(key, policy);
	if (stored == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_BAD_KEY),
				 errmsg("the key does not have the format of policy \"%s\"",
						NameStr(policy->name)),
				 version == '\0' ?
				 errhint("Send a UUID, with its hyphens and without braces.") :
				 errhint("Send a UUID of version %c, with its hyphens and without braces.",
						 version)));
	return stored;
}
