/*-------------------------------------------------------------------------
 *
 * recover.c
 *	  Taking over claims that were abandoned, for a worker that completes them.
 *
 * The list of open leases proposes (leases.c), longest abandoned first, and
 * each key's own row decides, as for any claim: so it costs what is open, not
 * what is stored, and of two workers one gets it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "base/args.h"
#include "key/claim.h"
#include "key/leases.h"
#include "key/owner.h"
#include "key/xact.h"

/* Proposals that are read at a time, beyond those that are asked for. */
#define SPARE_LEASES 32

#define MAX_KEYS 10000

typedef enum RecoverArg
{
	ARG_POLICY,
	ARG_MAX_KEYS,
	ARG_LEASE
} RecoverArg;

/* Columns of the result. */
typedef enum RecoverColumn
{
	RECOVER_SCOPE,
	RECOVER_KEY,
	RECOVER_ATTEMPT,
	RECOVER_TOKEN,
	RECOVER_RECOVERY_POINT,
	RECOVER_CHECKPOINT,
	RECOVER_FINGERPRINT,
	RECOVER_CREATED_AT,
	RECOVER_LEASE_UNTIL
} RecoverColumn;

#define RECOVER_COLUMNS (RECOVER_LEASE_UNTIL + 1)

/* Decide as for the request that made the claim, under the same policy. */
static bool
is_abandoned(IdemClaim *claim)
{
	if (!claim->found)
		return false;
	claim->fingerprint = claim->row.fingerprint;
	claim->context = claim->row.context;
	idem_claim_judge(claim);
	return claim->decision.verdict == IDEM_CLAIM_AGAIN &&
		claim->decision.taken_over &&
		strcmp(NameStr(claim->row_policy.name), NameStr(claim->policy.name)) == 0;
}

/* Whether the list is right to have the claim, which may not be ours to take. */
static bool
is_listed_rightly(const IdemClaim *claim, const IdemLease *lease)
{
	return claim->found && claim->row.state == IDEM_STATE_IN_PROGRESS &&
		claim->row.token == lease->token &&
		strcmp(NameStr(claim->row_policy.name), NameStr(claim->policy.name)) == 0;
}

/* Take the claim over that the list proposes, if it can be had without waiting. */
static bool
take_over(IdemClaim *claim, const IdemLease *lease)
{
	bool		taken = false;

	claim->id = lease->id;
	memset(&claim->store, 0, sizeof(claim->store));

	/* an idem_run of our own has it, and has no row that would say so */
	if (idem_xact_is_running(&claim->id))
		return false;
	claim->found = idem_store_look(&claim->store, &claim->id, false,
								   &claim->row);

	/*
	 * What was read decides nothing: another worker may be at it, or through
	 * with it.  Whoever is at it is passed by.  Spec: recover.
	 */
	if (is_abandoned(claim))
		taken = idem_store_take_row(&claim->store, &claim->id,
									&claim->row) == IDEM_STORE_ROW &&
			is_abandoned(claim);
	else if (!is_listed_rightly(claim, lease))
		idem_leases_drop(&claim->id, lease->token);

	if (taken)
	{
		idem_claim_fill(claim);
		idem_store_update(&claim->store, &claim->id, &claim->row);
	}
	else
		idem_store_drop(&claim->store);
	idem_store_close(&claim->store);
	if (taken)
	{
		idem_claim_written(claim);
		idem_claim_count(claim, IDEM_OUTCOME_CLAIMED);
	}
	return taken;
}

static void
put_pointer(Datum *values, bool *nulls, RecoverColumn column,
			const void *pointer)
{
	values[column] = PointerGetDatum(pointer);
	nulls[column] = pointer == NULL;
}

static void
put_claim(ReturnSetInfo *rsinfo, const IdemClaim *claim)
{
	const IdemRow *row = &claim->row;
	Datum		values[RECOVER_COLUMNS];
	bool		nulls[RECOVER_COLUMNS] = {0};

	put_pointer(values, nulls, RECOVER_SCOPE, claim->id.scope);
	put_pointer(values, nulls, RECOVER_KEY, claim->id.key);
	values[RECOVER_ATTEMPT] = Int32GetDatum(row->attempt);
	values[RECOVER_TOKEN] = Int64GetDatum(row->token);
	put_pointer(values, nulls, RECOVER_RECOVERY_POINT, row->recovery_point);
	put_pointer(values, nulls, RECOVER_CHECKPOINT, row->checkpoint);
	put_pointer(values, nulls, RECOVER_FINGERPRINT, row->fingerprint);
	values[RECOVER_CREATED_AT] = TimestampTzGetDatum(row->created_at);
	values[RECOVER_LEASE_UNTIL] = TimestampTzGetDatum(row->lease_until);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

static int
read_max_keys(FunctionCallInfo fcinfo)
{
	int			max_keys;

	idem_args_require(fcinfo, ARG_MAX_KEYS, "max_keys");
	max_keys = PG_GETARG_INT32(ARG_MAX_KEYS);
	if (max_keys < 1 || max_keys > MAX_KEYS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be between %d and %d", "max_keys",
						1, MAX_KEYS),
				 errhint("Take as many as one worker completes within their lease.")));
	return max_keys;
}

IDEM_FUNCTION(idem_recover);

/*
 * idem_recover(policy text, max_keys integer, lease interval) RETURNS TABLE
 *		(scope, key, attempt, token, recovery_point, checkpoint, fingerprint,
 *		created_at, lease_until)
 *		Take over up to max_keys claims of a recoverable policy whose lease has
 *		ended, longest abandoned first: those of roles whose rights the caller
 *		has, and which nobody else is taking.
 *
 * Raises 22004, 22023, 25006, 40001, 42704, 55000 (the policy is not
 * recoverable).  Holds the key lock and the row of each, and its entry in the
 * list, to the end of the transaction, whose commit is flushed.
 */
Datum
idem_recover(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int			max_keys;
	int			max_leases;
	int			number;
	int			taken = 0;
	TimestampTz now;
	IdemClaim	claim;
	IdemLease  *leases;
	IdemLease	last;

	idem_args_require_writable();
	idem_claim_begin(&claim, NULL, idem_args_text(fcinfo, ARG_POLICY, "policy"));
	max_keys = read_max_keys(fcinfo);
	claim.lease = idem_policy_arg(fcinfo, ARG_LEASE, "lease",
								  idem_policy_lease_usec);
	if (!claim.policy.recoverable)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("policy \"%s\" is not recoverable",
						NameStr(claim.policy.name)),
				 errhint("Set \"recoverable\" by idem_policy(): claims that are made from then on are listed.")));

	InitMaterializedSRF(fcinfo, 0);
	now = idem_xact_now();
	max_leases = max_keys + SPARE_LEASES;
	leases = palloc(sizeof(IdemLease) * max_leases);
	number = idem_leases_ended(NameStr(claim.policy.name), now, NULL,
							   max_leases, leases);
	while (number > 0)
	{
		int			i;

		for (i = 0; i < number && taken < max_keys; i++)
		{
			if (!idem_owner_permits(leases[i].claimed_by) ||
				!take_over(&claim, &leases[i]))
				continue;
			put_claim(rsinfo, &claim);
			taken++;
		}
		if (taken == max_keys || number < max_leases)
			break;
		last = leases[number - 1];
		number = idem_leases_ended(NameStr(claim.policy.name), now, &last,
								   max_leases, leases);
		CHECK_FOR_INTERRUPTS();
	}
	return (Datum) 0;
}
