/*-------------------------------------------------------------------------
 *
 * idem_store_health.c
 *	  The queries behind idem_health.
 *
 * Each gives one row (ok boolean, detail text) and may use $1, an array of the
 * OIDs of our tables, and HealthFacts as $2 to $4.  They are for people, now
 * and then: no plan is kept.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "idem_catalog.h"
#include "idem_compat.h"
#include "idem_store_health.h"
#include "idem_store_spi.h"

typedef struct HealthFacts
{
	bool		running;		/* the background worker */
	const char *worker;			/* or why not */
	bool		late;			/* a key is due for longer than it may be */
} HealthFacts;

typedef struct HealthQuery
{
	const char *name;
	const char *sql;			/* %1$s is our schema */
} HealthQuery;

static const HealthQuery queries[] = {
	{
		"tables_logged",
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'all tables survive a crash'"
		" ELSE 'not logged: ' || string_agg(c.relname, ', ') END"
		" FROM pg_class c WHERE c.oid = ANY ($1) AND c.relpersistence <> 'p'"
	},
	{
		"triggers",
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'exactly our own, all enabled'"
		" ELSE string_agg(format('%%s on %%s', name, relation), ', ') END"
		" FROM (SELECT coalesce(t.relname, o.relname) AS relation,"
		" coalesce(t.tgname, 'without ' || o.tgname) AS name FROM"
		" (SELECT c.relname::text, t.tgname::text, p.proname::text"
		" FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
		" LEFT JOIN pg_proc p ON p.oid = t.tgfoid AND p.pronamespace = c.relnamespace"
		" AND t.tgenabled = 'A' AND NOT t.tgdeferrable AND t.tgqual IS NULL"
		" WHERE c.oid = ANY ($1) AND NOT t.tgisinternal) t FULL JOIN (VALUES"
		" ('idempotency_policies', 'idempotency_policies_changed', 'idem_policy_changed'),"
		" ('idempotency_policies', 'idempotency_policies_truncated', 'idem_policy_changed'),"
		" ('idempotency_audit_log', 'idempotency_audit_guard_row', 'idem_audit_guard'),"
		" ('idempotency_audit_log', 'idempotency_audit_guard_truncate', 'idem_audit_guard'))"
		" o (relname, tgname, proname) ON (t.relname, t.tgname, t.proname)"
		" = (o.relname, o.tgname, o.proname)"
		" WHERE t.relname IS NULL OR o.relname IS NULL) d"
	},
	{
		"row_security",
		"SELECT relrowsecurity, CASE WHEN relrowsecurity THEN 'on for the audit log'"
		" ELSE 'off for the audit log' END"
		" FROM pg_class WHERE oid = ANY ($1) AND relname = 'idempotency_audit_log'"
	},
	{
		"rules",
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'none'"
		" ELSE string_agg(format('%%I on %%s', r.rulename, r.ev_class::regclass), ', ') END"
		" FROM pg_rewrite r WHERE r.ev_class = ANY ($1)"
	},
	{
		"owner",
		"SELECT count(DISTINCT c.relowner) = 1,"
		" CASE WHEN count(DISTINCT c.relowner) > 1 THEN 'give all tables to one role: '"
		" || string_agg(format('%%s of %%I', c.relname, r.rolname), ', ')"
		" WHEN bool_and(r.rolsuper) THEN 'a superuser; a NOLOGIN role would do'"
		" ELSE min(r.rolname) END"
		" FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner"
		" WHERE c.oid = ANY ($1) AND c.relname <> 'idempotency_secrets'"
	},
	{
		"publications",
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'no publication has the secrets'"
		" ELSE 'the secrets are published: ' || string_agg(p.pubname, ', ') END"
		" FROM pg_publication_tables p JOIN pg_class c ON c.relname = p.tablename"
		" AND c.relnamespace::regnamespace = quote_ident(p.schemaname)::regnamespace"
		" WHERE c.oid = ANY ($1) AND c.relname = 'idempotency_secrets'"
	},
	{
		"worker",
		"SELECT $2 OR NOT $4, $3 || CASE WHEN $2 THEN ''"
		" WHEN $4 THEN ', and nobody calls idem_sweep() instead'"
		" ELSE '; no key is long due' END"
	},
	{
		"sweep_lag",
		"SELECT coalesce(lag < '10 minutes', true),"
		" coalesce('oldest key is due for ' || lag, 'no key is due')"
		" FROM (SELECT clock_timestamp() - min(purge_at) AS lag"
		" FROM %1$s.idempotency_keys WHERE purge_at <= now()) due"
	},
	{
		"server_version",
		"SELECT fixed, version || CASE WHEN fixed THEN ''"
		" ELSE ': SERIALIZABLE may miss conflicts of ON CONFLICT; update to the"
		" minor release of November 2026 or later' END"
		" FROM (SELECT current_setting('server_version') AS version,"
		" num %% 10000 >= CASE num / 10000 WHEN 15 THEN 20 WHEN 16 THEN 16"
		" WHEN 17 THEN 12 WHEN 18 THEN 6 ELSE 0 END AS fixed"
		" FROM (SELECT current_setting('server_version_num')::integer AS num) v) w"
	},
};

/*
 * Asked as the caller, since a role sees only its own jobs, and only if it
 * may look there at all.
 */
static const HealthQuery cron_query = {
	"pg_cron",
	"SELECT count(*) > 0 OR NOT $4, CASE WHEN count(*) > 0 THEN 'job ' || string_agg(jobid::text, ', ')"
	" ELSE 'no job of this role calls idem_sweep()'"
	" || CASE WHEN $4 THEN '' ELSE '; no key is long due' END END"
	" FROM cron.job WHERE command LIKE '%%idem_sweep%%' AND active"
	" AND database = current_database()"
};

static Datum
our_relations(void)
{
	const IdemCatalog *catalog = idem_catalog();
	Datum		oids[4];

	oids[0] = ObjectIdGetDatum(catalog->keys);
	oids[1] = ObjectIdGetDatum(catalog->policies);
	oids[2] = ObjectIdGetDatum(catalog->audit_log);
	oids[3] = ObjectIdGetDatum(catalog->secrets);
	return PointerGetDatum(construct_array(oids, lengthof(oids), OIDOID,
										   sizeof(Oid), true, TYPALIGN_INT));
}

/* As HealthFacts.late. */
static bool
keys_are_late(void)
{
	bool		isnull;
	char	   *sql = psprintf("SELECT EXISTS (SELECT FROM %s.idempotency_keys"
							   " WHERE purge_at < now() - interval '10 minutes')",
							   idem_catalog()->schema);

	if (SPI_execute_with_args(sql, 0, NULL, NULL, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look for keys that are due");
	return DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0],
									  SPI_tuptable->tupdesc, 1, &isnull));
}

static void
run_query(const HealthQuery *query, const HealthFacts *facts,
		  IdemHealthSink sink, void *arg)
{
	Oid			types[4] = {OIDARRAYOID, BOOLOID, TEXTOID, BOOLOID};
	Datum		values[4];
	int			code;
	bool		isnull;
	bool		ok;
	char	   *detail;

	values[0] = our_relations();
	values[1] = BoolGetDatum(facts->running);
	values[2] = CStringGetTextDatum(facts->worker);
	values[3] = BoolGetDatum(facts->late);
	code = SPI_execute_with_args(psprintf(query->sql, idem_catalog()->schema),
								 lengthof(types), types, values, NULL, true, 1);
	if (code != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "health check \"%s\" failed: %s", query->name,
			 SPI_result_code_string(code));
	ok = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0],
									SPI_tuptable->tupdesc, 1, &isnull));
	detail = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2);
	sink(arg, query->name, ok, detail);
}

static void
run_cron_query(const HealthFacts *facts, IdemHealthSink sink, void *arg)
{
	Oid			schema = get_namespace_oid("cron", true);
	Oid			job;

	if (!OidIsValid(get_extension_oid("pg_cron", true)) ||
		!OidIsValid(schema))
		return;
	job = get_relname_relid("job", schema);
	if (!idem_compat_may_use_schema(schema, GetUserId()) ||
		!OidIsValid(job) ||
		pg_class_aclcheck(job, GetUserId(), ACL_SELECT) != ACLCHECK_OK)
	{
		sink(arg, cron_query.name, !facts->late,
			 "this role cannot see cron.job");
		return;
	}
	SPI_connect();
	run_query(&cron_query, facts, sink, arg);
	SPI_finish();
}

/*
 * idem_store_health
 *		Ask all the questions; each answer goes to the sink.  The background
 *		worker is running, or "worker" says why not.
 */
void
idem_store_health(bool running, const char *worker, IdemHealthSink sink,
				  void *arg)
{
	HealthFacts facts = {running, worker};
	IdemSecctx	saved;
	int			i;

	idem_store_spi_begin(&saved);
	facts.late = keys_are_late();
	for (i = 0; i < lengthof(queries); i++)
		run_query(&queries[i], &facts, sink, arg);
	idem_store_spi_end(&saved);
	run_cron_query(&facts, sink, arg);
}
