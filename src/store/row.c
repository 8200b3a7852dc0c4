/*-------------------------------------------------------------------------
 *
 * row.c
 *	  The columns of the key table, and a row of it as C sees it.
 *
 * Owns their order, names and types, and the errors for rows that must not
 * be; both ways to the table use them.  No table is touched here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/stratnum.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "utils/fmgroids.h"

#include "base/bytes.h"
#include "base/digest.h"
#include "store/row.h"

#define FIELD(name) offsetof(IdemRow, name)

const IdemColumnShape idem_store_columns[IDEM_NUM_COLUMNS] = {
	[COLUMN_CREATED_AT] = {"created_at", TIMESTAMPTZOID, true, KIND_INT64, FIELD(created_at)},
	[COLUMN_EXPIRES_AT] = {"expires_at", TIMESTAMPTZOID, true, KIND_INT64, FIELD(expires_at)},
	[COLUMN_PURGE_AT] = {"purge_at", TIMESTAMPTZOID, true, KIND_INT64, FIELD(purge_at)},
	[COLUMN_CLAIM_XID] = {"claim_xid", XID8OID, true, KIND_INT64, FIELD(claim_xid)},
	[COLUMN_FINISHED_AT] = {"finished_at", TIMESTAMPTZOID, false, KIND_INT64, FIELD(finished_at), DT_NOBEGIN},
	[COLUMN_LEASE_UNTIL] = {"lease_until", TIMESTAMPTZOID, false, KIND_INT64, FIELD(lease_until), DT_NOBEGIN},
	[COLUMN_TOKEN] = {"token", INT8OID, false, KIND_INT64, FIELD(token), IDEM_NO_TOKEN},
	[COLUMN_TTL] = {"ttl", INT8OID, false, KIND_INT64, FIELD(ttl), -1},
	[COLUMN_BODY_SIZE] = {"body_size", INT8OID, false, KIND_INT64, FIELD(body_size), -1},
	[COLUMN_ATTEMPT] = {"attempt", INT4OID, false, KIND_INT32, FIELD(attempt), 1},
	[COLUMN_STATUS_CODE] = {"status_code", INT4OID, false, KIND_INT32, FIELD(status_code), IDEM_STATUS_OK},
	[COLUMN_STATE] = {"state", CHAROID, true, KIND_STATE, FIELD(state)},
	[COLUMN_SCOPE] = {"scope", TEXTOID, true, KIND_NAME},
	[COLUMN_KEY] = {"key", TEXTOID, true, KIND_NAME},
	[COLUMN_POLICY] = {"policy", TEXTOID, false, KIND_VALUE, FIELD(policy)},
	[COLUMN_CLAIMED_BY] = {"claimed_by", TEXTOID, true, KIND_VALUE, FIELD(claimed_by)},
	[COLUMN_OWNER] = {"owner", UUIDOID, false, KIND_STORED, FIELD(owner)},
	[COLUMN_FINGERPRINT] = {"fingerprint", BYTEAOID, false, KIND_VALUE, FIELD(fingerprint)},
	[COLUMN_CONTEXT] = {"context", BYTEAOID, false, KIND_VALUE, FIELD(context)},
	[COLUMN_HEADERS] = {"headers", JSONOID, false, KIND_STORED, FIELD(headers)},
	[COLUMN_CONTENT_TYPE] = {"content_type", TEXTOID, false, KIND_STORED, FIELD(content_type)},
	[COLUMN_BODY_SHA256] = {"body_sha256", BYTEAOID, false, KIND_STORED, FIELD(body_sha256)},
	[COLUMN_BODY] = {"body", BYTEAOID, false, KIND_STORED, FIELD(body)},
	[COLUMN_RECOVERY_POINT] = {"recovery_point", TEXTOID, false, KIND_STORED, FIELD(recovery_point)},
	[COLUMN_CHECKPOINT] = {"checkpoint", JSONBOID, false, KIND_STORED, FIELD(checkpoint)}
};

/*
 * idem_store_row_form
 *		The row that the values stand for, those of scope and key excepted.
 *		Pointers into what they point to.
 */
void
idem_store_row_form(IdemRow *row, const Datum *values, const bool *nulls)
{
	int			i;

	for (i = 0; i < IDEM_NUM_COLUMNS; i++)
	{
		const IdemColumnShape *column = &idem_store_columns[i];
		void	   *field = (char *) row + column->offset;

		switch (column->kind)
		{
			case KIND_NAME:
				break;
			case KIND_STATE:
				*(IdemState *) field = (IdemState) DatumGetChar(values[i]);
				break;
			case KIND_INT32:
				*(int32 *) field = nulls[i] ? (int32) column->null :
					DatumGetInt32(values[i]);
				break;
			case KIND_INT64:
				*(int64 *) field = nulls[i] ? column->null :
					DatumGetInt64(values[i]);
				break;
			case KIND_VALUE:
				*(void **) field = nulls[i] ? NULL :
					PG_DETOAST_DATUM_PACKED(values[i]);
				break;
			case KIND_STORED:
				*(void **) field = nulls[i] ? NULL : DatumGetPointer(values[i]);
				break;
		}
	}
}

/*
 * idem_store_row_values
 *		The values of a row, to be written.
 */
void
idem_store_row_values(const IdemKey *id, const IdemRow *row, Datum *values,
					  bool *nulls)
{
	int			i;

	memset(nulls, false, IDEM_NUM_COLUMNS * sizeof(bool));
	values[COLUMN_SCOPE] = PointerGetDatum(id->scope);
	values[COLUMN_KEY] = PointerGetDatum(id->key);
	for (i = 0; i < IDEM_NUM_COLUMNS; i++)
	{
		const IdemColumnShape *column = &idem_store_columns[i];
		const void *field = (const char *) row + column->offset;

		switch (column->kind)
		{
			case KIND_NAME:
				break;
			case KIND_STATE:
				values[i] = CharGetDatum(*(const IdemState *) field);
				break;
			case KIND_INT32:
				values[i] = Int32GetDatum(*(const int32 *) field);
				nulls[i] = !column->not_null &&
					*(const int32 *) field == column->null;
				break;
			case KIND_INT64:
				values[i] = Int64GetDatum(*(const int64 *) field);
				nulls[i] = !column->not_null &&
					*(const int64 *) field == column->null;
				break;
			case KIND_VALUE:
			case KIND_STORED:
				values[i] = PointerGetDatum(*(void *const *) field);
				nulls[i] = *(void *const *) field == NULL;
				break;
		}
	}
}

/*
 * idem_store_row_is
 *		Whether the values are those of this key.
 */
bool
idem_store_row_is(const IdemKey *id, const Datum *values)
{
	return idem_bytes_equal(idem_bytes_of(DatumGetTextPP(values[COLUMN_SCOPE])),
							idem_bytes_of(id->scope)) &&
		idem_bytes_equal(idem_bytes_of(DatumGetTextPP(values[COLUMN_KEY])),
						 idem_bytes_of(id->key));
}

/*
 * idem_store_row_scan_keys
 *		To find a key in an index on (scope, key).
 */
void
idem_store_row_scan_keys(const IdemKey *id, ScanKeyData entries[2])
{
	ScanKeyEntryInitialize(&entries[0], 0, 1, BTEqualStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXTEQ,
						   PointerGetDatum(id->scope));
	ScanKeyEntryInitialize(&entries[1], 0, 2, BTEqualStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXTEQ,
						   PointerGetDatum(id->key));
}

/*
 * idem_store_row_raise_twins
 *		Two rows for one key: somebody dropped the primary key; XX001.
 */
void
idem_store_row_raise_twins(const IdemKey *id)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("more than one row for %s",
					idem_digest_key(id)),
			 errhint("Restore the primary key of \"%s\"; see idem_health().",
					 "idempotency_keys")));
}

/*
 * idem_store_row_raise_suppressed
 *		A row was neither written nor is there another: somebody has been at it,
 *		a trigger, a rule, a unique index of a user's, a handler; XX001.
 */
void
idem_store_row_raise_suppressed(const IdemKey *id)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("a change of %s was suppressed",
					idem_digest_key(id)),
			 errhint("Drop foreign triggers, rules and unique indexes on \"%s\"; see idem_health().",
					 "idempotency_keys")));
}

/*
 * idem_store_row_raise_rival
 *		A row that the snapshot cannot see, or that must not be there; 40001.
 */
void
idem_store_row_raise_rival(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not serialize access due to a concurrent write of the same key"),
			 errhint("Repeat the whole transaction with the same key.")));
}
