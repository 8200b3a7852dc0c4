/*-------------------------------------------------------------------------
 *
 * acl.h
 *	  Who owns our objects, and what others may do with them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_AUDIT_ACL_H
#define IDEM_AUDIT_ACL_H

extern void idem_store_acl_install(void);
extern void idem_store_acl_strip(const char *table);
extern void idem_store_acl_restored(void);

#endif							/* IDEM_AUDIT_ACL_H */
