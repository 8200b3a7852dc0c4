/*-------------------------------------------------------------------------
 *
 * response.h
 *	  Answers: from what SQL gives to what is stored.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_RESPONSE_H
#define IDEM_KEY_RESPONSE_H

#include "rule/policy.h"

/* An answer in the form of the key table. */
typedef struct IdemResponse
{
	int			status;
	text	   *headers;		/* json; NULL: none */
	text	   *content_type;	/* NULL: none */
	bytea	   *body;			/* NULL: none, or not kept */
	int64		body_size;		/* -1: that of the body */
	bytea	   *body_sha256;	/* NULL: that of the body */
} IdemResponse;

extern void idem_response_init(IdemResponse *answer, int status);
extern void idem_response_set_headers(IdemResponse *answer, Datum headers);
extern void idem_response_set_content_type(IdemResponse *answer,
										   text *content_type);
extern void idem_response_set_body(IdemResponse *answer, Datum response, Oid type);
extern void idem_response_set_response(IdemResponse *answer, Datum response);
extern bool idem_response_is_oversize(const IdemResponse *answer,
									  const IdemPolicy *policy);
extern void idem_response_drop_body(IdemResponse *answer);
extern void idem_response_limit(IdemResponse *answer, const IdemKey *id,
								const IdemPolicy *policy);
extern void idem_response_store(const IdemResponse *answer, IdemRow *row);
extern int64 idem_response_size(const IdemRow *row);
extern text *idem_response_content_type(const IdemRow *row);
extern bool idem_response_is_stored(const IdemResponse *answer, const IdemRow *row);

#endif							/* IDEM_KEY_RESPONSE_H */
