/*-------------------------------------------------------------------------
 *
 * grant.c
 *	  Who may call what.
 *
 * Owns the levels of idem_grant: every function that PUBLIC cannot execute is
 * named here or decidedly in no level (test: privileges).  GRANT itself runs
 * as the caller, who has to own the functions.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_proc.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

#include "base/args.h"
#include "base/catalog.h"
#include "base/spi.h"

/* The lists end at a NULL. */
typedef struct GrantLevel
{
	const char *name;
	const char *functions[32];
	const char *relations[8];	/* to SELECT from */
} GrantLevel;

static const GrantLevel levels[] = {
	{
		"app",
		{
			"idem_audit",
			"idem_checkpoint",
			"idem_claim",
			"idem_complete",
			"idem_context",
			"idem_dedupe",
			"idem_extend",
			"idem_fail",
			"idem_http_headers",
			"idem_http_problem",
			"idem_http_time",
			"idem_lookup",
			"idem_recover",
			"idem_release",
			"idem_require",
			"idem_run",
			"idem_throttle",
			"idem_throttle_all",
			"idem_throttle_peek",
			"idem_throttle_return"
		}
	},
	{
		"operator",
		{
			"idem_activity_values",
			"idem_audit_seal",
			"idem_end_lease",
			"idem_find",
			"idem_forget",
			"idem_forget_scope",
			"idem_health",
			"idem_holder",
			"idem_limiter",
			"idem_limiter_drop",
			"idem_lookup",
			"idem_policy",
			"idem_policy_drop",
			"idem_policy_values",
			"idem_schedule",
			"idem_stats_reset",
			"idem_stats_values",
			"idem_sweep",
			"idem_sweep_all",
			"idem_sweep_status_values",
			"idem_throttle_activity_values",
			"idem_throttle_peek",
			"idem_unschedule"
		},
		{
			"idem_activity",
			"idem_policy_list",
			"idem_stats",
			"idem_sweep_status",
			"idem_throttle_activity",
			"idempotency_limiters"
		}
	},
	{
		"auditor",
		{
			"idem_audit_digest",
			"idem_audit_seal",
			"idem_audit_verify",
			"idem_health",
			"idem_policy_values"
		},
		{
			"idem_policy_list",
			"idempotency_audit_log",
			"idempotency_audit_seals"
		}
	},

	/* nothing here names a scope or a key in the clear, or changes anything */
	{
		"monitor",
		{
			"idem_activity_values",
			"idem_health",
			"idem_stats_values",
			"idem_sweep_status_values",
			"idem_throttle_activity_values"
		},
		{
			"idem_activity",
			"idem_stats",
			"idem_sweep_status",
			"idem_throttle_activity"
		}
	}
};

/* Every overload of a function of ours. */
static void
grant_function(const char *name, const char *role)
{
	Oid			schema = idem_catalog()->namespace;
	CatCList   *list = SearchSysCacheList1(PROCNAMEARGSNSP,
										   CStringGetDatum(name));
	int			i;

	for (i = 0; i < list->n_members; i++)
	{
		Form_pg_proc proc = (Form_pg_proc) GETSTRUCT(&list->members[i]->tuple);

		/*
		 * Others may have functions of this name in schemas of their own.
		 * ROUTINE, since idem_sweep_all() is a procedure.
		 */
		if (proc->pronamespace == schema)
			idem_spi_command(psprintf("GRANT EXECUTE ON ROUTINE %s TO %s",
									  format_procedure_qualified(proc->oid),
									  role));
	}

	/*
	 * Each GRANT has invalidated the list, which stays as it is until we let
	 * go of it.
	 */
	ReleaseSysCacheList(list);
}

static const GrantLevel *
find_level(const char *name)
{
	int			i;

	for (i = 0; i < lengthof(levels); i++)
		if (strcmp(levels[i].name, name) == 0)
			return &levels[i];
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for argument \"%s\"", "level"),
			 errhint("Available values: \"%s\", \"%s\", \"%s\", \"%s\".",
					 levels[0].name, levels[1].name, levels[2].name,
					 levels[3].name)));
}

IDEM_FUNCTION(idem_grant);

/*
 * idem_grant(role regrole, level text) RETURNS void
 *		Grant a role what a level needs: EXECUTE, USAGE of the schema, SELECT.
 *
 * Raises 22004, 22023, 25006, 42501, 42704.
 */
Datum
idem_grant(PG_FUNCTION_ARGS)
{
	const GrantLevel *level;
	const char *role;
	int			i;

	idem_args_require(fcinfo, 0, "role");
	idem_args_require_writable();

	/* A regrole may be any number.  PUBLIC, which is 0, is no role: 42704. */
	role = quote_identifier(GetUserNameFromId(PG_GETARG_OID(0), false));
	level = find_level(text_to_cstring(idem_args_text(fcinfo, 1, "level")));

	/*
	 * Without idem_spi_begin(): the rights are the caller's to give, and so
	 * the search_path is his, too.  Hence every name is qualified.
	 */
	SPI_connect();
	idem_spi_command(psprintf("GRANT USAGE ON SCHEMA %s TO %s",
							  idem_catalog()->schema, role));
	for (i = 0; level->functions[i] != NULL; i++)
		grant_function(level->functions[i], role);
	for (i = 0; level->relations[i] != NULL; i++)
		idem_spi_command(psprintf("GRANT SELECT ON TABLE %s.%s TO %s",
								  idem_catalog()->schema,
								  level->relations[i], role));
	SPI_finish();
	PG_RETURN_VOID();
}
