/*-------------------------------------------------------------------------
 *
 * fingerprint.h
 *	  The canonical text of a request and its SHA-256.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_FINGERPRINT_H
#define IDEM_KEY_FINGERPRINT_H

#include "fmgr.h"
#include "utils/jsonb.h"

extern bytea *idem_fingerprint_of(Jsonb *request);

#endif							/* IDEM_KEY_FINGERPRINT_H */
