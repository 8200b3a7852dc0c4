/*-------------------------------------------------------------------------
 *
 * direct.c
 *	  The direct way to the audit log: writing rows.
 *
 * Does what the executor does for an INSERT (nodeModifyTable.c,
 * execIndexing.c), into a partition that whitelist.c found and passed.  The
 * user stays who he is: nothing runs that he could change.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "executor/tuptable.h"

#include "audit/direct.h"
#include "audit/whitelist.h"
#include "store/entries.h"

static TupleTableSlot *
make_slot(Relation partition, IdemAuditRows *rows, int i)
{
	TupleDesc	desc = RelationGetDescr(partition);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(desc, &TTSOpsVirtual);

	idem_audit_row_choose(rows, i);
	memset(slot->tts_isnull, true, desc->natts * sizeof(bool));
	memcpy(slot->tts_values, rows->values, sizeof(rows->values));
	memcpy(slot->tts_isnull, rows->nulls, sizeof(rows->nulls));
	slot->tts_tableOid = RelationGetRelid(partition);
	return ExecStoreVirtualTuple(slot);
}

static void
insert_rows(Relation partition, TupleTableSlot **slots, int number)
{
	CommandId	command = GetCurrentCommandId(true);
	IdemEntries entries;
	int			i;

	if (number == 1)
		table_tuple_insert(partition, slots[0], command, 0, NULL);
	else
		table_multi_insert(partition, slots, number, command, 0, NULL);

	/*
	 * An id that is there already, after the sequence was set back, is an
	 * error of the index, which shows nothing but the id.
	 */
	idem_entries_open(&entries, partition, UNIQUE_CHECK_YES);
	for (i = 0; i < number; i++)
		(void) idem_entries_insert(&entries, slots[i], false,
								   IDEM_COMPAT_INDEXES_ALL);
	idem_entries_close(&entries);
}

/*
 * idem_audit_direct_insert
 *		Insert rows, if the log is one to which the direct way may be taken;
 *		false if it is not.
 */
bool
idem_audit_direct_insert(IdemAuditRows *rows)
{
	Relation	partition = idem_audit_whitelist_open(rows->at);
	TupleTableSlot *slots[IDEM_AUDIT_MAX_ROWS];
	int			i;

	if (partition == NULL)
		return false;
	for (i = 0; i < rows->number; i++)
		slots[i] = make_slot(partition, rows, i);
	insert_rows(partition, slots, rows->number);
	for (i = 0; i < rows->number; i++)
		ExecDropSingleTupleTableSlot(slots[i]);
	table_close(partition, NoLock);
	CommandCounterIncrement();
	return true;
}
