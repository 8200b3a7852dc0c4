/*-------------------------------------------------------------------------
 *
 * direct_many.c
 *	  The direct way to the key table: many keys of a scope.
 *
 * The keys come sorted, and are worked on in that order.  Owns what makes many
 * cheaper than one at a time: ranges of the index are looked at, rows are
 * written a page at a time, and get their index entries afterwards.  README.md
 * tells who may run when.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/itup.h"
#include "access/stratnum.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/index.h"
#include "catalog/pg_collation.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/bytes.h"
#include "base/compat.h"
#include "store/direct.h"
#include "store/row.h"

/* So many keys are too few to try ranges of them. */
#define FEW_KEYS		64

/* How many keys are looked up one by one after a range that did not pay. */
#define MIN_PATIENCE	64

/* Rows that are written at once: some pages of them. */
#define MAX_BATCH_ROWS	128
#define MAX_BATCH_BYTES	(64 * 1024)

/* A scan of the primary key for ranges of keys. */
typedef struct Look
{
	text	   *scope;
	Relation	index;
	IndexScanDesc scan;
	Snapshot	snapshot;		/* that rows are fetched with */
	TupleTableSlot *slot;
	ScanKeyData bounds[3];		/* scope, lowest and highest key */
	text	   *claimed_by;		/* of the last row found, */
	text	   *policy;			/* which most rows share */
} Look;

static void
begin_look(Look *look, const IdemStore *store, text *scope)
{
	look->scope = scope;
	look->claimed_by = NULL;
	look->policy = NULL;
	look->snapshot = idem_direct_push_snapshot();
	look->index = index_open(store->pkey, store->lockmode);
	look->slot = table_slot_create(store->keys, NULL);

	/* as in idem_direct_find(): those that are not there get inserted */
	look->scan = idem_compat_index_beginscan(store->keys, look->index,
											 IsolationIsSerializable() ?
											 SnapshotAny : look->snapshot,
											 lengthof(look->bounds));
	/* entries are told apart by their keys */
	look->scan->xs_want_itup = true;
	ScanKeyEntryInitialize(&look->bounds[0], 0, 1, BTEqualStrategyNumber,
						   InvalidOid, C_COLLATION_OID, F_TEXTEQ,
						   PointerGetDatum(scope));
	ScanKeyEntryInitialize(&look->bounds[1], 0, 2, BTGreaterEqualStrategyNumber,
						   InvalidOid, C_COLLATION_OID, F_TEXT_GE, (Datum) 0);
	ScanKeyEntryInitialize(&look->bounds[2], 0, 2, BTLessEqualStrategyNumber,
						   InvalidOid, C_COLLATION_OID, F_TEXT_LE, (Datum) 0);
}

static void
end_look(Look *look)
{
	index_endscan(look->scan);
	ExecDropSingleTupleTableSlot(look->slot);
	index_close(look->index, NoLock);
	PopActiveSnapshot();
}

/* A text of a row that is still on its page, copied if it is another. */
static text *
keep_text(text *last, text *value)
{
	text	   *copy;

	if (last != NULL &&
		idem_bytes_compare(idem_bytes_of(last), idem_bytes_of(value)) == 0)
		return last;
	copy = palloc(VARSIZE_ANY(value));
	memcpy(copy, value, VARSIZE_ANY(value));
	return copy;
}

/* The row that an entry of the key leads to, if the snapshot shows it. */
static void
read_item(Look *look, IdemStoreItem *item)
{
	TupleTableSlot *slot = look->slot;
	IdemKey		id = {look->scope, item->key};
	IdemRow		row;

	if (!idem_compat_fetch_heap(look->scan, look->snapshot, slot))
		return;
	if (item->found)
		idem_store_row_raise_twins(&id);
	slot_getallattrs(slot);
	if (!idem_store_row_is(&id, slot->tts_values))
		return;
	idem_store_row_form(&row, slot->tts_values, slot->tts_isnull);
	look->claimed_by = keep_text(look->claimed_by, row.claimed_by);
	look->policy = row.policy == NULL ? NULL :
		keep_text(look->policy, row.policy);
	item->found = true;
	item->state = row.state;
	item->expires_at = row.expires_at;
	item->purge_at = row.purge_at;
	item->claimed_by = look->claimed_by;
	item->policy = look->policy;
}

/* The order of a key and of the one that the scan is at. */
static int
compare_with_entry(const Look *look, const IdemStoreItem *item)
{
	bool		isnull;
	Datum		value = index_getattr(look->scan->xs_itup, 2,
									  look->scan->xs_itupdesc, &isnull);
	text	   *key = DatumGetTextPP(value);
	int			order = idem_bytes_compare(idem_bytes_of(item->key),
										   idem_bytes_of(key));

	if ((Pointer) key != DatumGetPointer(value))
		pfree(key);				/* a long one is compressed */
	return order;
}

/*
 * Look at some keys by one range; returns how many of them, from the first on,
 * have been looked at.  The others lie behind an entry of a key that was not
 * asked for.
 */
static int
look_at_range(Look *look, IdemStoreItem **items, int number)
{
	int			i = 0;

	CHECK_FOR_INTERRUPTS();
	look->bounds[1].sk_argument = PointerGetDatum(items[0]->key);
	look->bounds[2].sk_argument = PointerGetDatum(items[number - 1]->key);
	index_rescan(look->scan, look->bounds, lengthof(look->bounds), NULL, 0);
	while (index_getnext_tid(look->scan, ForwardScanDirection) != NULL)
	{
		int			order = -1;

		while (i < number &&
			   (order = compare_with_entry(look, items[i])) < 0)
			i++;				/* has no entry */
		if (order != 0)
			return i;
		items[i]->traced = true;
		read_item(look, items[i]);
	}
	return number;
}

/*
 * idem_direct_read_many
 *		Look at many keys; see idem_store_read_many().
 *
 * Keys that grow with time have few entries of others between them, and mostly
 * none: then one descent of the index tells of a whole range of keys that there
 * is nothing.  Where there is something, the scan reads a page of the index for
 * it, which costs as much as several descents; so ranges grow from one key, and
 * one that did not pay is not tried again soon.
 */
void
idem_direct_read_many(IdemStore *store, text *scope, IdemStoreItem **items,
					  int number)
{
	Look		look;
	int			width = 1;
	int			patience = number < FEW_KEYS ? number : 0;
	int			more_patience = MIN_PATIENCE;
	int			i;

	for (i = 0; i < number; i++)
		items[i]->found = items[i]->traced = false;
	begin_look(&look, store, scope);
	i = 0;
	while (i < number)
	{
		int			wanted = Min(width, number - i);
		int			got = look_at_range(&look, &items[i], wanted);

		i += got;
		if (got < wanted)
		{
			width = 1;
			patience = more_patience;
			more_patience *= 2;
		}
		else if (patience > 0)
			patience--;
		else
			width *= 2;
	}
	end_look(&look);
}

/* An insertion of many keys. */
typedef struct Insertion
{
	IdemStore  *store;
	IdemKey		id;				/* of the row at hand */
	TupleTableSlot *values;		/* of all rows: only the key differs */
	IdemEntries entries;
	TupleTableSlot **slots;		/* of a batch; made when they are needed */
	int			nslots;
	MemoryContext context;		/* of a batch */
	CommandId	cid;			/* that the batch is inserted with */
	bool		alone;			/* no batches */
	bool		careful;		/* rivals are about: look before each key */
} Insertion;

static void
begin_insertion(Insertion *insertion, IdemStore *store, text *scope,
				const IdemRow *row)
{
	memset(insertion, 0, sizeof(*insertion));
	insertion->store = store;
	insertion->id.scope = scope;
	insertion->values = idem_direct_make_slot(store, &insertion->id, row);
	insertion->slots = palloc(sizeof(TupleTableSlot *) * MAX_BATCH_ROWS);
	insertion->context = AllocSetContextCreate(CurrentMemoryContext,
											   "idempotency keys to insert",
											   ALLOCSET_DEFAULT_SIZES);

	/*
	 * A subscriber would be sent the insertion of a row that is taken back,
	 * too, and refuse it.  Spec: t/012_subscriber.pl.
	 */
	insertion->alone = RelationIsLogicallyLogged(store->keys);
	idem_entries_open(&insertion->entries, store->keys, UNIQUE_CHECK_PARTIAL);
}

static void
end_insertion(Insertion *insertion)
{
	int			i;

	for (i = 0; i < insertion->nslots; i++)
		ExecDropSingleTupleTableSlot(insertion->slots[i]);
	pfree(insertion->slots);
	idem_entries_close(&insertion->entries);
	ExecDropSingleTupleTableSlot(insertion->values);
	MemoryContextDelete(insertion->context);
	CommandCounterIncrement();
}

static void
set_key(Insertion *insertion, text *key)
{
	insertion->id.key = key;
	insertion->values->tts_values[COLUMN_KEY] = PointerGetDatum(key);
}

/*
 * Insert a key for itself, waiting for rivals: no key above it has been.
 * Speculatively, so that no row is left when a rival was faster.
 */
static void
insert_alone(Insertion *insertion, IdemStoreItem *item)
{
	bool		look = item->traced || insertion->careful;
	int			tries;

	set_key(insertion, item->key);
	for (tries = 0; tries < IDEM_MAX_TRIES; tries++)
	{
		CHECK_FOR_INTERRUPTS();
		if (look &&
			idem_direct_find_rival(insertion->store, &insertion->id, true,
								   NULL) == IDEM_RIVAL_COMMITTED)
		{
			if (IsolationUsesXactSnapshot())
				idem_store_row_raise_rival();
			return;
		}
		item->inserted = idem_direct_insert_slot(insertion->store,
												 &insertion->id,
												 insertion->values,
												 &insertion->entries);
		if (item->inserted)
			return;
		look = true;
	}
	idem_store_row_raise_rival();
}

/*
 * Whether a key may be in a batch.  Others can still come in between, whom the
 * index will tell of; a row is spared.
 */
static bool
may_join(Insertion *insertion, const IdemStoreItem *item)
{
	if (insertion->alone)
		return false;
	if (!item->traced && !insertion->careful)
		return true;
	insertion->id.key = item->key;
	return idem_direct_find_rival(insertion->store, &insertion->id, false,
								  NULL) == IDEM_RIVAL_NONE;
}

/* The place for a row of a batch, which outlives the batch. */
static TupleTableSlot *
get_slot(Insertion *insertion, int number)
{
	MemoryContext old;

	if (number == insertion->nslots)
	{
		old = MemoryContextSwitchTo(MemoryContextGetParent(insertion->context));
		insertion->slots[insertion->nslots++] =
			MakeSingleTupleTableSlot(RelationGetDescr(insertion->store->keys),
									 &TTSOpsHeapTuple);
		MemoryContextSwitchTo(old);
	}
	return insertion->slots[number];
}

/* Form the rows of a batch; returns how many. */
static int
fill_batch(Insertion *insertion, IdemStoreItem **items, int number)
{
	TupleDesc	desc = RelationGetDescr(insertion->store->keys);
	TupleTableSlot *values = insertion->values;
	Size		bytes = 0;
	int			i;

	for (i = 0; i < Min(number, MAX_BATCH_ROWS) && bytes < MAX_BATCH_BYTES &&
		 may_join(insertion, items[i]); i++)
	{
		HeapTuple	tuple;

		set_key(insertion, items[i]->key);
		tuple = heap_form_tuple(desc, values->tts_values, values->tts_isnull);
		bytes += tuple->t_len;
		ExecStoreHeapTuple(tuple, get_slot(insertion, i), true);
	}
	return i;
}

/*
 * The entry of a row in one index; false when that is the unique one and has
 * the key of another row that may live.
 */
static bool
insert_entry(Insertion *insertion, int number, IdemStoreItem *item,
			 const TupleTableSlot *slot)
{
	Relation	index = insertion->entries.result.ri_IndexRelationDescs[number];
	IndexInfo  *info = insertion->entries.result.ri_IndexRelationInfo[number];
	ItemPointerData tid = slot->tts_tid;
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];

	set_key(insertion, item->key);
	FormIndexDatum(info, insertion->values, NULL, values, isnull);
	return index_insert(index, values, isnull, &tid, insertion->store->keys,
						index->rd_index->indisunique ?
						UNIQUE_CHECK_PARTIAL : UNIQUE_CHECK_NO,
						false, info) || !index->rd_index->indisunique;
}

/*
 * Give the rows of a batch their entries in the primary key, in order: when a
 * rival is met no row above has one, so that he can be waited for.
 */
static void
insert_keys(Insertion *insertion, int pkey, IdemStoreItem **items, int number)
{
	int			i;

	for (i = 0; i < number; i++)
	{
		TupleTableSlot *slot = insertion->slots[i];

		CHECK_FOR_INTERRUPTS();
		items[i]->inserted = insert_entry(insertion, pkey, items[i], slot) ||
			idem_direct_find_rival(insertion->store, &insertion->id, false,
								   &slot->tts_tid) == IDEM_RIVAL_NONE;
		if (items[i]->inserted)
			continue;

		/*
		 * Before the wait: the rival may have met our entry as we have met
		 * his, and must not wait for us then.  Specs: dedupe-many,
		 * ways-dedupe.
		 */
		idem_direct_take_back(insertion->store, slot, insertion->cid);
		insertion->careful = true;
		insert_alone(insertion, items[i]);
	}
}

/* Write the rows of a batch, and their index entries. */
static void
write_batch(Insertion *insertion, IdemStoreItem **items, int number)
{
	Oid			pkey = insertion->store->pkey;
	ResultRelInfo *indexes = &insertion->entries.result;
	int			i;
	int			j;

	insertion->cid = GetCurrentCommandId(true);
	table_multi_insert(insertion->store->keys, insertion->slots, number,
					   insertion->cid, 0, NULL);
	for (i = 0; i < indexes->ri_NumIndices; i++)
		if (RelationGetRelid(indexes->ri_IndexRelationDescs[i]) == pkey)
			insert_keys(insertion, i, items, number);

	/* rows that were taken back, too: who reads the heap expects entries */
	for (i = 0; i < indexes->ri_NumIndices; i++)
	{
		if (RelationGetRelid(indexes->ri_IndexRelationDescs[i]) == pkey ||
			!indexes->ri_IndexRelationInfo[i]->ii_ReadyForInserts)
			continue;
		for (j = 0; j < number; j++)
			(void) insert_entry(insertion, i, items[j], insertion->slots[j]);
	}
	for (i = 0; i < number; i++)
		ExecClearTuple(insertion->slots[i]);
}

/*
 * idem_direct_insert_many
 *		Insert a row for each of many keys; see idem_store_insert_many().
 */
void
idem_direct_insert_many(IdemStore *store, text *scope, IdemStoreItem **items,
						int number, const IdemRow *row)
{
	Insertion	insertion;
	MemoryContext old;
	int			i;

	for (i = 0; i < number; i++)
		items[i]->inserted = false;
	begin_insertion(&insertion, store, scope, row);
	old = MemoryContextSwitchTo(insertion.context);
	i = 0;
	while (i < number)
	{
		int			rows = fill_batch(&insertion, &items[i], number - i);

		if (rows > 0)
			write_batch(&insertion, &items[i], rows);
		else
			insert_alone(&insertion, items[i++]);
		i += rows;
		MemoryContextReset(insertion.context);
	}
	MemoryContextSwitchTo(old);
	end_insertion(&insertion);
}
