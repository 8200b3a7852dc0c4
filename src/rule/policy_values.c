/*-------------------------------------------------------------------------
 *
 * policy_values.c
 *	  Policies: what their columns say.
 *
 * Owns the list of columns: each is one entry of it, a member of IdemPolicy and
 * a column in the install script, and all else follows from the entry.  The
 * shipped values are here and not in the table, so that a restored row can
 * never collide with them.  Touches no table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/multirangetypes.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"

#include "base/args.h"
#include "base/catalog.h"
#include "base/counters.h"
#include "base/databases.h"
#include "rule/policy_values.h"

static int	max_lease = SECS_PER_DAY;
static int	max_ttl = 400 * SECS_PER_DAY;
static int	max_wait = 60 * 1000;

/* How a column is written in the table, and read into an IdemPolicy. */
typedef enum ColumnKind
{
	COLUMN_NAME,				/* text, a NameData */
	COLUMN_DURATION,			/* interval, an int64 of microseconds */
	COLUMN_CHOICE,				/* text, an int: its place in the choices */
	COLUMN_FLAG,				/* boolean, a bool */
	COLUMN_NUMBER,				/* integer, an int */
	COLUMN_STATUSES				/* int4multirange, a bool for each */
} ColumnKind;

static const Oid kind_types[] = {
	[COLUMN_NAME] = TEXTOID,
	[COLUMN_DURATION] = INTERVALOID,
	[COLUMN_CHOICE] = TEXTOID,
	[COLUMN_FLAG] = BOOLOID,
	[COLUMN_NUMBER] = INT4OID,
	[COLUMN_STATUSES] = INT4MULTIRANGEOID
};

typedef struct PolicyColumn
{
	const char *name;
	ColumnKind	kind;
	Size		offset;			/* in an IdemPolicy */
	const char *shipped;		/* NULL: zero, empty, the first choice */
	int			min;			/* of a number */
	int			max;
	const char *const *choices;
	int64		(*bound) (const char *what, int64 usec);	/* of a duration */
} PolicyColumn;

#define FIELD(member) offsetof(IdemPolicy, member)

static const char *const repeat_names[] = {"replay", "reject", NULL};
static const char *const expiry_names[] = {"reuse", "reject", NULL};
static const char *const unfinished_names[] = {"lease", "error", NULL};
static const char *const oversize_names[] = {"error", "digest", NULL};
static const char *const format_names[] = {
	[IDEM_KEY_ANY] = "any",
	[IDEM_KEY_UUID] = "uuid",
	[IDEM_KEY_UUIDV4] = "uuidv4",
	[IDEM_KEY_UUIDV7] = "uuidv7",
	NULL
};

/*
 * The columns of idempotency_policies, in the order of the arguments of
 * idem_policy() and of the columns of idem_policy_values().
 */
static const PolicyColumn columns[] = {
	{"name", COLUMN_NAME, FIELD(name)},
	{"completed_ttl", COLUMN_DURATION, FIELD(completed_ttl), "24 hours",
	.bound = idem_policy_ttl_usec},
	{"failed_ttl", COLUMN_DURATION, FIELD(failed_ttl), "24 hours",
	.bound = idem_policy_ttl_usec},
	{"lease", COLUMN_DURATION, FIELD(lease), "60 s",
	.bound = idem_policy_lease_usec},
	{"wait", COLUMN_DURATION, FIELD(wait),
	.bound = idem_policy_wait_usec},
	{"on_repeat", COLUMN_CHOICE, FIELD(reject_repeat),
	.choices = repeat_names},
	{"on_expiry", COLUMN_CHOICE, FIELD(reject_expired),
	.choices = expiry_names},
	{"tombstone", COLUMN_DURATION, FIELD(tombstone),
	.bound = idem_policy_ttl_usec},
	{"require_fingerprint", COLUMN_FLAG, FIELD(require_fingerprint)},
	{"on_unfinished", COLUMN_CHOICE, FIELD(error_unfinished),
	.choices = unfinished_names},
	{"recoverable", COLUMN_FLAG, FIELD(recoverable)},
	{"key_format", COLUMN_CHOICE, FIELD(key_format),
	.choices = format_names},
	{"max_key_bytes", COLUMN_NUMBER, FIELD(max_key_bytes), "255",
	1, IDEM_MAX_KEY_BYTES},
	{"mismatch_status", COLUMN_NUMBER, FIELD(mismatch_status), "422",
	400, 499},
	{"release_statuses", COLUMN_STATUSES, FIELD(releases),
	"{[429,429],[500,599]}"},
	{"max_body_bytes", COLUMN_NUMBER, FIELD(max_body_bytes), "1048576",
	0, IDEM_MAX_BODY_BYTES},
	{"on_oversize", COLUMN_CHOICE, FIELD(digest_oversize),
	.choices = oversize_names},
	{"owner_role", COLUMN_NAME, FIELD(owner_role)},
	{"max_live_keys", COLUMN_NUMBER, FIELD(max_live_keys), NULL,
	0, PG_INT32_MAX},
	{"audit", COLUMN_FLAG, FIELD(audit)}
};

StaticAssertDecl(lengthof(columns) <= IDEM_RULE_MAX_COLUMNS,
				 "too many columns for a rule table");

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

/*
 * idem_policy_arg
 *		A duration given with a call, by one of the three; -1 for a null.
 */
int64
idem_policy_arg(FunctionCallInfo fcinfo, int argno, const char *what,
				int64 (*bound) (const char *what, int64 usec))
{
	if (PG_ARGISNULL(argno))
		return -1;
	return bound(what, idem_args_usec(what, PG_GETARG_DATUM(argno)));
}

/*
 * idem_policy_releases
 *		Whether an answer with this status is not kept.
 */
bool
idem_policy_releases(const IdemPolicy *policy, int status)
{
	return status >= IDEM_MIN_STATUS && status <= IDEM_MAX_STATUS &&
		policy->releases[status];
}

/* A value of a kind, by the input function of its type. */
static Datum
read_text(ColumnKind kind, const char *value)
{
	Oid			input;
	Oid			param;

	getTypeInputInfo(kind_types[kind], &input, &param);
	return OidInputFunctionCall(input, unconstify(char *, value), param, -1);
}

static int
check_choice(const PolicyColumn *column, Datum value)
{
	char	   *given = TextDatumGetCString(value);
	StringInfoData hint;
	int			i;

	for (i = 0; column->choices[i] != NULL; i++)
		if (strcmp(given, column->choices[i]) == 0)
			return i;

	initStringInfo(&hint);
	for (i = 0; column->choices[i] != NULL; i++)
		appendStringInfo(&hint, "%s\"%s\"", i > 0 ? ", " : "",
						 column->choices[i]);
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for policy parameter \"%s\"",
					column->name),
			 errhint("Available values: %s.", hint.data)));
}

static int
check_number(const PolicyColumn *column, Datum value)
{
	int			number = DatumGetInt32(value);

	if (number < column->min || number > column->max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("policy parameter \"%s\" is out of range",
						column->name),
				 errhint("It must be between %d and %d.",
						 column->min, column->max)));
	return number;
}

static void
set_name(const PolicyColumn *column, Datum value, NameData *name)
{
	char	   *given = TextDatumGetCString(value);

	if (strlen(given) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("policy parameter \"%s\" is too long", column->name),
				 errhint("A name has at most %d bytes.", NAMEDATALEN - 1)));
	namestrcpy(name, given);
}

static void
set_statuses(Datum value, bool *statuses)
{
	TypeCacheEntry *type = lookup_type_cache(INT4MULTIRANGEOID,
											 TYPECACHE_MULTIRANGE_INFO);
	MultirangeType *given = DatumGetMultirangeTypeP(value);
	int			status;

	/* a multirange may reach further, or have no bounds (sql/policy) */
	for (status = IDEM_MIN_STATUS; status <= IDEM_MAX_STATUS; status++)
		statuses[status] =
			multirange_contains_elem_internal(type->rngtype, given,
											  Int32GetDatum(status));
}

/* Set one parameter from its column; the value is checked, 22023. */
static void
set_value(const PolicyColumn *column, void *field, Datum value, bool strict)
{
	switch (column->kind)
	{
		case COLUMN_NAME:
			set_name(column, value, field);
			break;
		case COLUMN_DURATION:

			/*
			 * Checked against its setting only when it is set: one that was
			 * lowered later holds for new values, and must not take the keys
			 * of a policy out of service.
			 */
			*(int64 *) field = idem_args_usec(column->name, value);
			if (strict)
				(void) column->bound(column->name, *(int64 *) field);
			break;
		case COLUMN_CHOICE:
			*(int *) field = check_choice(column, value);
			break;
		case COLUMN_FLAG:
			*(bool *) field = DatumGetBool(value);
			break;
		case COLUMN_NUMBER:
			*(int *) field = check_number(column, value);
			break;
		case COLUMN_STATUSES:
			set_statuses(value, field);
			break;
	}
}

static Datum
form_statuses(const bool *statuses)
{
	StringInfoData text;
	int			status;

	initStringInfo(&text);
	appendStringInfoChar(&text, '{');

	/* the input function joins those that adjoin */
	for (status = IDEM_MIN_STATUS; status <= IDEM_MAX_STATUS; status++)
		if (statuses[status])
			appendStringInfo(&text, "%s[%d,%d]", text.len > 1 ? "," : "",
							 status, status);
	appendStringInfoChar(&text, '}');
	return read_text(COLUMN_STATUSES, text.data);
}

static Datum
form_value(const PolicyColumn *column, const void *field)
{
	switch (column->kind)
	{
		case COLUMN_NAME:
			return CStringGetTextDatum(NameStr(*(const NameData *) field));
		case COLUMN_DURATION:
			return idem_args_interval(*(const int64 *) field);
		case COLUMN_CHOICE:
			return CStringGetTextDatum(column->choices[*(const int *) field]);
		case COLUMN_FLAG:
			return BoolGetDatum(*(const bool *) field);
		case COLUMN_NUMBER:
			return Int32GetDatum(*(const int *) field);
		case COLUMN_STATUSES:
			return form_statuses(field);
	}
	pg_unreachable();
}

/*
 * idem_policy_values_ship
 *		The shipped values of every policy.
 */
void
idem_policy_values_ship(IdemPolicy *policy, const char *name)
{
	int			i;

	memset(policy, 0, sizeof(*policy));
	for (i = 0; i < lengthof(columns); i++)
		if (columns[i].shipped != NULL)
			set_value(&columns[i], (char *) policy + columns[i].offset,
					  read_text(columns[i].kind, columns[i].shipped), false);
	namestrcpy(&policy->name, name);
}

/*
 * idem_policy_values_apply
 *		Set all parameters that are given, then check them against each other;
 *		22023.  Strict: against the settings, too.
 */
void
idem_policy_values_apply(IdemPolicy *policy, const IdemRuleRow *row,
						 bool strict)
{
	int			i;

	for (i = 0; i < lengthof(columns); i++)
		if (!row->nulls[i])
			set_value(&columns[i], (char *) policy + columns[i].offset,
					  row->values[i], strict);

	/*
	 * Judged with the values that stay (sql/policy).  It is the row that an
	 * expired key is refused by, and without a tombstone it can be swept as
	 * soon as it expires.
	 */
	if (policy->reject_expired && policy->tombstone == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("policy parameter \"on_expiry\" = \"reject\" needs a \"tombstone\" greater than zero"),
				 errhint("Set \"tombstone\" to how long an expired key is to be refused, such as '1 day'.")));
}

/*
 * idem_policy_values_put
 *		The columns of a policy in force, as a row of a result; none is null.
 */
void
idem_policy_values_put(ReturnSetInfo *rsinfo, const IdemPolicy *policy)
{
	Datum		values[lengthof(columns)];
	bool		nulls[lengthof(columns)] = {0};
	int			i;

	for (i = 0; i < lengthof(columns); i++)
		values[i] = form_value(&columns[i],
							   (const char *) policy + columns[i].offset);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

static const char *
describe_column(int column, Oid *type)
{
	*type = kind_types[columns[column].kind];
	return columns[column].name;
}

/* A policy for use: whoever uses it is counted under it. */
static bool
form_policy(void *rule, const char *name, const IdemRuleRow *row)
{
	IdemPolicy *policy = rule;

	if (row == NULL && strcmp(name, IDEM_POLICY_DEFAULT) != 0)
		return false;
	idem_policy_values_ship(policy, name);
	if (row != NULL)
		idem_policy_values_apply(policy, row, false);

	/* both take a lock: once for each entry of the cache, not in each call */
	policy->counters = idem_counters_find(name);
	idem_databases_know();
	return true;
}

IdemRuleTable idem_policy_table = {
	.relation = "idempotency_policies",
	.title = "policies",
	.relid = offsetof(IdemCatalog, policies),
	.rule_size = sizeof(IdemPolicy),
	.ncolumns = lengthof(columns),
	.describe = describe_column,
	.form = form_policy
};

/*
 * idem_policy_values_init
 *		Define the settings that bound policies, and have the cache emptied
 *		when policies change; once in a process.
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
	idem_rule_init(&idem_policy_table);
}
