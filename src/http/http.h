/*-------------------------------------------------------------------------
 *
 * http.h
 *	  Refusals and headers as HTTP has them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_HTTP_HTTP_H
#define IDEM_HTTP_HTTP_H

#include "lib/stringinfo.h"

#include "key/result.h"

#define IDEM_HTTP_CONTENT_TYPE "Content-Type"

/* Headers being written, as an array of single-key objects. */
typedef struct IdemHttpHeaders
{
	StringInfoData json;
	bool		has_type;		/* Content-Type is among them */
} IdemHttpHeaders;

extern bool idem_http_is_refusal(const IdemResultHttp *result);
extern int	idem_http_status(const char *code);
extern text *idem_http_write_problem(const char *code, int status,
									 const char *detail,
									 int64 retry_after_ms);
extern void idem_http_begin_headers(IdemHttpHeaders *headers);
extern void idem_http_add_header(IdemHttpHeaders *headers, const char *name,
								 const char *value);
extern void idem_http_add_retry_after(IdemHttpHeaders *headers, int64 ms);
extern void idem_http_add_result(IdemHttpHeaders *headers,
								 const IdemResultHttp *result);
extern char *idem_http_end_headers(IdemHttpHeaders *headers);

#endif							/* IDEM_HTTP_HTTP_H */
