/*-------------------------------------------------------------------------
 *
 * cell.h
 *	  Which partition of the audit log has the rows of which time.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_AUDIT_CELL_H
#define IDEM_AUDIT_CELL_H

#include "datatype/timestamp.h"

/* A stretch of time, from <= at < to, whose rows are in one partition. */
typedef struct IdemCell
{
	TimestampTz from;
	TimestampTz to;
	Oid			partition;		/* that for any other time, or one of its own */
} IdemCell;

extern IdemCell *idem_cell_list(int *number);
extern const IdemCell *idem_cell_find(const IdemCell *cells, int number,
									  TimestampTz at);

#endif							/* IDEM_AUDIT_CELL_H */
