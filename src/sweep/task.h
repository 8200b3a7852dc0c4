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
extern void idem_task_log_failure(IdemTask task, const char *database,
								  int sqlstate, const char *message);
extern void idem_task_log_success(IdemTask task, const char *database);

#endif							/* IDEM_SWEEP_TASK_H */
