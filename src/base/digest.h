/*-------------------------------------------------------------------------
 *
 * digest.h
 *	  SHA-256 by the server's own code, and the names for logs made of it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_DIGEST_H
#define IDEM_BASE_DIGEST_H

#include "base/bytes.h"
#include "idem.h"

#define IDEM_DIGEST_BYTES 32	/* of a SHA-256 */

/* A SHA-256 that is computed piece by piece. */
typedef struct pg_cryptohash_ctx IdemDigest;

extern IdemDigest *idem_digest_begin(void);
extern void idem_digest_add(IdemDigest *digest, const void *data, size_t len);
extern void idem_digest_end(IdemDigest *digest, uint8 *result);
extern void idem_digest(const void *data, size_t len, uint8 *result);
extern bytea *idem_digest_bytea(const void *data, size_t len);
extern char *idem_digest_short(const void *digest);
extern char *idem_digest_log_id(const text *name);
extern char *idem_digest_log_ids(const IdemKey *id);
extern char *idem_digest_key(const IdemKey *id);

#endif							/* IDEM_BASE_DIGEST_H */
