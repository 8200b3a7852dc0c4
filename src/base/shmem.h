/*-------------------------------------------------------------------------
 *
 * shmem.h
 *	  What all processes share: counters, and how the sweeps go.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_SHMEM_H
#define IDEM_BASE_SHMEM_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"

/* What is counted for a policy. */
typedef enum IdemCounter
{
	IDEM_COUNT_CLAIMED,
	IDEM_COUNT_COMPLETED,
	IDEM_COUNT_FAILED,
	IDEM_COUNT_REPLAYED,
	IDEM_COUNT_DUPLICATE,
	IDEM_COUNT_IN_PROGRESS,
	IDEM_COUNT_MISMATCH,
	IDEM_COUNT_EXPIRED,
	IDEM_COUNT_TAKEN_OVER,
	IDEM_COUNT_LOST,
	IDEM_COUNT_SWEPT,
	IDEM_COUNT_THROTTLED,
	IDEM_COUNT_REFUSALS_DROPPED,
	IDEM_COUNT_WAITS,
	IDEM_COUNT_WAIT_USEC
} IdemCounter;

#define IDEM_NUM_COUNTERS	(IDEM_COUNT_WAIT_USEC + 1)

/* Counters of one policy in one database, as they are read. */
typedef struct IdemCounters
{
	Oid			database;		/* InvalidOid: what found no room */
	NameData	policy;
	TimestampTz stats_reset;
	uint64		counts[IDEM_NUM_COUNTERS];
} IdemCounters;

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

/* A piece of shared memory, with a lock of its own. */
typedef struct IdemShmemArea
{
	const char *name;
	Size		size;
	void		(*start) (void *memory, LWLock *lock, bool found);
	pg_on_exit_callback save;	/* in the postmaster, at its end; or NULL */
} IdemShmemArea;

extern void idem_shmem_add(const IdemShmemArea *area);
extern bool idem_shmem_exists(void);
extern void idem_shmem_init(void);

/* The name under which is counted what has no policy: rate limiting. */
#define IDEM_SHMEM_NO_POLICY ""

extern int	idem_shmem_policy(const char *name);
extern void idem_shmem_count(int policy, IdemCounter counter, uint64 n);
extern IdemCounters *idem_shmem_counters(int *number);
extern void idem_shmem_reset_counters(void);

extern void idem_shmem_know_database(void);
extern bool idem_shmem_get_sweep(Oid database, IdemSweepState *state);
extern void idem_shmem_put_sweep(const IdemSweepState *state);
extern void idem_shmem_note_sweep(TimestampTz start, int64 rows);
extern void idem_shmem_forget(Oid database);
extern List *idem_shmem_databases(void);
extern void idem_shmem_drop_database(Oid database);

extern void idem_shmem_set_launcher(int pid);
extern int	idem_shmem_launcher(void);

#endif							/* IDEM_BASE_SHMEM_H */
