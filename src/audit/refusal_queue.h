/*-------------------------------------------------------------------------
 *
 * refusal_queue.h
 *	  Calls that were refused, on their way to the audit log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_AUDIT_REFUSAL_QUEUE_H
#define IDEM_AUDIT_REFUSAL_QUEUE_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

#include "idem.h"
#include "rule/policy.h"

/* Why a call was refused: an action of the audit log. */
typedef enum IdemRefusal
{
	IDEM_REFUSAL_MISMATCH,
	IDEM_REFUSAL_EXPIRED,
	IDEM_REFUSAL_DUPLICATE,
	IDEM_REFUSAL_LOST,
	IDEM_REFUSAL_FORBIDDEN,
	IDEM_REFUSAL_LIMITED
} IdemRefusal;

#define IDEM_NUM_REFUSALS	(IDEM_REFUSAL_LIMITED + 1)

/*
 * What is the same of equal refusals.  Hashed and compared as bytes: every
 * byte that is not used is zero.  The strings are in the encoding of the
 * database.
 */
typedef struct IdemRefusalSubject
{
	Oid			database;
	Oid			audit_log;		/* of that time: a later one is another's */
	IdemRefusal action;
	char		entity_id[36];	/* two log ids */
	char		rule[NAMEDATALEN];	/* name of the policy, or of the limiter */
	char		session_role[NAMEDATALEN];
	char		effective_role[NAMEDATALEN];
	char		client_addr[NAMEDATALEN];	/* empty: not over a network */
	char		application_name[NAMEDATALEN];
} IdemRefusalSubject;

/* Equal refusals: an entry of the queue. */
typedef struct IdemRefused
{
	IdemRefusalSubject subject; /* the hash key */
	uint64		serial;			/* its own, and in the order of arrival */
	int64		count;
	TimestampTz first_at;
	TimestampTz last_at;
} IdemRefused;

extern void idem_refusals_note(IdemRefusal action, const IdemKey *id,
							   const IdemPolicy *policy);
extern void idem_refusals_note_limited(const char *limiter,
									   const void *limiter_digest,
									   const void *subject_digest,
									   int counters);

extern IdemRefused *idem_refusals_begin(int *number);
extern void idem_refusals_write(const IdemRefused *refused, int number);
extern void idem_refusals_end(void);

extern List *idem_refusals_databases(void);
extern void idem_refusals_forget(Oid database);
extern void idem_refusals_init(void);

#endif							/* IDEM_AUDIT_REFUSAL_QUEUE_H */
