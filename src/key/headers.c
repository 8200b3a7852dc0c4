/*-------------------------------------------------------------------------
 *
 * headers.c
 *	  Headers of an answer: what may be stored, and what of it is sent.
 *
 * Headers come from applications.  What HTTP cannot have, such as a name or a
 * value that could end a header line, is refused when it is stored, together
 * with the work; a repeat that failed until its key expires would be of no
 * use.  So what was stored is never refused when it is read: rows that were
 * written by other means than ours are read for what can be sent of them.
 *
 * The headers stay as they were given.  Some are not for a repeat, being of
 * one connection or of one message, and are left out on the way out; of the
 * first answer, too, which is to be the same as a repeat.
 *
 * Touches no table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/compat.h"
#include "base/json_pairs.h"
#include "idem.h"
#include "key/headers.h"

#define CONNECTION "connection"

/*
 * What is not replayed: the fields of one connection (RFC 9110, 7.6.1), those
 * that a server makes anew for each message, and those that are ours.
 */
static const char *const not_sent[] = {
	CONNECTION,
	"keep-alive",
	"proxy-connection",
	"te",
	"transfer-encoding",
	"upgrade",
	"content-length",
	"date",
	"idempotency-replayed",
	"idempotency-expires",
	"retry-after"
};

/* RFC 9110, 5.6.2: the length of the token at the begin of a text. */
static int
token_length(const char *c, int len)
{
	int			i;

	for (i = 0; i < len; i++)
		if (!(c[i] >= 'a' && c[i] <= 'z') && !(c[i] >= 'A' && c[i] <= 'Z') &&
			!(c[i] >= '0' && c[i] <= '9') &&
			(c[i] == '\0' || strchr("!#$%&'*+-.^_`|~", c[i]) == NULL))
			break;
	return i;
}

static bool
is_token(const char *name)
{
	int			len = strlen(name);

	return len > 0 && token_length(name, len) == len;
}

/*
 * RFC 9110, 5.5: no control character but the tab.  Octets beyond ASCII are
 * opaque there ("obs-text"), and so they are here.
 */
static bool
is_field_value(const char *c, int len)
{
	int			i;

	/* a line end here would be a header of the application's choice */
	for (i = 0; i < len; i++)
		if (((unsigned char) c[i] < ' ' && c[i] != '\t') || c[i] == 0x7f)
			return false;
	return true;
}

static bool
is_space(char c)
{
	return c == ' ' || c == '\t';
}

/* RFC 9110, 5.5: spaces around a value are no part of it. */
static char *
trim(const char *value)
{
	int			len = strlen(value);

	while (len > 0 && is_space(value[len - 1]))
		len--;
	while (len > 0 && is_space(*value))
	{
		value++;
		len--;
	}
	return pnstrdup(value, len);
}

/*
 * idem_headers_check
 *		Refuse headers that could not be given back; 22023.
 */
void
idem_headers_check(text *headers)
{
	List	   *pairs;
	ListCell   *cell;

	if (!idem_json_pairs_read(VARDATA_ANY(headers), VARSIZE_ANY_EXHDR(headers),
							  &pairs))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("headers are not in a form that HTTP can have"),
				 errhint("Write {\"Name\": \"value\"}, [{\"Name\": \"value\"}, ...] or [[\"Name\", \"value\"], ...].")));
	foreach(cell, pairs)
	{
		IdemPair   *pair = lfirst(cell);

		if (!is_token(pair->name))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("headers have a name that HTTP cannot have"),
					 errhint("Make a name of letters, digits and hyphens.")));
		/* an object, a null or a list in a list has no value */
		if (pair->value == NULL ||
			!is_field_value(pair->value, strlen(pair->value)))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("headers have a value that HTTP cannot have"),
					 errhint("A value is a string without control characters, a number or a boolean, or an array of them.")));
	}
}

static int
compare_names(const void *a, const void *b)
{
	return pg_strcasecmp(*(const char *const *) a, *(const char *const *) b);
}

/* The names in a value of Connection, appended to those that are not sent. */
static List *
read_connection(List *names, const char *value)
{
	while (*value != '\0')
	{
		int			len = token_length(value, strlen(value));

		/* what is between tokens, commas for the most part, separates them */
		if (len > 0)
			names = lappend(names, pnstrdup(value, len));
		value += Max(len, 1);
	}
	return names;
}

/* The names of fields that are not sent, sorted. */
static char **
names_not_sent(const List *pairs, int *count)
{
	List	   *names = NIL;
	ListCell   *cell;
	char	  **array;
	int			i;

	for (i = 0; i < lengthof(not_sent); i++)
		names = lappend(names, unconstify(char *, not_sent[i]));
	foreach(cell, pairs)
	{
		IdemPair   *pair = lfirst(cell);

		if (pair->value != NULL && pg_strcasecmp(pair->name, CONNECTION) == 0)
			names = read_connection(names, pair->value);
	}

	/*
	 * Sorted, since Connection can name as many fields as fit into 64 kB, and
	 * each header is looked for among them.
	 */
	array = palloc(sizeof(char *) * list_length(names));
	*count = 0;
	foreach(cell, names)
		array[(*count)++] = lfirst(cell);
	qsort(array, *count, sizeof(char *), compare_names);
	return array;
}

/*
 * idem_headers_to_send
 *		The stored headers that a repeat has, as a list of IdemPair.  Raises
 *		nothing, whatever was stored.
 */
List *
idem_headers_to_send(text *headers)
{
	List	   *sent = NIL;
	List	   *pairs;
	ListCell   *cell;
	char	  **names;
	int			count;

	(void) idem_json_pairs_read(VARDATA_ANY(headers), VARSIZE_ANY_EXHDR(headers),
								&pairs);
	names = names_not_sent(pairs, &count);
	foreach(cell, pairs)
	{
		IdemPair   *pair = lfirst(cell);

		/* what idem_headers_check() would refuse was stored by other means */
		if (!is_token(pair->name) || pair->value == NULL ||
			!is_field_value(pair->value, strlen(pair->value)) ||
			bsearch(&pair->name, names, count, sizeof(char *),
					compare_names) != NULL)
			continue;
		pair->value = trim(pair->value);
		sent = lappend(sent, pair);
	}
	return sent;
}

/*
 * idem_headers_is_media_type
 *		Whether a text can be a Content-Type (RFC 9110, 8.3.1): type and
 *		subtype, then perhaps parameters, which are not looked into.
 */
bool
idem_headers_is_media_type(const text *value)
{
	const char *c = VARDATA_ANY(value);
	int			len = VARSIZE_ANY_EXHDR(value);
	int			type = token_length(c, len);
	int			end;

	/* it is sent as a header, so a line end must not get in by this door */
	if (type == 0 || type == len || c[type] != '/')
		return false;
	end = type + 1 + token_length(c + type + 1, len - type - 1);
	if (end == type + 1 || !is_field_value(c + end, len - end))
		return false;
	while (end < len && is_space(c[end]))
		end++;
	return end == len || c[end] == ';';
}
