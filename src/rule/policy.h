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

typedef enum IdemKeyFormat
{
	IDEM_KEY_ANY,
	IDEM_KEY_UUID,
	IDEM_KEY_UUIDV4,
	IDEM_KEY_UUIDV7
} IdemKeyFormat;

/*
 * A policy in force.  Values only, so that it can be copied.  The columns of
 * idempotency_policies are described in policy_values.c: a choice is an int,
 * the place of its name in the list there.
 */
typedef struct IdemPolicy
{
	NameData	name;
	int64		completed_ttl;	/* all durations in microseconds */
	int64		failed_ttl;
	int64		lease;
	int64		wait;
	int			reject_repeat;	/* 0: replay; 1: reject */
	int			reject_expired; /* 0: reuse; 1: reject */
	int64		tombstone;
	bool		require_fingerprint;
	int			error_unfinished;	/* 0: lease; 1: error */
	bool		recoverable;
	int			key_format;		/* an IdemKeyFormat */
	int			max_key_bytes;
	int			mismatch_status;
	bool		releases[IDEM_MAX_STATUS + 1];	/* by status */
	int			max_body_bytes;
	int			digest_oversize;	/* 0: error; 1: digest */
	NameData	owner_role;		/* empty: the current user */
	int			max_live_keys;
	bool		audit;
	int			counters;		/* for idem_counters_add() */
} IdemPolicy;

extern void idem_policy_get(const char *name, IdemPolicy *policy);
extern void idem_policy_get_stored(const text *name, IdemPolicy *policy);
extern text *idem_policy_stored_name(const IdemPolicy *policy);
extern bool idem_policy_releases(const IdemPolicy *policy, int status);
extern int64 idem_policy_lease_usec(const char *what, int64 usec);
extern int64 idem_policy_ttl_usec(const char *what, int64 usec);
extern int64 idem_policy_wait_usec(const char *what, int64 usec);
extern int64 idem_policy_arg(FunctionCallInfo fcinfo, int argno,
							 const char *what,
							 int64 (*bound) (const char *what, int64 usec));

#endif							/* IDEM_RULE_POLICY_H */
