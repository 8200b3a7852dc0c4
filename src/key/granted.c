/*-------------------------------------------------------------------------
 *
 * granted.c
 *	  The row of a claim that was granted, and what else is written with it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"

#include "audit/log.h"
#include "base/citus.h"
#include "base/digest.h"
#include "key/claim.h"
#include "key/leases.h"
#include "key/lifetime.h"
#include "key/outcome.h"
#include "key/owner.h"
#include "key/xact.h"

/*
 * idem_claim_check_cap
 *		Whether the scope has room for that many more live keys; ID009.
 *
 * Soft under concurrency: rivals that have not committed are not counted.
 * Reads max_live_keys live rows of the scope at most, and what has expired and
 * is not yet swept on the way; for new keys only.
 */
void
idem_claim_check_cap(const IdemClaim *claim, int more)
{
	int64		limit = claim->policy.max_live_keys;

	if (limit > 0 && limit <
		idem_store_count_live(claim->id.scope, claim->now, limit + 1) + more)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_TOO_MANY_KEYS),
				 errmsg("scope %s holds as many live keys as policy \"%s\" allows",
						idem_digest_log_id(claim->id.scope),
						NameStr(claim->policy.name)),
				 errhint("Wait until keys expire, or raise \"max_live_keys\" of the policy.")));
}

/*
 * idem_claim_fill
 *		Make the row of a claim that was granted; raises 42501.
 */
void
idem_claim_fill(IdemClaim *claim)
{
	IdemRow    *row = &claim->row;
	IdemRow		last = *row;
	const IdemPolicy *policy;

	/* a claim of our own that has expired since is in progress no more */
	if (claim->found && last.state == IDEM_STATE_IN_PROGRESS &&
		idem_xact_owns(&last))
		idem_xact_closed(&claim->id, &last);

	memset(row, 0, sizeof(*row));
	row->purge_at = DT_NOBEGIN;
	if (claim->decision.verdict == IDEM_CLAIM_FRESH)
	{
		/* nothing of an older incarnation is left but the token, below */
		claim->row_policy = claim->policy;
		row->policy = idem_policy_stored_name(&claim->policy);
		row->claimed_by = idem_owner_name(&claim->policy, &claim->id);
		row->fingerprint = claim->fingerprint;
		row->context = claim->context;
		row->created_at = claim->now;
		row->ttl = claim->ttl;
	}
	else
	{
		row->policy = last.policy;
		row->claimed_by = last.claimed_by;
		row->fingerprint = last.fingerprint;
		row->context = last.context;
		row->created_at = last.created_at;
		row->ttl = claim->ttl >= 0 ? claim->ttl : last.ttl;
		row->recovery_point = last.recovery_point;
		row->checkpoint = last.checkpoint;
	}
	policy = &claim->row_policy;
	row->state = IDEM_STATE_IN_PROGRESS;
	row->attempt = claim->decision.attempt;

	/* whatever the clock does, and whoever had the key before, it grows */
	row->token = idem_xact_token(claim->now,
								 claim->found ? last.token : IDEM_NO_TOKEN);

	/* taking an id now is what makes the transaction one that writes */
	row->claim_xid = idem_citus_xid(GetTopFullTransactionId());
	row->finished_at = DT_NOBEGIN;
	idem_lifetime_lease(policy, row, claim->now,
						claim->lease >= 0 ? claim->lease : policy->lease);
	row->owner = claim->owner;
	row->status_code = IDEM_STATUS_OK;
	row->body_size = -1;
}

/*
 * idem_claim_start
 *		Make the row of a single key, which may be one too many; ID009.
 */
void
idem_claim_start(IdemClaim *claim)
{
	if (claim->decision.verdict == IDEM_CLAIM_FRESH)
		idem_claim_check_cap(claim, 1);
	idem_claim_fill(claim);
}

/*
 * idem_claim_action
 *		What the audit log says of a claim that was written.
 */
const char *
idem_claim_action(const IdemClaim *claim)
{
	return claim->decision.taken_over ?
		"taken_over" : idem_outcomes[IDEM_OUTCOME_CLAIMED].action;
}

/*
 * idem_claim_written
 *		The row of a claim in progress is in the table: see to what goes with
 *		it.
 */
void
idem_claim_written(const IdemClaim *claim)
{
	/* if it commits like this, that must survive a crash, or must not be */
	idem_xact_opened(&claim->id, &claim->row,
					 claim->row_policy.error_unfinished);
	idem_citus_flush(claim->id.scope, claim->id.key);
	if (claim->row_policy.recoverable)
		idem_leases_put(&claim->id, &claim->row);
	if (claim->row_policy.audit)
		idem_audit_transition(idem_claim_action(claim), &claim->id,
							  &claim->row);
}
