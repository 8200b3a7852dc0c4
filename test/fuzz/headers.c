/*-------------------------------------------------------------------------
 *
 * headers.c
 *	  Target of tools/fuzz: src/key/headers.c, with src/base/json_pairs.c.
 *
 * Headers against a reader of JSON that makes a tree of it, and what is to be
 * sent of them against a search through all of it for each header; whatever was
 * stored, nothing is sent that could end a header line.  Media types against a
 * table of states.
 *
 * The first byte says which: 'j' or 'm'.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <strings.h>

#include "base/compat.h"
#include "base/json_pairs.h"
#include "key/headers.h"

#include "fuzz.h"
#include "server.h"

/*
 * JSON as a tree
 */

typedef enum JsonKind
{
	JSON_IS_NULL,
	JSON_IS_WORD,				/* a number or a boolean */
	JSON_IS_STRING,
	JSON_IS_ARRAY,
	JSON_IS_OBJECT
} JsonKind;

typedef struct Json
{
	JsonKind	kind;
	const char *name;			/* of a member */
	const char *text;
	struct Json *first;			/* of those in it */
	struct Json *next;			/* in what it is in */
} Json;

typedef struct Reader
{
	const char *c;				/* ended by a NUL */
} Reader;

static void
skip_blanks(Reader *r)
{
	while (*r->c != '\0' && strchr(" \t\n\r", *r->c) != NULL)
		r->c++;
}

static bool
take(Reader *r, char c)
{
	skip_blanks(r);
	if (*r->c != c)
		return false;
	r->c++;
	return true;
}

/* Four hexadecimal digits; -1: there are none. */
static int
read_hex(Reader *r)
{
	int			value = 0;
	int			i;

	for (i = 0; i < 4; i++, r->c++)
	{
		const char *digits = "0123456789abcdef0123456789ABCDEF";
		const char *digit = *r->c == '\0' ? NULL : strchr(digits, *r->c);

		if (digit == NULL)
			return -1;
		value = value * 16 + (digit - digits) % 16;
	}
	return value;
}

/* A character that is written as its number, behind the 'u' */
static bool
read_unicode(Reader *r, char **out)
{
	int			code = read_hex(r);

	if (code >= 0xd800 && code <= 0xdbff)
	{
		int			low = -1;

		if (r->c[0] == '\\' && r->c[1] == 'u')
		{
			r->c += 2;
			low = read_hex(r);
		}
		if (low < 0xdc00 || low > 0xdfff)
			return false;
		code = 0x10000 + ((code & 0x3ff) << 10) + (low & 0x3ff);
	}
	else if (code <= 0 || (code >= 0xdc00 && code <= 0xdfff))
		return false;
	if (code < 0x80)
		*(*out)++ = (char) code;
	else if (code < 0x800)
		*out += sprintf(*out, "%c%c", 0xc0 | code >> 6, 0x80 | (code & 0x3f));
	else if (code < 0x10000)
		*out += sprintf(*out, "%c%c%c", 0xe0 | code >> 12,
						0x80 | (code >> 6 & 0x3f), 0x80 | (code & 0x3f));
	else
		*out += sprintf(*out, "%c%c%c%c", 0xf0 | code >> 18,
						0x80 | (code >> 12 & 0x3f), 0x80 | (code >> 6 & 0x3f),
						0x80 | (code & 0x3f));
	return true;
}

static const char *
read_string(Reader *r)
{
	char	   *text = palloc(strlen(r->c) * 3 + 8);
	char	   *out = text;

	if (!take(r, '"'))
		return NULL;
	while (*r->c != '"')
	{
		const char *letters = "\"\"\\\\//b\bf\fn\nr\rt\t";
		const char *letter;

		if ((unsigned char) *r->c < ' ')
			return NULL;
		if (*r->c != '\\')
		{
			*out++ = *r->c++;
			continue;
		}
		r->c++;
		if (*r->c == 'u')
		{
			r->c++;
			if (!read_unicode(r, &out))
				return NULL;
			continue;
		}
		for (letter = letters; *letter != '\0' && *letter != *r->c; letter += 2)
			;
		if (*letter == '\0')
			return NULL;
		*out++ = letter[1];
		r->c++;
	}
	r->c++;
	*out = '\0';
	return text;
}

static int
skip_digits(Reader *r)
{
	int			n = 0;

	for (; *r->c >= '0' && *r->c <= '9'; r->c++)
		n++;
	return n;
}

static bool
read_number(Reader *r)
{
	if (*r->c == '-')
		r->c++;
	if (*r->c == '0')
		r->c++;
	else if (skip_digits(r) == 0)
		return false;
	if (*r->c == '.')
	{
		r->c++;
		if (skip_digits(r) == 0)
			return false;
	}
	if (*r->c == 'e' || *r->c == 'E')
	{
		r->c++;
		if (*r->c == '+' || *r->c == '-')
			r->c++;
		if (skip_digits(r) == 0)
			return false;
	}
	return true;
}

static bool
read_word(Reader *r, const char *word)
{
	if (strncmp(r->c, word, strlen(word)) != 0)
		return false;
	r->c += strlen(word);
	return true;
}

/* A value; NULL: it is none. */
static Json *
read_json(Reader *r)
{
	Json	   *node = palloc0(sizeof(Json));
	Json	  **link = &node->first;
	const char *begin;
	char		end;

	skip_blanks(r);
	begin = r->c;
	if (*r->c == '"')
	{
		node->kind = JSON_IS_STRING;
		node->text = read_string(r);
		return node->text == NULL ? NULL : node;
	}
	if (*r->c != '[' && *r->c != '{')
	{
		node->kind = read_word(r, "null") ? JSON_IS_NULL : JSON_IS_WORD;
		if (node->kind == JSON_IS_WORD && !read_word(r, "true") &&
			!read_word(r, "false") && !read_number(r))
			return NULL;
		node->text = pnstrdup(begin, r->c - begin);
		return node;
	}
	end = *r->c++ == '[' ? ']' : '}';
	node->kind = end == ']' ? JSON_IS_ARRAY : JSON_IS_OBJECT;
	if (take(r, end))
		return node;
	do
	{
		const char *name = NULL;

		if (end == '}' && ((name = read_string(r)) == NULL || !take(r, ':')))
			return NULL;
		*link = read_json(r);
		if (*link == NULL)
			return NULL;
		(*link)->name = name;
		link = &(*link)->next;
	} while (take(r, ','));
	return take(r, end) ? node : NULL;
}

/*
 * The tree as names and values
 */

#define MAX_PAIRS 4096

typedef struct Pairs
{
	int			number;
	IdemPair	pairs[MAX_PAIRS];
} Pairs;

static int
count_in(const Json *node)
{
	int			n = 0;

	for (node = node->first; node != NULL; node = node->next)
		n++;
	return n;
}

static void
put_pair(Pairs *pairs, const char *name, const Json *value, bool in_list)
{
	IdemPair   *pair = &pairs->pairs[pairs->number++];

	must(pairs->number <= MAX_PAIRS);
	pair->name = unconstify(char *, name);
	pair->value = value->kind == JSON_IS_STRING || value->kind == JSON_IS_WORD ?
		unconstify(char *, value->text) : NULL;
	pair->is_string = value->kind == JSON_IS_STRING;
	pair->in_list = in_list;
}

static void
put_members(Pairs *pairs, const Json *object)
{
	const Json *member;
	const Json *element;

	for (member = object->first; member != NULL; member = member->next)
		if (member->kind != JSON_IS_ARRAY)
			put_pair(pairs, member->name, member, false);
		else
			for (element = member->first; element != NULL; element = element->next)
				put_pair(pairs, member->name, element, true);
}

/* False: not of the form that headers have */
static bool
list_pairs(Pairs *pairs, const Json *root)
{
	const Json *each;

	pairs->number = 0;
	if (root == NULL || (root->kind != JSON_IS_OBJECT && root->kind != JSON_IS_ARRAY))
		return false;
	if (root->kind == JSON_IS_OBJECT)
	{
		put_members(pairs, root);
		return true;
	}
	for (each = root->first; each != NULL; each = each->next)
	{
		if (each->kind != root->first->kind)
			return false;
		if (each->kind == JSON_IS_OBJECT && count_in(each) == 1)
			put_members(pairs, each);
		else if (each->kind == JSON_IS_ARRAY && count_in(each) == 2 &&
				 each->first->kind == JSON_IS_STRING)
			put_pair(pairs, each->first->text, each->first->next, false);
		else
			return false;
	}
	return true;
}

/*
 * What HTTP can have
 */

static bool
is_token_char(char c)
{
	return c != '\0' &&
		strchr("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
			   "ABCDEFGHIJKLMNOPQRSTUVWXYZ", c) != NULL;
}

static bool
model_is_name(const char *name)
{
	const char *c;

	for (c = name; *c != '\0'; c++)
		if (!is_token_char(*c))
			return false;
	return c > name;
}

static bool
model_is_value(const char *value)
{
	for (; *value != '\0'; value++)
		if (*value != '\t' && ((*value > 0 && *value < ' ') || *value == 0x7f))
			return false;
	return true;
}

static bool
model_can_be(const IdemPair *pair)
{
	return model_is_name(pair->name) && pair->value != NULL &&
		model_is_value(pair->value);
}

static bool
is_never_sent(const char *name)
{
	static const char *const names[] = {
		"Connection", "Keep-Alive", "Proxy-Connection", "TE", "Transfer-Encoding",
		"Upgrade", "Content-Length", "Date", "Idempotency-Replayed",
		"Idempotency-Expires", "Retry-After"
	};
	int			i;

	for (i = 0; i < lengthof(names); i++)
		if (strcasecmp(names[i], name) == 0)
			return true;
	return false;
}

/* Whether a header Connection names it, between whatever is no token */
static bool
is_of_connection(const Pairs *pairs, const char *name)
{
	size_t		len = strlen(name);
	int			i;

	for (i = 0; i < pairs->number; i++)
	{
		const char *value = pairs->pairs[i].value;
		const char *c;

		if (value == NULL || strcasecmp(pairs->pairs[i].name, "connection") != 0)
			continue;
		for (c = value; *c != '\0'; c++)
			if (strncasecmp(c, name, len) == 0 && !is_token_char(c[len]) &&
				(c == value || !is_token_char(c[-1])))
				return true;
	}
	return false;
}

static const char *
model_trim(const char *value)
{
	size_t		len;

	value += strspn(value, " \t");
	len = strlen(value);
	while (len > 0 && (value[len - 1] == ' ' || value[len - 1] == '\t'))
		len--;
	return pnstrdup(value, len);
}

static void
check_pairs(const List *is, const Pairs *due)
{
	int			i;

	must(list_length(is) == due->number);
	for (i = 0; i < due->number; i++)
	{
		const IdemPair *a = list_nth(is, i);
		const IdemPair *b = &due->pairs[i];

		must(strcmp(a->name, b->name) == 0);
		must((a->value == NULL) == (b->value == NULL));
		must(a->value == NULL || strcmp(a->value, b->value) == 0);
		must(a->is_string == b->is_string && a->in_list == b->in_list);
	}
}

static void
check_sent(const List *sent, const Pairs *stored)
{
	int			at = 0;
	int			i;

	for (i = 0; i < stored->number; i++)
	{
		const IdemPair *pair = &stored->pairs[i];
		const IdemPair *is;

		if (!model_can_be(pair) || is_never_sent(pair->name) ||
			is_of_connection(stored, pair->name))
			continue;
		must(at < list_length(sent));
		is = list_nth(sent, at++);
		must(strcmp(is->name, pair->name) == 0);
		must(strcmp(is->value, model_trim(pair->value)) == 0);
	}
	must(at == list_length(sent));
}

/* Of what is no JSON there is no model, but it must not do harm. */
static void
check_harmless(const List *sent)
{
	int			i;

	for (i = 0; i < list_length(sent); i++)
	{
		const IdemPair *pair = list_nth(sent, i);

		must(model_can_be(pair) && !is_never_sent(pair->name));
		must(strcmp(pair->value, model_trim(pair->value)) == 0);
	}
}

static void
try_headers(const uint8 *data, size_t size)
{
	static Pairs pairs;
	Reader		r;
	Json	   *root;
	text	   *headers;
	List	   *read;
	List	   *sent;
	bool		well_formed;
	bool		can_be;
	int			i;

	if (!fuzz_is_text(data, size))
		return;
	r.c = pnstrdup((const char *) data, size);
	root = read_json(&r);
	skip_blanks(&r);
	if (*r.c != '\0')
		root = NULL;
	well_formed = list_pairs(&pairs, root);
	can_be = well_formed;
	for (i = 0; i < pairs.number; i++)
		can_be = can_be && model_can_be(&pairs.pairs[i]);

	headers = server_text(data, size);
	must(idem_json_pairs_read(VARDATA_ANY(headers), VARSIZE_ANY_EXHDR(headers),
							  &read) == well_formed);
	if (well_formed)
		check_pairs(read, &pairs);
	if (server_try(idem_headers_check(headers)))
		must(can_be);
	else
		must(!can_be && server_sqlstate == ERRCODE_INVALID_PARAMETER_VALUE);
	sent = idem_headers_to_send(headers);
	check_harmless(sent);
	if (well_formed)
		check_sent(sent, &pairs);
}

/*
 * Media types
 */

static bool
model_is_media_type(const uint8 *c, size_t len)
{
	enum
	{
		TYPE, SUBTYPE, SPACES, PARAMETERS
	}			state = TYPE;
	size_t		in_state = 0;
	size_t		i;

	for (i = 0; i < len; i++)
	{
		bool		token = is_token_char((char) c[i]);
		bool		space = c[i] == ' ' || c[i] == '\t';

		if ((c[i] < ' ' && c[i] != '\t') || c[i] == 0x7f)
			return false;
		if (state == PARAMETERS || (state < SPACES && token))
			in_state++;
		else if (state == TYPE && c[i] == '/' && in_state > 0)
		{
			state = SUBTYPE;
			in_state = 0;
		}
		else if ((state == SUBTYPE && in_state > 0) || state == SPACES)
		{
			if (!space && c[i] != ';')
				return false;
			state = space ? SPACES : PARAMETERS;
		}
		else
			return false;
	}
	return state > SUBTYPE || (state == SUBTYPE && in_state > 0);
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	if (size > 0 && data[0] == 'j')
		try_headers(data + 1, size - 1);
	else if (size > 0 && data[0] == 'm')
		must(idem_headers_is_media_type(server_text(data + 1, size - 1)) ==
			 model_is_media_type(data + 1, size - 1));
	else
		return -1;
	server_reset();
	return 0;
}
