/*-------------------------------------------------------------------------
 *
 * try.h
 *	  Doing what may fail, without failing with it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_TRY_H
#define IDEM_BASE_TRY_H

typedef void (*IdemTryWork) (void *arg);

extern ErrorData *idem_try(IdemTryWork work, void *arg);

#endif							/* IDEM_BASE_TRY_H */
