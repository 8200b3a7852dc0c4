/*-------------------------------------------------------------------------
 *
 * cell.c
 *	  Which partition of the audit log has the rows of which time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "partitioning/partbounds.h"
#include "partitioning/partdesc.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "audit/cell.h"
#include "base/catalog.h"

static TimestampTz
get_bound(PartitionBoundInfo bounds, int i)
{
	switch (bounds->kind[i][0])
	{
		case PARTITION_RANGE_DATUM_MINVALUE:
			return DT_NOBEGIN;
		case PARTITION_RANGE_DATUM_MAXVALUE:
			return DT_NOEND;
		default:
			return DatumGetTimestampTz(bounds->datums[i][0]);
	}
}

/*
 * idem_cell_list
 *		All time, in its order.
 */
IdemCell *
idem_cell_list(int *number)
{
	Relation	log = table_open(idem_catalog()->audit_log, AccessShareLock);
	PartitionDesc desc = RelationGetPartitionDesc(log, true);
	PartitionBoundInfo bounds = desc->boundinfo;
	int			nbounds;
	IdemCell   *cells;
	int			i;

	/*
	 * A bound is where one cell ends and the next one begins, so there is one
	 * cell more.  One without an index is a gap, whose rows are in the
	 * default partition.  If that is detached and there is no other, there
	 * are no bounds at all (t/034_audit_sealing.pl).
	 */
	nbounds = bounds != NULL ? bounds->ndatums : 0;
	cells = palloc(sizeof(IdemCell) * (nbounds + 1));
	for (i = 0; i <= nbounds; i++)
	{
		int			index = nbounds > 0 ? bounds->indexes[i] : -1;

		cells[i].from = i == 0 ? DT_NOBEGIN : get_bound(bounds, i - 1);
		cells[i].to = i == nbounds ? DT_NOEND : get_bound(bounds, i);
		cells[i].partition = index >= 0 ? desc->oids[index] :
			idem_catalog()->audit_default;
	}
	*number = nbounds + 1;
	table_close(log, NoLock);
	return cells;
}

/*
 * idem_cell_find
 *		That of a moment; NULL for the end of time.
 */
const IdemCell *
idem_cell_find(const IdemCell *cells, int number, TimestampTz at)
{
	int			i;

	for (i = 0; i < number; i++)
		if (at >= cells[i].from && at < cells[i].to)
			return &cells[i];
	return NULL;
}
