/*-------------------------------------------------------------------------
 *
 * partition.c
 *	  The partitions of the audit log.
 *
 * Owns their names, the setting of their length, and when and how they are
 * made and dropped.  One is made for the present period and one for the next;
 * what is written before that, or when nobody has made one, goes to the
 * default partition.  Locks and their reasons are in the README.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "audit/cell.h"
#include "audit/chain.h"
#include "audit/log.h"
#include "audit/partition.h"
#include "base/acl.h"
#include "base/catalog.h"
#include "base/spi.h"
#include "base/try.h"

#define BEGIN_USEC (10 * USECS_PER_SEC)

typedef enum AuditPeriod
{
	PERIOD_DAY,
	PERIOD_WEEK,
	PERIOD_MONTH
} AuditPeriod;

static const struct config_enum_entry periods[] = {
	{"day", PERIOD_DAY, false},
	{"week", PERIOD_WEEK, false},
	{"month", PERIOD_MONTH, false},
	{NULL, 0, false}
};

static int	audit_partition = PERIOD_MONTH;

static const Oid period_types[] = {TEXTOID, TIMESTAMPTZOID};

/* The periods of now and next, and what the default partition has. */
static IdemPlan period_plan = {
	"SELECT p + ('1 ' || $1)::interval, p + ('2 ' || $1)::interval,"
	" (SELECT COALESCE(max(at), '-infinity')"
	" FROM %1$s.idempotency_audit_log_default)"
	" FROM pg_catalog.date_trunc($1, $2, 'UTC') p",
	lengthof(period_types), period_types
};
static IdemPlan exists_plan = {
	"SELECT 1 FROM %1$s.idempotency_audit_log"
};

static const Oid model_types[] = {OIDOID};

/* The last that has the most: what an administrator has added goes on. */
static IdemPlan model_plan = {
	"SELECT c.oid::regclass FROM pg_inherits i JOIN pg_class c ON c.oid = inhrelid"
	" WHERE inhparent = $1 ORDER BY (SELECT count(*) FROM pg_index"
	" WHERE indrelid = c.oid AND indislive) DESC,"
	" pg_get_expr(relpartbound, c.oid) COLLATE \"C\" DESC",
	lengthof(model_types), model_types
};

static const Oid cell_types[] = {TIMESTAMPTZOID, TIMESTAMPTZOID};

static IdemPlan rows_plan = {
	"SELECT count(*) FROM %1$s.idempotency_audit_log"
	" WHERE at >= $1 AND at < $2", lengthof(cell_types), cell_types
};

/* The partition whose indexes a new one gets, as SQL names it. */
static char *
find_model(void)
{
	Datum		log = ObjectIdGetDatum(idem_catalog()->audit_log);

	(void) idem_spi_execute(&model_plan, &log, NULL, true, 1);
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
}

/*
 * idem_partition_lock
 *		Lock the log and its partitions, if nobody is in the way.
 */
bool
idem_partition_lock(LOCKMODE mode)
{
	List	   *relations = find_all_inheritors(idem_catalog()->audit_log,
												NoLock, NULL);
	ListCell   *cell;

	/*
	 * The worker would else wait for one while it holds another, and DDL on a
	 * partitioned table does not always lock in one order.
	 */
	foreach(cell, relations)
	{
		if (!ConditionalLockRelationOid(lfirst_oid(cell), mode))
			return false;
	}
	return true;
}

static void
create_partition(TimestampTz from, TimestampTz to)
{
	const char *schema = idem_catalog()->schema;
	char	   *begin = pstrdup(timestamptz_to_str(from));
	Datum		when = DirectFunctionCall2(timestamp_to_char,	/* in UTC */
										   TimestampGetDatum(from),
										   CStringGetTextDatum("YYYYMMDD_HH24MISS"));
	char	   *name = psprintf("%s.idempotency_audit_log_%s", schema,
								TextDatumGetCString(when));

	/*
	 * No member of the extension, since pg_dump would leave it out.  The
	 * policy is for pg_dump, too: by a role that may read all tables, but not
	 * bypass row security, a dump would else be without a row of it
	 * (t/003_dump_restore.pl).
	 */
	idem_spi_command(psprintf("CREATE TABLE %2$s (LIKE %3$s INCLUDING INDEXES);"
							  "ALTER TABLE %2$s ENABLE ROW LEVEL SECURITY;"
							  "CREATE POLICY idempotency_audit_read ON %2$s"
							  " FOR SELECT USING (true);"
							  "CREATE TRIGGER idempotency_audit_guard_truncate"
							  " BEFORE TRUNCATE ON %2$s FOR EACH STATEMENT"
							  " EXECUTE FUNCTION %1$s.idem_audit_guard();"
							  "ALTER TABLE %2$s ENABLE ALWAYS TRIGGER"
							  " idempotency_audit_guard_truncate",
							  schema, name, find_model()));
	idem_acl_strip(name);
	idem_spi_command(psprintf("ALTER TABLE %s.idempotency_audit_log ATTACH PARTITION %s"
							  " FOR VALUES FROM ('%s') TO ('%s')", schema, name,
							  begin, timestamptz_to_str(to)));
}

/* A partition for this stretch, so far as no other one is there. */
static void
fill_hole(TimestampTz from, TimestampTz to)
{
	int			number;
	IdemCell   *cells = idem_cell_list(&number);
	int			i;

	for (i = 0; i < number; i++)
	{
		TimestampTz begin = Max(from, cells[i].from);
		TimestampTz end = Min(to, cells[i].to);

		/* one of another "audit_partition" may have some of it */
		if (begin < end && cells[i].partition == idem_catalog()->audit_default)
			create_partition(begin, end);
	}
}

/* Whether a time has a partition of its own. */
static bool
is_covered(TimestampTz at)
{
	int			number;
	IdemCell   *cells = idem_cell_list(&number);
	const IdemCell *cell = idem_cell_find(cells, number, at);

	return cell == NULL || cell->partition != idem_catalog()->audit_default;
}

/*
 * For the present period and the next one, once there is a row at all; false
 * when they are for another time, since somebody has a lock.
 */
static bool
make_partitions(void)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next;
	TimestampTz after;
	TimestampTz last;
	Datum		values[] = {CStringGetTextDatum(periods[audit_partition].name),
	TimestampTzGetDatum(now)};
	bool		isnull;

	if (idem_spi_execute(&exists_plan, NULL, NULL, true, 1) == 0)
		return true;
	(void) idem_spi_execute(&period_plan, values, NULL, true, 1);
	next = DatumGetTimestampTz(idem_spi_value(0, 0, &isnull));
	after = DatumGetTimestampTz(idem_spi_value(0, 1, &isnull));

	/* once in a period only, since an auditor may hold up the locks below */
	if (is_covered(now) && is_covered(next))
		return true;

	/*
	 * Writers do not mind the first lock, and nobody writes to the default
	 * partition once there are others.  A lock that cannot be had at once is
	 * for another time: who waits makes others wait behind him.
	 */
	if (!ConditionalLockRelationOid(idem_catalog()->audit_log,
									ShareUpdateExclusiveLock) ||
		!ConditionalLockRelationOid(idem_catalog()->audit_default,
									AccessExclusiveLock))
		return false;

	/*
	 * With nobody else there now: the last row of the default partition.  A
	 * writer that waits for our lock has its time already, and its row must
	 * still belong there: so the new partition begins a little later.
	 */
	(void) idem_spi_execute(&period_plan, values, NULL, false, 1);
	last = DatumGetTimestampTz(idem_spi_value(0, 2, &isnull));
	if (!is_covered(now))
		fill_hole(Max(now, last) + BEGIN_USEC, next);
	if (last < next)
		fill_hole(next, after);
	return true;
}

/* The argument, if any, gets what make_partitions() says. */
static void
make_as_owner(void *arg)
{
	bool	   *made = arg;
	IdemSecctx	saved;
	bool		result;

	(void) idem_chain_begin(&saved);
	result = make_partitions();
	idem_chain_end(&saved);
	if (made != NULL)
		*made = result;
}

/*
 * idem_partition_try
 *		See to the next partition.  Where none can be made (an event trigger, a
 *		full disk), that is a warning: what is in the default one is sealed all
 *		the same.
 */
void
idem_partition_try(void)
{
	ErrorData  *error = idem_try(make_as_owner, NULL);

	if (error != NULL)
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("rows were sealed, but partitions of the audit log cannot be made: %s",
						error->message),
				 errhint("New rows go to the default partition, and are sealed there; see idem_health().")));
}

/*
 * idem_partition_ensure
 *		For the worker, when nothing is left to seal: see to the next partition.
 *		False when it could not, since somebody has locked the log or the seals.
 */
bool
idem_partition_ensure(void)
{
	bool		made;

	/* nothing while a restore may go on */
	if (!idem_audit_begun())
		return true;
	/* the locks of idem_seal_batch() */
	if (!idem_partition_lock(AccessShareLock) || !idem_chain_lock(false))
		return false;
	make_as_owner(&made);
	return made;
}

/*
 * idem_partition_rows
 *		How many rows there are of that time.
 */
int64
idem_partition_rows(const IdemCell *cell)
{
	Datum		values[] = {TimestampTzGetDatum(cell->from),
	TimestampTzGetDatum(cell->to)};

	return idem_spi_fetch_number(&rows_plan, values);
}

/*
 * idem_partition_drop
 *		Drop a partition whose rows are all to go, unless that would have to
 *		wait for somebody.
 */
void
idem_partition_drop(const IdemCell *cell)
{
	const char *schema;

	/*
	 * Had at once or not at all: nobody queues up behind us before we have
	 * it, and then it is a matter of moments.
	 */
	if (cell->partition == idem_catalog()->audit_default ||
		!ConditionalLockRelationOid(idem_catalog()->audit_log,
									AccessExclusiveLock) ||
		!ConditionalLockRelationOid(idem_catalog()->audit_default,
									AccessExclusiveLock) ||
		!ConditionalLockRelationOid(cell->partition, AccessExclusiveLock))
		return;

	/*
	 * Whoever made it may have put it anywhere, and called it anything; with
	 * the lock it stays there.
	 */
	schema = get_namespace_name(get_rel_namespace(cell->partition));
	idem_spi_command(psprintf("DROP TABLE %s",
							  quote_qualified_identifier(schema,
														 get_rel_name(cell->partition))));
}

/*
 * idem_partition_init
 *		Define the setting.
 */
void
idem_partition_init(void)
{
	DefineCustomEnumVariable("idempotency.audit_partition",
							 "Stretch of time of one partition of the audit log.",
							 "It holds for partitions that are yet to be made.",
							 &audit_partition,
							 PERIOD_MONTH, periods,
							 PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
}
