/*
 * moved_clock.c
 *		A clock that is moved while a server runs, for LD_PRELOAD.
 *
 * MOVED_CLOCK names a file of eight bytes: the seconds by which the clock is
 * ahead, an int64 of this machine.  Nothing here allocates or locks, since the
 * server reads its clock in signal handlers, too.  (libfaketime opens a file
 * each time, and so destroys the heap of a server whose timer ends within
 * malloc.)
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *ahead;

__attribute__((constructor)) static void
open_clock(void)
{
	const char *name = getenv("MOVED_CLOCK");
	int			file = name == NULL ? -1 : open(name, O_RDONLY | O_CLOEXEC);
	void	   *bytes;

	if (file < 0)
		return;
	bytes = mmap(NULL, sizeof(*ahead), PROT_READ, MAP_SHARED, file, 0);
	if (bytes != MAP_FAILED)
		ahead = bytes;
	close(file);
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	int			result = syscall(SYS_clock_gettime, clock, now);

	if (result == 0 && ahead != NULL &&
		(clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += *ahead;
	return result;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec precise;

	(void) zone;				/* Linux has none */
	if (clock_gettime(CLOCK_REALTIME, &precise) != 0)
		return -1;
	now->tv_sec = precise.tv_sec;
	now->tv_usec = precise.tv_nsec / 1000;
	return 0;
}

time_t
time(time_t *now)
{
	struct timespec precise;

	if (clock_gettime(CLOCK_REALTIME, &precise) != 0)
		return -1;
	if (now != NULL)
		*now = precise.tv_sec;
	return precise.tv_sec;
}
