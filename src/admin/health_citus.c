/*-------------------------------------------------------------------------
 *
 * health_citus.c
 *	  Checks of a node of Citus; without Citus there is no row of them.
 *
 * Each node can be asked, and tells of itself; one check compares all.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "admin/health.h"
#include "base/citus.h"

/* A key that is sent through two nodes runs twice if each has its own table. */
static const char distributed[] =
"SELECT d.keys = 2 AND d.rules = 2 AND d.rules_here = 2 OR d.nodes < 2, CASE"
" WHEN d.keys = 2 AND d.rules = 2 AND d.rules_here < 2 THEN"
" 'policies and limiters are not on this node: SELECT replicate_reference_tables()'"
" WHEN d.keys = 2 AND d.rules = 2 THEN format('by tenant in %s shards, %s of them here', d.shards, d.here)"
" WHEN d.nodes < 2 THEN 'one node'"
" ELSE 'each node has keys or policies of its own: SELECT idem_distribute(...) on the coordinator' END"
" FROM (SELECT"
" (SELECT count(*) FROM pg_dist_partition p JOIN pg_class c ON c.oid = p.logicalrelid WHERE c.relnamespace = $3"
" AND c.relname IN ('idempotency_keys', 'idempotency_leases') AND p.partmethod = 'h') AS keys,"
" (SELECT count(*) FROM pg_dist_partition p JOIN pg_class c ON c.oid = p.logicalrelid WHERE c.relnamespace = $3"
" AND c.relname IN ('idempotency_policies', 'idempotency_limiters') AND p.partmethod = 'n') AS rules,"
" (SELECT count(*) FROM pg_dist_shard s JOIN pg_class c ON c.oid = s.logicalrelid"
" JOIN pg_dist_placement p USING (shardid) JOIN pg_dist_local_group g USING (groupid)"
" WHERE c.relnamespace = $3 AND c.relname IN ('idempotency_policies', 'idempotency_limiters')) AS rules_here,"
" (SELECT count(*) FROM pg_dist_shard s WHERE s.logicalrelid = ($1)[1]) AS shards,"
" (SELECT count(*) FROM pg_dist_shard s JOIN pg_dist_placement p USING (shardid)"
" JOIN pg_dist_local_group g USING (groupid) WHERE s.logicalrelid = ($1)[1]) AS here,"
" (SELECT count(*) FROM pg_dist_node) AS nodes) d";

/* Tables that move together lose rows if they have different owners. */
static const char owner[] =
"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'the owner of the tables beside the keys, who may log in'"
" ELSE string_agg(d.detail, '; ' ORDER BY d.detail) END FROM ("
"SELECT format('%s belongs to %s, and loses rows when a shard is moved online', t.oid::regclass,"
" t.relowner::regrole) AS detail"
" FROM pg_dist_partition k JOIN pg_class o ON o.oid = k.logicalrelid"
" JOIN pg_dist_partition p ON p.colocationid = k.colocationid AND p.partmethod = 'h'"
" JOIN pg_class t ON t.oid = p.logicalrelid"
" WHERE k.logicalrelid = ($1)[1] AND t.relowner <> o.relowner"
" UNION ALL SELECT format('%I cannot log in, and so no shard be moved', r.rolname)"
" FROM pg_class o JOIN pg_roles r ON r.oid = o.relowner WHERE o.oid = ($1)[1] AND NOT r.rolcanlogin) d";

/* What CREATE EXTENSION makes on each node, and nobody keeps alike since. */
#define RIGHTS_SQL \
	"SELECT md5(string_agg(format('%%s %%s %%s', o.name, o.owner::regrole, (SELECT string_agg(" \
	"format('%%s %%s', a.grantee::regrole, a.privilege_type), ' '" \
	" ORDER BY a.grantee::regrole::text COLLATE \"C\", a.privilege_type COLLATE \"C\")" \
	" FROM pg_catalog.aclexplode(o.acl) a WHERE a.grantee <> 0)), ',' ORDER BY o.name COLLATE \"C\"))" \
	" FROM (SELECT c.relname::text AS name, c.relowner AS owner, c.relacl AS acl FROM pg_catalog.pg_class c" \
	" WHERE c.relnamespace = %1$L::regnamespace AND c.relkind IN ('r', 'v', 'p')" \
	" AND c.relname ~ '^idem(potency)?_[a-z_]*$'" \
	" UNION ALL SELECT format('%%s.%%s', c.relname, t.attname), c.relowner, t.attacl FROM pg_catalog.pg_class c" \
	" JOIN pg_catalog.pg_attribute t ON t.attrelid = c.oid AND t.attacl IS NOT NULL" \
	" WHERE c.relnamespace = %1$L::regnamespace AND c.relname ~ '^idem(potency)?_[a-z_]*$'" \
	" UNION ALL SELECT p.oid::regprocedure::text, p.proowner, p.proacl FROM pg_catalog.pg_proc p" \
	" WHERE p.pronamespace = %1$L::regnamespace) o"

static const char nodes[] =
"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'owners and rights are the same on all nodes'"
" ELSE 'SELECT idem_distribute_node(); unlike the coordinator: '"
" || string_agg(format('%s:%s%s', a.nodename, a.nodeport, ', ' || nullif(a.error, '')), '; ' ORDER BY a.nodeid) END"
" FROM (SELECT n.*, CASE WHEN NOT r.success THEN r.result ELSE '' END AS error, r.result,"
" min(r.result) FILTER (WHERE n.groupid = 0) OVER () AS coordinator"
" FROM run_command_on_all_nodes(format($sql$" RIGHTS_SQL "$sql$, $3::regnamespace)) r"
" JOIN pg_dist_node n USING (nodeid)) a"
" WHERE a.error <> '' OR a.result IS DISTINCT FROM a.coordinator";

/* A claim on another node, and what is committed apart from it. */
static const char unknown[] =
"SELECT count(*) = 0, CASE WHEN count(*) = 0 THEN 'none of the owner of the keys'"
" ELSE 'committed apart from a claim on another node; citus_add_local_table_to_metadata(): '"
" || string_agg(t.oid::regclass::text, ', ' ORDER BY t.oid::regclass::text) END"
" FROM pg_class t JOIN pg_class o ON o.oid = ($1)[1] AND o.relowner = t.relowner"
" WHERE t.relkind IN ('r', 'p') AND t.relnamespace NOT IN ($3, 'pg_catalog'::regnamespace)"
" AND t.oid NOT IN (SELECT p.logicalrelid FROM pg_dist_partition p)"
" AND NOT relation_is_a_known_shard(t.oid)";

static const char commits[] =
"SELECT s <> 'off', 'synchronous_commit is ' || s || CASE WHEN s <> 'off' THEN ''"
" ELSE ': what a claim of another node has done here may be lost, but for leased claims' END"
" FROM current_setting('synchronous_commit') s";

static void
check_distributed(IdemHealthAnswer *answer)
{
	if (idem_catalog_has_citus())
		idem_health_ask(IDEM_HEALTH_OWNER, distributed, 0, answer);
}

static void
check_owner(IdemHealthAnswer *answer)
{
	if (idem_citus_is_used())
		idem_health_ask(IDEM_HEALTH_OWNER, owner, 0, answer);
}

static void
check_nodes(IdemHealthAnswer *answer)
{
	/* as whoever asks, who is to be let in by the others */
	if (idem_citus_is_used())
		idem_health_ask(IDEM_HEALTH_CALLER, nodes, 0, answer);
}

static void
check_unknown(IdemHealthAnswer *answer)
{
	if (!idem_citus_is_used())
		return;
	if (idem_citus_remote_claims())
		idem_health_ask(IDEM_HEALTH_OWNER, unknown, 0, answer);
	else
		idem_health_say(answer, true, "no matter: each claim is on the node of its row");
}

static void
check_commits(IdemHealthAnswer *answer)
{
	if (!idem_citus_is_used())
		return;
	if (idem_citus_remote_claims())
		idem_health_ask(IDEM_HEALTH_OWNER, commits, 0, answer);
	else
		idem_health_say(answer, true, "no matter: each claim is on the node of its row");
}

const IdemHealthCheck idem_health_citus[] = {
	{"citus_distributed", 0, NULL, check_distributed},
	{"citus_owner", 0, NULL, check_owner},
	{"citus_nodes", 0, NULL, check_nodes},
	{"citus_unknown_tables", 0, NULL, check_unknown},
	{"citus_commits", 0, NULL, check_commits},
	{NULL}
};
