/*-------------------------------------------------------------------------
 *
 * alike.h
 *	  Names that look like those of the extension.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_AUDIT_ALIKE_H
#define IDEM_AUDIT_ALIKE_H

extern bool idem_alike_is_ours(const text *name);

#endif							/* IDEM_AUDIT_ALIKE_H */
