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
#include "catalog/pg_inherits.h"
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

/* Of the relations in $1, those of the audit log. */
#define IS_AUDIT \
	" (c.relispartition OR c.relname" \
	" IN ('idempotency_audit_log', 'idempotency_audit_seals'))"

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
		" WHERE c.oid = ANY ($1) AND NOT t.tgisinternal) t FULL JOIN"
		" (SELECT c.relname::text, o.tgname, o.proname FROM pg_class c, (VALUES"
		" ('idempotency_policies', 'idempotency_policies_changed', 'idem_policy_changed'),"
		" ('idempotency_policies', 'idempotency_policies_truncated', 'idem_policy_changed'),"
		" ('idempotency_limiters', 'idempotency_limiters_changed', 'idem_limiter_changed'),"
		" ('idempotency_limiters', 'idempotency_limiters_truncated', 'idem_limiter_changed'),"
		" (NULL, 'idempotency_audit_guard_row', 'idem_audit_guard'),"
		" (NULL, 'idempotency_audit_guard_truncate', 'idem_audit_guard'))"
		" o (relname, tgname, proname) WHERE c.oid = ANY ($1)"
		" AND CASE WHEN o.relname IS NULL THEN" IS_AUDIT
		" ELSE c.relname = o.relname END) o"
		" ON (t.relname, t.tgname, t.proname) = (o.relname, o.tgname, o.proname)"
		" WHERE t.relname IS NULL OR o.relname IS NULL) d"
	},
	{
		"row_security",
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'on for the audit log and its seals'"
		" ELSE 'off for ' || string_agg(c.relname, ', ') END FROM pg_class c"
		" WHERE c.oid = ANY ($1) AND" IS_AUDIT " AND NOT c.relrowsecurity"
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
		" CASE WHEN count(DISTINCT c.relowner) > 1 THEN 'give these tables to one role: '"
		" || string_agg(format('%%s of %%I', c.relname, r.rolname), ', ')"
		" WHEN bool_and(r.rolsuper) THEN 'a superuser; a NOLOGIN role would do'"
		" ELSE min(r.rolname) END"
		" FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner"
		" WHERE c.oid = ANY ($1)"
		" AND c.relname IN ('idempotency_keys', 'idempotency_policies', 'idempotency_limiters')"
	},
	{
		"audit_owner",
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'only a superuser can change the log'"
		" ELSE 'can be changed by ' || string_agg(format('%%I: %%s', r.rolname, c.relname), ', ') END"
		" FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner"
		" WHERE c.oid = ANY ($1) AND" IS_AUDIT " AND NOT r.rolsuper"
	},
	{
		"publications",
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'no publication has the secrets'"
		" ELSE 'the secrets are published: ' || string_agg(p.pubname, ', ') END"
		" FROM pg_publication_tables p JOIN pg_class c ON c.relname = p.tablename"
		" AND c.relnamespace::regnamespace = quote_ident(p.schemaname)::regnamespace"
		" WHERE c.oid = ANY ($1) AND c.relname = 'idempotency_secrets'"
	},
	/* What PostgREST would read; a file of its own nobody here can see. */
	{
		"http_exposed",
		"SELECT count(*) = 0, CASE WHEN count(*) = 0"
		" THEN 'no setting of a role or database shows this schema to PostgREST'"
		" ELSE 'take this schema out of ' || string_agg(DISTINCT format('%%s of %%s', e.name, e.holder), ', ') END"
		" FROM (SELECT lower(split_part(c, '=', 1)) AS name,"
		" coalesce('role ' || quote_ident(r.rolname), 'database ' || quote_ident(d.datname), 'all roles') AS holder,"
		" string_to_array(substr(c, strpos(c, '=') + 1), ',') AS exposed"
		" FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) c"
		" LEFT JOIN pg_roles r ON r.oid = s.setrole"
		" LEFT JOIN pg_database d ON d.oid = s.setdatabase"
		" WHERE d.oid IS NULL OR d.datname = current_database()) e"
		" JOIN unnest(e.exposed) n (nspname) ON true"
		" WHERE e.name IN ('pgrst.db_schemas', 'pgrst.db_schema')"
		" AND btrim(n.nspname, E' \t') = (SELECT o.nspname FROM pg_class c"
		" JOIN pg_namespace o ON o.oid = c.relnamespace WHERE c.oid = ($1)[1])"
	},
	{
		"worker",
		"SELECT $2 OR NOT $4, $3 || CASE WHEN $2 THEN ''"
		" WHEN $4 THEN ', and nobody calls idem_sweep() instead'"
		" ELSE '; no key is long due' END"
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

/* Asked first: of a table of another shape nothing else can be asked. */
static const HealthQuery columns_query = {
	"key_columns",
	"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'as they were made'"
	" ELSE 'missing, or with another type or collation: ' || string_agg(o.name, ', ') END"
	" FROM unnest('{scope,key,state,attempt,token,claim_xid,created_at,finished_at,"
	"lease_until,expires_at,purge_at,ttl,status_code,owner,policy,claimed_by,fingerprint,"
	"context,headers,content_type,body_size,body_sha256,body,recovery_point,checkpoint}'::text[],"
	" '{text,text,\"\\\"char\\\"\",int4,int8,xid8,timestamptz,timestamptz,"
	"timestamptz,timestamptz,timestamptz,int8,int4,uuid,text,text,bytea,"
	"bytea,json,text,int8,bytea,bytea,text,jsonb}'::regtype[]) o (name, type)"
	" LEFT JOIN pg_attribute a ON a.attrelid = ($1)[1] AND a.attname = o.name AND NOT a.attisdropped"
	" WHERE a.attnum IS NULL OR a.atttypid <> o.type"
	" OR (o.name IN ('scope', 'key') AND a.attcollation <> '\"C\"'::regcollation)"
};

static const HealthQuery lag_query = {
	"sweep_lag",
	"SELECT coalesce(lag < '10 minutes', true),"
	" coalesce('oldest key is due for ' || lag, 'no key is due')"
	" FROM (SELECT clock_timestamp() - min(purge_at) AS lag"
	" FROM %1$s.idempotency_keys WHERE purge_at <= now()) due"
};

/* Asked as the owner of the seals. */
static const HealthQuery seals_query = {
	"audit_seals",
	"SELECT coalesce(lag < '1 hour', true), coalesce('oldest row that is not sealed: ' || lag,"
	" 'all rows are sealed') FROM (SELECT clock_timestamp() - at AS lag"
	" FROM %1$s.idempotency_audit_log"
	" WHERE id > coalesce((SELECT max(id_to) FROM %1$s.idempotency_audit_seals), 0)"
	" ORDER BY id LIMIT 1) l RIGHT JOIN (VALUES (1)) v (one) ON true"
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

/* Keys, policies, limiters, secrets, seals, and the log with its partitions. */
static Datum
our_relations(void)
{
	const IdemCatalog *catalog = idem_catalog();
	List	   *log = find_all_inheritors(catalog->audit_log, NoLock, NULL);
	Datum	   *oids = palloc(sizeof(Datum) * (list_length(log) + 5));
	int			count = 0;
	ListCell   *cell;

	oids[count++] = ObjectIdGetDatum(catalog->keys);
	oids[count++] = ObjectIdGetDatum(catalog->policies);
	oids[count++] = ObjectIdGetDatum(catalog->limiters);
	oids[count++] = ObjectIdGetDatum(catalog->secrets);
	oids[count++] = ObjectIdGetDatum(catalog->audit_seals);
	foreach(cell, log)
		oids[count++] = ObjectIdGetDatum(lfirst_oid(cell));
	return PointerGetDatum(construct_array(oids, count, OIDOID, sizeof(Oid),
										   true, TYPALIGN_INT));
}

/* As HealthFacts.late. */
static bool
keys_are_late(void)
{
	bool		isnull;
	char	   *sql = psprintf("SELECT EXISTS (SELECT FROM %s.idempotency_keys"
							   " WHERE purge_at < now() - interval '10 minutes')",
							   idem_catalog()->schema);

	if (SPI_execute_with_args(sql, 0, NULL, NULL, NULL, true, 1) !=
		SPI_OK_SELECT)
		elog(ERROR, "could not look for keys that are due");
	return DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0],
									  SPI_tuptable->tupdesc, 1, &isnull));
}

static bool
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
	return ok;
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
	if (run_query(&columns_query, &facts, sink, arg))
	{
		facts.late = keys_are_late();
		run_query(&lag_query, &facts, sink, arg);
	}
	for (i = 0; i < lengthof(queries); i++)
		run_query(&queries[i], &facts, sink, arg);
	idem_store_spi_end(&saved);
	idem_store_spi_begin_as(&saved, idem_catalog()->seals_owner);
	run_query(&seals_query, &facts, sink, arg);
	idem_store_spi_end(&saved);
	run_cron_query(&facts, sink, arg);
}
