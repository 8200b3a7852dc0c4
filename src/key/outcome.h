/*-------------------------------------------------------------------------
 *
 * outcome.h
 *	  What each outcome of a claim means, to SQL, HTTP, the audit log and the
 *	  counters.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_OUTCOME_H
#define IDEM_KEY_OUTCOME_H

#include "audit/refusal_queue.h"
#include "base/compat.h"
#include "base/counters.h"
#include "idem.h"

/* Problem details (RFC 9457); code is NULL where an outcome is no refusal. */
typedef struct IdemProblem
{
	const char *code;			/* "error_code" of idem_result, too */
	const char *type;
	const char *title;
	const char *detail;
} IdemProblem;

typedef struct IdemOutcomeMeaning
{
	const char *label;			/* of the enum idem_outcome */
	IdemCounter counter;
	const char *action;			/* audit action; NULL: no transition */
	int			refusal;		/* IdemRefusal; -1: none */

	/* the error of idem_require; 0: none */
	int			sqlstate;
	const char *message;		/* what the key is */
	const char *hint;

	/* the answer of an HTTP server; 0: as stored, or the policy's */
	int			http_status;
	IdemProblem problem;
} IdemOutcomeMeaning;

extern const IdemOutcomeMeaning idem_outcomes[IDEM_NUM_OUTCOMES];

extern Oid	idem_outcome_label(IdemOutcome outcome);
extern const IdemProblem *idem_outcome_problem(const char *code, int *status);
IDEM_COMPAT_NORETURN extern void idem_outcome_raise(IdemOutcome outcome,
													const IdemKey *id);

#endif							/* IDEM_KEY_OUTCOME_H */
