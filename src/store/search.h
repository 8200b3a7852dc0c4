/*-------------------------------------------------------------------------
 *
 * search.h
 *	  Statements on keys that nobody names one by one.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STORE_SEARCH_H
#define IDEM_STORE_SEARCH_H

#include "utils/tuplestore.h"

#include "idem.h"

/* What is sought; NULL: whatever it is.  All must hold. */
typedef struct IdemSearch
{
	const text *scope;
	const char *scope_id;		/* log ids */
	const char *key_id;
	const char *state;			/* a word of idem_store_is_state() */
	int64		max_rows;
} IdemSearch;

extern bool idem_store_is_state(const char *word);
extern int64 idem_store_search(const IdemSearch *search, TimestampTz now,
							   Tuplestorestate *result, TupleDesc desc);
extern int64 idem_store_delete_finished(const text *scope, TimestampTz now,
										int64 max_rows, Datum keep);

#endif							/* IDEM_STORE_SEARCH_H */
