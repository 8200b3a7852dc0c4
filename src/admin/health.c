/*-------------------------------------------------------------------------
 *
 * health.c
 *	  Checking the installation, when it is made and at any time after.
 *
 * Each check is one row, and runs by itself (base/try.c): what cannot be
 * found out is a row that is not ok and says why, and stands in no other's
 * way.  Settings that change how something is read or written are pinned, so
 * that the answers are the same in every session.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_namespace.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "admin/health_store.h"
#include "admin/stats_store.h"
#include "audit/refusal_queue.h"
#include "base/catalog.h"
#include "base/databases.h"
#include "base/try.h"
#include "idem.h"
#include "limit/bucket_table.h"
#include "store/whitelist.h"
#include "sweep/launcher.h"

#define MAX_LAG_USEC		(10 * USECS_PER_MINUTE)
#define MAX_PAUSE_USEC		(2 * USECS_PER_MINUTE)	/* between two sweeps */
#define MAX_CALLS_USEC		USECS_PER_HOUR	/* the same, without a worker */

/*
 * Whether only its owner may create in a schema (a superuser always may).
 */
static bool
schema_is_safe(Oid schema)
{
	HeapTuple	tuple = SearchSysCache1(NAMESPACEOID, ObjectIdGetDatum(schema));
	bool		safe = true;
	bool		isnull;
	Datum		datum;
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for schema %u", schema);
	owner = ((Form_pg_namespace) GETSTRUCT(tuple))->nspowner;
	datum = SysCacheGetAttr(NAMESPACEOID, tuple, Anum_pg_namespace_nspacl,
							&isnull);
	if (!isnull)				/* by default nobody but the owner may */
	{
		Acl		   *acl = DatumGetAclP(datum);
		const AclItem *items = ACL_DAT(acl);
		int			i;

		for (i = 0; i < ACL_NUM(acl); i++)
			if (items[i].ai_grantee != owner &&
				(ACLITEM_GET_PRIVS(items[i]) & ACL_CREATE) != 0)
				safe = false;
	}
	ReleaseSysCache(tuple);
	return safe;
}

IDEM_FUNCTION(idem_schema_check);

/*
 * idem_schema_check() RETURNS void
 *		Of the install script: refuse the schema that this function is in when
 *		others than its owner can create objects there; 42501.
 */
Datum
idem_schema_check(PG_FUNCTION_ARGS)
{
	Oid			schema = get_func_namespace(fcinfo->flinfo->fn_oid);

	if (!schema_is_safe(schema))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("schema \"%s\" is not safe for extension \"idempotency\"",
						get_namespace_name(schema)),
				 errdetail("Others than its owner have the privilege CREATE on it."),
				 errhint("CREATE SCHEMA idempotency, then CREATE EXTENSION idempotency SCHEMA idempotency CASCADE.")));
	PG_RETURN_VOID();
}

static void
check_version(IdemHealthAnswer *answer)
{
	idem_catalog_require_version();
	(void) idem_catalog();
	idem_store_health_say(answer, true,
						  "objects and library are of version " IDEM_VERSION);
}

static void
check_pgcrypto(IdemHealthAnswer *answer)
{
	bool		found = OidIsValid(idem_catalog_hmac());

	idem_store_health_say(answer, found,
						  found ? "hmac(bytea, bytea, text) found" :
						  "extension pgcrypto has no hmac(bytea, bytea, text) of its own: nothing can be signed");
}

static void
check_primary_key(IdemHealthAnswer *answer)
{
	bool		unique = idem_catalog()->keys_unique;

	idem_store_health_say(answer, unique,
						  unique ? "exactly (scope, key), valid" :
						  "restore PRIMARY KEY (scope, key) on idempotency_keys");
}

static void
check_storage(IdemHealthAnswer *answer)
{
	idem_store_health_say(answer, true, idem_store_way_describe());
}

/* Without memory no limiter works, and there should be none. */
static void
check_no_buckets(IdemHealthAnswer *answer)
{
	int64		limiters = idem_store_health_limiters();

	if (limiters == 0)
		idem_store_health_say(answer, true,
							  "no rate limiting: the library is not preloaded");
	else
		idem_store_health_say(answer, false,
							  psprintf(INT64_FORMAT " rate limiters cannot work: add idempotency to shared_preload_libraries",
									   limiters));
}

/* What the rate limiters can remember, and whether that was enough. */
static void
check_buckets(IdemHealthAnswer *answer)
{
	IdemBucketsUse use;
	bool		quiet;

	if (!idem_buckets_exist())
	{
		check_no_buckets(answer);
		return;
	}
	idem_buckets_use(&use);
	quiet = GetCurrentTimestamp() - use.no_room_at > USECS_PER_HOUR;
	idem_store_health_say(answer, use.no_room == 0 || quiet,
						  psprintf("room for " INT64_FORMAT ", " INT64_FORMAT " taken; "
								   INT64_FORMAT " calls found none%s%s",
								   use.room, use.used, use.no_room,
								   use.no_room > 0 ? ", the last at " : "",
								   use.no_room > 0 ?
								   timestamptz_to_str(use.no_room_at) : ""));
}

/* The error of the worker at a task; NULL: none that is not over. */
static const char *
get_error(IdemTask task)
{
	IdemSweepState state;

	if (!idem_databases_get(MyDatabaseId, &state) ||
		state.last_error[0] == '\0' || state.failed_task != task)
		return NULL;
	return pstrdup(state.last_error);
}

/* An error of the worker is told at once; else what the query says. */
static void
add_error(IdemHealthAnswer *answer, IdemTask task)
{
	const char *error = get_error(task);

	if (error != NULL)
		idem_store_health_say(answer, false,
							  answer->found ?
							  psprintf("%s; %s", error, answer->detail) :
							  error);
}

static void
check_seals(IdemHealthAnswer *answer)
{
	const IdemHealthQuery *query = idem_store_health_audit;

	while (strcmp(query->name, "audit_seals") != 0)
		query++;
	idem_store_health_ask(query, answer);
	add_error(answer, IDEM_TASK_SEALS);
}

static void
check_partitions(IdemHealthAnswer *answer)
{
	if (!get_rel_relispartition(idem_catalog()->audit_default))
		idem_store_health_say(answer, false,
							  "idempotency_audit_log_default is no partition of the log: attach it again");
	else if (idem_store_health_unpartitioned())
		idem_store_health_say(answer, false,
							  "none for the present time, for an hour: SELECT idem_audit_seal() says why");
	else
		idem_store_health_say(answer, true, "there as far as they are needed");
	add_error(answer, IDEM_TASK_PARTITIONS);
}

static void
check_refusals(IdemHealthAnswer *answer)
{
	bool		waiting = list_member_oid(idem_refusals_databases(),
										  MyDatabaseId);
	IdemLauncherState state;
	const char *worker = idem_launcher_describe(&state);

	if (waiting && state != IDEM_LAUNCHER_RUNNING)
		idem_store_health_say(answer, false,
							  psprintf("some wait to be written to the audit log: %s",
									   worker));
	else
		idem_store_health_say(answer, true, waiting ?
							  "some are about to be written to the audit log" :
							  "none waits to be written to the audit log");
	add_error(answer, IDEM_TASK_REFUSALS);
}

/* How long the oldest key that should be gone has been due. */
static int64
get_lag(void)
{
	TimestampTz now = GetCurrentTimestamp();

	return now - idem_store_oldest_due(now);
}

static void
check_lag(IdemHealthAnswer *answer)
{
	int64		lag = get_lag();

	idem_store_health_say(answer, lag < MAX_LAG_USEC, lag == 0 ? "no key is due" :
						  psprintf("oldest key is due for " INT64_FORMAT " s",
								   lag / USECS_PER_SEC));
}

/* Whether somebody has called a sweep here of late, as far as that is known. */
static bool
is_swept(void)
{
	IdemSweepState state;

	return idem_databases_get(MyDatabaseId, &state) &&
		state.last_run != DT_NOBEGIN &&
		GetCurrentTimestamp() - state.last_run < MAX_CALLS_USEC;
}

/* pg_cron's jobs are a row of their own, where there is pg_cron. */
static bool
has_job(bool late, IdemHealthAnswer *answer)
{
	IdemHealthAnswer unused = {CurrentMemoryContext};

	return idem_store_health_cron(late, answer != NULL ? answer : &unused);
}

/*
 * Whether a key is due that nobody is known to remove.  Without preload
 * nothing is known of calls.  Who is no superuser does not see the jobs of
 * others, and a standby not what its primary does: there only the time tells.
 */
static bool
is_late(void)
{
	bool		unsure = is_swept() || RecoveryInProgress() ||
	(idem_store_health_has_cron() && !superuser());

	return get_lag() > (unsure ? MAX_LAG_USEC : 0);
}

static void
check_cron(IdemHealthAnswer *answer)
{
	IdemLauncherState state;

	(void) idem_launcher_describe(&state);
	(void) has_job(state != IDEM_LAUNCHER_RUNNING && is_late(), answer);
}

/* The worker came here, or could have, the last time. */
static TimestampTz
last_seen(void)
{
	IdemSweepState state;
	TimestampTz last = PgStartTime;

	if (idem_databases_get(MyDatabaseId, &state))
		last = Max(last, Max(state.known_at, state.last_worker));
	return last;
}

static void
check_running_worker(IdemHealthAnswer *answer, const char *worker)
{
	int64		pause = GetCurrentTimestamp() - last_seen();

	if (pause > MAX_PAUSE_USEC + 2 * idem_launcher_interval() && get_lag() > 0)
		idem_store_health_say(answer, false,
							  psprintf("%s, but it has not come to this database for " INT64_FORMAT " s; see the log of the server",
									   worker, pause / USECS_PER_SEC));
	else
		idem_store_health_say(answer, true, worker);
	add_error(answer, IDEM_TASK_SWEEP);
}

static void
check_worker(IdemHealthAnswer *answer)
{
	IdemLauncherState state;
	const char *worker = idem_launcher_describe(&state);
	bool		missed;

	if (state == IDEM_LAUNCHER_RUNNING)
	{
		check_running_worker(answer, worker);
		return;
	}
	missed = (is_late() ||
			  (state == IDEM_LAUNCHER_ELSEWHERE && !is_swept())) &&
		!has_job(true, NULL);
	idem_store_health_say(answer, !missed,
						  psprintf("%s%s", worker, missed ?
								   ", and nobody is known to call idem_sweep() instead" :
								   "; no key is long due"));
}

/* Those that are more than a query, and their names. */
static const struct
{
	const char *name;
	void		(*check) (IdemHealthAnswer *answer);
}			checks[] = {
	{"version", check_version},
	{"pgcrypto", check_pgcrypto},
	{"primary_key", check_primary_key},
	{"storage", check_storage},
	{"buckets", check_buckets},
	{"audit_seals", check_seals},
	{"audit_partitions", check_partitions},
	{"audit_refusals", check_refusals},
	{"sweep_lag", check_lag},
	{"worker", check_worker},
	{"pg_cron", check_cron}
};

static const IdemHealthQuery *const queries[] = {
	idem_store_health_rights, idem_store_health_tables, idem_store_health_audit
};

/* One check, for idem_try(). */
typedef struct Attempt
{
	void		(*check) (IdemHealthAnswer *answer);
	const IdemHealthQuery *query;	/* if it is no more */
	IdemHealthAnswer answer;
} Attempt;

static void
attempt(void *arg)
{
	Attempt    *this = arg;

	if (this->check != NULL)
		this->check(&this->answer);
	else
		idem_store_health_ask(this->query, &this->answer);
}

static void
put_row(ReturnSetInfo *rsinfo, const char *name, Attempt *this)
{
	ErrorData  *error;
	Datum		values[3];
	bool		nulls[3] = {0};

	this->answer.context = CurrentMemoryContext;
	error = idem_try(attempt, this);
	if (error != NULL)
		idem_store_health_say(&this->answer, false,
							  psprintf("cannot be checked: %s",
									   error->message));
	if (!this->answer.found)
		return;
	values[0] = CStringGetTextDatum(name);
	values[1] = BoolGetDatum(this->answer.ok);
	values[2] = CStringGetTextDatum(this->answer.detail);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

static bool
has_check(const char *name)
{
	int			i;

	for (i = 0; i < lengthof(checks); i++)
		if (strcmp(checks[i].name, name) == 0)
			return true;
	return false;
}

/* What would change how a query is read, or what it shows. */
static int
pin_settings(void)
{
	static const char *const pinned[][2] = {
		{"standard_conforming_strings", "on"},
		{"array_nulls", "on"},
		{"transform_null_equals", "off"},
		{"quote_all_identifiers", "off"},
		{"row_security", "on"},
		{"datestyle", "ISO, YMD"},
		{"intervalstyle", "postgres"},
		{"timezone", "UTC"},
		{"extra_float_digits", "1"},
		{"bytea_output", "hex"},
		{"lc_messages", "C"},
		{"lc_numeric", "C"}
	};
	int			level = NewGUCNestLevel();
	int			i;

	for (i = 0; i < lengthof(pinned); i++)
		(void) set_config_option(pinned[i][0], pinned[i][1], PGC_SUSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
	return level;
}

IDEM_FUNCTION(idem_health);

/*
 * idem_health() RETURNS TABLE (check_name text, ok boolean, detail text)
 *		What is right with the installation and what is not.
 *
 * Raises nothing but a cancel and the end of the session; takes ACCESS SHARE
 * on what it looks at.
 */
Datum
idem_health(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	const IdemHealthQuery *query;
	int			level;
	int			i;

	InitMaterializedSRF(fcinfo, 0);
	level = pin_settings();
	if (!RecoveryInProgress())
		idem_databases_know();
	for (i = 0; i < lengthof(checks); i++)
	{
		Attempt		this = {checks[i].check};

		put_row(rsinfo, checks[i].name, &this);
	}
	for (i = 0; i < lengthof(queries); i++)
	{
		for (query = queries[i]; query->name != NULL; query++)
		{
			Attempt		this = {NULL, query};

			if (!has_check(query->name))
				put_row(rsinfo, query->name, &this);
		}
	}
	AtEOXact_GUC(false, level);
	return (Datum) 0;
}
