/*-------------------------------------------------------------------------
 *
 * idem_text.h
 *	  Texts around keys: headers, scopes, names for logs.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_TEXT_H
#define IDEM_TEXT_H

#include "fmgr.h"

extern int	idem_text_components(FunctionCallInfo fcinfo, Datum **components);

#endif							/* IDEM_TEXT_H */
