/*-------------------------------------------------------------------------
 *
 * foreign.h
 *	  C functions of other extensions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_FOREIGN_H
#define IDEM_BASE_FOREIGN_H

#include "fmgr.h"

/* What is known about a function before it is looked for. */
typedef struct IdemForeign
{
	const char *extension;
	const char *library;		/* probin, as the extension's script has it */
	const char *name;
	const char *symbol;			/* prosrc */
	int			nargs;
	Oid			args[3];
	PGFunction	address;		/* once it was loaded */
} IdemForeign;

extern Oid	idem_foreign_look_up(const IdemForeign *foreign);
extern bool idem_foreign_load(IdemForeign *foreign, FmgrInfo *flinfo);

#endif							/* IDEM_BASE_FOREIGN_H */
