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

/* Which secrets are looked for. */
typedef struct SecretSearch
{
	const char *purpose;		/* NULL: any */
	int32		key_id;			/* 0: any */
	bool		live;			/* not those that were dropped */
} SecretSearch;

static bool
is_sought(const SecretSearch *search, TupleTableSlot *slot)
{
	Datum	   *values;

	slot_getallattrs(slot);
	values = slot->tts_values;
	return (search->purpose == NULL ||
			strcmp(TextDatumGetCString(values[SECRET_PURPOSE]),
				   search->purpose) == 0) &&
		(search->key_id == 0 ||
		 search->key_id == DatumGetInt32(values[SECRET_KEY_ID])) &&
		(!search->live ||
		 VARSIZE_ANY_EXHDR(DatumGetByteaPP(values[SECRET_SECRET])) > 0);
}

/* Copies of the newest secrets that are looked for; how many. */
static int
find_secrets(Relation table, const SecretSearch *search, IdemSecret *secrets,
			 int max)
{
	Relation	index = index_open(idem_catalog()->secrets_pkey,
								   AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(idem_spi_latest());
	TupleTableSlot *slot = table_slot_create(table, NULL);
	IndexScanDesc scan = idem_compat_index_beginscan(table, index, snapshot,
													 0);
	int			found = 0;

	/*
	 * The key id is the order of creation, whatever the purpose.  With the
	 * latest snapshot: at REPEATABLE READ an older one would not see a secret
	 * that was committed before we had the lock of idem_secret_add(). Nothing
	 * is kept: a secret that was dropped is used by no later statement.
	 */
	index_rescan(scan, NULL, 0, NULL, 0);
	while (found < max &&
		   index_getnext_slot(scan, BackwardScanDirection, slot))
	{
		if (!is_sought(search, slot))
			continue;
		secrets[found].key_id = DatumGetInt32(slot->tts_values[SECRET_KEY_ID]);
		secrets[found++].secret =
			DatumGetByteaPCopy(slot->tts_values[SECRET_SECRET]);
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
 *		Store the next secret of a purpose; returns its key id.  55000 when as
 *		many live as may.
 */
int32
idem_secret_add(const text *purpose, const bytea *secret)
{
	/* to the end of the transaction: key ids are in the order of commits */
	Relation	table = table_open(idem_catalog()->secrets,
								   ShareRowExclusiveLock);
	SecretSearch search = {NULL};
	IdemSecret	secrets[IDEM_MAX_SECRETS] = {{0}};
	int32		key_id;

	/* with those that were dropped: a key id never means another secret */
	(void) find_secrets(table, &search, secrets, 1);
	key_id = secrets[0].key_id + 1;
	search.purpose = text_to_cstring(purpose);
	search.live = true;
	if (find_secrets(table, &search, secrets, lengthof(secrets)) == lengthof(secrets))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("there are %d secrets of purpose \"%s\" already",
						IDEM_MAX_SECRETS, search.purpose),
				 errhint("Drop the oldest, with key id %d, first: see idem_secret_drop().",
						 secrets[IDEM_MAX_SECRETS - 1].key_id)));
	insert_row(table, key_id, purpose, secret);
	CommandCounterIncrement();	/* the next one in this statement sees it */
	table_close(table, NoLock);
	return key_id;
}

/* The row stays, for its key id; no parameter of this is a secret. */
static const Oid drop_types[] = {INT4OID};
static IdemPlan drop_plan = {
	"UPDATE %1$s.idempotency_secrets SET secret = '' WHERE key_id = $1",
	lengthof(drop_types), drop_types
};

/*
 * idem_secret_drop_key
 *		Forget a secret of a purpose; false when none lives with that key id.
 *		40001 when the snapshot of the transaction is too old to see it.
 */
bool
idem_secret_drop_key(const char *purpose, int32 key_id)
{
	Relation	table = table_open(idem_catalog()->secrets,
								   ShareRowExclusiveLock);
	SecretSearch search = {purpose, key_id, true};
	Datum		values[] = {Int32GetDatum(key_id)};
	IdemSecret	secret;
	IdemSecctx	saved;
	bool		found;

	/* 0 would be any of them */
	found = key_id != 0 && find_secrets(table, &search, &secret, 1) > 0;
	if (found)
	{
		/* what somebody put on the table runs as its owner */
		idem_spi_begin_as(&saved, table->rd_rel->relowner);
		if (idem_spi_execute(&drop_plan, values, NULL, false, 0) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("could not serialize access due to a concurrent change of the secrets"),
					 errhint("Repeat the transaction.")));
		idem_spi_end(&saved);
	}
	table_close(table, NoLock);
	return found;
}

/*
 * idem_secret_live
 *		The newest secrets of a purpose, the newest first; how many.
 */
int
idem_secret_live(const char *purpose, IdemSecret *secrets, int max)
{
	Relation	table = table_open(idem_catalog()->secrets, AccessShareLock);
	SecretSearch search = {purpose, 0, true};
	int			found = find_secrets(table, &search, secrets, max);

	table_close(table, AccessShareLock);
	return found;
}

/*
 * idem_secret_get
 *		The secret of a purpose with this key id, empty when it was dropped;
 *		false when there never was one here.
 */
bool
idem_secret_get(const char *purpose, int32 key_id, IdemSecret *secret)
{
	Relation	table = table_open(idem_catalog()->secrets, AccessShareLock);
	SecretSearch search = {purpose, key_id, false};
	bool		found = key_id != 0 &&
	find_secrets(table, &search, secret, 1) > 0;

	table_close(table, AccessShareLock);
	return found;
}
