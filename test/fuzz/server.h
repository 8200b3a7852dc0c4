/*-------------------------------------------------------------------------
 *
 * server.h
 *	  Stand-ins for what the server gives to files that are not quite pure.
 *
 * Memory, errors and lists: enough for src/key/name.c, src/key/headers.c and
 * src/audit/sealed_rows.c to run without a server.  The rest comes from the
 * libraries for clients, libpgcommon and libpgport.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_FUZZ_SERVER_H
#define IDEM_FUZZ_SERVER_H

#include <setjmp.h>

extern sigjmp_buf server_caught;
extern int	server_sqlstate;

/*
 * Run a statement as the server would: all memory is freed behind it, and an
 * error ends it.  True: there was none; else server_sqlstate says which.
 */
#define server_try(statement) \
	(sigsetjmp(server_caught, 0) == 0 ? ((statement), true) : false)

extern void server_reset(void);
extern text *server_text(const void *data, size_t len);

#endif							/* IDEM_FUZZ_SERVER_H */
