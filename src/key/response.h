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
typedef struct IdemAnswer
{
	int			status;
	text	   *headers;		/* json; NULL: none */
	text	   *content_type;	/* NULL: none */
	bytea	   *body;			/* NULL: none, or not kept */
	int64		body_size;		/* -1: none */
	bytea	   *body_sha256;	/* NULL: none */
} IdemAnswer;

extern void idem_answer_init(IdemAnswer *answer, int status);
extern void idem_answer_set_headers(IdemAnswer *answer, Datum headers);
extern void idem_answer_set_content_type(IdemAnswer *answer,
										 text *content_type);
extern void idem_answer_set_body(IdemAnswer *answer, Datum response, Oid type);
extern void idem_answer_set_response(IdemAnswer *answer, Datum response);
extern void idem_answer_limit(IdemAnswer *answer, const IdemKey *id,
							  const IdemPolicy *policy);
extern void idem_answer_store(const IdemAnswer *answer, IdemRow *row);
extern bool idem_answer_is_stored(const IdemAnswer *answer, const IdemRow *row);

#endif							/* IDEM_KEY_RESPONSE_H */
