/*-------------------------------------------------------------------------
 *
 * cache.c
 *	  What a backend remembers of a small table of named things.
 *
 * Owns caches in CacheMemoryContext.  A cache is emptied by a relation cache
 * invalidation of its table, which the trigger on that sends for every
 * change; invalidations are accepted before each answer.
 *
 * A value is handed out as a copy: the cache may be emptied while its user
 * waits, runs a handler or reads a table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/inval.h"
#include "utils/memutils.h"

#include "base/catalog.h"
#include "rule/cache.h"

/* The value follows, aligned. */
typedef struct CacheEntry
{
	NameData	name;			/* the hash key */
	bool		missing;		/* there is none of this name */
} CacheEntry;

#define VALUE_OFFSET MAXALIGN(sizeof(CacheEntry))

static IdemCache *caches = NULL;

static void *
get_value(CacheEntry *entry)
{
	return (char *) entry + VALUE_OFFSET;
}

static void
relation_changed(Oid relid)
{
	IdemCache  *cache;

	for (cache = caches; cache != NULL; cache = cache->next)
		if (relid == InvalidOid || relid == cache->relid)
		{
			cache->valid = false;
			cache->changes++;
		}
}

/* An empty cache for the table as it is now. */
static void
reset(IdemCache *cache)
{
	HASHCTL		ctl;

	if (cache->context == NULL)
		cache->context = AllocSetContextCreate(CacheMemoryContext,
											   "idempotency cache",
											   ALLOCSET_SMALL_SIZES);
	cache->entries = NULL;
	MemoryContextReset(cache->context);
	cache->relid = cache->table();
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = NAMEDATALEN;
	ctl.entrysize = VALUE_OFFSET + cache->value_size;
	ctl.hcxt = cache->context;
	cache->entries = hash_create(cache->title, 16, &ctl,
								 HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	cache->valid = true;
}

/*
 * idem_cache_find
 *		The value of a name; false when there is none.
 *
 * One read while the table changed, or with the snapshot of a parallel plan,
 * is used, as a query would have used it, but not kept.  That a name is
 * missing is kept only if told so: the number of names that callers can think
 * of is not bounded.
 */
bool
idem_cache_find(IdemCache *cache, const char *name, void *value,
				bool keep_missing)
{
	CacheEntry *entry;
	uint64		changes;
	bool		known;

	if (strlen(name) >= NAMEDATALEN)
		return false;
	AcceptInvalidationMessages();
	if (!cache->valid)
		reset(cache);
	entry = hash_search(cache->entries, name, HASH_FIND, NULL);
	if (entry != NULL)
	{
		memcpy(value, get_value(entry), cache->value_size);
		return !entry->missing;
	}

	changes = cache->changes;
	known = cache->load(name, value);
	if ((known || keep_missing) && cache->valid &&
		changes == cache->changes && !IsInParallelMode())
	{
		entry = hash_search(cache->entries, name, HASH_ENTER, NULL);
		entry->missing = !known;
		memcpy(get_value(entry), value, cache->value_size);
	}
	return known;
}

/*
 * idem_cache_init
 *		Have the cache emptied when its table changes; once in a process.
 */
void
idem_cache_init(IdemCache *cache)
{
	if (caches == NULL)
		idem_catalog_watch(relation_changed);
	cache->next = caches;
	caches = cache;
}
