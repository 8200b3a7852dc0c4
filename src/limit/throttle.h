/*-------------------------------------------------------------------------
 *
 * throttle.h
 *	  Rate limiting: taking from the bucket of a subject.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_LIMIT_THROTTLE_H
#define IDEM_LIMIT_THROTTLE_H

#include "limit/token_bucket.h"

extern void idem_throttle_take(const text *name, const text *subject,
							   int32 cost, IdemBucketResult *result);

#endif							/* IDEM_LIMIT_THROTTLE_H */
