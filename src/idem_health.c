/*-------------------------------------------------------------------------
 *
 * idem_health.c
 *	  Checking the installation, when it is made and at any time after.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_namespace.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "idem.h"
#include "idem_buckets.h"
#include "idem_catalog.h"
#include "idem_launcher.h"
#include "idem_store_health.h"
#include "idem_store_way.h"

/*
 * Whether only its owner may create in a schema (a superuser always may).
 */
static bool
schema_is_safe(Oid schema)
{
	HeapTuple	tuple = SearchSysCache1(NAMESPACEOID, ObjectIdGetDatum(schema));
	bool		safe = true;
	bool		isnull;
	Datum		datum;
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for schema %u", schema);
	owner = ((Form_pg_namespace) GETSTRUCT(tuple))->nspowner;
	datum = SysCacheGetAttr(NAMESPACEOID, tuple, Anum_pg_namespace_nspacl,
							&isnull);
	if (!isnull)				/* by default nobody but the owner may */
	{
		Acl		   *acl = DatumGetAclP(datum);
		const AclItem *items = ACL_DAT(acl);
		int			i;

		for (i = 0; i < ACL_NUM(acl); i++)
			if (items[i].ai_grantee != owner &&
				(ACLITEM_GET_PRIVS(items[i]) & ACL_CREATE) != 0)
				safe = false;
	}
	ReleaseSysCache(tuple);
	return safe;
}

IDEM_FUNCTION(idem_schema_check);

/*
 * idem_schema_check() RETURNS void
 *		Of the install script: refuse the schema that this function is in when
 *		others than its owner can create objects there; 42501.
 */
Datum
idem_schema_check(PG_FUNCTION_ARGS)
{
	Oid			schema = get_func_namespace(fcinfo->flinfo->fn_oid);

	if (!schema_is_safe(schema))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("schema \"%s\" is not safe for extension \"idempotency\"",
						get_namespace_name(schema)),
				 errdetail("Others than its owner have the privilege CREATE on it."),
				 errhint("CREATE SCHEMA idempotency, then CREATE EXTENSION idempotency SCHEMA idempotency CASCADE.")));
	PG_RETURN_VOID();
}

static void
put_check(void *arg, const char *name, bool ok, const char *detail)
{
	ReturnSetInfo *rsinfo = arg;
	Datum		values[3];
	bool		nulls[3] = {0};

	values[0] = CStringGetTextDatum(name);
	values[1] = BoolGetDatum(ok);
	values[2] = CStringGetTextDatum(detail != NULL ? detail : "");
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* What the rate limiters can remember, and whether that was enough. */
static void
put_buckets_check(void *arg)
{
	IdemBucketsUse use;

	if (!idem_buckets_exist())
	{
		put_check(arg, "buckets", true,
				  "no rate limiting: the library is not preloaded");
		return;
	}
	idem_buckets_use(&use);
	put_check(arg, "buckets",
			  use.no_room == 0 ||
			  GetCurrentTimestamp() - use.no_room_at > USECS_PER_HOUR,
			  psprintf("room for " INT64_FORMAT ", " INT64_FORMAT " taken; "
					   INT64_FORMAT " calls found none%s%s",
					   use.room, use.used, use.no_room,
					   use.no_room > 0 ? ", the last at " : "",
					   use.no_room > 0 ?
					   timestamptz_to_str(use.no_room_at) : ""));
}

IDEM_FUNCTION(idem_health);

/*
 * idem_health() RETURNS TABLE (check_name text, ok boolean, detail text)
 *		What is right with the installation and what is not.  Raises nothing of
 *		its own; takes ACCESS SHARE on what it looks at.
 */
Datum
idem_health(PG_FUNCTION_ARGS)
{
	bool		safe = schema_is_safe(idem_catalog()->namespace);
	bool		hmac = OidIsValid(idem_catalog_hmac());
	bool		unique = idem_catalog()->keys_unique;
	bool		running;
	const char *worker = idem_launcher_describe(&running);

	InitMaterializedSRF(fcinfo, 0);
	put_check(fcinfo->resultinfo, "schema_safe", safe,
			  safe ? "only its owner may create objects" :
			  "others than its owner have CREATE: revoke it");
	put_check(fcinfo->resultinfo, "pgcrypto", hmac,
			  hmac ? "hmac(bytea, bytea, text) found" :
			  "extension pgcrypto has no hmac(bytea, bytea, text)");
	put_check(fcinfo->resultinfo, "primary_key", unique,
			  unique ? "exactly (scope, key), valid" :
			  "restore PRIMARY KEY (scope, key) on idempotency_keys");
	put_check(fcinfo->resultinfo, "storage", true, idem_store_way_describe());
	put_buckets_check(fcinfo->resultinfo);
	idem_store_health(running, worker, put_check, fcinfo->resultinfo);
	return (Datum) 0;
}
