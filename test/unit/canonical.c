/*-------------------------------------------------------------------------
 *
 * canonical.c
 *	  Harness for src/key/canonical.c, without a server.
 *
 * cc -I`pg_config --includedir-server` test/unit/canonical.c \
 *	  src/key/canonical.c
 *
 * Shown here: the layout of numbers on both sides of each boundary of
 * ECMAScript's Number::toString, what is no number, each escape, the order
 * of keys in the RFC's example.  canonical_random.h has what is shown with
 * random input.
 *
 * Each buffer is allocated to the byte, so that -fsanitize=address sees a
 * read or a write one byte too far.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "../../src/key/canonical.h"
#include "tap.h"

static char *
copy_exactly(const char *text, Size len)
{
	char	   *copy = malloc(len > 0 ? len : 1);

	memcpy(copy, text, len);
	return copy;
}

/*
 * The canonical text of a number, ended by a NUL, or NULL where the input
 * was refused.  *exact is cleared when the write differs from the measure.
 */
static char *
format_number(const char *text, Size len, bool *exact)
{
	char	   *input = copy_exactly(text, len);
	IdemCanonicalNumber number;
	char	   *output = NULL;

	if (idem_canonical_parse_number(input, len, &number))
	{
		Size		size = idem_canonical_measure_number(&number);
		char	   *room = malloc(size);
		Size		written = idem_canonical_write_number(&number, room);

		if (written != size)
			*exact = false;
		output = malloc(size + 1);
		memcpy(output, room, size);
		output[size] = '\0';
		free(room);
	}
	free(input);
	return output;
}

static char *
format_string(const char *text, Size len, Size *size, bool *exact)
{
	char	   *input = copy_exactly(text, len);
	char	   *output;

	*size = idem_canonical_measure_string(input, len);
	output = malloc(*size);
	if (idem_canonical_write_string(input, len, output) != *size)
		*exact = false;
	free(input);
	return output;
}

static void
check_number(const char *input, const char *expected)
{
	bool		exact = true;
	char	   *output = format_number(input, strlen(input), &exact);

	if (!ok(exact && output != NULL && strcmp(output, expected) == 0,
			"number %.40s is %.40s", input, expected))
		diag("got %.200s", output ? output : "(refused)");
	free(output);
}

/* Layout: both sides of each boundary, and what comes in in other forms */
static void
test_number_layout(void)
{
	static const char *const cases[][2] = {
		{"0", "0"}, {"-0", "0"}, {"0.000", "0"}, {"-0.0", "0"}, {"0e9", "0"},
		{"0e-999999999", "0"}, {"000", "0"},
		{"1", "1"}, {"-1", "-1"}, {"1.0", "1"}, {"1.50", "1.5"},
		{"-4.50", "-4.5"}, {"007", "7"}, {"007.70", "7.7"}, {"10", "10"},
		{"100.001", "100.001"}, {"0.1", "0.1"}, {"-0.002", "-0.002"},
		{"2e-3", "0.002"}, {"1E30", "1e+30"}, {"1e+30", "1e+30"},
		{"56.0", "56"}, {"1.5e1", "15"}, {"12.5e-1", "1.25"},
		/* the plain form ends below 1e21 */
		{"100000000000000000000", "100000000000000000000"},
		{"1000000000000000000000", "1e+21"}, {"1e20", "100000000000000000000"},
		{"1e21", "1e+21"}, {"-1e21", "-1e+21"},
		{"999999999999999900000", "999999999999999900000"},
		{"999999999999999999999", "999999999999999999999"},
		{"123456789012345680000", "123456789012345680000"},
		{"1234567890123456800000", "1.2345678901234568e+21"},
		{"123456789012345678901.5", "123456789012345678901.5"},
		{"1234567890123456789012.5", "1.2345678901234567890125e+21"},
		/* and begins at 1e-6 */
		{"0.000001", "0.000001"}, {"1e-6", "0.000001"}, {"1e-7", "1e-7"},
		{"0.0000001", "1e-7"}, {"0.00000099", "9.9e-7"},
		{"0.0000012345", "0.0000012345"}, {"-0.00000012345", "-1.2345e-7"},
		{"0.000000000000000000000000001", "1e-27"},
		/* more digits than a double has are kept */
		{"9007199254740992", "9007199254740992"},
		{"9007199254740993", "9007199254740993"},
		{"333333333.33333329", "333333333.33333329"},
		{"0.1000000000000000055511151231257827",
		"0.1000000000000000055511151231257827"},
		{"1e400", "1e+400"}, {"-123e400", "-1.23e+402"}, {"1e-400", "1e-400"},
		{"1e9", "1000000000"}, {"1e10", "10000000000"}, {"1e99", "1e+99"},
		{"1e100", "1e+100"}, {"1e101", "1e+101"}, {"1e-99", "1e-99"},
		{"1e-100", "1e-100"}, {"9.99e-10", "9.99e-10"},
		{"1e999999999", "1e+999999999"}, {"1e-999999999", "1e-999999999"},
		/* RFC 8785, appendix B */
		{"5e-324", "5e-324"}, {"-5e-324", "-5e-324"},
		{"1.7976931348623157e308", "1.7976931348623157e+308"},
		{"-1.7976931348623157e308", "-1.7976931348623157e+308"},
		{"-9007199254740992", "-9007199254740992"},
		{"295147905179352830000", "295147905179352830000"},
		{"9.999999999999997e22", "9.999999999999997e+22"},
		{"1.0000000000000001e23", "1.0000000000000001e+23"},
		{"999999999999999700000", "999999999999999700000"},
		{"9.999999999999997e-7", "9.999999999999997e-7"},
		{"333333333.3333332", "333333333.3333332"},
		{"-0.0000033333333333333333", "-0.0000033333333333333333"},
		{"1424953923781206.2", "1424953923781206.2"}
	};
	int			i;

	for (i = 0; i < (int) lengthof(cases); i++)
		check_number(cases[i][0], cases[i][1]);
}

static void
test_number_refusals(void)
{
	static const char *const cases[] = {
		"", "-", "+1", ".5", "1.", "1.e5", "e5", "1e", "1e+", "1e-", "--1",
		" 1", "1 ", "1,5", "0x10", "NaN", "Infinity", "-Infinity", "1e5.5",
		"1..2", "1e1000000000", "1e-1000000000", "1e99999999999999999999"
	};
	int			i;

	for (i = 0; i < (int) lengthof(cases); i++)
	{
		bool		exact = true;
		char	   *output = format_number(cases[i], strlen(cases[i]), &exact);

		ok(output == NULL, "number \"%s\" is refused", cases[i]);
		free(output);
	}
}

/* The longest that numeric can hold: 131072 digits and 16383 more */
static void
test_number_long(void)
{
	Size		len = 131072 + 1 + 16383;
	char	   *text = malloc(len);
	bool		exact = true;
	char	   *output;

	memset(text, '7', len);
	text[		131072] = '.';

	output = format_number(text, len, &exact);
	ok(exact && output != NULL && strlen(output) == len + strlen("e+131071") &&
	   strncmp(output, "7.777", 5) == 0 &&
	   strcmp(output + len, "e+131071") == 0,
	   "the longest numeric keeps all its digits");
	free(output);

	memset(text, '0', 131072);
	text[		0] = '1';

	output = format_number(text, 131072, &exact);
	ok(exact && output != NULL && strcmp(output, "1e+131071") == 0,
	   "the largest power of ten is short");
	free(output);

	memset(text, '0', len);
	text[		1] = '.';
	text[		1 + 16383] = '1';

	output = format_number(text, 2 + 16383, &exact);
	ok(exact && output != NULL && strcmp(output, "1e-16383") == 0,
	   "the smallest numeric is short");
	free(output);
	free(text);
}

/* Each byte below 0x80 as RFC 8785 section 3.2.2.2 says */
static void
test_string_escapes(void)
{
	static const char letters[] = "\bb\tt\nn\ff\rr\"\"\\\\";
	int			c;

	for (c = 0; c < 0x80; c++)
	{
		char text = (char) c;
		char		expected[16];
		const char *letter = NULL;
		bool		exact = true;
		Size		size;
		char	   *output = format_string(&text, 1, &size, &exact);
		int			i;

		for (i = 0; letters[i] != '\0'; i += 2)
			if (letters[i] == text)
				letter = &letters[i + 1];
		if (letter != NULL)
			sprintf(expected, "\"\\%c\"", *letter);
		else if (c < 0x20)
			sprintf(expected, "\"\\u%04x\"", (unsigned int) c);
		else
			sprintf(expected, "\"%c\"", c);
		ok(exact && size == strlen(expected) &&
		   memcmp(output, expected, size) == 0, "escape of 0x%02x", c);
		free(output);
	}
}

static void
check_string(const char *input, Size len, const char *expected,
			 const char *name)
{
	bool		exact = true;
	Size		size;
	char	   *output = format_string(input, len, &size, &exact);

	ok(exact && size == strlen(expected) &&
	   memcmp(output, expected, size) == 0, "%s", name);
	free(output);
}

static void
test_string_others(void)
{
	char		byte = 'x';

	check_string("", 0, "\"\"", "empty string");
	check_string("\303\266\342\202\254\360\237\230\202\302\200", 11,
				 "\"\303\266\342\202\254\360\237\230\202\302\200\"",
				 "what is not ASCII stays");
	check_string("\342\202\254$\017\nA'B\"\\\\\"/", 14,
				 "\"\342\202\254$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"",
				 "the string of RFC 8785 section 3.2.2");
	check_string("a\0b", 3, "\"a\\u0000b\"", "a string is counted, not ended");
	ok(idem_canonical_measure_string(&byte, IDEM_CANONICAL_MAX_SIZE + 1) ==
	   IDEM_CANONICAL_TOO_LONG, "a string beyond the cap is not read");
}

/* Sums that would pass the cap stop at it */
static void
test_string_cap(void)
{
	Size		len = IDEM_CANONICAL_MAX_SIZE / 6 + 2;
	char	   *text = calloc(len, 1);

	ok(text !=NULL &&
	   idem_canonical_measure_string(text, len) == IDEM_CANONICAL_TOO_LONG,
	   "a string whose escapes pass the cap is too long");
	ok(text !=NULL &&
	   idem_canonical_measure_string(text, len - 3) == (len - 3) * 6 + 2,
	   "a string whose escapes stay below the cap is measured");
	free(text);
}

static int
sign_of(int value)
{
	return (value > 0) - (value < 0);
}

static int
compare_exactly(const char *a, Size alen, const char *b, Size blen)
{
	char	   *left = copy_exactly(a, alen);
	char	   *right = copy_exactly(b, blen);
	int			result;

	result = idem_canonical_compare_keys(left, alen, right, blen);
	free(left);
	free(right);
	return sign_of(result);
}

static void
test_key_order(void)
{
	/* RFC 8785 section 3.2.3, in the order that it gives */
	static const char *const sorted[] = {
		"\r", "1", "\302\200", "\303\266", "\342\202\254",
		"\360\237\230\200", "\357\254\263"
	};
	int			failures = 0;
	int			i,
				j;

	for (i = 0; i < (int) lengthof(sorted); i++)
		for (j = 0; j < (int) lengthof(sorted); j++)
			failures += compare_exactly(sorted[i], strlen(sorted[i]),
										sorted[j], strlen(sorted[j])) !=
				sign_of(i - j);
	ok(failures == 0, "the sorting example of RFC 8785");
	ok(compare_exactly("", 0, "", 0) == 0, "the empty key equals itself");
	ok(compare_exactly("", 0, "\0", 1) < 0, "the empty key comes first");
	ok(compare_exactly("a", 1, "aa", 2) < 0, "a prefix comes first");
	ok(compare_exactly("aa", 2, "b", 1) < 0, "length does not come first");
	ok(compare_exactly("B", 1, "a", 1) < 0, "case and locale do not matter");
}

#include "canonical_random.h"

int
main(void)
{
	plan(0);
	test_number_layout();
	test_number_refusals();
	test_number_long();
	test_string_escapes();
	test_string_others();
	test_string_cap();
	test_key_order();
	test_number_injective();
	test_number_doubles();
	test_key_random();
	test_fuzz();
	return finish();
}
