/*-------------------------------------------------------------------------
 *
 * idem_hmac.c
 *	  HMACs with keys that are derived from the secrets.
 *
 * A secret is never used itself: each use has a key derived from it, so that
 * what is made for one purpose says nothing in another.  HMAC is pgcrypto's,
 * called by OID as a C function; nothing of it passes through SQL.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"

#include "idem_catalog.h"
#include "idem_compat.h"
#include "idem_hmac.h"

/*
 * idem_hmac
 *		HMAC-SHA256 of some bytes; 55000 without pgcrypto.
 */
bytea *
idem_hmac(const void *data, int len, bytea *key)
{
	Oid			hmac = idem_catalog_hmac();
	bytea	   *message = palloc(VARHDRSZ + len);

	if (!OidIsValid(hmac))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("function hmac(bytea, bytea, text) of extension \"pgcrypto\" not found"),
				 errhint("Create extension \"pgcrypto\" in this database.")));
	SET_VARSIZE(message, VARHDRSZ + len);
	memcpy(VARDATA(message), data, len);
	return DatumGetByteaPP(OidFunctionCall3(hmac, PointerGetDatum(message),
											PointerGetDatum(key),
											CStringGetTextDatum("sha256")));
}

/*
 * idem_hmac_key
 *		The key of a secret for one use.
 */
bytea *
idem_hmac_key(bytea *secret, const char *use)
{
	return idem_hmac(use, strlen(use), secret);
}
