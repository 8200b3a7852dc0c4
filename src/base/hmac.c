/*-------------------------------------------------------------------------
 *
 * hmac.c
 *	  HMACs with keys that are derived from the secrets, and their table.
 *
 * HMAC is that of pgcrypto's own library (foreign.c), which a superuser and
 * the worker call, too; nothing of it passes through SQL.
 *
 * Neither does a secret: a parameter of a statement may be logged, and
 * auto_explain logs those of nested statements.  So idempotency_secrets is
 * read and written by table access, as the executor does it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/catalog.h"
#include "base/compat.h"
#include "base/hmac.h"
#include "base/spi.h"

typedef enum SecretColumn
{
	SECRET_KEY_ID,
	SECRET_PURPOSE,
	SECRET_SECRET,
	SECRET_CREATED_AT
} SecretColumn;

static IdemForeign pgcrypto_hmac = {
	"pgcrypto", "$libdir/pgcrypto", "hmac", "pg_hmac", 3,
	{BYTEAOID, BYTEAOID, TEXTOID}
};

/*
 * idem_hmac_exists
 *		Whether there is pgcrypto's own hmac(bytea, bytea, text), wherever it
 *		lives.
 */
bool
idem_hmac_exists(void)
{
	return OidIsValid(idem_foreign_look_up(&pgcrypto_hmac));
}

static bytea *
compute_hmac(const void *data, int len, bytea *key)
{
	FmgrInfo	hmac;
	bytea	   *message = palloc(VARHDRSZ + len);

	if (!idem_foreign_load(&pgcrypto_hmac, &hmac))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("function hmac(bytea, bytea, text) of extension \"pgcrypto\" not found"),
				 errdetail("Only the function of pgcrypto's own library will do."),
				 errhint("Create extension \"pgcrypto\" in this database.")));
	SET_VARSIZE(message, VARHDRSZ + len);
	memcpy(VARDATA(message), data, len);
	return DatumGetByteaPP(FunctionCall3(&hmac, PointerGetDatum(message),
										 PointerGetDatum(key),
										 CStringGetTextDatum("sha256")));
}

/*
 * idem_hmac
 *		HMAC-SHA256 of some bytes with the key of a secret for one use; 55000
 *		without pgcrypto.
 */
bytea *
idem_hmac(const void *data, int len, bytea *secret, const char *use)
{
	/*
	 * A secret is never used itself: each use has a key derived from it, so
	 * that what is made for one says nothing in another.
	 */
	return compute_hmac(data, len, compute_hmac(use, strlen(use), secret));
}

/*
 * A copy of the newest secret of a purpose, of any purpose if that is NULL; of
 * the one with this key id unless it is 0, and its key id.  NULL when there is
 * none.
 */
static bytea *
find_secret(Relation table, const char *purpose, int32 *key_id)
{
	Relation	index = index_open(idem_catalog()->secrets_pkey,
								   AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(idem_spi_latest());
	TupleTableSlot *slot = table_slot_create(table, NULL);
	IndexScanDesc scan = idem_compat_index_beginscan(table, index, snapshot,
													 0);
	bytea	   *found = NULL;

	/*
	 * The key id is the order of creation, whatever the purpose.  With the
	 * latest snapshot: at REPEATABLE READ an older one would not see a secret
	 * that was committed before we had the lock of idem_secret_add().
	 */
	index_rescan(scan, NULL, 0, NULL, 0);
	while (found == NULL &&
		   index_getnext_slot(scan, BackwardScanDirection, slot))
	{
		Datum	   *values = slot->tts_values;

		slot_getallattrs(slot);
		if ((purpose != NULL && strcmp(TextDatumGetCString(values[SECRET_PURPOSE]), purpose) != 0) ||
			(*key_id != 0 && *key_id != DatumGetInt32(values[SECRET_KEY_ID])))
			continue;
		*key_id = DatumGetInt32(values[SECRET_KEY_ID]);
		found = DatumGetByteaPCopy(values[SECRET_SECRET]);
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
	index_close(index, AccessShareLock);
	return found;
}

static void
insert_row(Relation table, int32 key_id, const text *purpose,
		   const bytea *secret)
{
	EState	   *estate = CreateExecutorState();
	ResultRelInfo *result = makeNode(ResultRelInfo);
	TupleTableSlot *slot = table_slot_create(table, &estate->es_tupleTable);

	ExecStoreAllNullTuple(slot);
	memset(slot->tts_isnull, false, sizeof(bool) * (SECRET_CREATED_AT + 1));
	slot->tts_values[SECRET_KEY_ID] = Int32GetDatum(key_id);
	slot->tts_values[SECRET_PURPOSE] = PointerGetDatum(purpose);
	slot->tts_values[SECRET_SECRET] = PointerGetDatum(secret);
	slot->tts_values[SECRET_CREATED_AT] =
		TimestampTzGetDatum(GetCurrentTimestamp());

	/*
	 * As logical replication inserts a row, so that whatever a superuser has
	 * added to the table is seen to; there is no range table, hence 0.
	 */
	InitResultRelInfo(result, table, 0, NULL, 0);
	ExecOpenIndices(result, false);
	ExecSimpleRelationInsert(result, estate, slot);
	ExecCloseIndices(result);
	ExecResetTupleTable(estate->es_tupleTable, false);
	FreeExecutorState(estate);
}

/*
 * idem_secret_add
 *		Store the next secret of a purpose; returns its key id.
 */
int32
idem_secret_add(const text *purpose, const bytea *secret)
{
	/* to the end of the transaction: key ids are in the order of commits */
	Relation	table = table_open(idem_catalog()->secrets,
								   ShareRowExclusiveLock);
	int32		key_id = 0;

	(void) find_secret(table, NULL, &key_id);
	insert_row(table, ++key_id, purpose, secret);
	CommandCounterIncrement();	/* the next one in this statement sees it */
	table_close(table, NoLock);
	return key_id;
}

/*
 * idem_secret_get
 *		The secret of a purpose with this key id, or NULL; the newest for 0,
 *		and its key id.
 */
bytea *
idem_secret_get(const char *purpose, int32 *key_id)
{
	Relation	table = table_open(idem_catalog()->secrets, AccessShareLock);
	bytea	   *secret = find_secret(table, purpose, key_id);

	table_close(table, AccessShareLock);
	return secret;
}
