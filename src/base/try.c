/*-------------------------------------------------------------------------
 *
 * try.c
 *	  Doing what may fail, without failing with it.
 *
 * For what is asked or done now and then, such as a check of idem_health: it
 * runs in a subtransaction, which is undone by an error.  User, search_path
 * and settings are those of the caller again then, whatever the work had set.
 * Never on the path of a claim.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/resowner.h"

#include "base/try.h"

/*
 * idem_try
 *		Do the work; NULL, or the error that it ended with.
 */
ErrorData *
idem_try(IdemTryWork work, void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);

	/* what the work allocates is the caller's, and not undone by an error */
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		work(arg);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();

	if (error == NULL)
		ReleaseCurrentSubTransaction();
	else
		RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;

	/* a cancel, and the end of the session or of the server, is no failure */
	if (error != NULL && ERRCODE_TO_CATEGORY(error->sqlerrcode) ==
		ERRCODE_OPERATOR_INTERVENTION)
		ReThrowError(error);
	return error;
}
