/*-------------------------------------------------------------------------
 *
 * name.h
 *	  What names a key: scope, spelling, format, header field.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_NAME_H
#define IDEM_KEY_NAME_H

#include "fmgr.h"

#include "rule/policy.h"

extern PGDLLEXPORT Datum idem_scope(PG_FUNCTION_ARGS);

extern text *idem_name_scope(FunctionCallInfo fcinfo, int argno);
extern text *idem_name_key(FunctionCallInfo fcinfo, int argno);
extern text *idem_name_formatted_key(text *key, const IdemPolicy *policy);
extern text *idem_name_format_key(text *key, const IdemPolicy *policy);
extern text *idem_name_header_key(const char *c, int len);

#endif							/* IDEM_KEY_NAME_H */
