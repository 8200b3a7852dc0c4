/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  Areas of shared memory, and files that keep them over a clean restart.
 *
 * Exist only where the library is in shared_preload_libraries.  A room asks
 * for its area while libraries are preloaded; what is in it, and what its lock
 * guards, is known to that room alone.
 *
 * Files are as those of pg_stat_statements: one is written when the postmaster
 * shuts down, and removed when it has been read, so that there is none after a
 * crash.  It is good for servers of one major.  The postmaster has no other
 * process then, so that nothing is locked; and it must not end with an error,
 * so what cannot be written or read is said in the log, and lost.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <unistd.h>

#include "access/xlog.h"
#include "catalog/pg_control.h"
#include "common/controldata_utils.h"
#include "miscadmin.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/shmem.h"

#include "base/shmem.h"

#define MAX_AREAS 4

typedef struct FileHead
{
	uint32		magic;			/* of the area */
	uint32		major;			/* of the server */
	uint32		size;			/* of what follows */
	pg_crc32c	crc;			/* of that */
} FileHead;

static const IdemShmemArea *areas[MAX_AREAS];
static int	nareas = 0;
static shmem_request_hook_type prev_request_hook = NULL;
static shmem_startup_hook_type prev_startup_hook = NULL;

static pg_crc32c
compute_crc(const void *data, Size size)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, data, size);
	FIN_CRC32C(crc);
	return crc;
}

/* Write a file, in place of one that may be there. */
static void
write_file(const char *path, uint32 magic, const void *data, Size size)
{
	char	   *temporary = psprintf("%s.tmp", path);
	FILE	   *file = AllocateFile(temporary, PG_BINARY_W);
	FileHead	head = {magic, PG_MAJORVERSION_NUM, (uint32) size,
	compute_crc(data, size)};
	bool		written;

	written = file != NULL &&
		fwrite(&head, sizeof(head), 1, file) == 1 &&
		fwrite(data, 1, size, file) == size;
	if (file != NULL && FreeFile(file) != 0)
		written = false;

	/* renamed when it is whole: the postmaster may be killed at any moment */
	if (written)
		(void) durable_rename(temporary, path, LOG);
	else
	{
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", temporary)));
		unlink(temporary);
	}
	pfree(temporary);
}

static bool
read_file(FILE *file, uint32 magic, void *data, Size room, Size *size)
{
	FileHead	head;

	if (fread(&head, sizeof(head), 1, file) != 1 ||
		head.magic != magic || head.major != PG_MAJORVERSION_NUM ||
		head.size > room || fread(data, 1, head.size, file) != head.size)
		return false;
	*size = head.size;
	return EQ_CRC32C(head.crc, compute_crc(data, head.size));
}

/* Whether the server is about to start in recovery. */
static bool
starts_in_recovery(void)
{
	bool		sound;
	ControlFileData *control;
	bool		shut_down;

	/*
	 * No process can be asked yet: that is decided later, by the startup
	 * process, from these files, which it removes only then, and from how the
	 * last server that had the data ended.
	 */
	if (access(STANDBY_SIGNAL_FILE, F_OK) == 0 ||
		access(RECOVERY_SIGNAL_FILE, F_OK) == 0 ||
		access(BACKUP_LABEL_FILE, F_OK) == 0)
		return true;
	control = get_controlfile(DataDir, &sound);
	shut_down = sound && control->state == DB_SHUTDOWNED;
	pfree(control);
	return !shut_down;
}

/* Read a file and remove it; false when there is none that is of use. */
static bool
read_once(const char *path, uint32 magic, void *data, Size room, Size *size)
{
	FILE	   *file = AllocateFile(path, PG_BINARY_R);
	bool		sound;

	if (file == NULL && errno == ENOENT)
		return false;
	sound = file != NULL && read_file(file, magic, data, room, size);

	/*
	 * It may have come with a copy of a server that was stopped: then it
	 * belongs to that one, which has it as well, and would tell it twice
	 * (t/029_operators.pl).
	 */
	if (sound && starts_in_recovery())
	{
		ereport(LOG,
				(errmsg("dropping file \"%s\", since the server starts in recovery",
						path)));
		sound = false;
	}
	else if (!sound)
		ereport(LOG,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("ignoring invalid data in file \"%s\"", path)));
	if (file != NULL)
		FreeFile(file);
	unlink(path);
	return sound;
}

static void
resume(const IdemShmemArea *area)
{
	void	   *data;
	Size		size;

	if (area->file == NULL)
		return;
	data = palloc(area->room);
	if (read_once(area->file, area->magic, data, area->room, &size))
		area->resume(data, size);
	pfree(data);
}

/* on_shmem_exit of the postmaster, when no other process is left. */
static void
keep_areas(int code, Datum arg)
{
	int			i;

	/*
	 * After a crash of a process the code is not 0: no area can be trusted,
	 * and none is kept (t/021_stats.pl).
	 */
	for (i = 0; i < nareas && code == 0; i++)
	{
		void	   *data;
		Size		size;

		if (areas[i]->file == NULL)
			continue;
		data = palloc(areas[i]->room);
		size = areas[i]->keep(data);
		if (size > 0)
			write_file(areas[i]->file, areas[i]->magic, data, size);
		pfree(data);
	}
}

static void
request(void)
{
	int			i;

	if (prev_request_hook)
		prev_request_hook();
	for (i = 0; i < nareas; i++)
	{
		RequestAddinShmemSpace(MAXALIGN(areas[i]->size) + areas[i]->hash_size);
		RequestNamedLWLockTranche(areas[i]->name, 1);
	}
}

/* Runs in the postmaster, again after a crash. */
static void
startup(void)
{
	int			i;

	if (prev_startup_hook)
		prev_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	for (i = 0; i < nareas; i++)
	{
		const IdemShmemArea *area = areas[i];
		bool		found;
		void	   *memory = ShmemInitStruct(area->name, area->size, &found);

		area->start(memory, &GetNamedLWLockTranche(area->name)->lock, found);
		if (!found)
			resume(area);
	}
	LWLockRelease(AddinShmemInitLock);

	/*
	 * Not in the children of EXEC_BACKEND, which come here, too.  In the
	 * postmaster once more after a crash: its callbacks have been called
	 * then, and are gone.
	 */
	if (!IsUnderPostmaster)
		on_shmem_exit(keep_areas, (Datum) 0);
}

/*
 * idem_shmem_add
 *		Ask for an area; while libraries are preloaded.
 */
void
idem_shmem_add(const IdemShmemArea *area)
{
	if (nareas == 0)
	{
		prev_request_hook = shmem_request_hook;
		shmem_request_hook = request;
		prev_startup_hook = shmem_startup_hook;
		shmem_startup_hook = startup;
	}
	Assert(nareas < MAX_AREAS);
	areas[nareas++] = area;
}

/*
 * idem_shmem_list_oids
 *		The OIDs in an array of entries, each once; "first" is that of the first
 *		entry, and the next is "stride" bytes behind it.
 */
List *
idem_shmem_list_oids(const Oid *first, Size stride, int number, LWLock *lock)
{
	Oid		   *found = palloc(number * sizeof(Oid));
	List	   *oids = NIL;
	int			i;

	/* a List is made without the lock, since that may throw */
	LWLockAcquire(lock, LW_SHARED);
	for (i = 0; i < number; i++)
		found[i] = *(const Oid *) ((const char *) first + i * stride);
	LWLockRelease(lock);
	for (i = 0; i < number; i++)
		if (OidIsValid(found[i]))
			oids = list_append_unique_oid(oids, found[i]);
	pfree(found);
	return oids;
}
