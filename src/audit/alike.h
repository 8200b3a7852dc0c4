/*-------------------------------------------------------------------------
 *
 * alike.h
 *	  Names that look like those of the extension.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ALIKE_H
#define IDEM_ALIKE_H

extern bool idem_alike_is_ours(const text *name);

#endif							/* IDEM_ALIKE_H */
