/*-------------------------------------------------------------------------
 *
 * spi.h
 *	  Statements on our tables through SPI.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_SPI_H
#define IDEM_BASE_SPI_H

#include "executor/spi.h"
#include "utils/snapshot.h"

#include "base/secctx.h"

/*
 * A statement with its saved plan.  The text names our schema as %1$s; values
 * are always parameters.
 */
typedef struct IdemPlan
{
	const char *sql;
	int			nargs;
	const Oid  *argtypes;
	SPIPlanPtr	plan;
	uint64		generation;		/* of idem_catalog(), that the text is from */
} IdemPlan;

extern Snapshot idem_spi_latest(void);
extern void idem_spi_begin(IdemSecctx *saved);
extern void idem_spi_begin_as(IdemSecctx *saved, Oid owner);
extern void idem_spi_end(const IdemSecctx *saved);
extern uint64 idem_spi_execute(IdemPlan *plan, Datum *values,
							   const char *nulls, bool read_only,
							   long limit);
extern void idem_spi_command(const char *command);
extern Datum idem_spi_value(int row, int column, bool *isnull);
extern void idem_spi_require_types(const Oid *types, int number);
extern int64 idem_spi_number(int column);
extern int64 idem_spi_fetch_number(IdemPlan *plan, Datum *values);

#endif							/* IDEM_BASE_SPI_H */
