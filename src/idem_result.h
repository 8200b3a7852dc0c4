/*-------------------------------------------------------------------------
 *
 * idem_result.h
 *	  The composite idem_result.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_RESULT_H
#define IDEM_RESULT_H

#include "idem.h"

extern Datum idem_result_form(IdemOutcome outcome, const IdemRow *row,
							  int mismatch_status, TimestampTz now);

#endif							/* IDEM_RESULT_H */
