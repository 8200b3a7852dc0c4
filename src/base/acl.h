/*-------------------------------------------------------------------------
 *
 * acl.h
 *	  Who owns our objects, and what others may do with them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_ACL_H
#define IDEM_BASE_ACL_H

extern void idem_acl_strip(const char *table);
extern void idem_acl_restored(void);

#endif							/* IDEM_BASE_ACL_H */
