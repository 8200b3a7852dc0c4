/*-------------------------------------------------------------------------
 *
 * health_tables.c
 *	  Checks of the tables: their shape, and what was added to them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "admin/health.h"
#include "audit/whitelist.h"
#include "base/catalog.h"
#include "store/whitelist.h"

static void
check_primary_key(IdemHealthAnswer *answer)
{
	bool		unique = idem_catalog()->keys_unique;

	idem_health_say(answer, unique,
					unique ? "exactly (scope, key), valid" :
					"restore PRIMARY KEY (scope, key) on idempotency_keys");
}

static void
check_storage(IdemHealthAnswer *answer)
{
	const char *keys = idem_whitelist_describe();
	const char *obstacle = idem_audit_whitelist_obstacle();

	idem_health_say(answer, true, obstacle == NULL ? keys :
					psprintf("%s; the audit log by statements: %s", keys,
							 obstacle));
}

const IdemHealthCheck idem_health_tables[] = {
	{"primary_key", 0, NULL, check_primary_key},
	{"storage", 0, NULL, check_storage},
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
		" FROM unnest($6, $7) o (name, type)"
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
		" ('idempotency_policies', $9), ('idempotency_limiters', $10),"
		" ('idempotency_leases', ARRAY['lease_until', 'purge_at', 'token', 'scope', 'key', 'policy', 'claimed_by']),"
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
		" AND a.attidentity = '' AND a.attname <> ALL (ARRAY['name', 'capacity', 'per', 'when_full', 'lease_until', 'purge_at', 'token', 'scope', 'key', 'policy', 'claimed_by', 'id',"
		" 'at', 'xid', 'action', 'entity', 'entity_id', 'session_role', 'effective_role', 'segment', 'kind',"
		" 'sealed_at', 'rows', 'previous', 'seal', 'first_id', 'key_id', 'purpose', 'secret'])"
		" AND NOT (a.attname = 'tenant' AND to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL)"
		" AND NOT EXISTS (SELECT FROM unnest($6, $8) k (name, given) WHERE k.given AND k.name = a.attname)) d"
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

	/*
	 * What a REINDEX or CREATE INDEX CONCURRENTLY has left is written to,
	 * too.
	 */
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
		" || '; after ALTER ROLE ... RENAME see doc/operations.md' END FROM (SELECT DISTINCT k.what, k.name FROM ("
		"(SELECT 'keys claimed' AS what, claimed_by AS name FROM %2$s"
		" WHERE purge_at > now() ORDER BY purge_at LIMIT 1000) UNION ALL"
		" (SELECT 'keys claimed', claimed_by FROM %2$s"
		" WHERE purge_at > now() ORDER BY purge_at DESC LIMIT 1000) UNION ALL"
		" SELECT 'a policy owned', owner_role FROM %1$s.idempotency_policies WHERE owner_role <> '') k"
		" WHERE to_regrole(quote_ident(k.name)) IS NULL) d"
	},
	{NULL}
};
