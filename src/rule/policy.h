/*-------------------------------------------------------------------------
 *
 * policy.h
 *	  Policies: what they say, and the cache of them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_RULE_POLICY_H
#define IDEM_RULE_POLICY_H

#include "idem.h"

#define IDEM_POLICY_DEFAULT "default"

/* Columns of idempotency_policies, which are the arguments of idem_policy(). */
typedef enum IdemPolicyColumn
{
	IDEM_POLICY_NAME,
	IDEM_POLICY_COMPLETED_TTL,
	IDEM_POLICY_FAILED_TTL,
	IDEM_POLICY_LEASE,
	IDEM_POLICY_WAIT,
	IDEM_POLICY_ON_REPEAT,
	IDEM_POLICY_ON_EXPIRY,
	IDEM_POLICY_TOMBSTONE,
	IDEM_POLICY_REQUIRE_FINGERPRINT,
	IDEM_POLICY_KEY_FORMAT,
	IDEM_POLICY_MAX_KEY_BYTES,
	IDEM_POLICY_MISMATCH_STATUS,
	IDEM_POLICY_RELEASE_STATUSES,
	IDEM_POLICY_MAX_BODY_BYTES,
	IDEM_POLICY_ON_OVERSIZE,
	IDEM_POLICY_OWNER_ROLE,
	IDEM_POLICY_MAX_LIVE_KEYS,
	IDEM_POLICY_AUDIT
} IdemPolicyColumn;

#define IDEM_POLICY_COLUMNS	(IDEM_POLICY_AUDIT + 1)

typedef enum IdemKeyFormat
{
	IDEM_KEY_ANY,
	IDEM_KEY_UUID,
	IDEM_KEY_UUIDV4,
	IDEM_KEY_UUIDV7
} IdemKeyFormat;

/* A policy in force.  Values only, so that it can be copied. */
typedef struct IdemPolicy
{
	NameData	name;
	int64		completed_ttl;	/* all durations in microseconds */
	int64		failed_ttl;
	int64		lease;
	int64		wait;
	bool		reject_repeat;
	bool		reject_expired;
	int64		tombstone;
	bool		require_fingerprint;
	IdemKeyFormat key_format;
	int			max_key_bytes;
	int			mismatch_status;
	uint8		releases[IDEM_MAX_STATUS / 8 + 1];	/* bit map of statuses */
	int			max_body_bytes;
	bool		digest_oversize;
	NameData	owner_role;		/* empty: the current user */
	int			max_live_keys;
	bool		audit;
	int			counters;		/* for idem_counters_add() */
} IdemPolicy;

extern void idem_policy_get(const char *name, IdemPolicy *policy);
extern void idem_policy_get_stored(const text *name, IdemPolicy *policy);
extern bool idem_policy_releases(const IdemPolicy *policy, int status);
extern TimestampTz idem_policy_expiry(const IdemPolicy *policy,
									  const IdemRow *row, bool completed,
									  TimestampTz since);
extern TimestampTz idem_policy_purge_time(const IdemPolicy *policy,
										  TimestampTz expiry);
extern TimestampTz idem_policy_purge_bound(const IdemPolicy *policy,
										   const IdemRow *row);
extern int64 idem_policy_lease_usec(const char *what, int64 usec);
extern int64 idem_policy_ttl_usec(const char *what, int64 usec);
extern int64 idem_policy_wait_usec(const char *what, int64 usec);
extern void idem_policy_init(void);

#endif							/* IDEM_RULE_POLICY_H */
