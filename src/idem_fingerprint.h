/*-------------------------------------------------------------------------
 *
 * idem_fingerprint.h
 *	  The canonical text of a request and its SHA-256.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_FINGERPRINT_H
#define IDEM_FINGERPRINT_H

#include "fmgr.h"
#include "utils/jsonb.h"

extern bytea *idem_fingerprint_of(Jsonb *request);

extern PGDLLEXPORT Datum idem_canonical(PG_FUNCTION_ARGS);
extern PGDLLEXPORT Datum idem_fingerprint(PG_FUNCTION_ARGS);

#endif							/* IDEM_FINGERPRINT_H */
