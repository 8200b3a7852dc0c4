/*-------------------------------------------------------------------------
 *
 * sweep.h
 *	  Removing keys past their retention.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SWEEP_SWEEP_H
#define IDEM_SWEEP_SWEEP_H

#include "store/store.h"

extern int64 idem_sweep_batch(IdemSweepMark *mark, int64 max_rows);
extern int	idem_sweep_batch_size(void);
extern int	idem_sweep_delay(void);
extern void idem_sweep_init(void);

#endif							/* IDEM_SWEEP_SWEEP_H */
