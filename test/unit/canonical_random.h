/*-------------------------------------------------------------------------
 *
 * canonical_random.h
 *	  The part of canonical.c that is made of random input.
 *
 * Shown here: a number keeps its value, and two numbers share a text exactly
 * when they are equal, by a normaliser that shares no code with the one
 * under test; doubles come back, laid out as JSON.stringify() does; keys
 * sort by their UTF-16 code units; no input at all makes a write differ from
 * its measure.
 *
 * A part of one program, not a header of its own: canonical.c includes it
 * once, behind its helpers.  Seeds are fixed.
 *
 *-------------------------------------------------------------------------
 */
#include <time.h>

#include "random.h"

/* Give up fuzzing after this long, however slow the machine */
#define FUZZ_SECONDS	2

static int
random_below(int limit)
{
	return (int) (next_random() % (uint64) limit);
}

/*
 * The independent normaliser: a value as a sign and fixed-point digits,
 * FIXED_HALF before and FIXED_HALF after the point.
 */
#define FIXED_HALF	64
#define FIXED_SIZE	(2 * FIXED_HALF + 1)

static void
normalise_fixed(const char *text, char *fixed)
{
	const char *exp = strpbrk(text, "eE");
	const char *end = exp ? exp : text +strlen(text);
	const char *dot = memchr(text, '.', end - text);
	int			place = exp ? atoi(exp + 1) : 0;
	bool		nonzero = false;
	const char *p;

	memset(fixed, '0', FIXED_SIZE);
	/* place: the power of ten of the digit at hand */
	place += (int) ((dot ? dot : end) - text) -1;
	for (p = text; p < end; p++)
	{
		if (*p == '.')
			continue;
		if (*p != '-' && *p != '0')
		{
			fixed[1 + FIXED_HALF - 1 - place] = *p;
			nonzero = true;
		}
		place--;
	}
	fixed[0] = (text[0] == '-' && nonzero) ? '-' : '+';
}

/* A decimal of few digits in one of many spellings, so that values meet */
static void
spell_decimal(char *text)
{
	static const char digits[] = "00000125";
	int			before = 1 + random_below(26);
	int			after = random_below(12);
	char	   *p = text;
	int			i;

	if (random_below(4) == 0)
		*p++ = '-';
	for (i = 0; i < before; i++)
		*p++ = i < before - 2 ? '0' : digits[random_below(8)];
	if (after > 0)
		*p++ = '.';
	for (i = 0; i < after; i++)
		*p++ = i > 1 ? '0' : digits[random_below(8)];
	*p = '\0';
	if (random_below(2) == 0)
		sprintf(p, "%s%d", random_below(2) ? "e" : "E+",
				random_below(27));
	else if (random_below(2) == 0)
		sprintf(p, "e-%d", random_below(14));
}

#define NUMBERS		2500

static void
test_number_injective(void)
{
	static char fixed[NUMBERS][FIXED_SIZE];
	static char *output[NUMBERS];
	bool		exact = true;
	int			changed = 0;
	int			equal = 0;
	int			wrong = 0;
	int			i,
				j;

	seed_random(8785);
	for (i = 0; i < NUMBERS; i++)
	{
		char text[	80];
		char		again[FIXED_SIZE];

		spell_decimal(text);
		normalise_fixed(text, fixed[i]);
		output[i] = format_number(text, strlen(text), &exact);
		normalise_fixed(output[i], again);
		if (memcmp(fixed[i], again, FIXED_SIZE) != 0)
		{
			changed++;
			diag("%s became %s", text, output[i]);
		}
	}
	for (i = 0; i < NUMBERS; i++)
	{
		for (j = i + 1; j < NUMBERS; j++)
		{
			bool		same = memcmp(fixed[i], fixed[j], FIXED_SIZE) == 0;

			equal += same;
			wrong += same != (strcmp(output[i], output[j]) == 0);
		}
	}
	ok(exact, "random decimals fill exactly what was measured");
	ok(changed == 0, "random decimals keep their value");
	ok(equal > NUMBERS, "random decimals do meet");
	ok(wrong == 0, "two decimals share a text exactly when they are equal");
	for (i = 0; i < NUMBERS; i++)
		free(output[i]);
}

/* The shortest decimal of a double, found by trying */
static void
spell_double(double value, char *text)
{
	int			precision;

	for (precision = 1; precision <= 17; precision++)
	{
		sprintf(text, "%.*e", precision - 1, value);
		if (strtod(text, NULL) == value)
			return;
	}
}

/*
 * A double comes back as the same double, in the layout of ECMAScript: an
 * exponent exactly outside of [1e-6, 1e21).
 */
static void
test_number_doubles(void)
{
	bool		exact = true;
	int			failures = 0;
	int			i;

	seed_random(754);
	for (i = 0; i < 20000; i++)
	{
		uint64		bits = next_random();
		double		value;
		char text[	40];
		char	   *output;
		bool		plain;

		memcpy(&value, &bits, sizeof(value));
		if (i % 2 == 0)			/* half of them near the plain range */
			value = (double) (int64) bits / (1 + (double) (bits >> 20));
		if (value - value != 0)
			continue;			/* infinite or no number */
		spell_double(value, text);
		output = format_number(text, strlen(text), &exact);
		plain = value == 0 || ((value < 0 ? -value : value) >= 1e-6 &&
							   (value < 0 ? -value : value) < 1e21);
		if (output == NULL || strtod(output, NULL) != value ||
			(strchr(output, 'e') == NULL) != plain)
			failures++;
		free(output);
	}
	ok(exact && failures == 0, "random doubles come back, laid out as in JS");
}

/* Code points to UTF-8 and to UTF-16, for an order that is obvious */
static Size
encode_utf8(uint32 c, char *out)
{
	if (c < 0x80)
	{
		out[0] = (char) c;
		return 1;
	}
	if (c < 0x800)
	{
		out[0] = (char) (0xc0 | (c >> 6));
		out[1] = (char) (0x80 | (c & 0x3f));
		return 2;
	}
	if (c < 0x10000)
	{
		out[0] = (char) (0xe0 | (c >> 12));
		out[1] = (char) (0x80 | ((c >> 6) & 0x3f));
		out[2] = (char) (0x80 | (c & 0x3f));
		return 3;
	}
	out[0] = (char) (0xf0 | (c >> 18));
	out[1] = (char) (0x80 | ((c >> 12) & 0x3f));
	out[2] = (char) (0x80 | ((c >> 6) & 0x3f));
	out[3] = (char) (0x80 | (c & 0x3f));
	return 4;
}

static int
encode_utf16(uint32 c, uint16 *out)
{
	if (c < 0x10000)
	{
		out[0] = (uint16) c;
		return 1;
	}
	out[0] = (uint16) (0xd800 + ((c - 0x10000) >> 10));
	out[1] = (uint16) (0xdc00 + ((c - 0x10000) & 0x3ff));
	return 2;
}

/* Few code points, most at the edges of the ranges, so that prefixes meet */
static uint32
pick_code_point(void)
{
	static const uint32 edges[] = {
		0x00, 0x41, 0x7f, 0x80, 0x7ff, 0x800, 0xd7ff, 0xe000, 0xefff, 0xf000,
		0xfb33, 0xffff, 0x10000, 0x1f602, 0x3ffff, 0x40000, 0x10fc00, 0x10ffff
	};
	uint32		c;

	if (random_below(3) != 0)
		return edges[random_below((int) lengthof(edges))];
	do
	{
		c = (uint32) random_below(0x110000);
	} while (c >= 0xd800 && c <= 0xdfff);
	return c;
}

typedef struct TestKey
{
	char		utf8[16];
	Size		utf8_len;
	uint16		utf16[8];
	int			utf16_len;
} TestKey;

static void
make_key(TestKey *key)
{
	int			chars = random_below(4);

	key->utf8_len = 0;
	key->utf16_len = 0;
	while (chars-- > 0)
	{
		uint32		c = pick_code_point();

		key->utf8_len += encode_utf8(c, key->utf8 + key->utf8_len);
		key->utf16_len += encode_utf16(c, key->utf16 + key->utf16_len);
	}
}

static int
compare_utf16(const TestKey *a, const TestKey *b)
{
	int			i;

	for (i = 0; i < a->utf16_len && i < b->utf16_len; i++)
		if (a->utf16[i] != b->utf16[i])
			return a->utf16[i] < b->utf16[i] ? -1 : 1;
	return a->utf16_len - b->utf16_len;
}

static void
test_key_random(void)
{
	int			failures = 0;
	int			i;

	seed_random(16);
	for (i = 0; i < 200000; i++)
	{
		TestKey		a,
					b;

		make_key(&a);
		make_key(&b);
		failures += compare_exactly(a.utf8, a.utf8_len, b.utf8, b.utf8_len) !=
			sign_of(compare_utf16(&a, &b));
	}
	ok(failures == 0, "random keys sort by their UTF-16 code units");
}

/* Undo the escapes; false where the text is no JSON string */
static bool
unescape(const char *text, Size size, char *out, Size *len)
{
	static const char letters[] = "b\bt\tn\nf\fr\r\"\"\\\\";
	const char *p = text +1;
	const char *end = text +size - 1;
	char	   *start = out;
	unsigned int code;

	if (size < 2 || text[0] != '"' || *end != '"')
		return false;
	while (p < end)
	{
		const char *letter;
		char		hex[5];

		if ((unsigned char) *p < 0x20 || *p == '"')
			return false;
		if (*p != '\\')
		{
			*out++ = *p++;
			continue;
		}
		if (end - p >= 6 && p[1] == 'u')
		{
			memcpy(hex, p + 2, 4);
			hex[4] = '\0';
			if (sscanf(hex, "%4x", &code) != 1 || code >= 0x20)
				return false;
			*out++ = (char) code;
			p += 6;
			continue;
		}
		for (letter = letters; *letter != '\0'; letter += 2)
			if (end - p >= 2 && *letter == p[1])
				break;
		if (*letter == '\0')
			return false;
		*out++ = letter[1];
		p += 2;
	}
	*len = out - start;
	return true;
}

static bool
fuzz_number(void)
{
	static const char alphabet[] = "0123456789000999...eE+--x \n";
	char text[	48];
	Size		len = (Size) random_below((int) sizeof(text));
	bool		exact = true;
	bool		stable = true;
	char	   *output;
	char	   *again;
	Size		i;

	for (i = 0; i < len; i++)
		text[		i] = random_below(64) == 0 ? (char) next_random() :
		alphabet[random_below((int) sizeof(alphabet) - 1)];

	/* as it is often refused, make a number of every other one */
	if (random_below(2) == 0)
		for (i = 0; i < len; i++)
			if (text[i] < '0' || text[i] > '9')
				text[		i] = (i > 0 && i == len / 3) ? '.' : '4';

	output = format_number(text, len, &exact);
	if (output == NULL)
		return true;
	again = format_number(output, strlen(output), &exact);
	/* an exponent at the very cap may pass it in the second round */
	if (again != NULL)
		stable = strcmp(output, again) == 0;
	else
		stable = strlen(strchr(output, 'e')) > strlen("e+99999999");
	free(output);
	free(again);
	return exact && stable;
}

static bool
fuzz_string(void)
{
	char text[	64];
	char		back[64];
	Size		len = (Size) random_below((int) sizeof(text) + 1);
	Size		back_len;
	Size		size;
	bool		exact = true;
	char	   *output;
	bool		same;
	Size		i;

	for (i = 0; i < len; i++)
		text[		i] = random_below(2) ? (char) random_below(0x60) :
		(char) next_random();

	output = format_string(text, len, &size, &exact);
	same = unescape(output, size, back, &back_len) && back_len == len &&
		memcmp(text, back, len) == 0;
	free(output);
	return exact && same;
}

/* An order must be one on bytes that are no UTF-8, too */
static bool
fuzz_keys(void)
{
	char		key[3][4];
	Size		len[3];
	int			ab,
				bc,
				ac;
	int			i,
				j;

	for (i = 0; i < 3; i++)
	{
		len[i] = (Size) random_below(5);
		for (j = 0; j < 4; j++)
			key[i][j] = (char) (random_below(2) ? 0xe8 + random_below(24) :
								random_below(256));
	}
	ab = compare_exactly(key[0], len[0], key[1], len[1]);
	bc = compare_exactly(key[1], len[1], key[2], len[2]);
	ac = compare_exactly(key[0], len[0], key[2], len[2]);
	if (ab != -compare_exactly(key[1], len[1], key[0], len[0]))
		return false;
	if ((ab == 0) != (len[0] == len[1] && memcmp(key[0], key[1], len[0]) == 0))
		return false;
	return !(ab <= 0 && bc <= 0 && ac > 0);
}

static void
test_fuzz(void)
{
	clock_t		end = clock() + FUZZ_SECONDS * CLOCKS_PER_SEC;
	int			failures[3] = {0, 0, 0};
	int			i;

	seed_random(1);
	for (i = 0; i < 500000; i++)
	{
		if (i % 1000 == 0 && clock() > end)
			break;
		failures[0] += !fuzz_number();
		failures[1] += !fuzz_string();
		failures[2] += !fuzz_keys();
	}
	ok(failures[0] == 0, "fuzz: a number is refused, or written once for all");
	ok(failures[1] == 0, "fuzz: a string can be read back");
	ok(failures[2] == 0, "fuzz: the order of keys is total");
}
