/*-------------------------------------------------------------------------
 *
 * result.h
 *	  The composite idem_result.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_RESULT_H
#define IDEM_KEY_RESULT_H

#include "access/htup.h"

#include "idem.h"

/* What an HTTP server needs of an idem_result. */
typedef struct IdemResultHttp
{
	bool		replayed;
	text	   *headers;		/* json; NULL: none */
	text	   *content_type;	/* NULL: none */
	bytea	   *body;			/* NULL: none, or not kept */
	TimestampTz expires_at;		/* DT_NOEND: for ever, or not known */
	int64		retry_after_ms; /* 0: none */
	int			status;			/* 0: none */
	text	   *error_code;		/* NULL: no refusal */
} IdemResultHttp;

extern Datum idem_result_form(IdemOutcome outcome, const IdemRow *row,
							  int mismatch_status, TimestampTz now);
extern void idem_result_read(HeapTupleHeader result, IdemResultHttp *http);
extern text *idem_result_json(bytea *body);

#endif							/* IDEM_KEY_RESULT_H */
