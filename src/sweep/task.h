/*-------------------------------------------------------------------------
 *
 * task.h
 *	  What the background processes have in common.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SWEEP_TASK_H
#define IDEM_SWEEP_TASK_H

#include "base/databases.h"

extern void idem_task_override_settings(void);
extern bool idem_task_lock_database(Oid database);
extern bool idem_task_is_wanted(Oid database);
extern void idem_task_sleep(long milliseconds, uint32 wait_event);
extern void idem_task_log_failure(IdemTask task, const char *database,
								  int sqlstate, const char *message);
extern void idem_task_log_success(IdemTask task, const char *database);

#endif							/* IDEM_SWEEP_TASK_H */
