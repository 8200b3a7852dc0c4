/*-------------------------------------------------------------------------
 *
 * idem_launcher.h
 *	  The background worker that starts the others.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_LAUNCHER_H
#define IDEM_LAUNCHER_H

extern PGDLLEXPORT void idem_launcher_main(Datum arg);
extern const char *idem_launcher_describe(bool *running);
extern int64 idem_launcher_interval(void);
extern void idem_launcher_init(void);

#endif							/* IDEM_LAUNCHER_H */
