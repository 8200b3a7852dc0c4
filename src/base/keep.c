/*-------------------------------------------------------------------------
 *
 * keep.c
 *	  Files that keep shared memory over a clean restart.
 *
 * As pg_stat_statements does it: a file is written when the postmaster shuts
 * down, and removed when it has been read, so that there is none after a
 * crash.  Owns the head of the files; what follows is known to the room whose
 * memory it is, and to servers of one major only.
 *
 * A server that starts in recovery, to be a standby or to follow the log of
 * another one, drops what it finds: that may have come with a copy of a server
 * which was stopped, and then belongs to that one, which has it as well.
 *
 * Called by the postmaster while it has no other process, so that nothing is
 * locked.  Raises nothing: what cannot be written or read is said in the log,
 * and lost.
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

#include "base/keep.h"

typedef struct FileHead
{
	uint32		magic;			/* of the room; changes with its structs */
	uint32		major;			/* of the server */
	uint32		size;			/* of what follows */
	pg_crc32c	crc;			/* of that */
} FileHead;

static pg_crc32c
compute_crc(const void *data, Size size)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, data, size);
	FIN_CRC32C(crc);
	return crc;
}

/*
 * idem_keep_write
 *		Write a file, in place of one that may be there.
 */
void
idem_keep_write(const char *path, uint32 magic, const void *data, Size size)
{
	char	   *temporary = psprintf("%s.tmp", path);
	FILE	   *file = AllocateFile(temporary, PG_BINARY_W);
	FileHead	head;
	bool		written;

	head.magic = magic;
	head.major = PG_MAJORVERSION_NUM;
	head.size = (uint32) size;
	head.crc = compute_crc(data, size);
	written = file != NULL &&
		fwrite(&head, sizeof(head), 1, file) == 1 &&
		fwrite(data, 1, size, file) == size;
	if (file != NULL && FreeFile(file) != 0)
		written = false;
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

static bool
file_exists(const char *path)
{
	return access(path, F_OK) == 0;
}

/*
 * Whether the server is about to start in recovery.  No process can be asked
 * yet: that is decided later, by the startup process, from these files, which
 * it removes only then, and from how the last server that had the data ended.
 */
static bool
starts_in_recovery(void)
{
	bool		sound;
	ControlFileData *control;
	bool		shut_down;

	if (file_exists(STANDBY_SIGNAL_FILE) ||
		file_exists(RECOVERY_SIGNAL_FILE) || file_exists(BACKUP_LABEL_FILE))
		return true;
	control = get_controlfile(DataDir, &sound);
	shut_down = sound && control->state == DB_SHUTDOWNED;
	pfree(control);
	return !shut_down;
}

/*
 * idem_keep_read
 *		Read a file and remove it; false when there is none that is of use.
 */
bool
idem_keep_read(const char *path, uint32 magic, void *data, Size room,
			   Size *size)
{
	FILE	   *file = AllocateFile(path, PG_BINARY_R);
	bool		sound;

	if (file == NULL && errno == ENOENT)
		return false;
	sound = file != NULL && read_file(file, magic, data, room, size);
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
