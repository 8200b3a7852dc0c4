/*-------------------------------------------------------------------------
 *
 * idem_sweep.h
 *	  Removing keys past their retention.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SWEEP_H
#define IDEM_SWEEP_H

extern void idem_sweep_init(void);

#endif							/* IDEM_SWEEP_H */
