/*-------------------------------------------------------------------------
 *
 * tap.h
 *	  Test Anything Protocol for the harnesses that run without a server.
 *
 * To be included after postgres.h and the system's headers, by the one file
 * that has main().  postgres.h puts PostgreSQL's own printf family in place
 * of the system's; a harness links with nothing of PostgreSQL, so that is
 * taken back here.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_TAP_H
#define IDEM_TAP_H

#include <stdarg.h>
#include <stdio.h>

#undef printf
#undef vprintf
#undef fprintf
#undef vfprintf
#undef sprintf
#undef vsprintf
#undef snprintf
#undef vsnprintf

static int	tap_run = 0;
static int	tap_planned = 0;
static int	tap_failed = 0;

/* Say how many tests there will be; 0: finish() says how many there were */
static void
plan(int count)
{
	tap_planned = count;
	if (count > 0)
		printf("1..%d\n", count);
	fflush(stdout);
}

/* One test; the name is a printf format.  Returns what it was given. */
static bool ok(bool passed, const char *name,...) pg_attribute_printf(2, 3);

static bool
ok(bool passed, const char *name,...)
{
	va_list		args;

	tap_run++;
	if (!passed)
		tap_failed++;
	printf("%sok %d - ", passed ? "" : "not ", tap_run);
	va_start(args, name);
	vprintf(name, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
	return passed;
}

/* A line for the reader of a failure */
static void diag(const char *line,...) pg_attribute_printf(1, 2);

static void
diag(const char *line,...)
{
	va_list		args;

	printf("# ");
	va_start(args, line);
	vprintf(line, args);
	va_end(args);
	printf("\n");
}

/* Exit status of the harness: 0 when all that was planned ran and passed */
static int
finish(void)
{
	if (tap_planned == 0)
		printf("1..%d\n", tap_run);
	else if (tap_run != tap_planned)
		diag("planned %d tests but ran %d", tap_planned, tap_run);
	if (tap_failed > 0)
		diag("%d of %d tests failed", tap_failed, tap_run);
	fflush(stdout);
	return tap_failed > 0 ||
		(tap_planned > 0 && tap_run != tap_planned) ? 1 : 0;
}

#endif							/* IDEM_TAP_H */
