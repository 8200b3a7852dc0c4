/*-------------------------------------------------------------------------
 *
 * header.c
 *	  Target of tools/fuzz: src/key/name.c.
 *
 * The Idempotency-Key header field against a table of states; what RFC 8941
 * says is an Item, made from the grammar, must be taken whole; formats of keys
 * against a pattern; scopes against the text that they are to be.
 *
 * The first byte says which: 'h', 'i', 'k' or 'o'.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"

#include "base/args.h"
#include "base/compat.h"
#include "base/digest.h"
#include "key/name.h"

#include "fuzz.h"
#include "server.h"

extern PGDLLEXPORT Datum idem_key(PG_FUNCTION_ARGS);

/*
 * What name.c uses of base/
 */

static Datum *scope_components;
static int	scope_count;

text *
idem_args_text(FunctionCallInfo fcinfo, int argno, const char *what)
{
	return PG_GETARG_TEXT_PP(argno);
}

void
idem_args_check_length(const text *value, int max, const char *what)
{
}

int
idem_args_components(FunctionCallInfo fcinfo, Datum **components)
{
	*components = scope_components;
	return scope_count;
}

char *
idem_digest_log_id(const text *name)
{
	return pstrdup("");
}

/*
 * The header field
 */

typedef enum FieldState
{
	BEFORE,
	BARE,
	QUOTED,
	ESCAPED,
	BEHIND,						/* an item, or a parameter: spaces, then ';' */
	BEFORE_NAME,
	PARAMETER,
	AFTER_EQUALS,
	PARAMETER_QUOTED,
	PARAMETER_ESCAPED,
	MALFORMED
} FieldState;

/* *kept: the byte is one of the key */
static FieldState
read_byte(FieldState state, uint8 c, bool *kept)
{
	bool		visible = c > ' ' && c <= '~';

	*kept = false;
	switch (state)
	{
		case BEFORE:
			if (c == '"')
				return QUOTED;
			/* fall through */
		case BARE:
			*kept = visible && c != '"' && c != '\\' && c != ',' && c != ';';
			return *kept ? BARE : MALFORMED;
		case QUOTED:
			*kept = (visible || c == ' ') && c != '"' && c != '\\';
			return c == '"' ? BEHIND : c == '\\' ? ESCAPED :
				*kept ? QUOTED : MALFORMED;
		case ESCAPED:
			*kept = c == '"' || c == '\\';
			return *kept ? QUOTED : MALFORMED;
		case BEHIND:
			return c == ' ' ? BEHIND : c == ';' ? BEFORE_NAME : MALFORMED;
		case BEFORE_NAME:
			return c == ' ' ? BEFORE_NAME :
				c == '*' || (c >= 'a' && c <= 'z') ? PARAMETER : MALFORMED;
		case AFTER_EQUALS:
			if (c == '"')
				return PARAMETER_QUOTED;
			/* fall through */
		case PARAMETER:
			return c == ' ' ? BEHIND : c == ';' ? BEFORE_NAME :
				c == '=' ? AFTER_EQUALS :
				visible && c != '"' && c != ',' ? PARAMETER : MALFORMED;
		case PARAMETER_QUOTED:
			return c == '"' ? BEHIND : c == '\\' ? PARAMETER_ESCAPED :
				visible || c == ' ' ? PARAMETER_QUOTED : MALFORMED;
		case PARAMETER_ESCAPED:
			return c == '"' || c == '\\' ? PARAMETER_QUOTED : MALFORMED;
		default:
			return MALFORMED;
	}
}

/* The length of the key in a field, written to *key; 0: it is malformed. */
static size_t
model_field(const uint8 *c, size_t len, char *key)
{
	FieldState	state = BEFORE;
	size_t		at = 0;
	size_t		i;

	while (len > 0 && (c[0] == ' ' || c[0] == '\t'))
	{
		c++;
		len--;
	}
	while (len > 0 && (c[len - 1] == ' ' || c[len - 1] == '\t'))
		len--;
	for (i = 0; i < len; i++)
	{
		bool		kept;

		state = read_byte(state, c[i], &kept);
		if (kept)
			key[at++] = (char) c[i];
	}
	if (at > IDEM_MAX_KEY_BYTES)
		return 0;
	return state == BARE || state == BEHIND || state == PARAMETER ||
		state == AFTER_EQUALS ? at : 0;
}

/* What idem_key() says of a field; *len is 0 where it is an error. */
static text *
ask_field(const uint8 *c, size_t size, size_t * len)
{
	LOCAL_FCINFO(fcinfo, 1);
	text	   *volatile key = NULL;

	InitFunctionCallInfoData(*fcinfo, NULL, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = PointerGetDatum(server_text(c, size));
	fcinfo->args[0].isnull = false;
	if (!server_try(key = DatumGetTextPP(idem_key(fcinfo))))
		must(server_sqlstate == ERRCODE_IDEM_BAD_KEY);
	*len = key == NULL ? 0 : VARSIZE_ANY_EXHDR(key);
	return key;
}

static void
try_field(const uint8 *data, size_t size)
{
	char	   *expected = palloc(size + 1);
	size_t		due = model_field(data, size, expected);
	size_t		len;
	text	   *key = ask_field(data, size, &len);

	must(len == due);
	must(len == 0 || memcmp(VARDATA_ANY(key), expected, len) == 0);
}

/*
 * An Item of RFC 8941, by its grammar
 */

static char
pick_of(FuzzInput *in, const char *choices)
{
	return choices[fuzz_byte(in) % strlen(choices)];
}

#define LOWER "abcdefghijklmnopqrstuvwxyz"
#define DIGITS "0123456789"
#define TOKEN LOWER "ABCDEFGHIJKLMNOPQRSTUVWXYZ" DIGITS "!#$%&'*+-.^_`|~"

static char *
make_string(FuzzInput *in, char *out, char *value, size_t * len)
{
	int			chars = fuzz_byte(in) % 16;

	*out++ = '"';
	while (chars-- > 0)
	{
		char		c = ' ' + fuzz_byte(in) % ('~' - ' ' + 1);

		if (c == '"' || c == '\\')
			*out++ = '\\';
		*out++ = c;
		if (value != NULL)
			value[(*len)++] = c;
	}
	*out++ = '"';
	return out;
}

/* 3.3: integer, decimal, string, token, byte sequence, boolean */
static char *
make_bare_item(FuzzInput *in, char *out)
{
	int			chars = fuzz_byte(in) % 12;

	switch (fuzz_byte(in) % 6)
	{
		case 0:
			return out + sprintf(out, "%lld", (long long) fuzz_below(in, 1000000) - 500000);
		case 1:
			return out + sprintf(out, "-%d.%d", fuzz_byte(in), fuzz_byte(in));
		case 2:
			return make_string(in, out, NULL, NULL);
		case 3:
			*out++ = pick_of(in, LOWER "*");
			while (chars-- > 0)
				*out++ = pick_of(in, TOKEN ":/");
			return out;
		case 4:
			*out++ = ':';
			while (chars-- > 0)
				*out++ = pick_of(in, LOWER DIGITS "+/=");
			*out++ = ':';
			return out;
		default:
			return out + sprintf(out, "?%d", fuzz_flag(in));
	}
}

static void
try_item(const uint8 *data, size_t size)
{
	FuzzInput	in = fuzz_begin(data, size);
	char		field[2048];
	char		value[16];
	size_t		value_len = 0;
	size_t		len;
	char	   *out = make_string(&in, field, value, &value_len);
	int			parameters = fuzz_byte(&in) % 8;
	text	   *key;

	while (parameters-- > 0)
	{
		int			chars = fuzz_byte(&in) % 8;

		*out++ = ';';
		while (fuzz_byte(&in) % 4 == 1)
			*out++ = ' ';
		*out++ = pick_of(&in, LOWER "*");
		while (chars-- > 0)
			*out++ = pick_of(&in, LOWER DIGITS "_-.*");
		if (fuzz_flag(&in))
		{
			*out++ = '=';
			out = make_bare_item(&in, out);
		}
	}
	key = ask_field((uint8 *) field, out - field, &len);
	must(len == value_len);
	must(len == 0 || memcmp(VARDATA_ANY(key), value, len) == 0);
}

/*
 * Formats
 */

static void
try_format(const uint8 *data, size_t size)
{
	static const char pattern[] = "xxxxxxxx-xxxx-vxxx-rxxx-xxxxxxxxxxxx";
	static IdemPolicy policy;
	FuzzInput	in = fuzz_begin(data, size);
	bool		uuid = true;
	bool		version = true;
	char		lower[sizeof(pattern)];
	size_t		len;
	const uint8 *c;
	text	   *given;
	text	   *key;
	size_t		i;

	policy.key_format = fuzz_byte(&in) % 4;
	policy.max_key_bytes = 1 + fuzz_byte(&in) * 4;
	c = fuzz_bytes(&in, size, &len);
	uuid = len == strlen(pattern);
	for (i = 0; uuid && i < len; i++)
	{
		lower[i] = (char) (c[i] >= 'A' && c[i] <= 'F' ? c[i] + 32 : c[i]);
		if (pattern[i] == '-' ? c[i] != '-' : c[i] == '\0' ||
			strchr(DIGITS "abcdef", lower[i]) == NULL)
			uuid = false;
		else if (pattern[i] == 'v')
			version = version && c[i] == (policy.key_format == IDEM_KEY_UUIDV4 ? '4' : '7');
		else if (pattern[i] == 'r')
			version = version && strchr("89ab", lower[i]) != NULL;
	}
	given = server_text(c, len);
	key = idem_name_formatted_key(given, &policy);
	must((key != NULL) ==
		 (len > 0 && len <= (size_t) policy.max_key_bytes &&
		  (policy.key_format == IDEM_KEY_ANY || uuid) &&
		  (policy.key_format == IDEM_KEY_ANY || policy.key_format == IDEM_KEY_UUID ||
		   version)));
	if (server_try(idem_name_format_key(given, &policy)))
		must(key != NULL);
	else
		must(key == NULL && server_sqlstate == ERRCODE_IDEM_BAD_KEY);
	if (key == NULL)
		return;
	must(VARSIZE_ANY_EXHDR(key) == len);
	must(memcmp(VARDATA_ANY(key), uuid ? lower : (const char *) c, len) == 0);
	must(memcmp(VARDATA_ANY(given), c, len) == 0);
}

/*
 * Scopes: a component ends with its line
 */

static void
try_scope(const uint8 *data, size_t size)
{
	LOCAL_FCINFO(fcinfo, 1);
	FuzzInput	in = fuzz_begin(data, size);
	Datum		components[64];
	char	   *expected = palloc(size + 1);
	size_t		at = 0;
	bool		good = true;
	text	   *volatile scope = NULL;

	if (!fuzz_is_text(data, size))
		return;
	InitFunctionCallInfoData(*fcinfo, NULL, 1, InvalidOid, NULL, NULL);
	scope_components = components;
	scope_count = 0;
	while (fuzz_is_left(&in) && scope_count < lengthof(components))
	{
		const uint8 *c = in.at;
		size_t		len;
		size_t		i;

		while (fuzz_is_left(&in) && *in.at != '\n')
			in.at++;
		len = in.at - c;
		(void) fuzz_byte(&in);
		components[scope_count] = PointerGetDatum(server_text(c, len));
		if (scope_count++ > 0)
			expected[at++] = '\x1e';
		memcpy(expected + at, c, len);
		at += len;
		good = good && len > 0 && at <= IDEM_MAX_SCOPE_BYTES;
		for (i = 0; i < len;)
		{
			uint32		code = 0;

			i += fuzz_utf8(c + i, len - i, &code);
			good = good && code >= 0x20 && (code < 0x7f || code > 0x9f);
		}
	}
	if (scope_count == 0)
		return;
	if (!server_try(scope = DatumGetTextPP(idem_scope(fcinfo))))
		must(server_sqlstate == ERRCODE_INVALID_PARAMETER_VALUE);
	must((scope != NULL) == good);
	must(!good || (VARSIZE_ANY_EXHDR(scope) == at &&
				   memcmp(VARDATA_ANY(scope), expected, at) == 0));
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	int			kind = size == 0 ? 0 : data[0];

	switch (kind)
	{
		case 'h':
			try_field(data + 1, size - 1);
			break;
		case 'i':
			try_item(data + 1, size - 1);
			break;
		case 'k':
			try_format(data + 1, size - 1);
			break;
		case 'o':
			try_scope(data + 1, size - 1);
			break;
		default:
			return -1;
	}
	server_reset();
	return 0;
}
