/*-------------------------------------------------------------------------
 *
 * claim.h
 *	  Claiming a key: from what is asked to what is decided.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_CLAIM_H
#define IDEM_KEY_CLAIM_H

#include "portability/instr_time.h"

#include "base/compat.h"
#include "key/decide.h"
#include "rule/policy.h"
#include "store/store.h"

/* A claim being made: what was asked, then what was found and decided. */
typedef struct IdemClaim
{
	IdemKey		id;
	IdemPolicy	policy;			/* named in the call */
	bytea	   *fingerprint;	/* NULL: none */
	bytea	   *context;		/* NULL: none */
	pg_uuid_t  *owner;			/* NULL: none */
	int64		wait;			/* microseconds */
	int64		lease;			/* -1: the policy's */
	int64		ttl;			/* -1: the policy's; 0: for ever */
	instr_time	started;
	bool		waited;

	IdemStore	store;
	TimestampTz now;			/* of the decision */
	bool		found;			/* row and row_policy are set */
	IdemRow		row;
	IdemPolicy	row_policy;		/* that the row was claimed under */
	IdemDecision decision;
} IdemClaim;

extern void idem_claim_begin(IdemClaim *claim, text *scope,
							 const text *policy);
extern void idem_claim_require_fingerprint(const IdemClaim *claim);
extern void idem_claim_judge(IdemClaim *claim);
extern void idem_claim_decide(IdemClaim *claim, bool check_new);
extern bool idem_claim_granted(const IdemClaim *claim);
extern void idem_claim_count(const IdemClaim *claim, IdemOutcome outcome);
extern Datum idem_claim_result(const IdemClaim *claim, IdemOutcome outcome);
IDEM_COMPAT_NORETURN extern void idem_claim_too_many_tries(const IdemKey *id);

/* granted.c */
extern void idem_claim_check_cap(const IdemClaim *claim, int more);
extern void idem_claim_fill(IdemClaim *claim);
extern void idem_claim_start(IdemClaim *claim);
extern void idem_claim_written(const IdemClaim *claim);
extern const char *idem_claim_action(const IdemClaim *claim);

#endif							/* IDEM_KEY_CLAIM_H */
