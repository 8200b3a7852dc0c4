/*-------------------------------------------------------------------------
 *
 * launcher.h
 *	  The background worker that starts the others.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SWEEP_LAUNCHER_H
#define IDEM_SWEEP_LAUNCHER_H

extern PGDLLEXPORT void idem_launcher_main(Datum arg);

/* Whether keys are swept here by themselves. */
typedef enum IdemLauncherState
{
	IDEM_LAUNCHER_RUNNING,
	IDEM_LAUNCHER_ABSENT,
	IDEM_LAUNCHER_ELSEWHERE		/* running, but not for this database */
} IdemLauncherState;

extern const char *idem_launcher_describe(IdemLauncherState *state);
extern int64 idem_launcher_interval(void);
extern void idem_launcher_init(void);

#endif							/* IDEM_SWEEP_LAUNCHER_H */
