/*-------------------------------------------------------------------------
 *
 * idem_store_health.h
 *	  The queries behind idem_health.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STORE_HEALTH_H
#define IDEM_STORE_HEALTH_H

typedef void (*IdemHealthSink) (void *arg, const char *name, bool ok,
								const char *detail);

extern void idem_store_health(bool running, const char *worker,
							  IdemHealthSink sink, void *arg);

#endif							/* IDEM_STORE_HEALTH_H */
