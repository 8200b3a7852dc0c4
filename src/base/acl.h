/*-------------------------------------------------------------------------
 *
 * acl.h
 *	  Who owns our objects, and what others may do with them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_ACL_H
#define IDEM_BASE_ACL_H

#include "lib/stringinfo.h"

extern void idem_acl_strip(const char *table);
extern void idem_acl_restored(void);
extern void idem_acl_repeat(StringInfo script);

#endif							/* IDEM_BASE_ACL_H */
