/*-------------------------------------------------------------------------
 *
 * whitelist.h
 *	  What the direct way asks of the audit log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_AUDIT_WHITELIST_H
#define IDEM_AUDIT_WHITELIST_H

#include "datatype/timestamp.h"
#include "utils/rel.h"

extern Relation idem_audit_whitelist_open(TimestampTz at);
extern const char *idem_audit_whitelist_obstacle(void);
extern void idem_audit_whitelist_init(void);

#endif							/* IDEM_AUDIT_WHITELIST_H */
