/*-------------------------------------------------------------------------
 *
 * json_pairs.h
 *	  Names and texts in JSON.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_JSON_PAIRS_H
#define IDEM_BASE_JSON_PAIRS_H

#include "nodes/pg_list.h"

typedef struct IdemPair
{
	char	   *name;
	char	   *value;			/* NULL: neither string, number nor boolean */
	bool		is_string;
	bool		in_list;		/* the value is an element of an array */
} IdemPair;

extern bool idem_json_pairs_read(char *json, int len, List **pairs);

#endif							/* IDEM_BASE_JSON_PAIRS_H */
