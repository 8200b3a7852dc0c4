/*-------------------------------------------------------------------------
 *
 * slots.c
 *	  For t/046_callbacks.pl: takes slots for cache callbacks.
 *
 * A backend has a fixed number of them, for the server and all its extensions,
 * and ends with FATAL when somebody wants one more.  Each that was
 * taken is told.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/inval.h"
#include "utils/syscache.h"

PG_MODULE_MAGIC;

/* more than any server has */
#define ENOUGH 1000

extern PGDLLEXPORT Datum take_relation_slots(PG_FUNCTION_ARGS);
extern PGDLLEXPORT Datum take_catalog_slots(PG_FUNCTION_ARGS);

static void
relation_changed(Datum arg, Oid relid)
{
}

static void
catalog_changed(Datum arg, int cacheid, uint32 hashvalue)
{
}

PG_FUNCTION_INFO_V1(take_relation_slots);

/* take_relation_slots(): take all for the relation cache, and one too many. */
Datum
take_relation_slots(PG_FUNCTION_ARGS)
{
	int			i;

	for (i = 0; i < ENOUGH; i++)
	{
		CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
		elog(NOTICE, "taken");
	}
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(take_catalog_slots);

/* take_catalog_slots(): take all for the system caches, and one too many. */
Datum
take_catalog_slots(PG_FUNCTION_ARGS)
{
	int			i;

	for (i = 0; i < ENOUGH; i++)
	{
		CacheRegisterSyscacheCallback(TYPEOID, catalog_changed, (Datum) 0);
		elog(NOTICE, "taken");
	}
	PG_RETURN_VOID();
}
