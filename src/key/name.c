/*-------------------------------------------------------------------------
 *
 * name.c
 *	  Texts around keys: headers, scopes, names for logs.
 *
 * Touches no table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "base/args.h"
#include "base/digest.h"
#include "idem.h"
#include "key/name.h"

#define RECORD_SEPARATOR '\x1e'

IDEM_FUNCTION(idem_log_id);

/*
 * idem_log_id(value text) RETURNS text
 *		What logs and messages say in place of a scope or a key.
 */
Datum
idem_log_id(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(idem_digest_log_id(PG_GETARG_TEXT_PP(0))));
}

/* C0, DEL and, where the encoding is UTF-8, C1 (U+0080 to U+009F). */
static bool
has_control_character(const text *value)
{
	const unsigned char *c = (const unsigned char *) VARDATA_ANY(value);
	int			len = VARSIZE_ANY_EXHDR(value);
	int			i;

	for (i = 0; i < len; i++)
	{
		if (c[i] < ' ' || c[i] == 0x7f)
			return true;
		if (GetDatabaseEncoding() == PG_UTF8 && c[i] == 0xc2 &&
			i + 1 < len && c[i + 1] >= 0x80 && c[i + 1] <= 0x9f)
			return true;
	}
	return false;
}

/*
 * idem_text_components
 *		The elements of a text[] that is argument 0, checked: 22004, 22023.
 */
int
idem_text_components(FunctionCallInfo fcinfo, Datum **components)
{
	bool	   *nulls;
	int			count;
	int			i;

	idem_args_require(fcinfo, 0, "components");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), TEXTOID, -1, false,
					  TYPALIGN_INT, components, &nulls, &count);
	if (count == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("at least one component is needed"),
				 errhint("Give the parts that belong together, such as tenant and route.")));
	for (i = 0; i < count; i++)
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("component %d must not be null", i + 1),
					 errhint("Replace it by a value of your own, such as 'none'.")));
	return count;
}

IDEM_FUNCTION(idem_scope);

/*
 * idem_scope(VARIADIC components text[]) RETURNS text
 *		Join the components of a scope by U+001E.
 *
 * No component can contain the separator, so that different components never
 * make the same scope.  Raises 22004, 22023.
 */
Datum
idem_scope(PG_FUNCTION_ARGS)
{
	Datum	   *components;
	int			count = idem_text_components(fcinfo, &components);
	StringInfoData scope;
	int			i;

	initStringInfo(&scope);
	for (i = 0; i < count; i++)
	{
		text	   *component = DatumGetTextPP(components[i]);

		if (VARSIZE_ANY_EXHDR(component) == 0 ||
			has_control_character(component))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("component %d of the scope is empty or has a control character",
							i + 1),
					 errhint("Encode it first, for example with encode(..., 'base64').")));
		if (i > 0)
			appendStringInfoChar(&scope, RECORD_SEPARATOR);
		appendBinaryStringInfo(&scope, VARDATA_ANY(component),
							   VARSIZE_ANY_EXHDR(component));
		if (scope.len > IDEM_MAX_SCOPE_BYTES)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("the scope is longer than %d bytes", IDEM_MAX_SCOPE_BYTES),
					 errhint("Shorten its components, for example to their hashes.")));
	}
	PG_RETURN_TEXT_P(cstring_to_text_with_len(scope.data, scope.len));
}

/*
 * RFC 8941, 4.2.5: a string; moves past it and appends what it says.  NULL:
 * malformed, as below.
 */
static const char *
parse_string(const char *c, const char *end, StringInfo value)
{
	for (c++; c < end && *c != '"'; c++)
	{
		if (*c == '\\' && (++c == end || (*c != '"' && *c != '\\')))
			return NULL;
		if (*c < ' ' || *c > '~')
			return NULL;
		appendStringInfoChar(value, *c);
	}
	return c < end ? c + 1 : NULL;
}

static const char *
skip_spaces(const char *c, const char *end)
{
	while (c < end && *c == ' ')
		c++;
	return c;
}

/*
 * RFC 8941, 3.1.2: parameters of an item mean nothing to us and are ignored,
 * up to the end.
 */
static const char *
skip_parameters(const char *c, const char *end)
{
	StringInfoData ignored;

	initStringInfo(&ignored);
	for (c = skip_spaces(c, end); c < end; c = skip_spaces(c, end))
	{
		if (*c != ';')
			return NULL;
		c = skip_spaces(c + 1, end);
		if (c == end || !(*c == '*' || (*c >= 'a' && *c <= 'z')))
			return NULL;
		while (c < end && *c != ';' && *c != '"' && *c != ',' && *c > ' ' && *c <= '~')
			c++;
		if (c < end && *c == '"' && c[-1] == '=' &&
			(c = parse_string(c, end, &ignored)) == NULL)
			return NULL;
	}
	pfree(ignored.data);
	return c;
}

/* What most clients send: the key without quotes. */
static const char *
parse_bare(const char *c, const char *end, StringInfo value)
{
	for (; c < end; c++)
	{
		if (*c <= ' ' || *c > '~' || strchr("\"\\,;", *c) != NULL)
			return NULL;
		appendStringInfoChar(value, *c);
	}
	return c;
}

/*
 * idem_text_header_key
 *		The key in an Idempotency-Key header field, or NULL if it is malformed.
 */
text *
idem_text_header_key(const char *c, int len)
{
	const char *end = c + len;
	StringInfoData value;

	while (c < end && (*c == ' ' || *c == '\t'))
		c++;
	while (c < end && (end[-1] == ' ' || end[-1] == '\t'))
		end--;
	initStringInfo(&value);
	if (c == end || *c != '"')
		c = parse_bare(c, end, &value);
	else if ((c = parse_string(c, end, &value)) != NULL)
		c = skip_parameters(c, end);
	if (c == NULL || value.len == 0 || value.len > IDEM_MAX_KEY_BYTES)
		return NULL;
	return cstring_to_text_with_len(value.data, value.len);
}

IDEM_FUNCTION(idem_key);

/*
 * idem_key(header text) RETURNS text
 *		The key in an Idempotency-Key header field.
 *
 * draft-ietf-httpapi-idempotency-key-header: an Item whose value is a String
 * (RFC 8941); bare keys are in wide use and accepted.  Gives it as the header
 * spells it.  Raises ID012.
 */
Datum
idem_key(PG_FUNCTION_ARGS)
{
	text	   *key = NULL;

	if (!PG_ARGISNULL(0))
	{
		text	   *header = PG_GETARG_TEXT_PP(0);

		key = idem_text_header_key(VARDATA_ANY(header),
								   VARSIZE_ANY_EXHDR(header));
	}
	if (key == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_BAD_KEY),
				 PG_ARGISNULL(0) ? errmsg("missing Idempotency-Key header") :
				 errmsg("malformed Idempotency-Key header"),
				 errhint("Send one key as a quoted string, such as \"8e03978e-40d5-43dd-bc93-6894a57f9324\".")));
	PG_RETURN_TEXT_P(key);
}
