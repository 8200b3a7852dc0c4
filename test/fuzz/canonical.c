/*-------------------------------------------------------------------------
 *
 * canonical.c
 *	  Target of tools/fuzz: src/key/canonical.c.
 *
 * Numbers against the definition of ECMAScript's Number::toString, followed
 * word by word over an array of digits; strings against RFC 8785, 3.2.2.2;
 * keys against their UTF-16 code units, and on bytes that are no UTF-8 against
 * what makes an order.
 *
 * The first byte says which: 'n', 's' or 'k'.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "key/canonical.h"

#include "fuzz.h"

/*
 * Numbers
 */

typedef enum NumberState
{
	AT_START,
	AT_MINUS,
	IN_INTEGER,
	AT_POINT,
	IN_FRACTION,
	AT_E,
	AT_SIGN,
	IN_EXPONENT,
	NO_NUMBER
} NumberState;

static NumberState
next_state(NumberState state, char c)
{
	bool		digit = c >= '0' && c <= '9';

	switch (state)
	{
		case AT_START:
			return c == '-' ? AT_MINUS : digit ? IN_INTEGER : NO_NUMBER;
		case AT_MINUS:
			return digit ? IN_INTEGER : NO_NUMBER;
		case IN_INTEGER:
			return digit ? IN_INTEGER : c == '.' ? AT_POINT :
				c == 'e' || c == 'E' ? AT_E : NO_NUMBER;
		case AT_POINT:
			return digit ? IN_FRACTION : NO_NUMBER;
		case IN_FRACTION:
			return digit ? IN_FRACTION : c == 'e' || c == 'E' ? AT_E : NO_NUMBER;
		case AT_E:
			return c == '+' || c == '-' ? AT_SIGN : digit ? IN_EXPONENT : NO_NUMBER;
		case AT_SIGN:
		case IN_EXPONENT:
			return digit ? IN_EXPONENT : NO_NUMBER;
		default:
			return NO_NUMBER;
	}
}

/*
 * The text that a number is to have, to be freed; NULL: it is none, or beyond
 * the exponent that is accepted.  n, k and s are those of the definition.
 */
static char *
model_number(const char *text, size_t len)
{
	NumberState state = AT_START;
	char	   *digits = malloc(len + 1);
	char		exponent[16] = "";
	size_t		nexponent = 0;
	bool		below_zero = false;
	long long	n = 0;
	size_t		k = 0;
	size_t		first = 0;
	size_t		room = len + 64;
	char	   *out = malloc(room);
	size_t		at = 0;
	size_t		i;

	for (i = 0; i < len; i++)
	{
		state = next_state(state, text[i]);
		if (state == IN_INTEGER)
			n++;
		if (state == IN_INTEGER || state == IN_FRACTION)
			digits[k++] = text[i];

		if (state == AT_SIGN)
			below_zero = text[i] == '-';

		/* zeros before it say nothing */
		if (state == IN_EXPONENT && (nexponent > 0 || text[i] != '0'))
		{
			if (nexponent == 9)
				state = NO_NUMBER;
			else
				exponent[nexponent++] = text[i];
		}
		if (state == NO_NUMBER)
			break;
	}
	if (state != IN_INTEGER && state != IN_FRACTION && state != IN_EXPONENT)
	{
		free(digits);
		free(out);
		return NULL;
	}
	n += below_zero ? -atoll(exponent) : atoll(exponent);
	while (k > 0 && digits[k - 1] == '0')
		k--;
	for (; first < k && digits[first] == '0'; first++)
		n--;
	k -= first;

	if (k > 0 && text[0] == '-')
		out[at++] = '-';
	if (k == 0)
		out[at++] = '0';
	else if ((long long) k <= n && n <= 21)
	{
		for (i = 0; i < (size_t) n; i++)
			out[at++] = i < k ? digits[first + i] : '0';
	}
	else if (0 < n && n <= 21)
	{
		for (i = 0; i < k; i++)
		{
			if (i == (size_t) n)
				out[at++] = '.';
			out[at++] = digits[first + i];
		}
	}
	else if (-6 < n && n <= 0)
	{
		out[at++] = '0';
		out[at++] = '.';
		for (i = 0; i < (size_t) - n; i++)
			out[at++] = '0';
		for (i = 0; i < k; i++)
			out[at++] = digits[first + i];
	}
	else
	{
		out[at++] = digits[first];
		if (k > 1)
			out[at++] = '.';
		for (i = 1; i < k; i++)
			out[at++] = digits[first + i];
		at += snprintf(out + at, room - at, "e%+lld", n - 1);
	}
	out[at] = '\0';
	free(digits);
	return out;
}

static void
try_number(const uint8 *data, size_t size)
{
	char	   *text = fuzz_copy(data, size);
	char	   *expected = model_number(text, size);
	IdemCanonicalNumber number;

	must(idem_canonical_parse_number(text, size, &number) == (expected != NULL));
	if (expected != NULL)
	{
		Size		measured = idem_canonical_measure_number(&number);
		char	   *room = malloc(measured);

		must(measured == strlen(expected));
		must(idem_canonical_write_number(&number, room) == measured);
		must(memcmp(room, expected, measured) == 0);
		free(room);
	}
	free(expected);
	free(text);
}

/*
 * Strings
 */

static size_t
model_string(const uint8 *c, size_t len, char *out)
{
	static const char *const letters[0x80] = {
		['\b'] = "\\b",['\t'] = "\\t",['\n'] = "\\n",['\f'] = "\\f",
		['\r'] = "\\r",['"'] = "\\\"",['\\'] = "\\\\"
	};
	size_t		at = 0;
	size_t		i;

	out[at++] = '"';
	for (i = 0; i < len; i++)
	{
		if (c[i] < 0x80 && letters[c[i]] != NULL)
			at += sprintf(out + at, "%s", letters[c[i]]);
		else if (c[i] < 0x20)
			at += sprintf(out + at, "\\u%04x", c[i]);
		else
			out[at++] = (char) c[i];
	}
	out[at++] = '"';
	return at;
}

static void
try_string(const uint8 *data, size_t size)
{
	char	   *text = fuzz_copy(data, size);
	char	   *expected = malloc(size * 6 + 3);
	size_t		len = model_string(data, size, expected);
	Size		measured = idem_canonical_measure_string(text, size);
	char	   *room;

	must(measured == len);
	room = malloc(measured);
	must(idem_canonical_write_string(text, size, room) == measured);
	must(memcmp(room, expected, measured) == 0);
	free(room);
	free(expected);
	free(text);
}

/*
 * Keys
 */

static int
sign_of(int value)
{
	return (value > 0) - (value < 0);
}

/* The code units of a text; -1: it is no UTF-8 */
static int
to_utf16(const uint8 *c, size_t len, uint16 *units)
{
	int			n = 0;
	size_t		i = 0;

	while (i < len)
	{
		uint32		code;
		int			size = fuzz_utf8(c + i, len - i, &code);

		if (size == 0)
			return -1;
		if (code >= 0x10000)
			units[n++] = (uint16) (0xd800 + ((code - 0x10000) >> 10));
		units[n++] = (uint16) (code >= 0x10000 ? 0xdc00 + (code & 0x3ff) : code);
		i += size;
	}
	return n;
}

static int
compare_exactly(const uint8 *a, size_t alen, const uint8 *b, size_t blen)
{
	char	   *left = fuzz_copy(a, alen);
	char	   *right = fuzz_copy(b, blen);
	int			order = sign_of(idem_canonical_compare_keys(left, alen, right,
															blen));

	must(order == -sign_of(idem_canonical_compare_keys(right, blen, left, alen)));
	free(left);
	free(right);
	return order;
}

static void
try_keys(const uint8 *data, size_t size)
{
	FuzzInput	in = fuzz_begin(data, size);
	const uint8 *key[3];
	size_t		len[3];
	int			order[3];
	int			i;

	for (i = 0; i < 3; i++)
		key[i] = fuzz_bytes(&in, fuzz_byte(&in) % 16, &len[i]);
	for (i = 0; i < 3; i++)
	{
		int			j = (i + 1) % 3;
		uint16		a[16];
		uint16		b[16];
		int			na = to_utf16(key[i], len[i], a);
		int			nb = to_utf16(key[j], len[j], b);
		int			at = 0;

		order[i] = compare_exactly(key[i], len[i], key[j], len[j]);
		must((order[i] == 0) ==
			 (len[i] == len[j] && memcmp(key[i], key[j], len[i]) == 0));
		if (na < 0 || nb < 0)
			continue;
		while (at < na && at < nb && a[at] == b[at])
			at++;
		must(order[i] == (at < na && at < nb ? sign_of(a[at] - b[at]) :
						  sign_of(na - nb)));
	}

	/* three in a circle, each before the next, are no order */
	must(!(order[0] < 0 && order[1] < 0 && order[2] < 0));
	must(!(order[0] > 0 && order[1] > 0 && order[2] > 0));
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	if (size == 0)
		return 0;
	switch (data[0])
	{
		case 'n':
			try_number(data + 1, size - 1);
			break;
		case 's':
			try_string(data + 1, size - 1);
			break;
		case 'k':
			try_keys(data + 1, size - 1);
			break;
		default:
			return -1;
	}
	return 0;
}
