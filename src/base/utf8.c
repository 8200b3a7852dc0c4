/*-------------------------------------------------------------------------
 *
 * utf8.c
 *	  Text in UTF-8, whatever the encoding of the database.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "mb/pg_wchar.h"

#include "base/utf8.h"

/*
 * idem_utf8
 *		A text in UTF-8; as it is, and no copy, where it has none.
 */
const char *
idem_utf8(const char *text, int *len)
{
	int			encoding = GetDatabaseEncoding();
	Oid			conversion;
	Size		room;
	char	   *utf8;

	*len = strlen(text);

	/* anything can be in a database of encoding SQL_ASCII */
	if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII)
		return text;

	/*
	 * A byte may be no character of the encoding.  That is no error: one such
	 * row of the log must not hold up the sealing of all that follow
	 * (t/034_audit_sealing.pl).
	 */
	conversion = FindDefaultConversionProc(encoding, PG_UTF8);
	room = (Size) *len * MAX_CONVERSION_GROWTH + 1;
	utf8 = MemoryContextAllocHuge(CurrentMemoryContext, room);
	if (!OidIsValid(conversion) ||
		pg_do_encoding_conversion_buf(conversion, encoding, PG_UTF8,
									  (unsigned char *) text, *len,
									  (unsigned char *) utf8,
									  (int) Min(room, PG_INT32_MAX),
									  true) < *len)
	{
		pfree(utf8);
		return text;
	}
	*len = strlen(utf8);
	return utf8;
}
