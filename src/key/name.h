/*-------------------------------------------------------------------------
 *
 * name.h
 *	  Texts around keys: headers, scopes, names for logs.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_TEXT_H
#define IDEM_TEXT_H

#include "fmgr.h"

extern PGDLLEXPORT Datum idem_scope(PG_FUNCTION_ARGS);

extern int	idem_text_components(FunctionCallInfo fcinfo, Datum **components);
extern text *idem_text_header_key(const char *c, int len);

#endif							/* IDEM_TEXT_H */
