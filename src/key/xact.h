/*-------------------------------------------------------------------------
 *
 * xact.h
 *	  What the running transaction has claimed and is running.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_KEY_XACT_H
#define IDEM_KEY_XACT_H

#include "idem.h"

/* A running idem_run; lives on the stack of its call. */
typedef struct IdemXactRun
{
	const IdemKey *id;
	struct IdemXactRun *outer;
} IdemXactRun;

extern TimestampTz idem_xact_now(void);
extern bool idem_xact_owns(const IdemRow *row);
extern void idem_xact_opened(const IdemKey *id, const IdemRow *row,
							 bool guarded);
extern void idem_xact_closed(const IdemKey *id, const IdemRow *row);
extern void idem_xact_push_run(IdemXactRun *run, const IdemKey *id);
extern void idem_xact_pop_run(IdemXactRun *run);
extern bool idem_xact_is_running(const IdemKey *id);
extern Datum idem_xact_running_keys(const text *scope);
extern int64 idem_xact_token(TimestampTz now, int64 last);
extern void idem_xact_init(void);

#endif							/* IDEM_KEY_XACT_H */
