/*-------------------------------------------------------------------------
 *
 * idem.h
 *	  Types, SQLSTATEs and limits that three or more rooms share.
 *
 * This header owns the names of the outcomes and states, the row of the key
 * table as C sees it, and the error codes of class ID.  It declares no
 * function and must include no header of another room.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_H
#define IDEM_H

#include "datatype/timestamp.h"
#include "fmgr.h"
#include "utils/uuid.h"

/* Of the objects that this library knows. */
#define IDEM_VERSION "1.0"

/* A C function that SQL calls; before 16 the server's macro exports it not. */
#define IDEM_FUNCTION(name) \
	extern PGDLLEXPORT Datum name(PG_FUNCTION_ARGS); \
	PG_FUNCTION_INFO_V1(name)

/* Class ID, implementation-defined by ISO 9075-2 (letters I-Z). */
#define ERRCODE_IDEM_NO_CLAIM			MAKE_SQLSTATE('I', 'D', '0', '0', '1')
#define ERRCODE_IDEM_CLAIM_LOST			MAKE_SQLSTATE('I', 'D', '0', '0', '2')
#define ERRCODE_IDEM_FINISHED			MAKE_SQLSTATE('I', 'D', '0', '0', '3')
#define ERRCODE_IDEM_IN_PROGRESS		MAKE_SQLSTATE('I', 'D', '0', '0', '4')
#define ERRCODE_IDEM_MISMATCH			MAKE_SQLSTATE('I', 'D', '0', '0', '5')
#define ERRCODE_IDEM_EXPIRED			MAKE_SQLSTATE('I', 'D', '0', '0', '6')
#define ERRCODE_IDEM_DUPLICATE			MAKE_SQLSTATE('I', 'D', '0', '0', '7')
#define ERRCODE_IDEM_TOO_LARGE			MAKE_SQLSTATE('I', 'D', '0', '0', '8')
#define ERRCODE_IDEM_TOO_MANY_KEYS		MAKE_SQLSTATE('I', 'D', '0', '0', '9')
#define ERRCODE_IDEM_WOULD_FREE			MAKE_SQLSTATE('I', 'D', '0', '1', '0')
#define ERRCODE_IDEM_UNFINISHED			MAKE_SQLSTATE('I', 'D', '0', '1', '1')
#define ERRCODE_IDEM_BAD_KEY			MAKE_SQLSTATE('I', 'D', '0', '1', '2')

/* Together below the 2704 bytes that a btree entry may have. */
#define IDEM_MAX_SCOPE_BYTES	1024
#define IDEM_MAX_KEY_BYTES		1024

#define IDEM_MAX_DIGEST_BYTES	1024	/* a fingerprint or a context */
#define IDEM_MAX_LABEL_BYTES	1024	/* a recovery point, an audit name */
#define IDEM_MAX_MEDIA_TYPE_BYTES 255
#define IDEM_MAX_HEADERS_BYTES	(64 * 1024)
#define IDEM_MAX_DETAIL_BYTES	(1024 * 1024)	/* a checkpoint, an audit
												 * detail */
#define IDEM_MAX_BODY_BYTES		(512 * 1024 * 1024)

/* How often a decision is repeated because its row went away meanwhile. */
#define IDEM_MAX_TRIES			10

#define IDEM_MIN_STATUS			100
#define IDEM_MAX_STATUS			599
#define IDEM_STATUS_OK			200

/* In place of a token, which is above zero. */
#define IDEM_NO_TOKEN			0

/* The labels of idem_outcome, in the order of the type. */
typedef enum IdemOutcome
{
	IDEM_OUTCOME_CLAIMED,
	IDEM_OUTCOME_COMPLETED,
	IDEM_OUTCOME_FAILED,
	IDEM_OUTCOME_REPLAYED,
	IDEM_OUTCOME_DUPLICATE,
	IDEM_OUTCOME_IN_PROGRESS,
	IDEM_OUTCOME_MISMATCH,
	IDEM_OUTCOME_EXPIRED
} IdemOutcome;

#define IDEM_NUM_OUTCOMES		(IDEM_OUTCOME_EXPIRED + 1)

/* Column "state" of the key table. */
typedef enum IdemState
{
	IDEM_STATE_IN_PROGRESS = 'p',
	IDEM_STATE_COMPLETED = 'c',
	IDEM_STATE_RETRYABLE = 'r', /* failed, may be claimed again */
	IDEM_STATE_FAILED = 'f',	/* failed for good */
	IDEM_STATE_RELEASED = 'x'	/* given up: free, remembers its token */
} IdemState;

/* Names a key: both texts detoasted, within the limits above. */
typedef struct IdemKey
{
	text	   *scope;
	text	   *key;
} IdemKey;

/*
 * The rest of a row of the key table.  A null is NULL for a varlena, and what
 * the comment says for the others.  A varlena may be toasted, as it was read:
 * written back to its row unchanged it costs nothing.
 */
typedef struct IdemRow
{
	IdemState	state;
	int32		attempt;		/* null: 1 */
	int64		token;			/* IDEM_NO_TOKEN: nobody was given one */
	uint64		claim_xid;		/* top-level transaction of the claim */
	TimestampTz created_at;
	TimestampTz finished_at;	/* DT_NOBEGIN: not finished */
	TimestampTz lease_until;	/* DT_NOBEGIN: written finished */
	TimestampTz expires_at;
	TimestampTz purge_at;
	int64		ttl;			/* -1: the policy's; 0: for ever */
	int32		status_code;	/* null: IDEM_STATUS_OK, or not finished */
	pg_uuid_t  *owner;
	text	   *policy;			/* NULL: "default" */
	text	   *claimed_by;
	bytea	   *fingerprint;
	bytea	   *context;
	text	   *headers;		/* json */
	text	   *content_type;	/* NULL: what key/response.c says */
	int64		body_size;		/* -1: that of the body */
	bytea	   *body_sha256;	/* NULL: that of the body */
	bytea	   *body;
	text	   *recovery_point;
	struct varlena *checkpoint; /* jsonb */
} IdemRow;

#endif							/* IDEM_H */
