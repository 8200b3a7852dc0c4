/*
 * slow_disk.c - a disk that takes 2 ms longer to keep what was written.
 *
 * For LD_PRELOAD into the server: each fdatasync(), with which PostgreSQL
 * flushes its WAL on Linux, is done, and then waited for a little more.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <time.h>
#include <unistd.h>

int
fdatasync(int fd)
{
	struct timespec left = {.tv_nsec = 2000000};
	int			(*really) (int) = (int (*) (int)) dlsym(RTLD_NEXT, "fdatasync");
	int			result = really(fd);
	int			saved = errno;

	while (nanosleep(&left, &left) < 0 && errno == EINTR)
		;
	errno = saved;
	return result;
}
