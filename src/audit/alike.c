/*-------------------------------------------------------------------------
 *
 * alike.c
 *	  Names that look like those of the extension.
 *
 * Rows of the audit log about keys and limiters have an entity that begins
 * with "idempotency".  A name that a reader could take for one of these begins
 * with its letters, however they are written: with other case, blanks and
 * punctuation, in another form of the same letters (Unicode NFKC), with
 * characters that nobody sees, or with letters of other scripts that look the
 * same.  There is no end to the latter two.  So a character beyond ASCII may
 * stand for any letter, or for none; but some of the letters must be there
 * themselves, for a name in another script not to be refused for its length.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/unicode_norm.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

#include "audit/alike.h"
#include "base/utf8.h"

#define OURS "idempotency"
#define OURS_LENGTH 11

/* As many as have no good look-alikes: "m", "n", "t". */
#define MIN_LETTERS 3

/*
 * The name as code points, in their compatibility form, or as bytes where it
 * has no Unicode; 0 ends it.
 */
static pg_wchar *
get_characters(const text *name)
{
	char	   *server = text_to_cstring(name);
	int			len;
	const char *utf8 = idem_utf8(server, &len);
	pg_wchar   *characters = palloc0((len + 1) * sizeof(pg_wchar));
	int			i;

	if (utf8 != server || GetDatabaseEncoding() == PG_UTF8)
	{
		pg_encoding_mb2wchar_with_len(PG_UTF8, utf8, characters, len);
		return unicode_normalize(UNICODE_NFKC, characters);
	}
	for (i = 0; i < len; i++)
		characters[i] = (unsigned char) utf8[i];
	return characters;
}

static bool
is_ascii_alphanumeric(pg_wchar c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
		(c >= 'A' && c <= 'Z');
}

/*
 * idem_alike_is_ours
 *		Whether an entity could be taken for one of the extension's own.
 */
bool
idem_alike_is_ours(const text *name)
{
	int			letters[OURS_LENGTH + 1];
	const pg_wchar *c;
	int			n;

	/*
	 * In letters[n] is how many of the first n letters were there themselves,
	 * in the best of all ways to read what has been seen of the name; -1: in
	 * none.
	 */
	memset(letters, -1, sizeof(letters));
	letters[0] = 0;
	for (c = get_characters(name); *c != 0; c++)
	{
		if (*c < 0x80 && !is_ascii_alphanumeric(*c))
			continue;

		/* downwards, so that letters[n - 1] is yet of before this character */
		for (n = OURS_LENGTH; n > 0; n--)
		{
			/* beyond ASCII it stands for no letter, or for the n-th one */
			if (*c >= 0x80)
				letters[n] = Max(letters[n], letters[n - 1]);
			else if (letters[n - 1] >= 0 &&
					 pg_ascii_tolower((unsigned char) *c) == OURS[n - 1])
				letters[n] = letters[n - 1] + 1;
			else
				letters[n] = -1;
		}

		/* our letters cannot begin behind a letter or a digit */
		if (*c < 0x80)
			letters[0] = -1;
		if (letters[OURS_LENGTH] >= MIN_LETTERS)
			return true;
	}
	return false;
}
