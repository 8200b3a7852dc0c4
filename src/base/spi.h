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
 *
 * One that is on keys of a scope says which parameter that is, and has %2$s
 * before the column and %3$s before the value: nothing, or, where Citus has
 * distributed the table, the column and parameter of the tenant.  There, one
 * on many keys is planned anew for each tenant.  In one on rows of this node
 * %1$s is what idem_spi_from() was told last.
 */
typedef struct IdemPlan
{
	const char *sql;
	int			nargs;
	const Oid  *argtypes;
	int			scope;			/* counted from 1; 0: of no scope */
	bool		many;			/* of so many keys as it may be */
	const char *from;			/* in TopMemoryContext */
	SPIPlanPtr	plan;
	uint64		generation;		/* of idem_catalog(), that the text is from */
} IdemPlan;

extern Snapshot idem_spi_latest(void);
extern void idem_spi_begin(IdemSecctx *saved);
extern void idem_spi_begin_as(IdemSecctx *saved, Oid owner);
extern void idem_spi_end(const IdemSecctx *saved);
extern void idem_spi_from(IdemPlan *plan, const char *from);
extern uint64 idem_spi_execute(IdemPlan *plan, Datum *values,
							   const char *nulls, bool read_only,
							   long limit);
extern void idem_spi_command(const char *command);
extern Datum idem_spi_value(int row, int column, bool *isnull);
extern void idem_spi_require_types(const Oid *types, int number);
extern int64 idem_spi_number(int column);
extern int64 idem_spi_fetch_number(IdemPlan *plan, Datum *values);

#endif							/* IDEM_BASE_SPI_H */
