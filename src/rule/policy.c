/*-------------------------------------------------------------------------
 *
 * policy.c
 *	  Policies: finding, setting and dropping them.
 *
 * Owns a cache of policies (cache.c), so that reading one costs no query
 * per call.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/trigger.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/inval.h"

#include "base/args.h"
#include "base/catalog.h"
#include "base/counters.h"
#include "base/databases.h"
#include "key/xact.h"
#include "rule/cache.h"
#include "rule/policy.h"
#include "rule/policy_values.h"
#include "store/store.h"

/* Read one policy from the table; false when nobody has set it. */
static bool
load(const char *name, IdemPolicy *policy)
{
	Datum		values[IDEM_POLICY_COLUMNS];
	bool		nulls[IDEM_POLICY_COLUMNS];

	idem_policy_values_ship(policy, name);
	if (!idem_store_named_read(IDEM_STORE_POLICIES, name, values, nulls))
		return strcmp(name, IDEM_POLICY_DEFAULT) == 0;
	idem_policy_values_apply(policy, values, nulls, false);
	return true;
}

/* The same for the cache; whoever uses a policy is counted under it. */
static bool
load_for_use(const char *name, void *value)
{
	IdemPolicy *policy = value;

	if (!load(name, policy))
		return false;
	policy->counters = idem_counters_find(name);
	idem_databases_know();
	return true;
}

static Oid
get_table(void)
{
	return idem_catalog()->policies;
}

static IdemCache cache = {
	"idempotency policies", sizeof(IdemPolicy), get_table, load_for_use
};

/*
 * idem_policy_get
 *		The policy of this name; 42704 when there is none.
 */
void
idem_policy_get(const char *name, IdemPolicy *policy)
{
	if (!idem_cache_find(&cache, name, policy, false))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("idempotency policy \"%s\" does not exist", name),
				 errhint("Create it with idem_policy(), or see idem_policy_list.")));
}

/*
 * idem_policy_get_stored
 *		The policy a row was claimed under: "default" if that one is gone.
 *		The names in rows are few, so one that is unknown is kept, too.
 */
void
idem_policy_get_stored(const text *name, IdemPolicy *policy)
{
	char	   *cstring = text_to_cstring(name);

	if (!idem_cache_find(&cache, cstring, policy, true) &&
		!idem_cache_find(&cache, IDEM_POLICY_DEFAULT, policy, true))
		elog(ERROR, "no idempotency policy \"%s\"", IDEM_POLICY_DEFAULT);
	pfree(cstring);
}

IDEM_FUNCTION(idem_policy);

/*
 * idem_policy(name text, ...) RETURNS void
 *		Create or change a policy.  The arguments are the columns of the table;
 *		one left out, or null, keeps its value.
 *
 * Raises 22004, 22023, 25006, 40001, 42704 (no such owner_role).  Holds SHARE
 * ROW EXCLUSIVE on the policies table to the end of the transaction, so that
 * two changes which are right each for itself cannot make a wrong policy.
 */
Datum
idem_policy(PG_FUNCTION_ARGS)
{
	text	   *name = idem_args_text(fcinfo, IDEM_POLICY_NAME, "name");
	char	   *cname = text_to_cstring(name);
	Datum		values[IDEM_POLICY_COLUMNS];
	bool		nulls[IDEM_POLICY_COLUMNS];
	IdemPolicy	policy;
	bool		exists;
	int			i;

	idem_xact_require_writable();
	if (cname[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("policy name must not be empty"),
				 errhint("Name the policy, such as 'payments'; calls without one use 'default'.")));
	idem_store_named_lock(IDEM_STORE_POLICIES);
	idem_policy_values_ship(&policy, "");
	exists = idem_store_named_read(IDEM_STORE_POLICIES, cname, values, nulls);
	if (!exists)
		memset(nulls, true, sizeof(nulls));
	for (i = 0; i < IDEM_POLICY_COLUMNS; i++)
	{
		if (PG_ARGISNULL(i))
			continue;
		values[i] = PG_GETARG_DATUM(i);
		nulls[i] = false;
	}
	idem_policy_values_apply(&policy, values, nulls, true);
	if (NameStr(policy.owner_role)[0] != '\0' &&
		!OidIsValid(get_role_oid(NameStr(policy.owner_role), true)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role \"%s\" does not exist",
						NameStr(policy.owner_role)),
				 errhint("Create the role that is to own the keys, or leave \"owner_role\" empty.")));
	idem_store_named_write(IDEM_STORE_POLICIES, values, nulls, exists);
	PG_RETURN_VOID();
}

IDEM_FUNCTION(idem_policy_drop);

/*
 * idem_policy_drop(name text) RETURNS boolean
 *		Drop a policy; false when nobody had set it.  Its keys are under
 *		"default" from now on; "default" itself has its shipped values again.
 *
 * Raises 22004, 25006.  Takes ROW EXCLUSIVE on the policies table.
 */
Datum
idem_policy_drop(PG_FUNCTION_ARGS)
{
	text	   *name = idem_args_text(fcinfo, 0, "name");

	idem_xact_require_writable();
	PG_RETURN_BOOL(idem_store_named_delete(IDEM_STORE_POLICIES, name));
}

static void
put_policy(ReturnSetInfo *rsinfo, const IdemPolicy *policy)
{
	Datum		values[IDEM_POLICY_COLUMNS];
	bool		nulls[IDEM_POLICY_COLUMNS] = {0};

	idem_policy_values_form(policy, values);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

IDEM_FUNCTION(idem_policy_values);

/*
 * idem_policy_values() RETURNS TABLE (name text, ...)
 *		Every policy with its values in force, "default" included.  Raises
 *		nothing of its own; takes ACCESS SHARE on the policies table.
 */
Datum
idem_policy_values(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	IdemPolicy	policy;
	bool		seen_default = false;
	List	   *names = idem_store_named_names(IDEM_STORE_POLICIES);
	ListCell   *cell;

	InitMaterializedSRF(fcinfo, 0);
	foreach(cell, names)
	{
		const char *name = lfirst(cell);

		if (strcmp(name, IDEM_POLICY_DEFAULT) == 0)
			seen_default = true;
		if (load(name, &policy))
			put_policy(rsinfo, &policy);
	}
	if (!seen_default)
	{
		idem_policy_values_ship(&policy, IDEM_POLICY_DEFAULT);
		put_policy(rsinfo, &policy);
	}
	return (Datum) 0;
}

IDEM_FUNCTION(idem_policy_changed);

/*
 * idem_policy_changed() RETURNS trigger
 *		After a change of the policies table: every backend, this one with its
 *		next command and the others at commit, forgets what it has cached.
 *		Raises 39P01.
 */
Datum
idem_policy_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager",
						"idem_policy_changed"),
				 errhint("It is for the triggers of \"%s\" only.",
						 "idempotency_policies")));
	CacheInvalidateRelcache(trigdata->tg_relation);
	return PointerGetDatum(NULL);
}

/*
 * idem_policy_init
 *		Register the callback; once in a process.
 */
void
idem_policy_init(void)
{
	idem_cache_init(&cache);
}
