/*-------------------------------------------------------------------------
 *
 * entries.c
 *	  Index entries for rows that are written directly.
 *
 * Makes them as ExecInsertIndexTuples() does, for a table whose indexes are
 * all valid and plain, which a whitelist has seen to.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "catalog/index.h"
#include "executor/executor.h"

#include "store/entries.h"

/*
 * idem_entries_open, idem_entries_close
 *		Around the writing of one or more rows, with the table locked.  "check"
 *		is what unique indexes are told.
 */
void
idem_entries_open(IdemEntries *entries, Relation table, IndexUniqueCheck check)
{
	/* what else it can hold, such as copies of triggers, is not for us */
	memset(entries, 0, sizeof(*entries));
	NodeSetTag(&entries->result, T_ResultRelInfo);
	entries->result.ri_RelationDesc = table;
	entries->check = check;
	ExecOpenIndices(&entries->result, false);
}

void
idem_entries_close(IdemEntries *entries)
{
	ExecCloseIndices(&entries->result);
}

/*
 * idem_entries_insert
 *		Entries for a row that was written.  Returns false when a unique index,
 *		told not to wait and not to raise an error (UNIQUE_CHECK_PARTIAL), has
 *		the key already, of another row that lives or whose transaction has not
 *		ended.
 */
bool
idem_entries_insert(const IdemEntries *entries, TupleTableSlot *slot,
					bool update, IdemCompatIndexes indexes)
{
	const ResultRelInfo *result = &entries->result;
	bool		unique = true;
	int			i;

	for (i = 0; i < result->ri_NumIndices; i++)
	{
		Relation	index = result->ri_IndexRelationDescs[i];
		IndexInfo  *info = result->ri_IndexRelationInfo[i];
		bool		is_unique = index->rd_index->indisunique;
		Datum		values[INDEX_MAX_KEYS];
		bool		isnull[INDEX_MAX_KEYS];

		/* a HOT update needs entries only in what summarizes, such as BRIN */
		if (!info->ii_ReadyForInserts ||
			(indexes == IDEM_COMPAT_INDEXES_SUMMARIZING &&
			 !idem_compat_is_summarizing(info)))
			continue;
		FormIndexDatum(info, slot, NULL, values, isnull);
		if (!index_insert(index, values, isnull, &slot->tts_tid,
						  result->ri_RelationDesc,
						  is_unique ? entries->check : UNIQUE_CHECK_NO,
						  update && is_unique, info) && is_unique)
			unique = false;
	}
	return unique;
}
