/*-------------------------------------------------------------------------
 *
 * health_log.c
 *	  Checks of the audit log, and of what is published.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "admin/health.h"
#include "audit/cell.h"
#include "audit/refusal_queue.h"
#include "base/catalog.h"
#include "sweep/launcher.h"

static void
check_seals(IdemHealthAnswer *answer)
{
	/*
	 * A query has to give one row, in an empty log, too: hence the right
	 * join.
	 */
	idem_health_ask(IDEM_HEALTH_SEALER,
					"SELECT coalesce(lag < 3600, true), coalesce('oldest row that is not sealed waits for ' || lag::bigint || ' s',"
					" 'all rows are sealed') FROM (SELECT extract(epoch FROM clock_timestamp() - at) AS lag"
					" FROM %1$s.idempotency_audit_log"
					" WHERE id > coalesce((SELECT max(id_to) FROM %1$s.idempotency_audit_seals), 0)"
					" ORDER BY id LIMIT 1) l RIGHT JOIN (VALUES (1)) v (one) ON true",
					0, answer);
	idem_health_add_error(answer, IDEM_TASK_SEALS);
}

/*
 * Whether the log has gone to its default partition for an hour, since nobody
 * makes another one.
 */
static bool
is_unpartitioned(void)
{
	IdemHealthAnswer answer = {CurrentMemoryContext};
	TimestampTz now = GetCurrentTimestamp();
	int			number;
	IdemCell   *cells = idem_cell_list(&number);
	const IdemCell *cell = idem_cell_find(cells, number, now);

	if (cell == NULL || cell->partition != idem_catalog()->audit_default)
		return false;
	idem_health_ask(IDEM_HEALTH_SEALER,
					"SELECT EXISTS (SELECT FROM %1$s.idempotency_audit_log_default"
					" WHERE at >= $5 AND at < now() - make_interval(hours => 1)), ''",
					cell->from, &answer);
	return answer.ok;
}

static void
check_partitions(IdemHealthAnswer *answer)
{
	if (!get_rel_relispartition(idem_catalog()->audit_default))
		idem_health_say(answer, false,
						"idempotency_audit_log_default is no partition of the log: attach it again");
	else if (is_unpartitioned())
		idem_health_say(answer, false,
						"none for the present time, for an hour: SELECT idem_audit_seal() says why");
	else
		idem_health_say(answer, true, "there as far as they are needed");
	idem_health_add_error(answer, IDEM_TASK_PARTITIONS);
}

static void
check_refusals(IdemHealthAnswer *answer)
{
	bool		waiting = list_member_oid(idem_refusals_databases(),
										  MyDatabaseId);
	IdemLauncherState state;
	const char *worker = idem_launcher_describe(&state);

	if (waiting && state != IDEM_LAUNCHER_RUNNING)
		idem_health_say(answer, false,
						psprintf("some wait to be written to the audit log: %s",
								 worker));
	else
		idem_health_say(answer, true, waiting ?
						"some are about to be written to the audit log" :
						"none waits to be written to the audit log");
	idem_health_add_error(answer, IDEM_TASK_REFUSALS);
}

/* Columns of an index, in their order. */
#define INDEX_COLUMNS \
	" (SELECT array_agg(a.attname::text ORDER BY k.n)" \
	" FROM unnest(i.indkey::smallint[]) WITH ORDINALITY k (attnum, n)" \
	" JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum" \
	" WHERE k.n <= i.indnkeyatts)"

/* Nobody's, whatever role of PostgreSQL's own may read or write all tables. */
#define HIDDEN "('idempotency_secrets', 'idempotency_audit_origin')"

const IdemHealthCheck idem_health_log[] = {
	{"audit_seals", 0, NULL, check_seals},
	{"audit_partitions", 0, NULL, check_partitions},
	{"audit_refusals", 0, NULL, check_refusals},
	{
		"row_security", IDEM_HEALTH_OWNER,
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'on for the audit log, its seals and the secrets'"
		" ELSE string_agg(d.detail, ', ' ORDER BY d.detail) END FROM ("
		"SELECT 'off for ' || c.relname AS detail FROM pg_class c WHERE NOT c.relrowsecurity"
		" AND (c.oid = ANY ($2) OR c.oid = ANY ($1) AND c.relname IN " HIDDEN ")"
		" UNION ALL SELECT c.relname || ' lacks policy idempotency_audit_read, and would be left out of a dump by who may read it'"
		" FROM pg_class c WHERE c.oid = ANY ($2) AND NOT EXISTS"
		" (SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polname = 'idempotency_audit_read')"
		" UNION ALL SELECT format('drop policy %I on %s', p.polname, c.relname) FROM pg_class c"
		" JOIN pg_policy p ON p.polrelid = c.oid WHERE c.oid = ANY ($1) AND c.relname IN " HIDDEN ") d"
	},
	/* A row with an id that is taken would fail, and with it what it tells. */
	{
		"audit_ids", IDEM_HEALTH_SEALER,
		"SELECT coalesce(s.last >= m.id, true), CASE WHEN coalesce(s.last >= m.id, true)"
		" THEN 'the sequence is ahead of the log'"
		" ELSE 'the sequence is behind the log: setval it to ' || m.id END"
		" FROM (SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END AS last"
		" FROM %1$s.idempotency_audit_log_id_seq) s,"
		" (SELECT max(id) AS id FROM %1$s.idempotency_audit_log) m"
	},
	/* What pg_dump says of an index of the whole log cannot be restored. */
	{
		"audit_indexes", IDEM_HEALTH_OWNER,
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'each partition has its own, (id) and (entity, entity_id, id)'"
		" ELSE string_agg(d.detail, '; ' ORDER BY d.detail) END FROM ("
		"SELECT format('a dump cannot be restored with an index of the whole log: drop %s.%I, and create it on each partition',"
		" x.relnamespace::regnamespace, x.relname) AS detail"
		" FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid"
		" JOIN pg_class c ON c.oid = i.indrelid AND c.relnamespace = $3"
		" WHERE c.relname = 'idempotency_audit_log'"
		" UNION ALL SELECT format('%s has no index on (%s)', c.relname, array_to_string(w.columns, ', '))"
		" FROM pg_class c, (VALUES (ARRAY['id'], true), (ARRAY['entity', 'entity_id', 'id'], false)) w (columns, one)"
		" WHERE c.oid = ANY ($2) AND c.relispartition AND c.relkind = 'r' AND NOT EXISTS (SELECT FROM pg_index i"
		" WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND (i.indisunique OR NOT w.one)"
		" AND w.columns =" INDEX_COLUMNS ")) d"
	},

	/*
	 * The secrets; and a partition that is made here and not there, when the
	 * log is not published as the table that it is a part of.
	 */
	{
		"publications", IDEM_HEALTH_OWNER,
		"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'none has the secrets, or the partitions of the log by themselves'"
		" ELSE string_agg(d.detail, '; ' ORDER BY d.detail) END FROM ("
		"SELECT 'the secrets are published: ' || p.pubname AS detail"
		" FROM pg_publication_tables p JOIN pg_class c ON c.relname = p.tablename"
		" JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = p.schemaname"
		" WHERE c.oid = ANY ($1) AND c.relname = 'idempotency_secrets'"
		" UNION ALL SELECT format('a subscriber stops at the next partition of the log: ALTER PUBLICATION %I"
		" SET (publish_via_partition_root = true)', p.pubname)"
		" FROM pg_publication p JOIN pg_class c ON c.relnamespace = $3 AND c.relname = 'idempotency_audit_log'"
		" WHERE NOT p.pubviaroot AND (p.puballtables"
		" OR EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = c.oid)"
		" OR EXISTS (SELECT FROM pg_publication_namespace s WHERE s.pnpubid = p.oid AND s.pnnspid = $3))) d"
	},
	{NULL}
};
