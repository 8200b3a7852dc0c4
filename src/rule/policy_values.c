/*-------------------------------------------------------------------------
 *
 * policy_values.c
 *	  Policies: what their columns say.
 *
 * Owns the shipped values, which are here and not in the table so that a
 * restored row can never collide with them, and the bounds of every parameter.
 * Touches no table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/multirangetypes.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "base/args.h"
#include "rule/policy.h"
#include "rule/policy_values.h"

static int	max_lease = SECS_PER_DAY;
static int	max_ttl = 400 * SECS_PER_DAY;
static int	max_wait = 60 * 1000;

static const char *const repeat_names[] = {"replay", "reject", NULL};
static const char *const expiry_names[] = {"reuse", "reject", NULL};
static const char *const oversize_names[] = {"error", "digest", NULL};
static const char *const format_names[] = {"any", "uuid", "uuidv4", "uuidv7", NULL};

/*
 * idem_policy_lease_usec, idem_policy_ttl_usec, idem_policy_wait_usec
 *		Check a duration in microseconds against its bounds; 22023.
 */
int64
idem_policy_lease_usec(const char *what, int64 usec)
{
	if (usec == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be greater than zero", what),
				 errhint("Give the time after which another caller may take the key over, such as '1 minute'.")));
	return idem_args_check_max(what, usec, (int64) max_lease * USECS_PER_SEC,
							   "idempotency.max_lease");
}

int64
idem_policy_ttl_usec(const char *what, int64 usec)
{
	return idem_args_check_max(what, usec, (int64) max_ttl * USECS_PER_SEC,
							   "idempotency.max_ttl");
}

int64
idem_policy_wait_usec(const char *what, int64 usec)
{
	return idem_args_check_max(what, usec, (int64) max_wait * 1000,
							   "idempotency.max_wait");
}

static void
set_release(IdemPolicy *policy, int status)
{
	policy->releases[status / 8] |= 1 << (status % 8);
}

/*
 * idem_policy_releases
 *		Whether an answer with this status is not kept.
 */
bool
idem_policy_releases(const IdemPolicy *policy, int status)
{
	return status >= IDEM_MIN_STATUS && status <= IDEM_MAX_STATUS &&
		(policy->releases[status / 8] & (1 << (status % 8))) != 0;
}

/*
 * idem_policy_values_ship
 *		The shipped values of every policy.
 */
void
idem_policy_values_ship(IdemPolicy *policy, const char *name)
{
	int			status;

	memset(policy, 0, sizeof(*policy));
	namestrcpy(&policy->name, name);
	policy->completed_ttl = USECS_PER_DAY;
	policy->failed_ttl = USECS_PER_DAY;
	policy->lease = 60 * USECS_PER_SEC;
	policy->max_key_bytes = 255;
	policy->mismatch_status = 422;
	set_release(policy, 429);
	for (status = 500; status < 600; status++)
		set_release(policy, status);
	policy->max_body_bytes = 1024 * 1024;
}

static int
check_choice(const char *what, Datum value, const char *const *names)
{
	char	   *given = TextDatumGetCString(value);
	StringInfoData hint;
	int			i;

	for (i = 0; names[i] != NULL; i++)
		if (strcmp(given, names[i]) == 0)
			return i;

	initStringInfo(&hint);
	for (i = 0; names[i] != NULL; i++)
		appendStringInfo(&hint, "%s\"%s\"", i > 0 ? ", " : "", names[i]);
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for policy parameter \"%s\"", what),
			 errhint("Available values: %s.", hint.data)));
}

static int
check_range(const char *what, Datum value, int min, int max)
{
	int			number = DatumGetInt32(value);

	if (number < min || number > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("policy parameter \"%s\" is out of range", what),
				 errhint("It must be between %d and %d.", min, max)));
	return number;
}

static void
check_name(const char *what, Datum value, NameData *name)
{
	char	   *given = TextDatumGetCString(value);

	if (strlen(given) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("policy parameter \"%s\" is too long", what),
				 errhint("A name has at most %d bytes.", NAMEDATALEN - 1)));
	namestrcpy(name, given);
}

static void
set_releases(IdemPolicy *policy, Datum value)
{
	TypeCacheEntry *type = lookup_type_cache(INT4MULTIRANGEOID,
											 TYPECACHE_MULTIRANGE_INFO);
	MultirangeType *statuses = DatumGetMultirangeTypeP(value);
	int			status;

	memset(policy->releases, 0, sizeof(policy->releases));
	for (status = IDEM_MIN_STATUS; status <= IDEM_MAX_STATUS; status++)
		if (multirange_contains_elem_internal(type->rngtype, statuses,
											  Int32GetDatum(status)))
			set_release(policy, status);
}

/*
 * A duration is checked against its setting only when it is set: one that was
 * lowered later holds for new values, and must not take the keys of a policy
 * out of service.
 */
static int64
check_duration(const char *what, Datum value,
			   int64 (*check) (const char *, int64), bool strict)
{
	int64		usec = idem_args_usec(what, value);

	return strict ? check(what, usec) : usec;
}

/* Set one parameter from its column; the value is checked, 22023. */
static void
set_value(IdemPolicy *policy, IdemPolicyColumn column, Datum value,
		  bool strict)
{
	switch (column)
	{
		case IDEM_POLICY_NAME:
			check_name("name", value, &policy->name);
			break;
		case IDEM_POLICY_COMPLETED_TTL:
			policy->completed_ttl =
				check_duration("completed_ttl", value, idem_policy_ttl_usec,
							   strict);
			break;
		case IDEM_POLICY_FAILED_TTL:
			policy->failed_ttl = check_duration("failed_ttl", value,
												idem_policy_ttl_usec, strict);
			break;
		case IDEM_POLICY_LEASE:
			policy->lease = check_duration("lease", value,
										   idem_policy_lease_usec, strict);
			break;
		case IDEM_POLICY_WAIT:
			policy->wait = check_duration("wait", value,
										  idem_policy_wait_usec, strict);
			break;
		case IDEM_POLICY_ON_REPEAT:
			policy->reject_repeat = check_choice("on_repeat", value, repeat_names) == 1;
			break;
		case IDEM_POLICY_ON_EXPIRY:
			policy->reject_expired = check_choice("on_expiry", value, expiry_names) == 1;
			break;
		case IDEM_POLICY_TOMBSTONE:
			policy->tombstone = check_duration("tombstone", value,
											   idem_policy_ttl_usec, strict);
			break;
		case IDEM_POLICY_REQUIRE_FINGERPRINT:
			policy->require_fingerprint = DatumGetBool(value);
			break;
		case IDEM_POLICY_KEY_FORMAT:
			policy->key_format = check_choice("key_format", value, format_names);
			break;
		case IDEM_POLICY_MAX_KEY_BYTES:
			policy->max_key_bytes = check_range("max_key_bytes", value, 1,
												IDEM_MAX_KEY_BYTES);
			break;
		case IDEM_POLICY_MISMATCH_STATUS:
			policy->mismatch_status = check_range("mismatch_status", value, 400, 499);
			break;
		case IDEM_POLICY_RELEASE_STATUSES:
			set_releases(policy, value);
			break;
		case IDEM_POLICY_MAX_BODY_BYTES:
			policy->max_body_bytes = check_range("max_body_bytes", value, 0,
												 IDEM_MAX_BODY_BYTES);
			break;
		case IDEM_POLICY_ON_OVERSIZE:
			policy->digest_oversize = check_choice("on_oversize", value, oversize_names) == 1;
			break;
		case IDEM_POLICY_OWNER_ROLE:
			check_name("owner_role", value, &policy->owner_role);
			break;
		case IDEM_POLICY_MAX_LIVE_KEYS:
			policy->max_live_keys = check_range("max_live_keys", value, 0, PG_INT32_MAX);
			break;
		case IDEM_POLICY_AUDIT:
			policy->audit = DatumGetBool(value);
			break;
	}
}

/*
 * idem_policy_values_apply
 *		Set all parameters that are given, then check them against each other;
 *		22023.  Strict: against the settings, too.
 */
void
idem_policy_values_apply(IdemPolicy *policy, const Datum *values,
						 const bool *nulls, bool strict)
{
	int			i;

	for (i = 0; i < IDEM_POLICY_COLUMNS; i++)
		if (!nulls[i])
			set_value(policy, i, values[i], strict);
	if (policy->reject_expired && policy->tombstone == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("policy parameter \"on_expiry\" = \"reject\" needs a \"tombstone\" greater than zero"),
				 errhint("Set \"tombstone\" to how long an expired key is to be refused, such as '1 day'.")));
}

/* The statuses of the bit map as an int4multirange, by the type's own input. */
static Datum
releases_datum(const IdemPolicy *policy)
{
	StringInfoData text;
	int			status;
	Oid			input;
	Oid			param;

	initStringInfo(&text);
	appendStringInfoChar(&text, '{');
	for (status = IDEM_MIN_STATUS; status <= IDEM_MAX_STATUS; status++)
		if (idem_policy_releases(policy, status))
			appendStringInfo(&text, "%s[%d,%d]", text.len > 1 ? "," : "",
							 status, status);
	appendStringInfoChar(&text, '}');
	getTypeInputInfo(INT4MULTIRANGEOID, &input, &param);
	return OidInputFunctionCall(input, text.data, param, -1);
}

/*
 * idem_policy_values_form
 *		The columns of a policy in force; none is null.
 */
void
idem_policy_values_form(const IdemPolicy *policy, Datum *values)
{
	values[IDEM_POLICY_NAME] = CStringGetTextDatum(NameStr(policy->name));
	values[IDEM_POLICY_COMPLETED_TTL] =
		idem_args_interval(policy->completed_ttl);
	values[IDEM_POLICY_FAILED_TTL] = idem_args_interval(policy->failed_ttl);
	values[IDEM_POLICY_LEASE] = idem_args_interval(policy->lease);
	values[IDEM_POLICY_WAIT] = idem_args_interval(policy->wait);
	values[IDEM_POLICY_ON_REPEAT] =
		CStringGetTextDatum(repeat_names[policy->reject_repeat]);
	values[IDEM_POLICY_ON_EXPIRY] =
		CStringGetTextDatum(expiry_names[policy->reject_expired]);
	values[IDEM_POLICY_TOMBSTONE] = idem_args_interval(policy->tombstone);
	values[IDEM_POLICY_REQUIRE_FINGERPRINT] =
		BoolGetDatum(policy->require_fingerprint);
	values[IDEM_POLICY_KEY_FORMAT] =
		CStringGetTextDatum(format_names[policy->key_format]);
	values[IDEM_POLICY_MAX_KEY_BYTES] = Int32GetDatum(policy->max_key_bytes);
	values[IDEM_POLICY_MISMATCH_STATUS] =
		Int32GetDatum(policy->mismatch_status);
	values[IDEM_POLICY_RELEASE_STATUSES] = releases_datum(policy);
	values[IDEM_POLICY_MAX_BODY_BYTES] = Int32GetDatum(policy->max_body_bytes);
	values[IDEM_POLICY_ON_OVERSIZE] =
		CStringGetTextDatum(oversize_names[policy->digest_oversize]);
	values[IDEM_POLICY_OWNER_ROLE] =
		CStringGetTextDatum(NameStr(policy->owner_role));
	values[IDEM_POLICY_MAX_LIVE_KEYS] = Int32GetDatum(policy->max_live_keys);
	values[IDEM_POLICY_AUDIT] = BoolGetDatum(policy->audit);
}

/*
 * idem_policy_values_init
 *		Define the settings that bound policies; once in a process.
 */
void
idem_policy_values_init(void)
{
	DefineCustomIntVariable("idempotency.max_lease",
							"Longest lease of a claim.",
							NULL,
							&max_lease,
							SECS_PER_DAY, 1, 366 * SECS_PER_DAY,
							PGC_SUSET, GUC_UNIT_S,
							NULL, NULL, NULL);
	DefineCustomIntVariable("idempotency.max_ttl",
							"Longest retention of a key, other than for ever.",
							NULL,
							&max_ttl,
							400 * SECS_PER_DAY, 1, 3660 * SECS_PER_DAY,
							PGC_SUSET, GUC_UNIT_S,
							NULL, NULL, NULL);
	DefineCustomIntVariable("idempotency.max_wait",
							"Longest time that a claim waits for its rival.",
							NULL,
							&max_wait,
							60 * 1000, 0, 60 * 60 * 1000,
							PGC_SUSET, GUC_UNIT_MS,
							NULL, NULL, NULL);
}
