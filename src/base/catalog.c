/*-------------------------------------------------------------------------
 *
 * catalog.c
 *	  The extension's own objects in this database.
 *
 * Owns a backend-local cache of their OIDs, and of the name of the schema.
 * It is looked up anew after an invalidation of one of our relations (owner,
 * DROP EXTENSION) or of any schema (RENAME).  Owns the one relation cache
 * callback of the library, too, which tells other rooms.
 * Needs a transaction; takes AccessShareLock on catalogs for the look-up.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_index.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "base/catalog.h"

#define MAX_LOOKUPS 10
#define MAX_WATCHERS 5

static IdemCatalogWatcher watchers[MAX_WATCHERS];
static int	nwatchers = 0;

static IdemCatalog cached;
static bool cached_valid = false;
static uint64 generation = 0;	/* of what "cached" says */
static uint64 changes = 0;		/* invalidations seen, of whatever */

static void
relation_changed(Datum arg, Oid relid)
{
	int			i;

	/* may come at any moment, in the middle of a look-up, too: only counts */
	changes++;
	for (i = 0; i < nwatchers; i++)
		watchers[i] (relid);

	/* InvalidOid stands for all relations */
	if (relid == InvalidOid || relid == cached.keys ||
		relid == cached.leases || relid == cached.policies || relid == cached.limiters ||
		relid == cached.audit_log || relid == cached.audit_seals ||
		relid == cached.secrets)
		cached_valid = false;
}

static void
namespace_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	/* any schema: a rename is too rare to ask of which */
	changes++;
	cached_valid = false;
}

/*
 * Whether the columns of an index are exactly (scope, key), behind the tenant
 * where the table has one: the scope says whose it is.
 */
static bool
is_on_key(Form_pg_index index, Oid keys, int before)
{
	return index->indnatts == before + 2 &&
		(before == 0 || index->indkey.values[0] == get_attnum(keys, IDEM_TENANT)) &&
		index->indkey.values[before] == get_attnum(keys, "scope") &&
		index->indkey.values[before + 1] == get_attnum(keys, "key");
}

/*
 * Whether the key table has its primary key, valid and immediate: all that
 * makes a key unique.
 */
static bool
has_primary_key(Oid keys, bool tenant)
{
	Relation	catalog = table_open(IndexRelationId, AccessShareLock);
	bool		found = false;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	/*
	 * From the catalog and not from the relation cache, since nobody here may
	 * wait for a lock on the table.
	 */
	ScanKeyInit(&key, Anum_pg_index_indrelid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(keys));
	scan = systable_beginscan(catalog, IndexIndrelidIndexId, true, NULL, 1,
							  &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_index index = (Form_pg_index) GETSTRUCT(tuple);

		if (index->indisprimary && index->indisvalid && index->indisready &&
			index->indimmediate && is_on_key(index, keys, tenant ? 1 : 0))
			found = true;
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return found;
}

/* Schema and version of an extension; InvalidOid when it is gone. */
static Oid
find_extension_schema(Oid extension, char **version)
{
	Relation	catalog = table_open(ExtensionRelationId, AccessShareLock);
	Oid			schema = InvalidOid;
	Datum		datum;
	bool		isnull;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	/* get_extension_schema() is not exported before 18 */
	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(extension));
	scan = systable_beginscan(catalog, ExtensionOidIndexId, true, NULL, 1,
							  &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
		datum = heap_getattr(tuple, Anum_pg_extension_extversion,
							 RelationGetDescr(catalog), &isnull);
		*version = TextDatumGetCString(datum);
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return schema;
}

static Oid
find_relation(Oid schema, const char *name)
{
	Oid			relid = get_relname_relid(name, schema);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"%s\" of extension \"idempotency\" is missing",
						name),
				 errhint("Drop and create the extension, or restore its objects from a backup.")));
	return relid;
}

static Oid
find_type(Oid schema, const char *name)
{
	Oid			type = GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
									   CStringGetDatum(name),
									   ObjectIdGetDatum(schema));

	if (!OidIsValid(type))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("type \"%s\" of extension \"idempotency\" is missing",
						name),
				 errhint("Drop and create the extension.")));
	return type;
}

static Oid
find_owner(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/* The column that idem_distribute() gave to the keys. */
static void
find_tenant(IdemCatalog *catalog)
{
	AttrNumber	column = InvalidAttrNumber;

	/* elsewhere a column of that name is somebody else's */
	if (idem_catalog_has_citus())
		column = get_attnum(catalog->keys, IDEM_TENANT);
	if (column != InvalidAttrNumber)
		get_atttypetypmodcoll(catalog->keys, column, &catalog->tenant_type,
							  &catalog->tenant_typmod,
							  &catalog->tenant_collation);
}

static void
look_up(IdemCatalog *catalog)
{
	Oid			schema;
	char	   *version;
	char	   *name;

	/* what is between the fields, too: compared as bytes */
	memset(catalog, 0, sizeof(*catalog));
	schema = find_extension_schema(get_extension_oid("idempotency", false),
								   &version);
	name = get_namespace_name(schema);
	if (name == NULL)
		elog(ERROR, "cache lookup failed for schema %u", schema);
	catalog->namespace = schema;
	strlcpy(catalog->schema, quote_identifier(name), sizeof(catalog->schema));
	catalog->keys = find_relation(schema, "idempotency_keys");
	find_tenant(catalog);
	catalog->keys_unique = has_primary_key(catalog->keys,
										   OidIsValid(catalog->tenant_type));
	catalog->leases = find_relation(schema, "idempotency_leases");
	catalog->leases_owner = find_owner(catalog->leases);
	catalog->policies = find_relation(schema, "idempotency_policies");
	catalog->limiters = find_relation(schema, "idempotency_limiters");
	catalog->audit_log = find_relation(schema, "idempotency_audit_log");
	catalog->audit_default = find_relation(schema,
										   "idempotency_audit_log_default");
	catalog->audit_sequence = find_relation(schema,
											"idempotency_audit_log_id_seq");
	catalog->audit_seals = find_relation(schema, "idempotency_audit_seals");
	catalog->audit_owner = find_owner(catalog->audit_log);
	catalog->seals_owner = find_owner(catalog->audit_seals);
	catalog->secrets = find_relation(schema, "idempotency_secrets");
	catalog->secrets_pkey = find_relation(schema, "idempotency_secrets_pkey");
	catalog->owner = find_owner(catalog->keys);
	catalog->response_type = find_type(schema, "idem_response");
	catalog->result_type = find_type(schema, "idem_result");
	catalog->outcome_type = find_type(schema, "idem_outcome");
}

/*
 * idem_catalog
 *		Our objects as they are now.  Raises 42704 or 42P01 when the extension
 *		is not (wholly) there.  The result is good until the next look-up.
 */
const IdemCatalog *
idem_catalog(void)
{
	int			tries = 0;

	while (!cached_valid && tries++ < MAX_LOOKUPS)
	{
		uint64		before = changes;
		IdemCatalog found;

		look_up(&found);

		/* most changes are none of this: plans that were made stay good */
		if (memcmp(&found, &cached, sizeof(found)) != 0)
		{
			cached = found;
			generation++;
		}

		/*
		 * Any change during the look-up makes it be repeated: which relations
		 * are ours was not known before it.  Not for ever, since
		 * debug_discard_caches invalidates all the time.
		 */
		cached_valid = changes == before;
	}
	return &cached;
}

/*
 * idem_catalog_generation
 *		Changes whenever idem_catalog() has something else to say.
 */
uint64
idem_catalog_generation(void)
{
	(void) idem_catalog();
	return generation;
}

/*
 * idem_catalog_has_citus
 *		Whether Citus is installed in this database.
 */
bool
idem_catalog_has_citus(void)
{
	return OidIsValid(get_relname_relid("pg_dist_partition",
										PG_CATALOG_NAMESPACE));
}

/*
 * idem_catalog_require_version
 *		Refuse an extension whose objects are not those of this library; 55000,
 *		and 42704 when there is none.
 */
void
idem_catalog_require_version(void)
{
	char	   *version = "";

	(void) find_extension_schema(get_extension_oid("idempotency", false),
								 &version);
	if (strcmp(version, IDEM_VERSION) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("version \"%s\" of extension \"idempotency\" is not that of the library, \"%s\"",
						version, IDEM_VERSION),
				 errhint("ALTER EXTENSION idempotency UPDATE, or install the library of that version.")));
}

/*
 * idem_catalog_watch
 *		Have a room told of every change of a relation; once in a process.
 */
void
idem_catalog_watch(IdemCatalogWatcher watcher)
{
	if (nwatchers == MAX_WATCHERS)
		elog(ERROR, "too many rooms watch relations");
	watchers[nwatchers++] = watcher;
}

/*
 * idem_catalog_init
 *		Register the callbacks; once in a process.
 */
void
idem_catalog_init(void)
{
	/*
	 * One for all rooms: a backend has ten slots for the server and all its
	 * extensions, and FATAL is what the eleventh gets (t/046_callbacks.pl).
	 */
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, namespace_changed, (Datum) 0);
}
