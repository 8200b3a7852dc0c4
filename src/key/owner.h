/*-------------------------------------------------------------------------
 *
 * owner.h
 *	  Whose key it is.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_OWNER_H
#define IDEM_KEY_OWNER_H

#include "base/compat.h"
#include "rule/policy.h"

extern bool idem_owner_permits(const text *claimed_by);
IDEM_COMPAT_NORETURN extern void idem_owner_refuse(const IdemKey *id,
												   const IdemPolicy *policy);
extern void idem_owner_require(const IdemKey *id, const text *claimed_by,
							   const IdemPolicy *policy);
extern text *idem_owner_name(const IdemPolicy *policy, const IdemKey *id);

#endif							/* IDEM_KEY_OWNER_H */
