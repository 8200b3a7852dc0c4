/*-------------------------------------------------------------------------
 *
 * slots.c
 *	  For t/046_callbacks.pl: takes slots for cache callbacks.
 *
 * A backend has a fixed number of them, for the server and all its extensions,
 * and ends with FATAL when somebody wants one more.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/inval.h"
#include "utils/syscache.h"

PG_MODULE_MAGIC;

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

/* take_relation_slots(integer): take so many for the relation cache. */
Datum
take_relation_slots(PG_FUNCTION_ARGS)
{
	int			i;

	for (i = 0; i < PG_GETARG_INT32(0); i++)
		CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(take_catalog_slots);

/* take_catalog_slots(integer): take so many for the system caches. */
Datum
take_catalog_slots(PG_FUNCTION_ARGS)
{
	int			i;

	for (i = 0; i < PG_GETARG_INT32(0); i++)
		CacheRegisterSyscacheCallback(TYPEOID, catalog_changed, (Datum) 0);
	PG_RETURN_VOID();
}
