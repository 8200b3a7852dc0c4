/*-------------------------------------------------------------------------
 *
 * task.c
 *	  What the background processes have in common.
 *
 * Owns the settings that they go by whatever is set for others, and what they
 * tell the log of the server.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/guc.h"

#include "sweep/task.h"

/*
 * idem_task_override_settings
 *		Whatever is set for the server or the database, but for its being
 *		read-only.
 *
 * A transaction that is SERIALIZABLE, read-only and DEFERRABLE would wait for
 * others to end; a time-out would end the process.  transaction_timeout is new
 * in 17.
 */
void
idem_task_override_settings(void)
{
	static const char *const settings[][2] = {
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_deferrable", "off"},
		{"statement_timeout", "0"},
		{"lock_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"idle_session_timeout", "0"},
		{"transaction_timeout", "0"}
	};
	int			i;

	for (i = 0; i < lengthof(settings); i++)
		if (GetConfigOption(settings[i][0], true, false) != NULL)
			SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET,
							PGC_S_OVERRIDE);
}

/*
 * idem_task_log_failure
 *		What a worker could not do in a database.
 */
void
idem_task_log_failure(IdemTask task, const char *database, int sqlstate,
					  const char *message)
{
	ereport(LOG,
			(errcode(sqlstate),
			 task == IDEM_TASK_SWEEP ?
			 errmsg("idempotency keys of database \"%s\" cannot be swept: %s",
					database, message) :
			 task == IDEM_TASK_REFUSALS ?
			 errmsg("refusals of database \"%s\" cannot be written to the audit log: %s",
					database, message) :
			 task == IDEM_TASK_SEALS ?
			 errmsg("audit log of database \"%s\" cannot be sealed: %s",
					database, message) :
			 errmsg("partitions of the audit log of database \"%s\" cannot be made: %s",
					database, message),
			 errhint("Tried again with growing pauses; see idem_sweep_status.")));
}

/*
 * idem_task_log_success
 *		That it can do it again.
 */
void
idem_task_log_success(IdemTask task, const char *database)
{
	ereport(LOG,
			(task == IDEM_TASK_SWEEP ?
			 errmsg("idempotency keys of database \"%s\" are swept again",
					database) :
			 task == IDEM_TASK_REFUSALS ?
			 errmsg("refusals of database \"%s\" are written to the audit log again",
					database) :
			 task == IDEM_TASK_SEALS ?
			 errmsg("audit log of database \"%s\" is sealed again",
					database) :
			 errmsg("partitions of the audit log of database \"%s\" are made again",
					database)));
}
