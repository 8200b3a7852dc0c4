/*-------------------------------------------------------------------------
 *
 * bytes.h
 *	  Byte strings that may be absent.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_BYTES_H
#define IDEM_BASE_BYTES_H

#include "base/compat.h"

/* Bytes that may be absent: data is NULL then. */
typedef struct IdemBytes
{
	const void *data;
	size_t		len;
} IdemBytes;

/* Those of a varlena that is detoasted; absent for NULL. */
static inline IdemBytes
idem_bytes_of(const void *value)
{
	IdemBytes	bytes = {NULL, 0};

	if (value != NULL)
	{
		bytes.data = VARDATA_ANY(value);
		bytes.len = VARSIZE_ANY_EXHDR(value);
	}
	return bytes;
}

/*
 * idem_bytes_equal
 *		Whether two byte strings are the same; absent equals only absent.
 *
 * Takes as long for the first different byte as for the last, so that a
 * caller cannot feel its way to a context.  The server's timingsafe_bcmp()
 * came with a minor release and is not in all that this must load into.
 */
static inline bool
idem_bytes_equal(IdemBytes a, IdemBytes b)
{
	const volatile unsigned char *x = a.data;
	const volatile unsigned char *y = b.data;
	unsigned char differs = 0;
	size_t		i;

	if (a.data == NULL || b.data == NULL)
		return a.data == NULL && b.data == NULL;
	if (a.len != b.len)
		return false;
	for (i = 0; i < a.len; i++)
		differs |= x[i] ^ y[i];
	return differs == 0;
}

/*
 * idem_bytes_compare
 *		The order of two byte strings that are there, which is that of a text
 *		in collation "C".
 */
static inline int
idem_bytes_compare(IdemBytes a, IdemBytes b)
{
	int			order = memcmp(a.data, b.data, Min(a.len, b.len));

	if (order != 0)
		return order;
	return a.len < b.len ? -1 : a.len > b.len;
}

#endif							/* IDEM_BASE_BYTES_H */
