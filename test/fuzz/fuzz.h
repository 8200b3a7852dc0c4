/*-------------------------------------------------------------------------
 *
 * fuzz.h
 *	  What the targets of tools/fuzz share.
 *
 * A target is a C file with LLVMFuzzerTestOneInput(), which makes a question out
 * of the bytes that it is given, asks the code under test and a model that
 * shares no code with it, and aborts where they differ.  To be included after
 * postgres.h and the system's headers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_FUZZ_H
#define IDEM_FUZZ_H

#include <stdio.h>
#include <stdlib.h>

/* postgres.h puts its own in their place */
#undef printf
#undef fprintf
#undef snprintf
#undef sprintf
#undef vsnprintf

extern int	LLVMFuzzerTestOneInput(const uint8 *data, size_t size);

/* What is left of the bytes; behind their end are zeros. */
typedef struct FuzzInput
{
	const uint8 *at;
	const uint8 *end;
} FuzzInput;

/* What the fuzzer is to notice, in a build with assertions and without. */
#define must(condition) \
	do { \
		if (!(condition)) \
		{ \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, \
					#condition); \
			abort(); \
		} \
	} while (0)

static inline FuzzInput
fuzz_begin(const uint8 *data, size_t size)
{
	FuzzInput	in = {data, data + size};

	return in;
}

static inline bool
fuzz_is_left(const FuzzInput *in)
{
	return in->at < in->end;
}

static inline uint8
fuzz_byte(FuzzInput *in)
{
	return in->at < in->end ? *in->at++ : 0;
}

static inline bool
fuzz_flag(FuzzInput *in)
{
	return (fuzz_byte(in) & 1) != 0;
}

/* From 0 to a limit, both included */
static inline uint64
fuzz_below(FuzzInput *in, uint64 limit)
{
	uint64		value = 0;
	uint64		rest;

	for (rest = limit; rest > 0; rest >>= 8)
		value = value << 8 | fuzz_byte(in);
	return limit == PG_UINT64_MAX ? value : value % (limit + 1);
}

/*
 * From 0 to a limit, any magnitude as likely as any other, and often at the
 * limit itself: where sums overflow.
 */
static inline int64
fuzz_magnitude(FuzzInput *in, int64 limit)
{
	uint8		kind = fuzz_byte(in);
	int			bits = kind % 64;
	int64		value;

	if (kind >= 240)
		return limit - (int64) fuzz_below(in, Min(limit, 255));
	value = bits == 0 ? 0 :
		(int64) fuzz_below(in, (UINT64CONST(1) << bits) - 1);
	return Min(value, limit);
}

/* The same from 1; Max() would take its argument twice. */
static inline int64
fuzz_positive(FuzzInput *in, int64 limit)
{
	return 1 + fuzz_magnitude(in, limit - 1);
}

/* A copy to the byte, so that the sanitizer sees one that is read beyond. */
static inline char *
fuzz_copy(const void *data, size_t len)
{
	char	   *copy = malloc(len > 0 ? len : 1);

	if (len > 0)
		memcpy(copy, data, len);
	return copy;
}

/* Up to so many of the bytes that are left; *len says how many. */
static inline const uint8 *
fuzz_bytes(FuzzInput *in, size_t most, size_t * len)
{
	const uint8 *bytes = in->at;

	*len = Min(most, (size_t) (in->end - in->at));
	in->at += *len;
	return bytes;
}

/* The code point at the begin of UTF-8, and its length; 0: there is none. */
static inline int
fuzz_utf8(const uint8 *c, size_t len, uint32 *code)
{
	static const uint32 least[] = {0, 0, 0x80, 0x800, 0x10000};
	int			size = c[0] < 0x80 ? 1 : c[0] < 0xc0 ? 0 : c[0] < 0xe0 ? 2 :
	c[0] < 0xf0 ? 3 : c[0] < 0xf8 ? 4 : 0;
	int			i;

	if (size == 0 || (size_t) size > len)
		return 0;
	*code = size == 1 ? c[0] : c[0] & (0x7f >> size);
	for (i = 1; i < size; i++)
	{
		if ((c[i] & 0xc0) != 0x80)
			return 0;
		*code = *code << 6 | (c[i] & 0x3f);
	}
	if (*code < least[size] || *code > 0x10ffff ||
		(*code >= 0xd800 && *code <= 0xdfff))
		return 0;
	return size;
}

/* Whether a text may be one of a database in UTF-8. */
static inline bool
fuzz_is_text(const uint8 *c, size_t len)
{
	while (len > 0)
	{
		uint32		code;
		int			size = fuzz_utf8(c, len, &code);

		if (size == 0 || code == 0)
			return false;
		c += size;
		len -= size;
	}
	return true;
}

#endif							/* IDEM_FUZZ_H */
