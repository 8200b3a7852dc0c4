/*-------------------------------------------------------------------------
 *
 * health_store.h
 *	  The queries behind idem_health.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ADMIN_HEALTH_STORE_H
#define IDEM_ADMIN_HEALTH_STORE_H

#include "datatype/timestamp.h"

/* Who asks. */
typedef enum IdemHealthUser
{
	IDEM_HEALTH_OWNER,			/* of the keys */
	IDEM_HEALTH_SEALER,			/* the owner of the seals */
	IDEM_HEALTH_CALLER
} IdemHealthUser;

/*
 * One row (ok boolean, detail text).  May use $1, the OIDs of our tables, $2,
 * those of them that are append-only, $3, our schema, and $4, our extension.
 * "%1$s" is the schema, too; a query that has it doubles other per cent signs.
 */
typedef struct IdemHealthQuery
{
	const char *name;			/* NULL: the end of a list */
	IdemHealthUser user;
	const char *sql;
} IdemHealthQuery;

/* What a check has to say. */
typedef struct IdemHealthAnswer
{
	MemoryContext context;		/* that "detail" is in */
	bool		found;			/* there is a row at all */
	bool		ok;
	const char *detail;
} IdemHealthAnswer;

extern const IdemHealthQuery idem_store_health_tables[];
extern const IdemHealthQuery idem_store_health_audit[];
extern const IdemHealthQuery idem_store_health_rights[];

extern void idem_store_health_ask(const IdemHealthQuery *query,
								  IdemHealthAnswer *answer);
extern void idem_store_health_say(IdemHealthAnswer *answer, bool ok,
								  const char *detail);
extern int64 idem_store_health_limiters(void);
extern bool idem_store_health_unpartitioned(void);
extern bool idem_store_health_has_cron(void);
extern bool idem_store_health_cron(bool late, IdemHealthAnswer *answer);

#endif							/* IDEM_ADMIN_HEALTH_STORE_H */
