/*-------------------------------------------------------------------------
 *
 * health_sweep.c
 *	  Checks of who sweeps: the worker, pg_cron, or somebody's calls.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "admin/health.h"
#include "admin/stats.h"
#include "base/compat.h"
#include "base/databases.h"
#include "sweep/launcher.h"

#define MAX_LAG_USEC		(10 * USECS_PER_MINUTE)
#define MAX_PAUSE_USEC		(2 * USECS_PER_MINUTE)	/* between two sweeps */
#define MAX_CALLS_USEC		USECS_PER_HOUR	/* the same, without a worker */

/*
 * idem_health_add_error
 *		An error of the worker at a task that is not over is told at once; else
 *		what the answer says.
 */
void
idem_health_add_error(IdemHealthAnswer *answer, IdemTask task)
{
	IdemSweepState state;

	/* Each task has a check of its own, which alone tells its error. */
	if (!idem_databases_get(MyDatabaseId, &state) ||
		state.last_error[0] == '\0' || state.failed_task != task)
		return;
	idem_health_say(answer, false,
					answer->found ?
					psprintf("%s; %s", state.last_error, answer->detail) :
					state.last_error);
}

static void
check_lag(IdemHealthAnswer *answer)
{
	int64		lag = idem_stats_lag();

	idem_health_say(answer, lag < MAX_LAG_USEC, lag == 0 ? "no key is due" :
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

/* Jobs of pg_cron that call us here: what they call. */
static const char cron_jobs[] =
"SELECT count(*) FILTER (WHERE j.elsewhere) = 0,"
" CASE WHEN count(*) = 0 THEN 'no job of this role calls idem_sweep()'"
" ELSE string_agg(format('job %s%s%s', j.jobid, CASE WHEN j.active THEN '' ELSE ', not active' END,"
" CASE WHEN j.elsewhere THEN format(' calls another schema, %s: SELECT idem_schedule() anew', j.schema)"
" ELSE '' END), ', ' ORDER BY j.jobid) END"
" FROM (SELECT jobid, active, schema, schema IS NOT NULL AND schema NOT IN (quote_ident(n.nspname),"
" '\"' || replace(n.nspname, '\"', '\"\"') || '\"') AS elsewhere"
" FROM (SELECT jobid, active, (regexp_match(command,"
" '(\"([^\"]|\"\")+\"|[^ \".(]+)[[:space:]]*[.][[:space:]]*\"?idem_sweep'))[1] AS schema FROM cron.job"
" WHERE command ~ 'idem_sweep' AND database = current_database()) j, pg_namespace n WHERE n.oid = $3) j";

static const char cron_active[] =
"SELECT count(*) > 0, '' FROM cron.job"
" WHERE active AND command ~ 'idem_sweep' AND database = current_database()";

/* How the last of the last runs of a job ended, if the caller may know. */
static const char cron_runs[] =
"SELECT count(*) = 0, string_agg(format('job %s failed: %s', r.jobid, r.return_message), ', ')"
" FROM (SELECT DISTINCT ON (d.jobid) d.jobid, d.status, d.return_message"
" FROM (SELECT jobid, runid, status, return_message, database, command FROM cron.job_run_details"
" ORDER BY runid DESC LIMIT 1000) d"
" WHERE d.command ~ 'idem_sweep' AND d.database = current_database()"
" AND d.jobid IN (SELECT jobid FROM cron.job) AND d.status IN ('succeeded', 'failed')"
" ORDER BY d.jobid, d.runid DESC) r WHERE r.status = 'failed'";

/* Whether the caller may read a table of pg_cron. */
static bool
may_read(Oid schema, const char *table)
{
	Oid			relid = get_relname_relid(table, schema);

	/*
	 * A plain table, and pg_cron's own: the query runs as the caller, who may
	 * be a superuser, and a view of somebody else's would run what he wrote.
	 */
	return OidIsValid(relid) &&
		get_rel_relkind(relid) == RELKIND_RELATION &&
		getExtensionOfObject(RelationRelationId, relid) ==
		get_extension_oid("pg_cron", false) &&
		idem_compat_may_use_schema(schema, GetUserId()) &&
		pg_class_aclcheck(relid, GetUserId(), ACL_SELECT) == ACLCHECK_OK;
}

/* Whether there is pg_cron here. */
static bool
has_cron(void)
{
	return OidIsValid(get_extension_oid("pg_cron", true)) &&
		OidIsValid(get_namespace_oid("cron", true));
}

/*
 * Where pg_cron is: whether a job sweeps here, and what is wrong with the
 * jobs.
 */
static bool
has_job(bool late, IdemHealthAnswer *answer)
{
	IdemHealthAnswer jobs = {CurrentMemoryContext};
	IdemHealthAnswer active = {CurrentMemoryContext};
	Oid			schema;
	bool		sweeps;

	if (!has_cron())
		return false;
	schema = get_namespace_oid("cron", false);

	/*
	 * A role sees only its own jobs, and those only if it may look there at
	 * all.  A job may be missing as long as no key is due (t/022_cron.pl).
	 */
	if (!may_read(schema, "job"))
	{
		idem_health_say(answer, !late, "this role cannot see cron.job");
		return false;
	}

	/*
	 * As the caller, whose jobs they are: pg_cron's row security would show
	 * the owner of the keys others, or none.
	 */
	idem_health_ask(IDEM_HEALTH_CALLER, cron_jobs, 0, &jobs);
	idem_health_ask(IDEM_HEALTH_CALLER, cron_active, 0, &active);
	sweeps = jobs.ok && active.ok;
	if (sweeps && may_read(schema, "job_run_details"))
	{
		IdemHealthAnswer runs = {CurrentMemoryContext};

		idem_health_ask(IDEM_HEALTH_CALLER, cron_runs, 0, &runs);
		if (!runs.ok)
			jobs = runs;
	}
	idem_health_say(answer, jobs.ok && (sweeps || !late),
					sweeps || !jobs.ok || late ? jobs.detail :
					psprintf("%s; no key is long due", jobs.detail));
	return sweeps && jobs.ok;
}

/* Whether a key is due that nobody is known to remove. */
static bool
is_late(void)
{
	/*
	 * Who is no superuser does not see the jobs of others, and a standby not
	 * what its primary does: there, and where somebody calls us, only the
	 * time tells.  Without preload nothing is known of calls.
	 */
	bool		unsure = is_swept() || RecoveryInProgress() ||
	(has_cron() && !superuser());

	return idem_stats_lag() > (unsure ? MAX_LAG_USEC : 0);
}

static void
check_cron(IdemHealthAnswer *answer)
{
	IdemLauncherState state;

	(void) idem_launcher_describe(&state);
	(void) has_job(state != IDEM_LAUNCHER_RUNNING && is_late(), answer);
}

static void
check_running_worker(IdemHealthAnswer *answer, const char *worker)
{
	TimestampTz last = PgStartTime;
	IdemSweepState state;
	int64		pause;

	/* it came here, or could have, the last time */
	if (idem_databases_get(MyDatabaseId, &state))
		last = Max(last, Max(state.known_at, state.last_worker));
	pause = GetCurrentTimestamp() - last;

	/* While no key is due, nothing is missed. */
	if (pause > MAX_PAUSE_USEC + 2 * idem_launcher_interval() &&
		idem_stats_lag() > 0)
		idem_health_say(answer, false,
						psprintf("%s, but it has not come to this database for " INT64_FORMAT " s; see the log of the server",
								 worker, pause / USECS_PER_SEC));
	else
		idem_health_say(answer, true, worker);
	idem_health_add_error(answer, IDEM_TASK_SWEEP);
}

static void
check_worker(IdemHealthAnswer *answer)
{
	IdemLauncherState state;
	const char *worker = idem_launcher_describe(&state);
	IdemHealthAnswer unused = {CurrentMemoryContext};
	bool		missed;

	if (state == IDEM_LAUNCHER_RUNNING)
	{
		check_running_worker(answer, worker);
		return;
	}

	/*
	 * A worker that leaves this database out will not come when a key is due:
	 * somebody else has to call, even before (t/028_health.pl).
	 */
	missed = (is_late() ||
			  (state == IDEM_LAUNCHER_ELSEWHERE && !is_swept())) &&
		!has_job(true, &unused);
	idem_health_say(answer, !missed,
					psprintf("%s%s", worker, missed ?
							 ", and nobody is known to call idem_sweep() instead" :
							 "; no key is long due"));
}

const IdemHealthCheck idem_health_sweep[] = {
	{"sweep_lag", 0, NULL, check_lag},
	{"worker", 0, NULL, check_worker},
	{"pg_cron", 0, NULL, check_cron},
	{NULL}
};
