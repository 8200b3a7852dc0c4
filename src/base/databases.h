/*-------------------------------------------------------------------------
 *
 * databases.h
 *	  The databases that use the extension, and what the worker did there.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_DATABASES_H
#define IDEM_BASE_DATABASES_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

#define IDEM_SWEEP_ERROR_BYTES	256

/* What the worker does for a database, in this order. */
typedef enum IdemTask
{
	IDEM_TASK_SWEEP,
	IDEM_TASK_REFUSALS,
	IDEM_TASK_SEALS,
	IDEM_TASK_PARTITIONS
} IdemTask;

#define IDEM_NUM_TASKS (IDEM_TASK_PARTITIONS + 1)

/* How that goes in one database. */
typedef struct IdemSweepState
{
	Oid			database;
	uint64		runs;			/* by the worker */
	bool		more;			/* the last of them left some */
	TimestampTz known_at;		/* since when it has an entry */
	TimestampTz last_worker;	/* DT_NOBEGIN: it never came */
	TimestampTz last_run;		/* DT_NOBEGIN: none yet */
	int64		last_duration;	/* in microseconds */
	int64		last_rows;
	TimestampTz low;			/* where the worker goes on */
	TimestampTz full_due;		/* when it is to begin at the beginning */
	IdemTask	failed_task;	/* that last_error is of */
	char		last_error[IDEM_SWEEP_ERROR_BYTES]; /* empty: none */
} IdemSweepState;

extern void idem_databases_know(void);
extern bool idem_databases_get(Oid database, IdemSweepState *state);
extern void idem_databases_put(const IdemSweepState *state);
extern void idem_databases_note_sweep(TimestampTz start, int64 rows);
extern void idem_databases_forget(Oid database);
extern List *idem_databases_list(void);

extern void idem_databases_set_launcher(int pid);
extern int	idem_databases_launcher(void);
extern void idem_databases_init(void);

#endif							/* IDEM_BASE_DATABASES_H */
