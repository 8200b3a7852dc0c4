/*-------------------------------------------------------------------------
 *
 * cache.h
 *	  What a backend remembers of a small table of named things.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_RULE_CACHE_H
#define IDEM_RULE_CACHE_H

#include "utils/hsearch.h"

/* The first four are set by the owner of the cache, the rest is our own. */
typedef struct IdemCache
{
	const char *title;
	Size		value_size;		/* of a value, which has no pointers */
	Oid			(*table) (void);
	bool		(*load) (const char *name, void *value);	/* false: missing */

	struct IdemCache *next;
	HTAB	   *entries;
	MemoryContext context;
	bool		valid;
	uint64		changes;		/* invalidations seen */
	Oid			relid;			/* the table that the entries are from */
} IdemCache;

extern bool idem_cache_find(IdemCache *cache, const char *name, void *value,
							bool keep_missing);
extern void idem_cache_init(IdemCache *cache);

#endif							/* IDEM_RULE_CACHE_H */
