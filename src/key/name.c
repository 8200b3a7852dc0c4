/*-------------------------------------------------------------------------
 *
 * name.c
 *	  What names a key: scope, spelling, format, header field.
 *
 * Owns how a scope and a key are checked and spelled: every function that takes
 * one gets it from here.  A key that is missing or bad is the client's fault,
 * ID012; no message repeats it.  Touches no table.
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
#include "key/name.h"

#define RECORD_SEPARATOR '\x1e'
#define UUID_TEXT_LEN 36

/*
 * idem_name_scope
 *		Whose key it is, and for what; 22004, 22023.
 */
text *
idem_name_scope(FunctionCallInfo fcinfo, int argno)
{
	text	   *scope = idem_args_text(fcinfo, argno, "scope");

	idem_args_check_length(scope, IDEM_MAX_SCOPE_BYTES, "scope");
	return scope;
}

/* A key must be there, and of 1 to max bytes; ID012. */
static void
check_key(const text *key, int max)
{
	int			len = key == NULL ? 0 : VARSIZE_ANY_EXHDR(key);

	if (len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_BAD_KEY),
				 key == NULL ? errmsg("the key is missing") :
				 errmsg("the key is empty"),
				 errhint("Send a key of 1 to %d bytes, such as a UUID.", max)));
	if (len > max)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_BAD_KEY),
				 errmsg("the key is too long"),
				 errdetail("It has %d bytes, the most are %d.", len, max),
				 errhint("Shorten it, for example to its hash.")));
}

/* 8-4-4-4-12 hexadecimal digits, in any case. */
static bool
is_uuid(const text *key)
{
	const char *c = VARDATA_ANY(key);
	int			i;

	if (VARSIZE_ANY_EXHDR(key) != UUID_TEXT_LEN)
		return false;
	/* not the type's own input, which takes braces and other hyphens, too */
	for (i = 0; i < UUID_TEXT_LEN; i++)
	{
		if (i == 8 || i == 13 || i == 18 || i == 23)
		{
			if (c[i] != '-')
				return false;
		}
		else if (!isxdigit((unsigned char) c[i]))
			return false;
	}
	return true;
}

/*
 * The key in the one spelling in which it is stored and compared: that of a
 * UUID in lower case.  No policy has a say in it, for a policy can change, and
 * then a repeat would not find its key.
 */
static text *
spell_key(text *key)
{
	text	   *spelled;
	char	   *c;
	int			i;

	/* whatever else a key is, its letters may mean something */
	if (!is_uuid(key))
		return key;
	spelled = cstring_to_text_with_len(VARDATA_ANY(key), UUID_TEXT_LEN);
	c = VARDATA(spelled);
	for (i = 0; i < UUID_TEXT_LEN; i++)
		c[i] = pg_ascii_tolower((unsigned char) c[i]);
	return spelled;
}

/*
 * idem_name_key
 *		A key as it is stored; ID012.
 */
text *
idem_name_key(FunctionCallInfo fcinfo, int argno)
{
	text	   *key = PG_ARGISNULL(argno) ? NULL : PG_GETARG_TEXT_PP(argno);

	check_key(key, IDEM_MAX_KEY_BYTES);
	return spell_key(key);
}

/* RFC 9562: the version is the 13th digit, the variant in the 17th. */
static bool
uuid_has_version(const text *key, char version)
{
	const char *c = VARDATA_ANY(key);

	return c[14] == version && strchr("89abAB", c[19]) != NULL;
}

/* The version that a UUID must have; 0: any. */
static char
required_version(IdemKeyFormat format)
{
	switch (format)
	{
		case IDEM_KEY_UUIDV4:
			return '4';
		case IDEM_KEY_UUIDV7:
			return '7';
		case IDEM_KEY_ANY:
		case IDEM_KEY_UUID:
			break;
	}
	return '\0';
}

/*
 * idem_name_formatted_key
 *		The key as it is stored, or NULL if it is not one that the policy
 *		takes.
 */
text *
idem_name_formatted_key(text *key, const IdemPolicy *policy)
{
	char		version = required_version(policy->key_format);
	int			len = VARSIZE_ANY_EXHDR(key);

	if (len == 0 || len > policy->max_key_bytes)
		return NULL;
	if (policy->key_format != IDEM_KEY_ANY &&
		(!is_uuid(key) ||
		 (version != '\0' && !uuid_has_version(key, version))))
		return NULL;
	return spell_key(key);
}

/*
 * idem_name_format_key
 *		The key as it is stored, which must be one that the policy takes; ID012,
 *		for NULL, too.
 */
text *
idem_name_format_key(text *key, const IdemPolicy *policy)
{
	char		version = required_version(policy->key_format);
	text	   *stored;

	/* two tests for one thing: this one says by how much the key is too long */
	check_key(key, policy->max_key_bytes);
	stored = idem_name_formatted_key(key, policy);
	if (stored == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_BAD_KEY),
				 errmsg("the key does not have the format of policy \"%s\"",
						NameStr(policy->name)),
				 version == '\0' ?
				 errhint("Send a UUID, with its hyphens and without braces.") :
				 errhint("Send a UUID of version %c, with its hyphens and without braces.",
						 version)));
	return stored;
}

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

		/* in other encodings these bytes are parts of letters */
		if (GetDatabaseEncoding() == PG_UTF8 && c[i] == 0xc2 &&
			i + 1 < len && c[i + 1] >= 0x80 && c[i + 1] <= 0x9f)
			return true;
	}
	return false;
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
	int			count = idem_args_components(fcinfo, &components);
	StringInfoData scope;
	int			i;

	initStringInfo(&scope);
	for (i = 0; i < count; i++)
	{
		text	   *component = DatumGetTextPP(components[i]);

		/* an empty one, or a separator in one, would let two scopes be equal */
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
		/* a comma or semicolon may mean a list, or parameters: not clear */
		if (*c <= ' ' || *c > '~' || strchr("\"\\,;", *c) != NULL)
			return NULL;
		appendStringInfoChar(value, *c);
	}
	return c;
}

/*
 * idem_name_header_key
 *		The key in an Idempotency-Key header field, or NULL if it is malformed.
 */
text *
idem_name_header_key(const char *c, int len)
{
	const char *end = c + len;
	StringInfoData value;

	/* RFC 9110, 5.5: spaces around a field value are no part of it */
	while (c < end && (*c == ' ' || *c == '\t'))
		c++;
	while (c < end && (end[-1] == ' ' || end[-1] == '\t'))
		end--;
	initStringInfo(&value);
	/* what begins with a quote must be a whole item, or the key is not clear */
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

	/* not strict: a request without the header is to be told so, ID012 */
	if (!PG_ARGISNULL(0))
	{
		text	   *header = PG_GETARG_TEXT_PP(0);

		key = idem_name_header_key(VARDATA_ANY(header),
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
