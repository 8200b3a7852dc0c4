/*-------------------------------------------------------------------------
 *
 * headers.h
 *	  Headers of an answer: what may be stored, and what of it is sent.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_HEADERS_H
#define IDEM_KEY_HEADERS_H

#include "fmgr.h"
#include "nodes/pg_list.h"

extern void idem_headers_check(text *headers);
extern List *idem_headers_to_send(text *headers);
extern bool idem_headers_is_media_type(const text *value);

#endif							/* IDEM_KEY_HEADERS_H */
