/*-------------------------------------------------------------------------
 *
 * idem_digest.c
 *	  SHA-256 by the server's own code, and the names for logs made of it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/cryptohash.h"
#include "common/sha2.h"
#include "utils/builtins.h"

#include "idem_compat.h"
#include "idem_digest.h"

#define LOG_ID_BYTES 8

/*
 * idem_digest_parts
 *		SHA-256 of the parts, one after the other, into 32 bytes.
 */
void
idem_digest_parts(const IdemBytes *parts, int nparts, uint8 *digest)
{
	pg_cryptohash_ctx *ctx = pg_cryptohash_create(PG_SHA256);
	int			result = pg_cryptohash_init(ctx);
	int			i;

	for (i = 0; i < nparts && result >= 0; i++)
		result = pg_cryptohash_update(ctx, parts[i].data, parts[i].len);
	if (result < 0 ||
		pg_cryptohash_final(ctx, digest, PG_SHA256_DIGEST_LENGTH) < 0)
		elog(ERROR, "could not compute SHA-256: %s", pg_cryptohash_error(ctx));
	pg_cryptohash_free(ctx);
}

/*
 * idem_digest_bytea
 *		SHA-256 of some bytes as a bytea.
 */
bytea *
idem_digest_bytea(const void *data, size_t len)
{
	bytea	   *result = palloc(VARHDRSZ + PG_SHA256_DIGEST_LENGTH);
	IdemBytes	part;

	part.data = data;
	part.len = len;
	idem_digest_parts(&part, 1, (uint8 *) VARDATA(result));
	SET_VARSIZE(result, VARHDRSZ + PG_SHA256_DIGEST_LENGTH);
	return result;
}

/*
 * idem_digest_log_id
 *		What a message may say in place of a scope or a key: the first 16 hex
 *		digits of its SHA-256.  A pseudonym, no secret: who guesses the key can
 *		tell that it is this one.
 */
char *
idem_digest_log_id(const text *name)
{
	uint8		digest[PG_SHA256_DIGEST_LENGTH];
	char	   *id = palloc(2 * LOG_ID_BYTES + 1);
	IdemBytes	part;

	part.data = VARDATA_ANY(name);
	part.len = VARSIZE_ANY_EXHDR(name);
	idem_digest_parts(&part, 1, digest);
	hex_encode((const char *) digest, LOG_ID_BYTES, id);
	id[2 * LOG_ID_BYTES] = '\0';
	return id;
}
