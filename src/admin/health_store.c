/*-------------------------------------------------------------------------
 *
 * health_store.c
 *	  The queries behind idem_health: tables, and what is in them.
 *
 * They are for people, now and then: no plan is kept.  Asked with a pinned
 * search_path and with settings that idem_health has pinned; nothing is
 * written as text that a setting would read in another way.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "admin/health_store.h"
#include "audit/partition.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/spi.h"

#define MAX_DETAIL 1000

const IdemHealthQuery idem_store_health_tables[] = {
	{
		"tables_logged", IDEM_HEALTH_OWNER,
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'all tables survive a crash'"
		" ELSE 'not logged: ' || string_agg(c.relname, ', ' ORDER BY c.relname) END"
		" FROM pg_class c WHERE c.oid = ANY ($1) AND c.relpersistence <> 'p'"
	},
	{
		"key_columns", IDEM_HEALTH_OWNER,
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'as they were made'"
		" ELSE 'missing, or with another type or collation: ' || string_agg(o.name, ', ') END"
		" FROM unnest(ARRAY['scope', 'key', 'state', 'attempt', 'token', 'claim_xid', 'created_at',"
		" 'finished_at', 'lease_until', 'expires_at', 'purge_at', 'ttl', 'status_code', 'owner',"
		" 'policy', 'claimed_by', 'fingerprint', 'context', 'headers', 'content_type', 'body_size',"
		" 'body_sha256', 'body', 'recovery_point', 'checkpoint'],"
		" ARRAY['text', 'text', '\"char\"', 'int4', 'int8', 'xid8', 'timestamptz', 'timestamptz',"
		" 'timestamptz', 'timestamptz', 'timestamptz', 'int8', 'int4', 'uuid', 'text', 'text',"
		" 'bytea', 'bytea', 'json', 'text', 'int8', 'bytea', 'bytea', 'text', 'jsonb']::regtype[])"
		" o (name, type)"
		" LEFT JOIN pg_attribute a ON a.attrelid = ($1)[1] AND a.attname = o.name AND NOT a.attisdropped"
		" WHERE a.attnum IS NULL OR a.atttypid <> o.type"
		" OR (o.name IN ('scope', 'key') AND a.attcollation <> '\"C\"'::regcollation)"
	},
	/* Of all tables: none is missing, and none was added that must be given. */
	{
		"other_columns", IDEM_HEALTH_OWNER,
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'none is missing, and none was added that a row would lack'"
		" ELSE string_agg(d.detail, '; ' ORDER BY d.detail) END FROM ("
		"SELECT format('missing: %s of %s', n.name, o.relname) AS detail FROM (VALUES"
		" ('idempotency_policies', ARRAY['name', 'completed_ttl', 'failed_ttl', 'lease', 'wait', 'on_repeat',"
		" 'on_expiry', 'tombstone', 'require_fingerprint', 'key_format', 'max_key_bytes', 'mismatch_status',"
		" 'release_statuses', 'max_body_bytes', 'on_oversize', 'owner_role', 'max_live_keys', 'audit']),"
		" ('idempotency_limiters', ARRAY['name', 'capacity', 'per', 'backoff_base', 'backoff_max', 'when_full']),"
		" ('idempotency_audit_log', ARRAY['id', 'at', 'xid', 'action', 'entity', 'entity_id', 'attempt', 'token',"
		" 'session_role', 'effective_role', 'client_addr', 'application_name', 'detail']),"
		" ('idempotency_audit_seals', ARRAY['segment', 'kind', 'sealed_at', 'id_from', 'id_to', 'xid_from',"
		" 'xid_to', 'at_from', 'at_to', 'first_at', 'last_at', 'next_id', 'next_xid', 'origin', 'closed', 'rows',"
		" 'rows_sha256', 'pruned', 'previous', 'key_id', 'seal', 'hmac']),"
		" ('idempotency_audit_origin', ARRAY['first_id']),"
		" ('idempotency_secrets', ARRAY['key_id', 'purpose', 'secret', 'created_at'])) o (relname, names)"
		" CROSS JOIN unnest(o.names) n (name)"
		" LEFT JOIN pg_class c ON c.relnamespace = $3 AND c.relname = o.relname"
		" LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = n.name AND NOT a.attisdropped"
		" WHERE a.attnum IS NULL"
		" UNION ALL SELECT format('%s of %s must be given', a.attname, c.relname)"
		" FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
		" WHERE c.oid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull AND NOT a.atthasdef"
		" AND a.attidentity = '' AND a.attname <> ALL (ARRAY['scope', 'key', 'state', 'attempt', 'token',"
		" 'claim_xid', 'created_at', 'lease_until', 'expires_at', 'purge_at', 'policy', 'claimed_by', 'name',"
		" 'capacity', 'per', 'when_full', 'id', 'at', 'xid', 'action', 'entity', 'entity_id', 'session_role',"
		" 'effective_role', 'segment', 'kind', 'sealed_at', 'rows', 'previous', 'seal', 'first_id', 'key_id',"
		" 'purpose', 'secret'])) d"
	},
	/* A table that inherits has rows that no index of ours keeps unique. */
	{
		"inheritance", IDEM_HEALTH_OWNER,
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'no table inherits from ours'"
		" ELSE 'no key is unique across: ' || string_agg(i.inhrelid::regclass::text, ', ' ORDER BY i.inhrelid::regclass::text) END"
		" FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
		" WHERE NOT c.relispartition AND (i.inhparent = ANY ($1) OR i.inhrelid = ANY ($1))"
	},
	{
		"purge_index", IDEM_HEALTH_OWNER,
		"SELECT count(*) > 0, CASE WHEN count(*) > 0 THEN 'there, and valid'"
		" ELSE format('every sweep reads all keys: CREATE INDEX ON %s.idempotency_keys (purge_at)',"
		" $3::regnamespace) END"
		" FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
		" JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam"
		" WHERE i.indrelid = ($1)[1] AND a.attname = 'purge_at' AND i.indisvalid AND i.indisready"
		" AND i.indpred IS NULL AND m.amname = 'btree' AND i.indoption[0] = 0"
	},
	/* What a REINDEX or CREATE INDEX CONCURRENTLY has left is written to, too. */
	{
		"indexes", IDEM_HEALTH_OWNER,
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'none is left of a rebuild, and none forbids a key'"
		" ELSE string_agg(d.detail, '; ' ORDER BY d.detail) END"
		" FROM (SELECT CASE"
		" WHEN c.relname ~ '_cc(new|old)[0-9]*$'"
		" THEN format('left of a rebuild: DROP INDEX CONCURRENTLY %s.%I', c.relnamespace::regnamespace, c.relname)"
		" WHEN NOT i.indisvalid OR NOT i.indisready"
		" THEN format('not valid: %s.%I; REINDEX or drop it', c.relnamespace::regnamespace, c.relname)"
		" WHEN (i.indisunique OR i.indisexclusion) AND NOT i.indisprimary"
		" THEN format('unique, and may refuse a row: %s.%I; drop it', c.relnamespace::regnamespace, c.relname)"
		" END AS detail"
		" FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = ANY ($1)) d"
		" WHERE d.detail IS NOT NULL"
	},
	/* Those of policies and limiters are our own. */
	{
		"constraints", IDEM_HEALTH_OWNER,
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'none but our own'"
		" ELSE 'may refuse a row: ' || string_agg(format('%I on %s', n.conname, n.conrelid::regclass), ', ' ORDER BY n.conname) END"
		" FROM pg_constraint n JOIN pg_class c ON c.oid = n.conrelid"
		" WHERE (n.conrelid = ANY ($1) OR n.confrelid = ANY ($1)) AND (n.contype IN ('f', 'x', 't')"
		" OR n.contype = 'c' AND NOT (c.relname IN ('idempotency_policies', 'idempotency_limiters')"
		" AND starts_with(n.conname, c.relname::text)))"
	},
	{
		"triggers", IDEM_HEALTH_OWNER,
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'exactly our own, all enabled'"
		" ELSE string_agg(format('%s on %s', name, relation), ', ' ORDER BY name, relation) END"
		" FROM (SELECT coalesce(t.relname, o.relname) AS relation,"
		" coalesce(t.tgname, 'without ' || o.tgname) AS name FROM"
		" (SELECT c.relname::text, t.tgname::text, p.proname::text"
		" FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
		" LEFT JOIN pg_proc p ON p.oid = t.tgfoid AND p.pronamespace = $3"
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
		" AND CASE WHEN o.relname IS NULL THEN c.oid = ANY ($2)"
		" ELSE c.relname = o.relname END) o"
		" ON (t.relname, t.tgname, t.proname) = (o.relname, o.tgname, o.proname)"
		" WHERE t.relname IS NULL OR o.relname IS NULL) d"
	},
	{
		"rules", IDEM_HEALTH_OWNER,
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'none'"
		" ELSE string_agg(format('%I on %s', r.rulename, r.ev_class::regclass), ', ' ORDER BY r.rulename) END"
		" FROM pg_rewrite r WHERE r.ev_class = ANY ($1)"
	},

	/*
	 * The keys that expire first and last, so that it costs the same however
	 * many there are.  A role that is gone is nobody, and so is one that has
	 * another name now.
	 */
	{
		"roles", IDEM_HEALTH_OWNER,
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'those that keys and policies name exist'"
		" ELSE string_agg(format('%%s by %%I, which is no role', d.what, d.name), ', ' ORDER BY d.what, d.name)"
		" || '; after ALTER ROLE ... RENAME see doc/monitoring.md' END FROM (SELECT DISTINCT k.what, k.name FROM ("
		"(SELECT 'keys claimed' AS what, claimed_by AS name FROM %1$s.idempotency_keys"
		" WHERE purge_at > now() ORDER BY purge_at LIMIT 1000) UNION ALL"
		" (SELECT 'keys claimed', claimed_by FROM %1$s.idempotency_keys"
		" WHERE purge_at > now() ORDER BY purge_at DESC LIMIT 1000) UNION ALL"
		" SELECT 'a policy owned', owner_role FROM %1$s.idempotency_policies WHERE owner_role <> '') k"
		" WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = k.name)) d"
	},
	{
		"encoding", IDEM_HEALTH_OWNER,
		"SELECT e <> 'SQL_ASCII', CASE WHEN e <> 'SQL_ASCII' THEN e"
		" ELSE 'SQL_ASCII: no text is checked or converted to UTF-8; use a database of encoding UTF8' END"
		" FROM (SELECT pg_encoding_to_char(encoding) AS e FROM pg_database"
		" WHERE datname = current_database()) d"
	},
	{
		"server_version", IDEM_HEALTH_OWNER,
		"SELECT fixed, version || CASE WHEN fixed THEN ''"
		" ELSE ': SERIALIZABLE may miss conflicts of ON CONFLICT; update to the"
		" minor release of November 2026 or later' END"
		" FROM (SELECT current_setting('server_version') AS version,"
		" num % 10000 >= CASE num / 10000 WHEN 15 THEN 20 WHEN 16 THEN 16"
		" WHEN 17 THEN 12 WHEN 18 THEN 6 ELSE 0 END AS fixed"
		" FROM (SELECT current_setting('server_version_num')::integer AS num) v) w"
	},
	{NULL}
};

/* Jobs of pg_cron that call us here: what they call, and how that went. */
#define CRON_JOBS \
	"FROM (SELECT jobid, active, (regexp_match(command," \
	" '(\"([^\"]|\"\")+\"|[^ \".(]+)[[:space:]]*[.][[:space:]]*\"?idem_sweep'))[1] AS schema FROM cron.job" \
	" WHERE command ~ 'idem_sweep' AND database = current_database()) j"

static const IdemHealthQuery cron_query = {
	"pg_cron", IDEM_HEALTH_CALLER,
	"SELECT count(*) FILTER (WHERE j.active) > 0, count(*) FILTER (WHERE j.elsewhere) = 0,"
	" CASE WHEN count(*) = 0 THEN 'no job of this role calls idem_sweep()'"
	" ELSE string_agg(format('job %s%s%s', j.jobid, CASE WHEN j.active THEN '' ELSE ', not active' END,"
	" CASE WHEN j.elsewhere THEN format(' calls another schema, %s: SELECT idem_schedule() anew', j.schema)"
	" ELSE '' END), ', ' ORDER BY j.jobid) END"
	" FROM (SELECT jobid, active, schema, schema IS NOT NULL AND schema NOT IN (quote_ident(n.nspname),"
	" '\"' || replace(n.nspname, '\"', '\"\"') || '\"') AS elsewhere"
	" " CRON_JOBS ", pg_namespace n WHERE n.oid = $3) j"
};

/* How the last of the last runs of a job ended, if the caller may know. */
static const IdemHealthQuery cron_runs_query = {
	"pg_cron", IDEM_HEALTH_CALLER,
	"SELECT count(*) = 0, string_agg(format('job %s failed: %s', r.jobid, r.return_message), ', ')"
	" FROM (SELECT DISTINCT ON (d.jobid) d.jobid, d.status, d.return_message"
	" FROM (SELECT jobid, runid, status, return_message, database, command FROM cron.job_run_details"
	" ORDER BY runid DESC LIMIT 1000) d"
	" WHERE d.command ~ 'idem_sweep' AND d.database = current_database()"
	" AND d.jobid IN (SELECT jobid FROM cron.job) AND d.status IN ('succeeded', 'failed')"
	" ORDER BY d.jobid, d.runid DESC) r WHERE r.status = 'failed'"
};

static ArrayType *
make_oids(List *list)
{
	Datum	   *oids = palloc(sizeof(Datum) * (list_length(list) + 1));
	int			count = 0;
	ListCell   *cell;

	foreach(cell, list)
		oids[count++] = ObjectIdGetDatum(lfirst_oid(cell));
	return construct_array(oids, count, OIDOID, sizeof(Oid), true,
						   TYPALIGN_INT);
}

/* All tables, that of the keys first, with their partitions. */
static void
find_relations(Datum *all, Datum *append_only)
{
	const IdemCatalog *catalog = idem_catalog();
	List	   *relations = find_all_inheritors(catalog->keys, NoLock, NULL);
	List	   *log = find_all_inheritors(catalog->audit_log, NoLock, NULL);
	Oid			origin = get_relname_relid("idempotency_audit_origin",
										   catalog->namespace);

	log = list_append_unique_oid(log, catalog->audit_default);
	log = lappend_oid(log, catalog->audit_seals);
	relations = lappend_oid(relations, catalog->policies);
	relations = lappend_oid(relations, catalog->limiters);
	relations = lappend_oid(relations, catalog->secrets);
	relations = lappend_oid(relations, origin);
	relations = list_concat(relations, log);
	*all = PointerGetDatum(make_oids(relations));
	*append_only = PointerGetDatum(make_oids(log));
}

/*
 * idem_store_health_say
 *		Answer, with so much of a text as is of use.
 */
void
idem_store_health_say(IdemHealthAnswer *answer, bool ok, const char *detail)
{
	MemoryContext old = MemoryContextSwitchTo(answer->context);
	int			len = strlen(detail);

	answer->found = true;
	answer->ok = ok;
	answer->detail = len <= MAX_DETAIL ? pstrdup(detail) :
		psprintf("%.*s ...", pg_mbcliplen(detail, len, MAX_DETAIL), detail);
	MemoryContextSwitchTo(old);
}

static void
execute(const IdemHealthQuery *query, TimestampTz since)
{
	Oid			types[5] = {
		OIDARRAYOID, OIDARRAYOID, OIDOID, OIDOID, TIMESTAMPTZOID
	};
	Datum		values[5];
	const char *sql = query->sql;
	int			code;

	find_relations(&values[0], &values[1]);
	values[2] = ObjectIdGetDatum(idem_catalog()->namespace);
	values[3] = ObjectIdGetDatum(get_extension_oid("idempotency", false));
	values[4] = TimestampTzGetDatum(since);
	if (strstr(sql, "%1$s") != NULL)
		sql = psprintf(sql, idem_catalog()->schema);
	code = SPI_execute_with_args(sql, lengthof(types), types, values, NULL,
								 true, 1);
	if (code != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "health check \"%s\" failed: %s", query->name,
			 SPI_result_code_string(code));
}

static bool
get_bool(int column)
{
	bool		isnull;
	Datum		value = idem_store_spi_value(0, column, &isnull);

	return !isnull && DatumGetBool(value);
}

static char *
get_text(int column)
{
	char	   *value = SPI_getvalue(SPI_tuptable->vals[0],
									 SPI_tuptable->tupdesc, column + 1);

	return value != NULL ? value : "";
}

static Oid
get_user(IdemHealthUser user)
{
	return user == IDEM_HEALTH_OWNER ? idem_catalog()->owner :
		user == IDEM_HEALTH_SEALER ? idem_catalog()->seals_owner :
		GetUserId();
}

/*
 * idem_store_health_ask
 *		Ask a question.  Raises what the query does.
 */
void
idem_store_health_ask(const IdemHealthQuery *query, IdemHealthAnswer *answer)
{
	IdemSecctx	saved;

	idem_store_spi_begin_as(&saved, get_user(query->user));
	execute(query, 0);
	idem_store_health_say(answer, get_bool(0), get_text(1));
	idem_store_spi_end(&saved);
}

/*
 * idem_store_health_limiters
 *		How many limiters are defined.
 */
int64
idem_store_health_limiters(void)
{
	static const IdemHealthQuery query = {
		"buckets", IDEM_HEALTH_OWNER,
		"SELECT count(*) FROM %1$s.idempotency_limiters"
	};
	IdemSecctx	saved;
	int64		number;

	idem_store_spi_begin(&saved);
	execute(&query, 0);
	number = idem_store_spi_number(0);
	idem_store_spi_end(&saved);
	return number;
}

/* Whether rows have come to the default partition for an hour since then. */
static bool
has_old_rows(TimestampTz from)
{
	static const IdemHealthQuery query = {
		"audit_partitions", IDEM_HEALTH_SEALER,
		"SELECT EXISTS (SELECT FROM %1$s.idempotency_audit_log_default"
		" WHERE at >= $5 AND at < now() - make_interval(hours => 1))"
	};
	IdemSecctx	saved;
	bool		old;

	idem_store_spi_begin_as(&saved, idem_catalog()->seals_owner);
	execute(&query, from);
	old = get_bool(0);
	idem_store_spi_end(&saved);
	return old;
}

/*
 * idem_store_health_unpartitioned
 *		Whether the log has gone to its default partition for an hour, since
 *		nobody makes another one.
 */
bool
idem_store_health_unpartitioned(void)
{
	TimestampTz now = GetCurrentTimestamp();
	int			number;
	IdemCell   *cells = idem_partition_cells(&number);
	int			i;

	for (i = 0; i < number; i++)
		if (now >= cells[i].from && now < cells[i].to)
			break;
	return i < number && cells[i].partition == idem_catalog()->audit_default &&
		has_old_rows(cells[i].from);
}

/* A plain table of pg_cron's own, in which nothing of anybody's can run. */
static bool
may_read(Oid schema, const char *table)
{
	Oid			relid = get_relname_relid(table, schema);

	return OidIsValid(relid) &&
		get_rel_relkind(relid) == RELKIND_RELATION &&
		getExtensionOfObject(RelationRelationId, relid) ==
		get_extension_oid("pg_cron", false) &&
		idem_compat_may_use_schema(schema, GetUserId()) &&
		pg_class_aclcheck(relid, GetUserId(), ACL_SELECT) == ACLCHECK_OK;
}

/*
 * idem_store_health_has_cron
 *		Whether there is pg_cron here.
 */
bool
idem_store_health_has_cron(void)
{
	return OidIsValid(get_extension_oid("pg_cron", true)) &&
		OidIsValid(get_namespace_oid("cron", true));
}

/*
 * idem_store_health_cron
 *		Where pg_cron is: whether a job sweeps here, and what is wrong with the
 *		jobs.  A role sees only its own, and only if it may look there at all;
 *		a job may be missing as long as no key is due ("late").
 */
bool
idem_store_health_cron(bool late, IdemHealthAnswer *answer)
{
	Oid			schema;
	IdemSecctx	saved;
	bool		sweeps;
	bool		sound;
	char	   *detail;

	if (!idem_store_health_has_cron())
		return false;
	schema = get_namespace_oid("cron", false);
	if (!may_read(schema, "job"))
	{
		idem_store_health_say(answer, !late, "this role cannot see cron.job");
		return false;
	}
	idem_store_spi_begin_as(&saved, GetUserId());
	execute(&cron_query, 0);
	sweeps = get_bool(0) && get_bool(1);
	sound = get_bool(1);
	detail = get_text(2);
	if (sweeps && may_read(schema, "job_run_details"))
	{
		execute(&cron_runs_query, 0);
		if (!get_bool(0))
			sound = false;
		if (!get_bool(0))
			detail = get_text(1);
	}
	idem_store_health_say(answer, sound && (sweeps || !late),
						  sweeps || !sound ? detail :
						  psprintf("%s%s", detail,
								   late ? "" : "; no key is long due"));
	idem_store_spi_end(&saved);
	return sweeps && sound;
}
