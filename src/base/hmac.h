/*-------------------------------------------------------------------------
 *
 * hmac.h
 *	  HMACs with keys that are derived from the secrets, and their table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_HMAC_H
#define IDEM_BASE_HMAC_H

#include "base/foreign.h"

#define IDEM_PURPOSE_CONTEXT "context"
#define IDEM_PURPOSE_AUDIT	"audit"

/* What a derived key is the HMAC of: each use has its own. */
#define IDEM_HMAC_CONTEXT	"idempotency 1 context"
#define IDEM_HMAC_SEAL		"idempotency 1 audit seal"

extern bool idem_hmac_exists(void);
extern bytea *idem_hmac(const void *data, int len, bytea *secret,
						const char *use);

extern int32 idem_secret_add(const text *purpose, const bytea *secret);
extern bytea *idem_secret_get(const char *purpose, int32 *key_id);

#endif							/* IDEM_BASE_HMAC_H */
