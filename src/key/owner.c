/*-------------------------------------------------------------------------
 *
 * owner.c
 *	  Whose key it is.
 *
 * A row keeps the name of a role, and a caller must have the rights of that
 * role.  Names and not OIDs: they survive dump and restore, and a name that
 * is gone is nobody.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"

#include "audit/refusal_queue.h"
#include "base/digest.h"
#include "key/owner.h"

/*
 * idem_owner_permits
 *		Whether the current user has the rights of the role that made a claim.
 *		A name that is gone is nobody: only a superuser has its rights.
 */
bool
idem_owner_permits(const text *claimed_by)
{
	char	   *name = text_to_cstring(claimed_by);
	Oid			role = get_role_oid(name, true);

	pfree(name);
	/* InvalidOid, a name that is gone, is nobody's role but a superuser's */
	return has_privs_of_role(GetUserId(), role);
}

/*
 * idem_owner_refuse
 *		Raise 42501: the key, of a row under that policy, is another role's.
 */
void
idem_owner_refuse(const IdemKey *id, const IdemPolicy *policy)
{
	idem_refusals_note(IDEM_REFUSAL_FORBIDDEN, id, policy);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for %s",
					idem_digest_key(id)),
			 errdetail("It was claimed under a role whose rights the current user does not have."),
			 errhint("Use another scope, become a member of that role, or set \"owner_role\" of the policy for roles that rotate.  If the role was renamed, see check \"roles\" of idem_health().")));
}

/*
 * idem_owner_require
 *		Refuse unless idem_owner_permits().
 */
void
idem_owner_require(const IdemKey *id, const text *claimed_by,
				   const IdemPolicy *policy)
{
	if (!idem_owner_permits(claimed_by))
		idem_owner_refuse(id, policy);
}

/*
 * idem_owner_name
 *		The name of the role that owns a new key under a policy; 42501.  In
 *		the id of many keys, none of them is named.
 */
text *
idem_owner_name(const IdemPolicy *policy, const IdemKey *id)
{
	const char *owner = NameStr(policy->owner_role);
	bool		exists;

	/* the name, not the OID: rows outlive roles, in a restore as well */
	if (owner[0] == '\0')
		return cstring_to_text(GetUserNameFromId(GetUserId(), false));
	if (!has_privs_of_role(GetUserId(), get_role_oid(owner, true)))
	{
		/* a batch of idem_dedupe is refused as a whole, and has no one key */
		if (id->key != NULL)
			idem_refusals_note(IDEM_REFUSAL_FORBIDDEN, id, policy);
		exists = OidIsValid(get_role_oid(owner, true));
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must have privileges of the owner role of policy \"%s\"",
						NameStr(policy->name)),
				 exists ?
				 errhint("Grant role \"%s\" to the current user.", owner) :
				 errhint("There is no role \"%s\": change \"owner_role\" of the policy.", owner)));
	}
	return cstring_to_text(owner);
}
