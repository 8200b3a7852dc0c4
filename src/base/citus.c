/*-------------------------------------------------------------------------
 *
 * citus.c
 *	  Tables of ours that Citus has distributed.
 *
 * Keys and leases have a column "tenant" then, of the type of the application's
 * distribution column, and the first component of the scope is its value.  The
 * rows of this node are in shards, which are tables beside the distributed one
 * named for their numbers.  Owns what a backend remembers of them: until an
 * invalidation of the distributed table, which Citus sends with every change of
 * its shards and placements, on each node.  Only tables and functions of Citus
 * that it documents are used.
 *
 * Without Citus nothing here is reached but one comparison.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "base/citus.h"
#include "base/spi.h"

#define RECORD_SEPARATOR '\x1e' /* of components, see idem_scope() */

/* A transaction id has so many bits, up to the year 10,000 at any rate. */
#define XID_BITS 48

/* So long a session may take an old place of a shard for the present one. */
#define JUST_LEFT_USEC USECS_PER_MINUTE

/* A shard: a range of hashes, and its table if that is on this node. */
typedef struct Shard
{
	int32		low;
	int32		high;
	int64		id;
	bool		here;
	TimestampTz left_at;		/* when it was seen to be here no more, or 0 */
} Shard;

/* The shards of a table, in the order of their ranges. */
typedef struct ShardMap
{
	Oid			table;
	uint64		changes;		/* invalidations that came */
	uint64		as_of;			/* of which this is; 0: of none */
	int			number;
	Shard	   *shards;			/* in TopMemoryContext */
	int64		node;			/* Citus's number of this node's group */
} ShardMap;

static ShardMap key_shards = {.changes = 1};
static ShardMap lease_shards = {.changes = 1};

static bool remote_claims = false;

/* How a value of the column is read and hashed. */
static struct
{
	uint64		generation;		/* of the catalog */
	FmgrInfo	input;
	Oid			ioparam;
	FmgrInfo   *hash;			/* in the type cache */
}			tenant;

static const Oid shard_args[] = {OIDOID};
static const Oid shard_types[] = {INT4OID, INT4OID, INT8OID, BOOLOID, INT4OID};

static IdemPlan shards_plan = {
	"SELECT s.shardminvalue::integer, s.shardmaxvalue::integer, s.shardid,"
	" EXISTS (SELECT 1 FROM pg_dist_placement p"
	" WHERE p.shardid = s.shardid AND p.groupid = g.groupid), g.groupid"
	" FROM pg_dist_shard s, pg_dist_local_group g"
	" WHERE s.logicalrelid = $1 AND s.shardminvalue IS NOT NULL ORDER BY 1",
	lengthof(shard_args), shard_args
};

static const Oid there_types[] = {TEXTOID, TEXTOID, TEXTOID};

/* A change, of no row. */
static IdemPlan begin_plan = {
	"DELETE FROM %1$s.idempotency_keys"
	" WHERE (%2$sscope, key) = (%3$s$1, $2) AND state = ''",
	2, there_types, 1
};

/*
 * The count makes one row of any, and the tenant in its condition says to which
 * node all of it goes.
 */
static IdemPlan flush_plan = {
	"SELECT pg_catalog.set_config('synchronous_commit', $3, true)"
	" FROM (SELECT count(*) FROM %1$s.idempotency_keys"
	" WHERE (%2$sscope, key) = (%3$s$1, $2)) AS here",
	lengthof(there_types), there_types, 1, true
};

static void
relation_changed(Oid relid)
{
	if (relid == InvalidOid || relid == key_shards.table)
		key_shards.changes++;
	if (relid == InvalidOid || relid == lease_shards.table)
		lease_shards.changes++;
}

static const Shard *
shard_of_id(const ShardMap *map, int64 id)
{
	int			i;

	for (i = 0; i < map->number; i++)
		if (map->shards[i].id == id)
			return &map->shards[i];
	return NULL;
}

/* Read the shards of a table from Citus's catalogs, as they are now. */
static void
read_shards(ShardMap *map)
{
	Datum		table = ObjectIdGetDatum(map->table);
	uint64		changes = map->changes;
	Shard	   *shards;
	Shard	   *before;
	IdemSecctx	saved;
	int			i;

	idem_spi_begin(&saved);
	PushActiveSnapshot(idem_spi_latest());
	(void) idem_spi_execute(&shards_plan, &table, NULL, true, 0);
	PopActiveSnapshot();
	idem_spi_require_types(shard_types, lengthof(shard_types));
	shards = MemoryContextAllocZero(TopMemoryContext,
									sizeof(Shard) * (SPI_processed + 1));
	for (i = 0; i < (int) SPI_processed; i++)
	{
		Shard	   *shard = &shards[i];
		const Shard *old;
		bool		isnull;

		shard->low = DatumGetInt32(idem_spi_value(i, 0, &isnull));
		shard->high = DatumGetInt32(idem_spi_value(i, 1, &isnull));
		shard->id = DatumGetInt64(idem_spi_value(i, 2, &isnull));
		shard->here = DatumGetBool(idem_spi_value(i, 3, &isnull));
		map->node = DatumGetInt32(idem_spi_value(i, 4, &isnull));
		old = shard_of_id(map, shard->id);
		if (old != NULL && !shard->here)
			shard->left_at = old->here ? GetCurrentTimestamp() : old->left_at;
	}
	before = map->shards;
	map->shards = shards;
	map->number = i;
	if (before != NULL)
		pfree(before);
	idem_spi_end(&saved);

	/* a change that came meanwhile has the next caller read again */
	map->as_of = changes;
}

static const ShardMap *
shards_of(Oid table)
{
	ShardMap   *map = table == idem_catalog()->leases ? &lease_shards : &key_shards;

	if (map->table != table)
	{
		map->table = table;
		map->as_of = 0;
	}
	if (map->as_of != map->changes)
		read_shards(map);
	return map;
}

/* Look up how a tenant is read and hashed. */
static void
prepare_tenant(void)
{
	const IdemCatalog *catalog = idem_catalog();
	uint64		generation = idem_catalog_generation();
	TypeCacheEntry *type;
	Oid			input;

	if (tenant.generation == generation)
		return;
	getTypeInputInfo(catalog->tenant_type, &input, &tenant.ioparam);
	fmgr_info_cxt(input, &tenant.input, TopMemoryContext);

	/* as Citus chooses it: that of the type's default class for hash indexes */
	type = lookup_type_cache(catalog->tenant_type, TYPECACHE_HASH_PROC_FINFO);
	if (!OidIsValid(type->hash_proc))
		elog(ERROR, "type %u of column \"%s\" cannot be hashed",
			 catalog->tenant_type, IDEM_TENANT);
	tenant.hash = &type->hash_proc_finfo;
	tenant.generation = generation;
}

/*
 * idem_citus_tenant
 *		Whose a scope is: its first component as a value of the column; 22023 if
 *		it is none.
 */
Datum
idem_citus_tenant(const text *scope)
{
	MemoryContext context = CurrentMemoryContext;
	const char *begin = VARDATA_ANY(scope);
	int			len = VARSIZE_ANY_EXHDR(scope);
	const char *end = memchr(begin, RECORD_SEPARATOR, len);
	volatile Datum value = (Datum) 0;

	prepare_tenant();
	PG_TRY();
	{
		value = InputFunctionCall(&tenant.input,
								  pnstrdup(begin, end != NULL ? end - begin : len),
								  tenant.ioparam,
								  idem_catalog()->tenant_typmod);
	}
	PG_CATCH();
	{
		/* its own text quotes the scope */
		MemoryContextSwitchTo(context);
		if (ERRCODE_TO_CATEGORY(geterrcode()) != ERRCODE_DATA_EXCEPTION)
			PG_RE_THROW();
		FlushErrorState();
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the first component of the scope is no value of type %s",
						format_type_be(idem_catalog()->tenant_type)),
				 errhint("The keys are distributed by it: begin the scope with the value of the distribution column.")));
	}
	PG_END_TRY();
	return value;
}

/* The shard of a scope; NULL where Citus knows of none. */
static const Shard *
find_shard(const ShardMap *map, const text *scope)
{
	Datum		value = idem_citus_tenant(scope);
	int32		hash = DatumGetInt32(FunctionCall1Coll(tenant.hash,
													   idem_catalog()->tenant_collation,
													   value));
	int			low = 0;
	int			high = map->number - 1;

	while (low <= high)
	{
		int			middle = low + (high - low) / 2;
		const Shard *shard = &map->shards[middle];

		if (hash < shard->low)
			high = middle - 1;
		else if (hash > shard->high)
			low = middle + 1;
		else
			return shard;
	}
	return NULL;
}

/*
 * idem_citus_is_here
 *		Whether the keys of a scope are on this node; always, without Citus.
 */
bool
idem_citus_is_here(const text *scope)
{
	const Shard *shard;

	if (!idem_citus_is_used())
		return true;
	shard = find_shard(shards_of(idem_catalog()->keys), scope);
	return shard != NULL && shard->here;
}

/*
 * idem_citus_remote_claims
 *		The setting: whether keys may be changed from another node.
 */
bool
idem_citus_remote_claims(void)
{
	return remote_claims;
}

static Oid
shard_table(Oid table, const Shard *shard)
{
	return get_relname_relid(psprintf("%s_" INT64_FORMAT, get_rel_name(table),
									  shard->id),
							 idem_catalog()->namespace);
}

/*
 * Whether a shard was here a moment ago: the session that sent the call did not
 * know better, and its repeat goes where the shard is now.
 */
static bool
has_just_left(const Shard *shard)
{
	return (shard->left_at != 0 &&
			GetCurrentTimestamp() - shard->left_at < JUST_LEFT_USEC) ||
		OidIsValid(shard_table(idem_catalog()->keys, shard));	/* to be dropped */
}

/*
 * idem_citus_require_here
 *		Refuse to change keys that are on another node, unless the setting allows
 *		it: 0A000, and 40001 where they were here a moment ago.
 *
 * A shard may move after that was asked: then the statement follows it.
 */
void
idem_citus_require_here(const text *scope)
{
	const Shard *shard;

	if (remote_claims || !idem_citus_is_used())
		return;
	shard = find_shard(shards_of(idem_catalog()->keys), scope);
	if (shard != NULL && shard->here)
		return;
	if (shard != NULL && has_just_left(shard))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("the keys of this scope have moved to another node"),
				 errhint("Repeat the whole transaction.")));
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("the keys of this scope are on another node"),
			 errdetail("A claim belongs where its tenant's rows are, into one local transaction with the work."),
			 errhint("Call a function that is distributed by the tenant with force_delegation, and begin the scope with the tenant; see doc/citus.md.")));
}

/*
 * idem_citus_shard
 *		The table with the rows of a scope; InvalidOid where that is on another
 *		node.
 */
Oid
idem_citus_shard(Oid table, const text *scope)
{
	const Shard *shard = find_shard(shards_of(table), scope);

	return shard != NULL && shard->here ? shard_table(table, shard) : InvalidOid;
}

/*
 * idem_citus_shards
 *		The tables on this node with rows of a distributed one.
 */
List *
idem_citus_shards(Oid table)
{
	const ShardMap *map = shards_of(table);
	List	   *tables = NIL;
	int			i;

	for (i = 0; i < map->number; i++)
	{
		Oid			relid = map->shards[i].here ?
		shard_table(table, &map->shards[i]) : InvalidOid;

		/* one that has just moved away is none */
		if (OidIsValid(relid))
			tables = lappend_oid(tables, relid);
	}
	return tables;
}

/*
 * idem_citus_rows
 *		What a statement on the rows of this node selects from, with their table
 *		and place.
 */
const char *
idem_citus_rows(Oid table)
{
	const char *schema = idem_catalog()->schema;
	StringInfoData rows;
	ListCell   *cell;

	if (!idem_citus_is_used())
		return psprintf("%s.%s", schema, get_rel_name(table));
	initStringInfo(&rows);
	foreach(cell, idem_citus_shards(table))
	{
		const char *name = get_rel_name(lfirst_oid(cell));

		if (name != NULL)
			appendStringInfo(&rows, "%sSELECT tableoid, ctid, * FROM %s.%s",
							 rows.len > 0 ? " UNION ALL " : "(", schema, name);
	}
	/* its columns, and no row: Citus has nothing to do with that */
	if (rows.len == 0)
		appendStringInfo(&rows, "(SELECT 0::oid AS tableoid, '(0,0)'::tid AS ctid, (NULL::%s.%s).*"
						 " WHERE false", schema, get_rel_name(table));
	appendStringInfoString(&rows, ") AS r");
	return rows.data;
}

/*
 * idem_citus_xid
 *		What stands for a transaction in claim_xid: two nodes have the same
 *		numbers.
 */
uint64
idem_citus_xid(FullTransactionId xid)
{
	uint64		number = U64FromFullTransactionId(xid);

	if (!idem_citus_is_used() || !FullTransactionIdIsValid(xid))
		return number;
	return number ^ (uint64) shards_of(idem_catalog()->keys)->node << XID_BITS;
}

/* Execute a statement on the node of a key; the values are its own. */
static void
execute_there(IdemPlan *plan, Datum *values)
{
	IdemSecctx	saved;

	idem_spi_begin(&saved);
	(void) idem_spi_execute(plan, values, NULL, false, 0);
	idem_spi_end(&saved);
}

/*
 * idem_citus_begin
 *		Before a lock is taken: where the key is on another node, have a
 *		transaction there that lasts as long as ours.
 *
 * Outside a transaction block Citus begins one for a change only, and a lock that
 * a query takes would be gone with the query.
 */
void
idem_citus_begin(const text *scope, const text *key)
{
	Datum		values[] = {PointerGetDatum(scope), PointerGetDatum(key)};

	if (!IsTransactionBlock() && !idem_citus_is_here(scope))
		execute_there(&begin_plan, values);
}

/*
 * idem_citus_flush
 *		Where a claim is on another node, have its transaction flushed there, too,
 *		when it commits: after the change, in the same transaction.
 */
void
idem_citus_flush(const text *scope, const text *key)
{
	const char *commit;
	Datum		values[3];

	if (idem_citus_is_here(scope))
		return;
	commit = GetConfigOption("synchronous_commit", false, false);
	values[0] = PointerGetDatum(scope);
	values[1] = PointerGetDatum(key);
	values[2] = CStringGetTextDatum(strcmp(commit, "off") == 0 ? "on" : commit);
	execute_there(&flush_plan, values);
}

/*
 * idem_citus_init
 *		Define the setting and watch the tables; once in a process.
 */
void
idem_citus_init(void)
{
	DefineCustomBoolVariable("idempotency.remote_claims",
							 "Lets claims be made on another Citus node than that of their row.",
							 NULL,
							 &remote_claims,
							 false,
							 PGC_SUSET, 0,
							 NULL, NULL, NULL);
	idem_catalog_watch(relation_changed);
}
