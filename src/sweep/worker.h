/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  The background worker that sweeps one database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SWEEP_WORKER_H
#define IDEM_SWEEP_WORKER_H

/* In pg_stat_activity, as backend_type and application_name. */
#define IDEM_WORKER_NAME "idempotency sweep"

extern PGDLLEXPORT void idem_worker_main(Datum arg);

#endif							/* IDEM_SWEEP_WORKER_H */
