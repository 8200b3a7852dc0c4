/*-------------------------------------------------------------------------
 *
 * health.h
 *	  The checks behind idem_health.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ADMIN_HEALTH_H
#define IDEM_ADMIN_HEALTH_H

#include "datatype/timestamp.h"

#include "sweep/task.h"

/* Who asks. */
typedef enum IdemHealthUser
{
	IDEM_HEALTH_OWNER,			/* of the keys */
	IDEM_HEALTH_SEALER,			/* the owner of the seals */
	IDEM_HEALTH_CALLER
} IdemHealthUser;

/* What a check has to say. */
typedef struct IdemHealthAnswer
{
	MemoryContext context;		/* that "detail" is in */
	bool		found;			/* there is a row at all */
	bool		ok;
	const char *detail;
} IdemHealthAnswer;

/*
 * A query gives one row (ok boolean, detail text).  May use, and must as they
 * are typed here:
 *
 *	$1	oid[]		our tables, that of the keys first
 *	$2	oid[]		those of them that are append-only
 *	$3	oid			our schema
 *	$4	oid			our extension
 *	$5	timestamptz what the check gives
 *	$6	text[]		the columns of the keys,
 *	$7	oid[]		their types,
 *	$8	boolean[]	and whether they are NOT NULL
 *	$9	text[]		the columns of the policies
 *	$10	text[]		the columns of the limiters
 *
 * "%1$s" is the schema, too, and "%2$s" are the keys of this node to select from;
 * a query that has them doubles other per cent signs.
 */
typedef struct IdemHealthCheck
{
	const char *name;			/* NULL: the end of a list */
	IdemHealthUser user;
	const char *sql;
	void		(*check) (IdemHealthAnswer *answer);	/* if it is more */
} IdemHealthCheck;

extern const IdemHealthCheck idem_health_citus[];
extern const IdemHealthCheck idem_health_log[];
extern const IdemHealthCheck idem_health_rights[];
extern const IdemHealthCheck idem_health_sweep[];
extern const IdemHealthCheck idem_health_tables[];

extern void idem_health_say(IdemHealthAnswer *answer, bool ok,
							const char *detail);
extern void idem_health_ask(IdemHealthUser user, const char *sql,
							TimestampTz at, IdemHealthAnswer *answer);
extern void idem_health_add_error(IdemHealthAnswer *answer, IdemTask task);

#endif							/* IDEM_ADMIN_HEALTH_H */
