/*-------------------------------------------------------------------------
 *
 * secret.c
 *	  Setting secrets, and contexts made with them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "audit/seal.h"
#include "base/args.h"
#include "base/compat.h"
#include "base/hmac.h"
#include "idem.h"

#define MIN_SECRET_BYTES 16
#define MAX_SECRET_BYTES 1024

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
	int			count = idem_args_components(fcinfo, &components);
	int32		key_id = 0;
	bytea	   *secret = idem_secret_get(IDEM_PURPOSE_CONTEXT, &key_id);
	bytea	   *mac;
	StringInfoData buffer;
	int			i;

	if (secret == NULL)
		secret = idem_secret_get(IDEM_PURPOSE_AUDIT, &key_id);
	if (secret == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("there is no secret for contexts"),
				 errhint("A superuser sets one: SELECT idem_secret('context', gen_random_bytes(32)).")));
	initStringInfo(&buffer);

	/* each with its length: else ("ab", "c") would be ("a", "bc") */
	for (i = 0; i < count; i++)
	{
		text	   *component = DatumGetTextPP(components[i]);

		pq_sendint32(&buffer, VARSIZE_ANY_EXHDR(component));
		appendBinaryStringInfo(&buffer, VARDATA_ANY(component),
							   VARSIZE_ANY_EXHDR(component));
	}
	mac = idem_hmac(buffer.data, buffer.len, secret, IDEM_HMAC_CONTEXT);

	pq_begintypsend(&buffer);
	pq_sendint32(&buffer, key_id);
	appendBinaryStringInfo(&buffer, VARDATA_ANY(mac), VARSIZE_ANY_EXHDR(mac));
	PG_RETURN_BYTEA_P(pq_endtypsend(&buffer));
}

IDEM_FUNCTION(idem_secret);

/*
 * idem_secret(purpose text, secret bytea) RETURNS integer
 *		Superuser: store the next secret of a purpose; returns its key id.
 *
 * One of "audit" goes into the chain of seals at once.
 *
 * Raises 22004, 22023, 25006, 42501.  Holds SHARE ROW EXCLUSIVE on the table
 * of secrets, and on that of the seals, to the end of the transaction.
 */
Datum
idem_secret(PG_FUNCTION_ARGS)
{
	text	   *purpose = idem_args_text(fcinfo, 0, "purpose");
	char	   *name = text_to_cstring(purpose);
	bytea	   *secret;
	int32		key_id;
	int			len;

	idem_args_require(fcinfo, 1, "secret");
	idem_args_require_writable();
	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to set a secret")));
	if (strcmp(name, IDEM_PURPOSE_CONTEXT) != 0 &&
		strcmp(name, IDEM_PURPOSE_AUDIT) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument \"%s\"", "purpose"),
				 errhint("Available values: \"%s\", \"%s\".",
						 IDEM_PURPOSE_CONTEXT, IDEM_PURPOSE_AUDIT)));
	secret = PG_GETARG_BYTEA_PP(1);
	len = VARSIZE_ANY_EXHDR(secret);
	if (len < MIN_SECRET_BYTES || len > MAX_SECRET_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a secret has %d to %d bytes", MIN_SECRET_BYTES, MAX_SECRET_BYTES),
				 errhint("Make one with gen_random_bytes(32).")));
	key_id = idem_secret_add(purpose, secret);

	/* whoever rewrites the chain without it cannot say it was never there */
	if (strcmp(name, IDEM_PURPOSE_AUDIT) == 0)
		idem_seal_key();
	PG_RETURN_INT32(key_id);
}
