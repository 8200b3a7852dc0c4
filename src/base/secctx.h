/*-------------------------------------------------------------------------
 *
 * secctx.h
 *	  Becoming the owner of the key table, and back.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_SECCTX_H
#define IDEM_BASE_SECCTX_H

typedef struct IdemSecctx
{
	Oid			userid;
	int			sec_context;
	int			guc_level;
} IdemSecctx;

extern void idem_secctx_set(const char *name, const char *value);
extern void idem_secctx_enter(IdemSecctx *saved, Oid owner);
extern void idem_secctx_leave(const IdemSecctx *saved);

#endif							/* IDEM_BASE_SECCTX_H */
