/*-------------------------------------------------------------------------
 *
 * task.c
 *	  What the background processes have in common.
 *
 * Owns the settings that they go by whatever is set for others, how they sleep
 * and lock a database, and what they tell the log of the server.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/guc.h"

#include "sweep/task.h"

/*
 * idem_task_override_settings
 *		Whatever is set for the server or the database, but for its being
 *		read-only.
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

	/*
	 * A transaction that is SERIALIZABLE, read-only and DEFERRABLE would wait
	 * for others to end; a time-out would end the process
	 * (t/029_operators.pl). transaction_timeout is new in 17.
	 */
	for (i = 0; i < lengthof(settings); i++)
		if (GetConfigOption(settings[i][0], true, false) != NULL)
			SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET,
							PGC_S_OVERRIDE);
}

/*
 * idem_task_lock_database
 *		The lock that a connection takes on its database while it starts; false
 *		when it cannot be had at once.
 */
bool
idem_task_lock_database(Oid database)
{
	LOCKTAG		tag;

	/*
	 * Whoever wants the database for himself (DROP, RENAME, CREATE ...
	 * TEMPLATE) locks it and then waits a few seconds for others to leave.  A
	 * worker would be in his way; one that is about to start would have to
	 * wait, and all other databases with it (t/027_worker_lifecycle.pl).
	 */
	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, database, 0);
	return LockAcquire(&tag, RowExclusiveLock, false, true) !=
		LOCKACQUIRE_NOT_AVAIL;
}

/*
 * idem_task_is_wanted
 *		Whether somebody has the database for himself, or waits for that.
 */
bool
idem_task_is_wanted(Oid database)
{
	bool		locked;

	StartTransactionCommand();
	locked = idem_task_lock_database(database);
	CommitTransactionCommand();
	return !locked;
}

/*
 * idem_task_sleep
 *		Sleep, and do what has been asked of us meanwhile.
 */
void
idem_task_sleep(long milliseconds, uint32 wait_event)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 milliseconds, wait_event);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();

	/*
	 * Only the launcher leaves this to be asked for; without a word, since it
	 * comes with every shutdown.  The exit code makes the postmaster start it
	 * anew after any other.
	 */
	if (ShutdownRequestPending)
		proc_exit(1);
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
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
