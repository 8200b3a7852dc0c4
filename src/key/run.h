/*-------------------------------------------------------------------------
 *
 * run.h
 *	  Claim, work and answer in one statement.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_RUN_H
#define IDEM_KEY_RUN_H

#include "idem.h"

/* What idem_run is asked for. */
typedef struct IdemRunRequest
{
	Oid			handler;
	text	   *scope;
	text	   *key;			/* NULL is refused as a missing one */
	NullableDatum request;		/* jsonb */
	text	   *policy;
	bytea	   *context;		/* NULL: none */
	bytea	   *fingerprint;	/* NULL: that of the request */
	int64		wait;			/* microseconds; -1: the policy's */
	int64		ttl;			/* microseconds; -1: the policy's; 0: for ever */
	bool		record;			/* on_error = 'record' */

	/* Asked before the handler is run, and only then; NULL: it may. */
	bool		(*admit) (void *arg);
	void	   *admit_arg;
} IdemRunRequest;

extern Datum idem_run_execute(const IdemRunRequest *request);

#endif							/* IDEM_KEY_RUN_H */
