/*-------------------------------------------------------------------------
 *
 * limiter.c
 *	  Rate limiters: defining, changing, dropping and finding them.
 *
 * Owns the bounds of every parameter, and the list of limiters that this
 * transaction has dropped: their buckets are forgotten when it commits, and
 * kept when it does not.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "base/args.h"
#include "base/catalog.h"
#include "base/digest.h"
#include "base/counters.h"
#include "limit/bucket_table.h"
#include "limit/limiter.h"

/* The columns of idempotency_limiters, the arguments of idem_limiter(). */
typedef enum LimiterColumn
{
	COLUMN_NAME,
	COLUMN_CAPACITY,
	COLUMN_PER,
	COLUMN_BACKOFF_BASE,
	COLUMN_BACKOFF_MAX,
	COLUMN_WHEN_FULL
} LimiterColumn;

static const struct
{
	const char *name;
	Oid			type;
	bool		required;
}			columns[] = {
	[COLUMN_NAME] = {"name", TEXTOID, true},
	[COLUMN_CAPACITY] = {"capacity", INT4OID, true},
	[COLUMN_PER] = {"per", INTERVALOID, true},
	[COLUMN_BACKOFF_BASE] = {"backoff_base", INTERVALOID, false},
	[COLUMN_BACKOFF_MAX] = {"backoff_max", INTERVALOID, false},
	[COLUMN_WHEN_FULL] = {"when_full", TEXTOID, true}
};

#define ALLOW "allow"
#define REFUSE "refuse"

/* The longest pause of a limiter that gives backoff_base only. */
#define DEFAULT_BACKOFF_MAX USECS_PER_HOUR

/* A limiter that this transaction has dropped, at a nesting level. */
typedef struct DroppedLimiter
{
	uint64		id;
	int			level;
	struct DroppedLimiter *next;
} DroppedLimiter;

static DroppedLimiter *dropped = NULL;	/* in TopTransactionContext */

/*
 * idem_limiter_id
 *		What stands for a name in the key of a bucket.  A limiter that is
 *		dropped and defined again has the same one.
 */
uint64
idem_limiter_id(const char *name)
{
	uint8		digest[IDEM_DIGEST_BYTES];
	uint64		id;

	idem_digest(name, strlen(name), digest);
	memcpy(&id, digest, sizeof(id));
	return id;
}

/* A time that a rule may have; 22023. */
static int64
check_time(const char *what, Datum interval)
{
	int64		usec = idem_args_usec(what, interval);

	if (usec == 0 || usec > IDEM_BUCKET_MAX_PER)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s is out of range", what),
				 errhint("Give an interval of 1 microsecond to %d days, such as '1 minute'.",
						 (int) (IDEM_BUCKET_MAX_PER / USECS_PER_DAY))));
	return usec;
}

/* The pauses of a rule, from their columns; 22023. */
static void
set_backoff(IdemBucketRule *rule, const IdemRuleRow *row)
{
	bool		has_max = !row->nulls[COLUMN_BACKOFF_MAX];

	if (row->nulls[COLUMN_BACKOFF_BASE])
	{
		if (has_max)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("backoff_max needs backoff_base"),
					 errhint("Give the first pause as backoff_base, or no backoff_max.")));
		return;
	}
	rule->backoff_base = check_time("backoff_base",
									row->values[COLUMN_BACKOFF_BASE]);
	rule->backoff_max = has_max ?
		check_time("backoff_max", row->values[COLUMN_BACKOFF_MAX]) :
		Max(rule->backoff_base, DEFAULT_BACKOFF_MAX);
	if (rule->backoff_max < rule->backoff_base)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("backoff_max is less than backoff_base"),
				 errhint("The pause begins at backoff_base and doubles up to backoff_max.")));
}

/* A limiter from its columns, which are checked; 22023. */
static void
form_limiter(IdemLimiter *limiter, const IdemRuleRow *row)
{
	const char *name = TextDatumGetCString(row->values[COLUMN_NAME]);
	const char *when_full = TextDatumGetCString(row->values[COLUMN_WHEN_FULL]);
	int32		capacity = DatumGetInt32(row->values[COLUMN_CAPACITY]);

	/* padding, too: rules are compared as bytes (bucket_table.c) */
	memset(limiter, 0, sizeof(*limiter));
	if (name[0] == '\0' || strlen(name) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("limiter name must have 1 to %d bytes",
						NAMEDATALEN - 1),
				 errhint("Name what it limits, such as 'api-per-address'.")));
	namestrcpy(&limiter->name, name);
	limiter->id = idem_limiter_id(name);
	if (capacity < 1 || capacity > IDEM_BUCKET_MAX_CAPACITY)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("capacity is out of range"),
				 errhint("Give the number of tokens that a full bucket has, from 1 to %d.",
						 IDEM_BUCKET_MAX_CAPACITY)));
	limiter->rule.capacity = capacity;
	limiter->rule.per = check_time("per", row->values[COLUMN_PER]);
	set_backoff(&limiter->rule, row);
	limiter->allow_when_full = strcmp(when_full, ALLOW) == 0;
	if (!limiter->allow_when_full && strcmp(when_full, REFUSE) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument \"%s\"", "when_full"),
				 errhint("Available values: \"%s\", \"%s\".", REFUSE, ALLOW)));
}

static const char *
describe_column(int column, Oid *type)
{
	*type = columns[column].type;
	return columns[column].name;
}

/* A limiter for use, from its row; where that is missing, there is none. */
static bool
form_rule(void *rule, const char *name, const IdemRuleRow *row)
{
	IdemLimiter *limiter = rule;

	if (row == NULL)
		return false;
	form_limiter(limiter, row);
	limiter->counters = idem_counters_find(IDEM_COUNTERS_NO_POLICY);
	return true;
}

IdemRuleTable idem_limiter_table = {
	.relation = "idempotency_limiters",
	.title = "limiters",
	.relid = offsetof(IdemCatalog, limiters),
	.rule_size = sizeof(IdemLimiter),
	.ncolumns = lengthof(columns),
	.describe = describe_column,
	.form = form_rule
};

/*
 * idem_limiter_get
 *		The limiter of this name; 42704 when there is none.
 */
void
idem_limiter_get(const char *name, IdemLimiter *limiter)
{
	if (!idem_rule_find(&idem_limiter_table, name, limiter, false))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("rate limiter \"%s\" does not exist", name),
				 errhint("Define it with idem_limiter(), or see idempotency_limiters.")));
}

IDEM_FUNCTION(idem_limiter);

/*
 * idem_limiter(name text, capacity integer, per interval, backoff_base
 *		interval, backoff_max interval, when_full text) RETURNS void
 *		Define or change a limiter, as a whole.  Times are checked to the
 *		microsecond; buckets that exist go over to the new rule at their next
 *		call.
 *
 * Raises 22004, 22023, 25006, 40001; a notice where no limiter works.  Holds
 * SHARE ROW EXCLUSIVE on the table to the end of the transaction.
 */
Datum
idem_limiter(PG_FUNCTION_ARGS)
{
	IdemRuleRow row;
	IdemLimiter limiter;
	bool		exists;
	int			i;

	for (i = 0; i < lengthof(columns); i++)
	{
		if (columns[i].required)
			idem_args_require(fcinfo, i, columns[i].name);
		row.nulls[i] = PG_ARGISNULL(i);
		row.values[i] = PG_GETARG_DATUM(i);
	}

	/* what is wrong is told before anybody waits for the lock */
	form_limiter(&limiter, &row);
	idem_args_require_writable();
	idem_rule_lock(&idem_limiter_table);
	exists = idem_rule_read(&idem_limiter_table,
							NameStr(limiter.name)) != NIL;
	idem_rule_write(&idem_limiter_table, &row, exists);
	if (!idem_buckets_exist())
		ereport(NOTICE,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the rate limiter does not work yet: rate limiting needs shared memory"),
				 errhint("Add \"idempotency\" to \"shared_preload_libraries\" and restart the server; from PostgreSQL 17 on it works without.")));
	PG_RETURN_VOID();
}

IDEM_FUNCTION(idem_limiter_drop);

/*
 * idem_limiter_drop(name text) RETURNS boolean
 *		Drop a limiter, and its buckets at commit; false when there is none.
 *
 * Raises 22004, 25006.  Takes ROW EXCLUSIVE on the table.
 */
Datum
idem_limiter_drop(PG_FUNCTION_ARGS)
{
	text	   *name = idem_args_text(fcinfo, 0, "name");

	idem_args_require_writable();
	PG_RETURN_BOOL(idem_rule_delete(&idem_limiter_table, name));
}

static void
note_dropped(uint64 id)
{
	DroppedLimiter *new = MemoryContextAlloc(TopTransactionContext,
											 sizeof(DroppedLimiter));

	new->id = id;
	new->level = GetCurrentTransactionNestLevel();
	new->next = dropped;
	dropped = new;
}

static void
note_defined(uint64 id)
{
	DroppedLimiter **link = &dropped;
	bool		was_dropped = false;

	/*
	 * One that this transaction has dropped keeps its buckets.  Should that
	 * be rolled back to a savepoint, they stay until they are full, as they
	 * do after PREPARE TRANSACTION.
	 */
	while (*link != NULL)
	{
		if ((*link)->id == id)
		{
			*link = (*link)->next;
			was_dropped = true;
		}
		else
			link = &(*link)->next;
	}

	/*
	 * Any other begins with none.  A session that had yet to hear of a drop
	 * may have made some after the commit that forgot them; nobody can use
	 * the new limiter before we commit.
	 */
	if (!was_dropped)
		idem_buckets_forget(MyDatabaseId, &id);
}

static void
at_transaction_event(XactEvent event, void *arg)
{
	/*
	 * Nobody defines a limiter of that name before this is done: who wants to
	 * waits for our lock on the table, which is released after the callbacks.
	 */
	if (event == XACT_EVENT_COMMIT)
		for (; dropped != NULL; dropped = dropped->next)
			idem_buckets_forget(MyDatabaseId, &dropped->id);

	/*
	 * COMMIT PREPARED may come in another session, which has no list: after
	 * PREPARE the buckets stay until they are full.
	 */
	if (event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		dropped = NULL;
}

static void
at_savepoint_event(SubXactEvent event, SubTransactionId subid,
				   SubTransactionId parent, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();
	DroppedLimiter *each;

	/* the list is in the order of levels, innermost first */
	if (event == SUBXACT_EVENT_ABORT_SUB)
		while (dropped != NULL && dropped->level >= level)
			dropped = dropped->next;
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		for (each = dropped; each != NULL && each->level >= level;
			 each = each->next)
			each->level = level - 1;
}

/* The id of a row's limiter */
static uint64
get_id(HeapTuple tuple, TupleDesc desc)
{
	char	   *name = SPI_getvalue(tuple, desc, SPI_fnumber(desc, "name"));

	return idem_limiter_id(name != NULL ? name : "");
}

IDEM_FUNCTION(idem_limiter_changed);

/*
 * idem_limiter_changed() RETURNS trigger
 *		After a change of the limiters table: see idem_rule_changed(); and what
 *		has been dropped is noted.  Raises 39P01.
 */
Datum
idem_limiter_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = idem_rule_changed(&idem_limiter_table, fcinfo);
	TupleDesc	desc = RelationGetDescr(trigdata->tg_relation);

	/* at commit it would be too late: attaching to the memory may fail */
	(void) idem_buckets_exist();

	/*
	 * TRUNCATE fires once and shows no row: buckets of what it removes stay
	 * until they are full, or a limiter of that name is defined
	 * (t/050_throttle.pl).
	 */
	if (TRIGGER_FIRED_BY_DELETE(trigdata->tg_event) ||
		TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
		note_dropped(get_id(trigdata->tg_trigtuple, desc));
	if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
		note_defined(get_id(trigdata->tg_newtuple, desc));
	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		note_defined(get_id(trigdata->tg_trigtuple, desc));
	return PointerGetDatum(NULL);
}

/*
 * idem_limiter_init
 *		Register the callbacks; once in a process.
 */
void
idem_limiter_init(void)
{
	idem_rule_init(&idem_limiter_table);
	RegisterXactCallback(at_transaction_event, NULL);
	RegisterSubXactCallback(at_savepoint_event, NULL);
}
