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

#define IDEM_MAX_SECRETS 4		/* of a purpose, live */

typedef struct IdemSecret
{
	int32		key_id;
	bytea	   *secret;			/* empty: it was dropped */
} IdemSecret;

extern bool idem_hmac_exists(void);
extern bytea *idem_hmac(const void *data, int len, bytea *secret,
						const char *use);

extern int32 idem_secret_add(const text *purpose, const bytea *secret);
extern bool idem_secret_drop_key(const char *purpose, int32 key_id);
extern int	idem_secret_live(const char *purpose, IdemSecret *secrets,
							 int max);
extern bool idem_secret_get(const char *purpose, int32 key_id,
							IdemSecret *secret);

#endif							/* IDEM_BASE_HMAC_H */
