/*-------------------------------------------------------------------------
 *
 * secret_rows.c
 *	  The table of secrets.
 *
 * Reads and writes idempotency_secrets by table access and never by SQL: a
 * parameter of a statement may be logged (auto_explain writes those of nested
 * statements, too).  The table belongs to us and has one index and no
 * trigger; its few rows are short, so none is toasted.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/catalog.h"
#include "base/spi.h"
#include "store/store.h"

typedef enum SecretColumn
{
	SECRET_KEY_ID,
	SECRET_PURPOSE,
	SECRET_SECRET,
	SECRET_CREATED_AT
} SecretColumn;

#define SECRET_COLUMNS (SECRET_CREATED_AT + 1)

static int32
key_id_of(Relation table, HeapTuple tuple)
{
	bool		isnull;

	return DatumGetInt32(heap_getattr(tuple, SECRET_KEY_ID + 1,
									  RelationGetDescr(table), &isnull));
}

/*
 * The newest row of a purpose, any purpose if that is NULL, with this key id
 * unless it is 0; a copy.  The key id is the order of creation, whatever the
 * purpose.
 */
static HeapTuple
find_newest(Relation table, const char *purpose, int32 key_id)
{
	Oid			indexid = idem_catalog()->secrets_pkey;
	Relation	index = index_open(indexid, AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(idem_store_spi_latest());
	HeapTuple	result = NULL;
	SysScanDesc scan;
	HeapTuple	tuple;

	scan = systable_beginscan_ordered(table, index, snapshot, 0, NULL);
	while (result == NULL)
	{
		bool		isnull;
		Datum		value;

		tuple = systable_getnext_ordered(scan, BackwardScanDirection);
		if (!HeapTupleIsValid(tuple))
			break;
		value = heap_getattr(tuple, SECRET_PURPOSE + 1,
							 RelationGetDescr(table), &isnull);
		if ((purpose == NULL ||
			 strcmp(TextDatumGetCString(value), purpose) == 0) &&
			(key_id == 0 || key_id == key_id_of(table, tuple)))
			result = heap_copytuple(tuple);
	}
	systable_endscan_ordered(scan);
	UnregisterSnapshot(snapshot);
	index_close(index, AccessShareLock);
	return result;
}

/*
 * idem_store_secret_add
 *		Store the next secret of a purpose; returns its key id.
 *
 * Holds SHARE ROW EXCLUSIVE to the end of the transaction: ids have an order.
 */
int32
idem_store_secret_add(const text *purpose, const bytea *secret)
{
	Relation	table = table_open(idem_catalog()->secrets,
								   ShareRowExclusiveLock);
	HeapTuple	newest = find_newest(table, NULL, 0);
	int32		key_id = newest == NULL ? 1 : key_id_of(table, newest) + 1;
	Datum		values[SECRET_COLUMNS];
	bool		nulls[SECRET_COLUMNS] = {0};

	values[SECRET_KEY_ID] = Int32GetDatum(key_id);
	values[SECRET_PURPOSE] = PointerGetDatum(purpose);
	values[SECRET_SECRET] = PointerGetDatum(secret);
	values[SECRET_CREATED_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	CatalogTupleInsert(table, heap_form_tuple(RelationGetDescr(table),
											  values, nulls));
	CommandCounterIncrement();	/* the next one in this statement sees it */
	table_close(table, NoLock);
	return key_id;
}

static bytea *
copy_secret(Relation table, HeapTuple tuple)
{
	bool		isnull;

	return DatumGetByteaPCopy(heap_getattr(tuple, SECRET_SECRET + 1,
										   RelationGetDescr(table), &isnull));
}

/*
 * idem_store_secret_newest
 *		The newest secret of a purpose and its key id, or NULL.
 */
bytea *
idem_store_secret_newest(const char *purpose, int32 *key_id)
{
	Relation	table = table_open(idem_catalog()->secrets, AccessShareLock);
	HeapTuple	tuple = find_newest(table, purpose, 0);
	bytea	   *secret = NULL;

	if (tuple != NULL)
	{
		*key_id = key_id_of(table, tuple);
		secret = copy_secret(table, tuple);
	}
	table_close(table, AccessShareLock);
	return secret;
}

/*
 * idem_store_secret_get
 *		The secret of a purpose with this key id, or NULL.
 */
bytea *
idem_store_secret_get(const char *purpose, int32 key_id)
{
	Relation	table = table_open(idem_catalog()->secrets, AccessShareLock);
	HeapTuple	tuple = key_id > 0 ? find_newest(table, purpose, key_id) : NULL;
	bytea	   *secret = tuple != NULL ? copy_secret(table, tuple) : NULL;

	table_close(table, AccessShareLock);
	return secret;
}
