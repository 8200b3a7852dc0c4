/*-------------------------------------------------------------------------
 *
 * idem_digest.h
 *	  SHA-256 by the server's own code, and the names for logs made of it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_DIGEST_H
#define IDEM_DIGEST_H

#include "idem_state.h"

extern void idem_digest_parts(const IdemBytes *parts, int nparts,
							  uint8 *digest);
extern bytea *idem_digest_bytea(const void *data, size_t len);
extern char *idem_digest_log_id(const text *name);

#endif							/* IDEM_DIGEST_H */
