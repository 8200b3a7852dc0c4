/*-------------------------------------------------------------------------
 *
 * canonical.c
 *	  The leaves and the key order of canonical JSON, without a server.
 *
 * Owns: how a number and a string are written, and in which order the
 * members of an object stand.  fingerprint.c walks the document.
 *
 * Never: allocates, raises, logs, or calls the server.  postgres.h is here
 * for its types only, so that this file links with nothing of PostgreSQL
 * and test/unit/canonical.c can feed it anything.  No Assert either: in a
 * build with assertions that is a call of the server.
 *
 * Locks, memory, transaction: none.  All texts are counted, not ended by a
 * NUL; the caller's buffer must hold what the measure said, and the write
 * fills exactly that.
 *
 * The form is RFC 8785, with one addition for numbers.  The RFC reads a
 * number as a double and writes the shortest decimal that reads back as
 * that double, so 9007199254740993 and 9007199254740992 would get the same
 * text.  Here the layout of ECMAScript's Number::toString is applied to the
 * exact decimal digits, leading and trailing zeros stripped.  That gives:
 *
 * - RFC 8785 for each number that is written as the shortest decimal of a
 *   double, as every JSON.stringify() does: those are the very digits that
 *   the RFC lays out.
 *
 * - Injectivity: the text is a function of (sign, digits, exponent), which
 *   the value determines, and it denotes exactly that value.  So equal
 *   numbers have one text, and different numbers never share one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "key/canonical.h"

/*
 * Largest power of ten that is accepted in an exponent.  Far above both
 * numeric and double, and small enough for every sum below.
 */
#define MAX_EXPONENT	999999999

/* Number::toString writes no exponent for values in [1e-6, 1e21) */
#define MAX_PLAIN_POINT		21
#define MIN_PLAIN_POINT		(-5)

static const char *
skip_digits(const char *p, const char *end)
{
	while (p < end && *p >= '0' && *p <= '9')
		p++;
	return p;
}

/*
 * Read "e+12" at p.  Returns the place behind it, or NULL where there is no
 * number or one beyond the cap.
 */
static const char *
parse_exponent(const char *p, const char *end, int64 *exponent)
{
	const char *digits;
	bool		negative = false;
	int64		value = 0;

	p++;						/* the 'e' */
	if (p < end && (*p == '+' || *p == '-'))
		negative = (*p++ == '-');
	digits = p;
	for (; p < end && *p >= '0' && *p <= '9'; p++)
	{
		/* stopped here, no number of digits can overflow it or a later sum */
		value = value * 10 + (*p - '0');
		if (value > MAX_EXPONENT)
			return NULL;
	}
	if (p == digits)
		return NULL;
	*exponent = negative ? -value : value;
	return p;
}

/*
 * Strip the zeros on both sides of the mantissa [p, end), in which the
 * integer part ends at int_end.
 */
static void
strip_zeros(const char *p, const char *int_end, const char *end,
			IdemCanonicalNumber *number)
{
	while (p < end && (*p == '0' || *p == '.'))
		p++;
	while (end > p && (end[-1] == '0' || end[-1] == '.'))
		end--;

	/* the digits stay where they are in the text: nothing is copied yet */
	number->digits = p;
	number->ndigits = end - p;
	if (p == end)
		number->point = 0;
	else if (p < int_end)
	{
		number->point = int_end - p;
		if (int_end < end)
			number->ndigits--;	/* the '.' is between them */
	}
	else
		number->point = (int_end + 1) - p;
}

/*
 * Take a decimal apart: optional '-', digits, optional '.' and digits,
 * optional exponent, as numeric_out() gives it or JSON has it.  False for
 * anything else, "NaN" and "Infinity" included.  The result points into
 * the text.
 */
bool
idem_canonical_parse_number(const char *text, Size len,
							IdemCanonicalNumber *number)
{
	const char *p = text;
	const char *end = text +len;
	const char *mantissa;
	const char *int_end;
	const char *mantissa_end;
	bool		negative = false;
	int64		exponent = 0;

	if (len > IDEM_CANONICAL_MAX_SIZE)
		return false;
	if (p < end && *p == '-')
	{
		negative = true;
		p++;
	}
	mantissa = p;
	p = int_end = skip_digits(p, end);
	if (int_end == mantissa)
		return false;
	if (p < end && *p == '.')
	{
		p = skip_digits(int_end + 1, end);
		if (p == int_end + 1)
			return false;
	}
	mantissa_end = p;
	if (p < end && (*p == 'e' || *p == 'E'))
		p = parse_exponent(p, end, &exponent);
	if (p != end)
		return false;

	/*
	 * 1.0, 1e0 and 10e-1 are one number, and get one text.  So are 0 and -0,
	 * which have no digits left.
	 */
	strip_zeros(mantissa, int_end, mantissa_end, number);
	number->negative = negative && number->ndigits > 0;
	if (number->ndigits > 0)
		number->point += exponent;
	return true;
}

static bool
needs_exponent(const IdemCanonicalNumber *number)
{
	return number->point > MAX_PLAIN_POINT || number->point < MIN_PLAIN_POINT;
}

/*
 * Exact length of what idem_canonical_write_number() writes.  It cannot
 * overflow: the digits are a part of a text within the cap, and at most 21
 * zeros, or a sign, a point and an exponent of 11 digits, come to them.
 */
Size
idem_canonical_measure_number(const IdemCanonicalNumber *number)
{
	Size		ndigits = number->ndigits;
	Size		size = number->negative ? 1 : 0;
	int64		power;

	if (ndigits == 0)
		return 1;				/* "0" */

	/* the layouts of Number::toString, in the order of its definition */
	if (needs_exponent(number))
	{
		size += ndigits + (ndigits > 1 ? 1 : 0) + 3;	/* "d.ddde+N" */
		power = number->point - 1;
		for (power = Max(power, -power); power >= 10; power /= 10)
			size++;
	}
	else if (number->point <= 0)
		size += 2 + (Size) (-number->point) + ndigits;	/* "0.000ddd" */
	else if (ndigits <= (Size) number->point)
		size += (Size) number->point;	/* "ddd000" */
	else
		size += ndigits + 1;	/* "ddd.ddd" */
	return size;
}

/* Copy count digits, stepping over the '.' of the source */
static char *
write_digits(const char **digits, Size count, char *out)
{
	const char *p = *digits;

	while (count > 0)
	{
		if (*p != '.')
		{
			*out++ = *p;
			count--;
		}
		p++;
	}
	*digits = p;
	return out;
}

static char *
write_zeros(int64 count, char *out)
{
	while (count-- > 0)
		*out++ = '0';
	return out;
}

static char *
write_exponent(int64 power, char *out)
{
	char		reversed[20];
	int			n = 0;

	*out++ = 'e';
	*out++ = power < 0 ? '-' : '+';
	if (power < 0)
		power = -power;
	do
	{
		reversed[n++] = '0' + (char) (power % 10);
		power /= 10;
	} while (power > 0);
	while (n > 0)
		*out++ = reversed[--n];
	return out;
}

/*
 * Write a number in the layout of ECMAScript's Number::toString; point and
 * ndigits are the n and k of its definition.  Returns the length.
 */
Size
idem_canonical_write_number(const IdemCanonicalNumber *number, char *out)
{
	const char *digits = number->digits;
	Size		ndigits = number->ndigits;
	int64		point = number->point;
	char	   *start = out;

	if (number->negative)
		*out++ = '-';

	/* each branch writes what idem_canonical_measure_number() has counted */
	if (ndigits == 0)
		*out++ = '0';
	else if (needs_exponent(number))
	{
		out = write_digits(&digits, 1, out);
		if (ndigits > 1)
		{
			*out++ = '.';
			out = write_digits(&digits, ndigits - 1, out);
		}
		out = write_exponent(point - 1, out);
	}
	else if (point <= 0)
	{
		*out++ = '0';
		*out++ = '.';
		out = write_zeros(-point, out);
		out = write_digits(&digits, ndigits, out);
	}
	else if (ndigits <= (Size) point)
	{
		out = write_digits(&digits, ndigits, out);
		out = write_zeros(point - (int64) ndigits, out);
	}
	else
	{
		out = write_digits(&digits, (Size) point, out);
		*out++ = '.';
		out = write_digits(&digits, ndigits - (Size) point, out);
	}
	return out - start;
}

/*
 * How a byte stands in a string: 0 for itself, 'u' for \u00xx, else the
 * letter behind the backslash.  DEL and everything above is itself, as the
 * RFC has it: only what JSON must escape is escaped.
 */
static char
classify_byte(unsigned char c)
{
	switch (c)
	{
		case '\b':
			return 'b';
		case '\t':
			return 't';
		case '\n':
			return 'n';
		case '\f':
			return 'f';
		case '\r':
			return 'r';
		case '"':
		case '\\':
			return (char) c;
		default:
			return c < 0x20 ? 'u' : 0;
	}
}

/*
 * Exact length of what idem_canonical_write_string() writes, the quotes
 * included.  A string can grow to six times its length, so the sum is
 * stopped at the cap before it could wrap.
 */
Size
idem_canonical_measure_string(const char *text, Size len)
{
	Size		size = 2;
	Size		i;

	if (len > IDEM_CANONICAL_MAX_SIZE)
		return IDEM_CANONICAL_TOO_LONG;

	for (i = 0; i < len; i++)
	{
		char		escape = classify_byte((unsigned char) text[i]);

		size += escape == 0 ? 1 : escape == 'u' ? 6 : 2;
		if (size > IDEM_CANONICAL_MAX_SIZE)
			return IDEM_CANONICAL_TOO_LONG;
	}
	return size;
}

/* Write a string of UTF-8 between quotes; returns the length */
Size
idem_canonical_write_string(const char *text, Size len, char *out)
{
	static const char hex[] = "0123456789abcdef";
	char	   *start = out;
	Size		i;

	*out++ = '"';
	for (i = 0; i < len; i++)
	{
		unsigned char c = (unsigned char) text[i];
		char		escape = classify_byte(c);

		/* also each byte of a longer character: UTF-8 is not escaped */
		if (escape == 0)
		{
			*out++ = (char) c;
			continue;
		}
		*out++ = '\\';
		*out++ = escape;
		if (escape == 'u')
		{
			*out++ = '0';
			*out++ = '0';
			*out++ = hex[c >> 4];
			*out++ = hex[c & 0x0f];
		}
	}
	*out++ = '"';
	return out - start;
}

/*
 * Rank of a byte of UTF-8 in the order of UTF-16 code units.
 *
 * Bytes of UTF-8 compare as code points do.  UTF-16 differs in one thing:
 * what lies above U+FFFF is written with surrogates D800 to DFFF, and so
 * comes before U+E000 to U+FFFF, though after all else.  Those two groups
 * are told apart by their lead bytes, F0 and above against EE and EF, and
 * such bytes are never found behind a lead byte.  So it is enough to let
 * these bytes change places.  The map is one to one, so this is a total
 * order on any bytes, valid or not.
 */
static int
rank_byte(unsigned char c)
{
	if (c >= 0xf0)
		return c - 2;
	if (c >= 0xee)
		return c + 0x10;
	return c;
}

/*
 * Compare two keys in UTF-8 by the UTF-16 code units of their characters:
 * negative, zero or positive, as memcmp() does.  A prefix comes first.
 */
int
idem_canonical_compare_keys(const char *a, Size alen,
							const char *b, Size blen)
{
	Size		common = Min(alen, blen);
	Size		i;

	for (i = 0; i < common; i++)
	{
		/* the first that differs decides, as in UTF-16 */
		if (a[i] != b[i])
			return rank_byte((unsigned char) a[i]) -
				rank_byte((unsigned char) b[i]);
	}
	return alen < blen ? -1 : alen > blen ? 1 : 0;
}
