/*-------------------------------------------------------------------------
 *
 * name.h
 *	  Texts around keys: headers, scopes, names for logs.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_NAME_H
#define IDEM_KEY_NAME_H

#include "fmgr.h"

extern PGDLLEXPORT Datum idem_scope(PG_FUNCTION_ARGS);

extern int	idem_text_components(FunctionCallInfo fcinfo, Datum **components);
extern text *idem_text_header_key(const char *c, int len);

#endif							/* IDEM_KEY_NAME_H */
