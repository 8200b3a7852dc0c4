/*-------------------------------------------------------------------------
 *
 * canonical.h
 *	  The leaves and the key order of canonical JSON, without a server.
 *
 * Contract: pure functions of their arguments; see canonical.c.  The
 * caller measures, provides the room, then writes; nothing here allocates.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_CANONICAL_H
#define IDEM_KEY_CANONICAL_H

/*
 * No text longer than this is measured or parsed: one byte less than what
 * PostgreSQL can allocate in one piece.  A measure beyond it saturates at
 * IDEM_CANONICAL_TOO_LONG, which no buffer of the server can satisfy.
 */
#define IDEM_CANONICAL_MAX_SIZE		((Size) 0x3ffffffe)
#define IDEM_CANONICAL_TOO_LONG		((Size) 0x3fffffff)

/*
 * A number: 0.DIGITS times 10 to the power of point.  The digits begin and
 * end with a digit other than 0, and there are none in the number zero.
 */
typedef struct IdemCanonicalNumber
{
	const char *digits;			/* within the parsed text, may hold a '.' */
	Size		ndigits;		/* without that '.' */
	int64		point;
	bool		negative;		/* never of zero */
} IdemCanonicalNumber;

extern bool idem_canonical_parse_number(const char *text, Size len,
										IdemCanonicalNumber *number);
extern Size idem_canonical_measure_number(const IdemCanonicalNumber *number);
extern Size idem_canonical_write_number(const IdemCanonicalNumber *number,
										char *out);
extern Size idem_canonical_measure_string(const char *text, Size len);
extern Size idem_canonical_write_string(const char *text, Size len,
										char *out);
extern int	idem_canonical_compare_keys(const char *a, Size alen,
										const char *b, Size blen);

#endif							/* IDEM_KEY_CANONICAL_H */
