/*-------------------------------------------------------------------------
 *
 * utf8.h
 *	  Text in UTF-8, whatever the encoding of the database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_UTF8_H
#define IDEM_BASE_UTF8_H

extern const char *idem_utf8(const char *text, int *len);

#endif							/* IDEM_BASE_UTF8_H */
