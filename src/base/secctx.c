/*-------------------------------------------------------------------------
 *
 * secctx.c
 *	  Becoming the owner of a table of ours, and back.
 *
 * The only room that switches user, security context and search_path.  It
 * does so around statements on our own tables and never while user code (a
 * handler) runs.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/plancache.h"

#include "base/secctx.h"

#define PINNED_SEARCH_PATH "pg_catalog, pg_temp"

/*
 * idem_secctx_set
 *		Set a setting until the caller's AtEOXact_GUC().
 */
void
idem_secctx_set(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * idem_secctx_enter
 *		Become the owner of a table of ours, with a pinned search_path.
 */
void
idem_secctx_enter(IdemSecctx *saved, Oid owner)
{
	/*
	 * LOCAL_USERID_CHANGE alone would let a hijacked operator or trigger
	 * change role and create objects; NOFORCE_RLS keeps rows visible to the
	 * owner when somebody has forced row security on our tables
	 * (t/010_security.pl).
	 */
	GetUserIdAndSecContext(&saved->userid, &saved->sec_context);
	SetUserIdAndSecContext(owner, saved->sec_context |
						   SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION |
						   SECURITY_NOFORCE_RLS);
	saved->guc_level = NewGUCNestLevel();
	if (strcmp(namespace_search_path, PINNED_SEARCH_PATH) != 0)
		idem_secctx_set("search_path", PINNED_SEARCH_PATH);

	/* a plan for each call would be made without what spi.c pins */
	if (plan_cache_mode == PLAN_CACHE_MODE_FORCE_CUSTOM_PLAN)
		idem_secctx_set("plan_cache_mode", "auto");
}

/*
 * idem_secctx_leave
 *		Become the caller again.
 */
void
idem_secctx_leave(const IdemSecctx *saved)
{
	/* after an error an abort does so, of the subtransaction at least */
	AtEOXact_GUC(false, saved->guc_level);
	SetUserIdAndSecContext(saved->userid, saved->sec_context);
}
