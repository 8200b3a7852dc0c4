/*-------------------------------------------------------------------------
 *
 * digest.c
 *	  SHA-256 by the server's own code, or the library that it has it from, and
 *	  the names for logs made of it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#ifdef USE_OPENSSL
#include <openssl/evp.h>
#endif

#include "common/cryptohash.h"
#include "utils/builtins.h"

#include "base/compat.h"
#include "base/digest.h"

#define LOG_ID_BYTES 8

static void
check_result(IdemDigest *digest, int result)
{
	if (result < 0)
		elog(ERROR, "could not compute SHA-256: %s",
			 pg_cryptohash_error(digest));
}

/*
 * idem_digest_begin, idem_digest_add, idem_digest_end
 *		SHA-256, piece by piece; the end frees it.
 */
IdemDigest *
idem_digest_begin(void)
{
	IdemDigest *digest = pg_cryptohash_create(PG_SHA256);

	/* an error before the end frees it with its resource owner or context */
	check_result(digest, pg_cryptohash_init(digest));
	return digest;
}

void
idem_digest_add(IdemDigest *digest, const void *data, size_t len)
{
	check_result(digest, pg_cryptohash_update(digest, data, len));
}

void
idem_digest_end(IdemDigest *digest, uint8 *result)
{
	check_result(digest, pg_cryptohash_final(digest, result,
											 IDEM_DIGEST_BYTES));
	pg_cryptohash_free(digest);
}

/*
 * idem_digest
 *		SHA-256 of some bytes.
 *
 * With OpenSSL 3, from which the server has it, most of the time that
 * pg_cryptohash_init() takes goes into finding the algorithm anew: 1.5 us for a
 * short text, of which the digest itself is 0.3.  Each replay shows one.  So
 * the context stays, initialized, for the life of the process, and keeps what
 * was found.  Nothing here can raise an error half way.
 */
void
idem_digest(const void *data, size_t len, uint8 *result)
{
#ifdef USE_OPENSSL
	static EVP_MD_CTX * context = NULL;

	if (context == NULL)
	{
		EVP_MD_CTX *made = EVP_MD_CTX_create();

		if (made == NULL || EVP_DigestInit_ex(made, EVP_sha256(), NULL) <= 0)
			elog(ERROR, "could not set up SHA-256");
		context = made;
	}
	if (EVP_DigestInit_ex(context, NULL, NULL) <= 0 ||
		EVP_DigestUpdate(context, data, len) <= 0 ||
		EVP_DigestFinal_ex(context, result, NULL) <= 0)
		elog(ERROR, "could not compute SHA-256");
#else
	IdemDigest *digest = idem_digest_begin();

	idem_digest_add(digest, data, len);
	idem_digest_end(digest, result);
#endif
}

/*
 * idem_digest_bytea
 *		SHA-256 of some bytes as a bytea.
 */
bytea *
idem_digest_bytea(const void *data, size_t len)
{
	bytea	   *result = palloc(VARHDRSZ + IDEM_DIGEST_BYTES);

	idem_digest(data, len, (uint8 *) VARDATA(result));
	SET_VARSIZE(result, VARHDRSZ + IDEM_DIGEST_BYTES);
	return result;
}

/*
 * idem_digest_short
 *		The first 16 hex digits of a SHA-256.
 */
char *
idem_digest_short(const void *digest)
{
	char	   *id = palloc(2 * LOG_ID_BYTES + 1);

	hex_encode(digest, LOG_ID_BYTES, id);
	id[2 * LOG_ID_BYTES] = '\0';
	return id;
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
	uint8		digest[IDEM_DIGEST_BYTES];

	idem_digest(VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name), digest);
	return idem_digest_short(digest);
}

/* The log id of a name, written to so many bytes and one. */
static void
write_log_id(IdemDigest *digest, const text *name, char *id)
{
	uint8		result[IDEM_DIGEST_BYTES];

	check_result(digest, pg_cryptohash_init(digest));
	idem_digest_add(digest, VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	check_result(digest, pg_cryptohash_final(digest, result,
											 IDEM_DIGEST_BYTES));
	hex_encode((const char *) result, LOG_ID_BYTES, id);
}

/*
 * idem_digest_log_ids
 *		What the audit log says in place of a key: the log ids of scope and
 *		key, with a slash between them.
 */
char *
idem_digest_log_ids(const IdemKey *id)
{
	IdemDigest *digest = pg_cryptohash_create(PG_SHA256);
	char	   *ids = palloc(4 * LOG_ID_BYTES + 2);

	/* setting up what computes costs more than so few bytes: once for both */
	write_log_id(digest, id->scope, ids);
	ids[2 * LOG_ID_BYTES] = '/';
	write_log_id(digest, id->key, ids + 2 * LOG_ID_BYTES + 1);
	ids[4 * LOG_ID_BYTES + 1] = '\0';
	pg_cryptohash_free(digest);
	return ids;
}

/*
 * idem_digest_key
 *		What a message says in place of a key: "key ... in scope ...".
 */
char *
idem_digest_key(const IdemKey *id)
{
	return psprintf("key %s in scope %s", idem_digest_log_id(id->key),
					idem_digest_log_id(id->scope));
}
