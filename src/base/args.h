/*-------------------------------------------------------------------------
 *
 * args.h
 *	  Checking the arguments of SQL calls.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_ARGS_H
#define IDEM_BASE_ARGS_H

#include "fmgr.h"

#include "idem.h"

extern void idem_args_require_writable(void);
extern void idem_args_check_length(const text *value, int max,
								   const char *name);
extern void idem_args_require(FunctionCallInfo fcinfo, int argno,
							  const char *name);
extern text *idem_args_text(FunctionCallInfo fcinfo, int argno,
							const char *name);
extern text *idem_args_label(FunctionCallInfo fcinfo, int argno,
							 const char *name);
extern bytea *idem_args_digest(FunctionCallInfo fcinfo, int argno,
							   const char *name);
extern struct varlena *idem_args_detail(FunctionCallInfo fcinfo, int argno,
										const char *name);
extern int64 idem_args_usec(const char *what, Datum interval);
extern Datum idem_args_interval(int64 usec);
extern int64 idem_args_check_max(const char *what, int64 usec, int64 max,
								 const char *setting);
extern int	idem_args_components(FunctionCallInfo fcinfo, Datum **components);

#endif							/* IDEM_BASE_ARGS_H */
