/*-------------------------------------------------------------------------
 *
 * hmac.c
 *	  HMACs with keys that are derived from the secrets.
 *
 * A secret is never used itself: each use has a key derived from it, so that
 * what is made for one purpose says nothing in another.  HMAC is that of
 * pgcrypto's own library (foreign.c), which a superuser and the worker
 * call, too; nothing of it passes through SQL.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "utils/builtins.h"

#include "base/compat.h"
#include "base/hmac.h"

static IdemForeign pgcrypto_hmac = {
	"pgcrypto", "$libdir/pgcrypto", "hmac", "pg_hmac", 3,
	{BYTEAOID, BYTEAOID, TEXTOID}
};

/*
 * idem_hmac_state
 *		Whether there is an HMAC, and its OID.
 */
IdemForeignState
idem_hmac_state(Oid *hmac)
{
	return idem_foreign_look_up(&pgcrypto_hmac, hmac);
}

/*
 * idem_hmac
 *		HMAC-SHA256 of some bytes; 55000 without pgcrypto.
 */
bytea *
idem_hmac(const void *data, int len, bytea *key)
{
	FmgrInfo	hmac;
	bytea	   *message = palloc(VARHDRSZ + len);

	if (!idem_foreign_load(&pgcrypto_hmac, &hmac))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("function hmac(bytea, bytea, text) of extension \"pgcrypto\" not found"),
				 errdetail("Only the function of pgcrypto's own library will do."),
				 errhint("Create extension \"pgcrypto\" in this database.")));
	SET_VARSIZE(message, VARHDRSZ + len);
	memcpy(VARDATA(message), data, len);
	return DatumGetByteaPP(FunctionCall3(&hmac, PointerGetDatum(message),
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
