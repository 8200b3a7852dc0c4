/*-------------------------------------------------------------------------
 *
 * run.h
 *	  Claim, work and answer in one statement.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_RUN_H
#define IDEM_KEY_RUN_H

#include "fmgr.h"

/* Arguments of idem_run. */
typedef enum IdemRunArg
{
	IDEM_RUN_HANDLER,
	IDEM_RUN_SCOPE,
	IDEM_RUN_KEY,
	IDEM_RUN_REQUEST,
	IDEM_RUN_POLICY,
	IDEM_RUN_CONTEXT,
	IDEM_RUN_WAIT,
	IDEM_RUN_ON_ERROR
} IdemRunArg;

#define IDEM_RUN_ARGS (IDEM_RUN_ON_ERROR + 1)

extern PGDLLEXPORT Datum idem_run(PG_FUNCTION_ARGS);

#endif							/* IDEM_KEY_RUN_H */
