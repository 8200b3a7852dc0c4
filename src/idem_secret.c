/*-------------------------------------------------------------------------
 *
 * idem_secret.c
 *	  Secrets, and the HMACs made with them.
 *
 * A secret is never used itself: each use has a key derived from it, so that
 * what is made for one purpose says nothing in another.  HMAC is pgcrypto's,
 * called by OID as a C function; nothing of it passes through SQL.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"

#include "idem.h"
#include "idem_args.h"
#include "idem_catalog.h"
#include "idem_store.h"
#include "idem_text.h"
#include "idem_xact.h"

#define MIN_SECRET_BYTES 16
#define MAX_SECRET_BYTES 1024

#define PURPOSE_CONTEXT "context"
#define PURPOSE_AUDIT "audit"

/* What the derived key of a context is the HMAC of. */
#define CONTEXT_LABEL "idempotency 1 context"

static bytea *
hmac_sha256(const void *data, int len, bytea *key)
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

static void
append_uint32(StringInfo buffer, uint32 value)
{
	uint32		big_endian = pg_hton32(value);

	appendBinaryStringInfo(buffer, (const char *) &big_endian,
						   sizeof(big_endian));
}

IDEM_FUNCTION(idem_context);

/*
 * idem_context(VARIADIC components text[]) RETURNS bytea
 *		Bind a key to a client: four bytes key id, big-endian, then the
 *		HMAC-SHA256 over the components, each after its length in four bytes.
 *
 * The secret is the newest of purpose "context", else of "audit".  Raises
 * 22004, 22023; 55000 without a secret or pgcrypto.
 */
Datum
idem_context(PG_FUNCTION_ARGS)
{
	Datum	   *components;
	int			count = idem_text_components(fcinfo, &components);
	int32		key_id;
	bytea	   *secret = idem_store_secret_newest(PURPOSE_CONTEXT, &key_id);
	bytea	   *mac;
	StringInfoData buffer;
	int			i;

	if (secret == NULL)
		secret = idem_store_secret_newest(PURPOSE_AUDIT, &key_id);
	if (secret == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("there is no secret for contexts"),
				 errhint("A superuser sets one: SELECT idem_secret('context', gen_random_bytes(32)).")));
	initStringInfo(&buffer);
	for (i = 0; i < count; i++)
	{
		text	   *component = DatumGetTextPP(components[i]);

		append_uint32(&buffer, VARSIZE_ANY_EXHDR(component));
		appendBinaryStringInfo(&buffer, VARDATA_ANY(component),
							   VARSIZE_ANY_EXHDR(component));
	}
	mac = hmac_sha256(CONTEXT_LABEL, strlen(CONTEXT_LABEL), secret);
	mac = hmac_sha256(buffer.data, buffer.len, mac);

	resetStringInfo(&buffer);
	appendStringInfoSpaces(&buffer, VARHDRSZ);
	append_uint32(&buffer, key_id);
	appendBinaryStringInfo(&buffer, VARDATA_ANY(mac), VARSIZE_ANY_EXHDR(mac));
	SET_VARSIZE(buffer.data, buffer.len);
	PG_RETURN_BYTEA_P((bytea *) buffer.data);
}

IDEM_FUNCTION(idem_secret);

/*
 * idem_secret(purpose text, secret bytea) RETURNS integer
 *		Superuser: store the next secret of a purpose; returns its key id.
 *
 * Raises 22004, 22023, 25006, 42501.  Holds SHARE ROW EXCLUSIVE on the table
 * of secrets to the end of the transaction.
 */
Datum
idem_secret(PG_FUNCTION_ARGS)
{
	text	   *purpose = idem_args_text(fcinfo, 0, "purpose");
	char	   *name = text_to_cstring(purpose);
	bytea	   *secret;
	int			len;

	idem_args_require(fcinfo, 1, "secret");
	idem_xact_require_writable();
	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to set a secret"),
				 errhint("Ask a superuser to call idem_secret().")));
	if (strcmp(name, PURPOSE_CONTEXT) != 0 && strcmp(name, PURPOSE_AUDIT) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument \"%s\"", "purpose"),
				 errhint("Available values: \"%s\", \"%s\".",
						 PURPOSE_CONTEXT, PURPOSE_AUDIT)));
	secret = PG_GETARG_BYTEA_PP(1);
	len = VARSIZE_ANY_EXHDR(secret);
	if (len < MIN_SECRET_BYTES || len > MAX_SECRET_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a secret has %d to %d bytes", MIN_SECRET_BYTES, MAX_SECRET_BYTES),
				 errhint("Make one with gen_random_bytes(32).")));
	PG_RETURN_INT32(idem_store_secret_add(purpose, secret));
}
