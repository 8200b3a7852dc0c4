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
#include "base/context.h"
#include "base/hmac.h"
#include "idem.h"

#define MIN_SECRET_BYTES 16
#define MAX_SECRET_BYTES 1024

/* What is under the HMAC. */
static void
put_components(FunctionCallInfo fcinfo, StringInfo buffer)
{
	Datum	   *components;
	int			count = idem_args_components(fcinfo, &components);
	int			i;

	initStringInfo(buffer);

	/* each with its length: else ("ab", "c") would be ("a", "bc") */
	for (i = 0; i < count; i++)
	{
		text	   *component = DatumGetTextPP(components[i]);

		pq_sendint32(buffer, VARSIZE_ANY_EXHDR(component));
		appendBinaryStringInfo(buffer, VARDATA_ANY(component),
							   VARSIZE_ANY_EXHDR(component));
	}
}

IDEM_FUNCTION(idem_context);

/*
 * idem_context(VARIADIC components text[]) RETURNS bytea
 *		Bind a key to a client: for each live secret, the newest first, its key
 *		id and the HMAC-SHA256 over the components (base/context.h).
 *
 * The secrets are those of purpose "context", else of "audit".  Raises
 * 22004, 22023; 55000 without a secret or pgcrypto.
 */
Datum
idem_context(PG_FUNCTION_ARGS)
{
	IdemSecret	secrets[IDEM_MAX_SECRETS];
	StringInfoData message;
	StringInfoData buffer;
	int			number;
	int			i;

	put_components(fcinfo, &message);
	number = idem_secret_live(IDEM_PURPOSE_CONTEXT, secrets, lengthof(secrets));
	if (number == 0)
		number = idem_secret_live(IDEM_PURPOSE_AUDIT, secrets,
								  lengthof(secrets));
	if (number == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("there is no secret for contexts"),
				 errhint("A superuser sets one: SELECT idem_secret('context', gen_random_bytes(32)).")));
	pq_begintypsend(&buffer);
	appendBinaryStringInfo(&buffer, IDEM_CONTEXT_MARK, IDEM_CONTEXT_MARK_BYTES);
	for (i = 0; i < number; i++)
	{
		bytea	   *mac = idem_hmac(message.data, message.len,
									secrets[i].secret, IDEM_HMAC_CONTEXT);

		pq_sendint32(&buffer, secrets[i].key_id);
		appendBinaryStringInfo(&buffer, VARDATA_ANY(mac),
							   VARSIZE_ANY_EXHDR(mac));
	}
	PG_RETURN_BYTEA_P(pq_endtypsend(&buffer));
}

/* The purpose, of a call that only a superuser may make; 25006, 42501, 22023. */
static char *
require_purpose(text *purpose)
{
	char	   *name = text_to_cstring(purpose);

	idem_args_require_writable();
	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to set or drop a secret")));
	if (strcmp(name, IDEM_PURPOSE_CONTEXT) != 0 &&
		strcmp(name, IDEM_PURPOSE_AUDIT) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument \"%s\"", "purpose"),
				 errhint("Available values: \"%s\", \"%s\".",
						 IDEM_PURPOSE_CONTEXT, IDEM_PURPOSE_AUDIT)));
	return name;
}

IDEM_FUNCTION(idem_secret);

/*
 * idem_secret(purpose text, secret bytea) RETURNS integer
 *		Superuser: store the next secret of a purpose; returns its key id.
 *
 * One of "audit" goes into the chain of seals at once.
 *
 * Raises 22004, 22023, 25006, 42501; 55000 when four of the purpose live.
 * Holds SHARE ROW EXCLUSIVE on the table of secrets, and on that of the seals,
 * to the end of the transaction.
 */
Datum
idem_secret(PG_FUNCTION_ARGS)
{
	text	   *purpose = idem_args_text(fcinfo, 0, "purpose");
	char	   *name;
	bytea	   *secret;
	int32		key_id;
	int			len;

	idem_args_require(fcinfo, 1, "secret");
	name = require_purpose(purpose);
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

IDEM_FUNCTION(idem_secret_drop);

/*
 * idem_secret_drop(purpose text, key_id integer) RETURNS boolean
 *		Superuser: forget a secret; false when there is none.
 *
 * A sealer at work may yet use one of "audit": its seal is then one of those
 * that can no more be verified.  Raises 22004, 22023, 25006, 40001, 42501.
 * Holds SHARE ROW EXCLUSIVE on the table of secrets to the end of the
 * transaction.
 */
Datum
idem_secret_drop(PG_FUNCTION_ARGS)
{
	text	   *purpose = idem_args_text(fcinfo, 0, "purpose");

	idem_args_require(fcinfo, 1, "key_id");
	PG_RETURN_BOOL(idem_secret_drop_key(require_purpose(purpose),
										PG_GETARG_INT32(1)));
}
