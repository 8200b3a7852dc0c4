/*-------------------------------------------------------------------------
 *
 * policy.c
 *	  Policies: finding, setting and dropping them.
 *
 * A policy that a call names comes from the cache of their table
 * (rule_table.c), so that it costs no query per call.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "funcapi.h"
#include "utils/acl.h"
#include "utils/builtins.h"

#include "base/args.h"
#include "rule/policy_values.h"

/*
 * idem_policy_get
 *		The policy of this name; 42704 when there is none.
 */
void
idem_policy_get(const char *name, IdemPolicy *policy)
{
	if (!idem_rule_find(&idem_policy_table, name, policy, false))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("idempotency policy \"%s\" does not exist", name),
				 errhint("Create it with idem_policy(), or see idem_policy_list.")));
}

/*
 * idem_policy_stored_name
 *		The name of a policy as a row keeps it; NULL for "default".
 */
text *
idem_policy_stored_name(const IdemPolicy *policy)
{
	if (strcmp(NameStr(policy->name), IDEM_POLICY_DEFAULT) == 0)
		return NULL;
	return cstring_to_text(NameStr(policy->name));
}

/*
 * idem_policy_get_stored
 *		The policy a row was claimed under: "default" if that one is gone.
 */
void
idem_policy_get_stored(const text *name, IdemPolicy *policy)
{
	char	   *cstring = name != NULL ? text_to_cstring(name) :
	pstrdup(IDEM_POLICY_DEFAULT);

	/* The names in rows are few: that one is unknown may be kept, too. */
	if (!idem_rule_find(&idem_policy_table, cstring, policy, true) &&
		!idem_rule_find(&idem_policy_table, IDEM_POLICY_DEFAULT, policy, true))
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
 * ROW EXCLUSIVE on the policies table to the end of the transaction.
 */
Datum
idem_policy(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(idem_args_text(fcinfo, 0, "name"));
	IdemRuleRow row;
	IdemPolicy	policy;
	List	   *rows;
	int			i;

	idem_args_require_writable();
	if (name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("policy name must not be empty"),
				 errhint("Name the policy, such as 'payments'; calls without one use 'default'.")));

	/*
	 * Before the row is read: otherwise two changes that are right each for
	 * itself could make a wrong policy.
	 */
	idem_rule_lock(&idem_policy_table);
	idem_policy_values_ship(&policy, "");
	rows = idem_rule_read(&idem_policy_table, name);
	memset(row.nulls, true, sizeof(row.nulls));
	if (rows != NIL)
		row = *(const IdemRuleRow *) linitial(rows);
	for (i = 0; i < idem_policy_table.ncolumns; i++)
	{
		if (PG_ARGISNULL(i))
			continue;
		row.values[i] = PG_GETARG_DATUM(i);
		row.nulls[i] = false;
	}
	idem_policy_values_apply(&policy, &row, true);

	/*
	 * Only here: a role may be dropped or renamed later, of which check
	 * "roles" of idem_health() tells.
	 */
	if (NameStr(policy.owner_role)[0] != '\0' &&
		!OidIsValid(get_role_oid(NameStr(policy.owner_role), true)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role \"%s\" does not exist",
						NameStr(policy.owner_role)),
				 errhint("Create the role that is to own the keys, or leave \"owner_role\" empty.")));
	idem_rule_write(&idem_policy_table, &row, rows != NIL);
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

	idem_args_require_writable();
	PG_RETURN_BOOL(idem_rule_delete(&idem_policy_table, name));
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
	ListCell   *cell;

	InitMaterializedSRF(fcinfo, 0);
	foreach(cell, idem_rule_read(&idem_policy_table, NULL))
	{
		const IdemRuleRow *row = lfirst(cell);
		const char *name = TextDatumGetCString(row->values[0]);

		idem_policy_values_ship(&policy, name);
		idem_policy_values_apply(&policy, row, false);
		idem_policy_values_put(rsinfo, &policy);
		seen_default |= strcmp(name, IDEM_POLICY_DEFAULT) == 0;
	}
	if (!seen_default)
	{
		idem_policy_values_ship(&policy, IDEM_POLICY_DEFAULT);
		idem_policy_values_put(rsinfo, &policy);
	}
	return (Datum) 0;
}

IDEM_FUNCTION(idem_policy_changed);

/*
 * idem_policy_changed() RETURNS trigger
 *		After a change of the policies table: see idem_rule_changed().  Raises
 *		39P01.
 */
Datum
idem_policy_changed(PG_FUNCTION_ARGS)
{
	(void) idem_rule_changed(&idem_policy_table, fcinfo);
	return PointerGetDatum(NULL);
}
