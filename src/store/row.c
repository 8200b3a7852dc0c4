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

#include "catalog/pg_type.h"

#include "base/digest.h"
#include "store/row.h"

const IdemColumnShape idem_store_row_shape[IDEM_NUM_COLUMNS] = {
	[COLUMN_SCOPE] = {"scope", true},
	[COLUMN_KEY] = {"key", true},
	[COLUMN_STATE] = {"state", true},
	[COLUMN_ATTEMPT] = {"attempt", true},
	[COLUMN_TOKEN] = {"token", true},
	[COLUMN_CLAIM_XID] = {"claim_xid", true},
	[COLUMN_CREATED_AT] = {"created_at", true},
	[COLUMN_FINISHED_AT] = {"finished_at", false},
	[COLUMN_LEASE_UNTIL] = {"lease_until", true},
	[COLUMN_EXPIRES_AT] = {"expires_at", true},
	[COLUMN_PURGE_AT] = {"purge_at", true},
	[COLUMN_TTL] = {"ttl", false},
	[COLUMN_STATUS_CODE] = {"status_code", false},
	[COLUMN_OWNER] = {"owner", false},
	[COLUMN_POLICY] = {"policy", true},
	[COLUMN_CLAIMED_BY] = {"claimed_by", true},
	[COLUMN_FINGERPRINT] = {"fingerprint", false},
	[COLUMN_CONTEXT] = {"context", false},
	[COLUMN_HEADERS] = {"headers", false},
	[COLUMN_CONTENT_TYPE] = {"content_type", false},
	[COLUMN_BODY_SIZE] = {"body_size", false},
	[COLUMN_BODY_SHA256] = {"body_sha256", false},
	[COLUMN_BODY] = {"body", false},
	[COLUMN_RECOVERY_POINT] = {"recovery_point", false},
	[COLUMN_CHECKPOINT] = {"checkpoint", false}
};

const Oid	idem_store_row_types[IDEM_NUM_COLUMNS] = {
	TEXTOID, TEXTOID, CHAROID, INT4OID, INT8OID, XID8OID, TIMESTAMPTZOID,
	TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID,
	INT4OID, UUIDOID, TEXTOID, TEXTOID, BYTEAOID, BYTEAOID, JSONOID, TEXTOID,
	INT8OID, BYTEAOID, BYTEAOID, TEXTOID, JSONBOID
};

/* As it was read, toast pointers included. */
static void *
as_read(const Datum *values, const bool *nulls, IdemColumn column)
{
	return nulls[column] ? NULL : DatumGetPointer(values[column]);
}

/* For columns that are decided upon. */
static void *
detoasted(const Datum *values, const bool *nulls, IdemColumn column)
{
	return nulls[column] ? NULL : PG_DETOAST_DATUM_PACKED(values[column]);
}

#define FIXED(column, get, if_null) \
	(nulls[column] ? (if_null) : get(values[column]))

/*
 * idem_store_row_form
 *		The row that the values stand for, those of scope and key excepted.
 *		Pointers into what they point to.
 */
void
idem_store_row_form(IdemRow *row, const Datum *values, const bool *nulls)
{
	row->state = (IdemState) FIXED(COLUMN_STATE, DatumGetChar, 0);
	row->attempt = FIXED(COLUMN_ATTEMPT, DatumGetInt32, 0);
	row->token = FIXED(COLUMN_TOKEN, DatumGetInt64, 0);
	row->claim_xid = FIXED(COLUMN_CLAIM_XID, DatumGetUInt64, 0);
	row->created_at = FIXED(COLUMN_CREATED_AT, DatumGetTimestampTz, 0);
	row->finished_at = FIXED(COLUMN_FINISHED_AT, DatumGetTimestampTz,
							 DT_NOBEGIN);
	row->lease_until = FIXED(COLUMN_LEASE_UNTIL, DatumGetTimestampTz, 0);
	row->expires_at = FIXED(COLUMN_EXPIRES_AT, DatumGetTimestampTz, 0);
	row->purge_at = FIXED(COLUMN_PURGE_AT, DatumGetTimestampTz, 0);
	row->ttl = FIXED(COLUMN_TTL, DatumGetInt64, -1);
	row->status_code = FIXED(COLUMN_STATUS_CODE, DatumGetInt32, 0);
	row->has_owner = !nulls[COLUMN_OWNER];
	if (row->has_owner)
		row->owner = *DatumGetUUIDP(values[COLUMN_OWNER]);
	row->policy = detoasted(values, nulls, COLUMN_POLICY);
	row->claimed_by = detoasted(values, nulls, COLUMN_CLAIMED_BY);
	row->fingerprint = detoasted(values, nulls, COLUMN_FINGERPRINT);
	row->context = detoasted(values, nulls, COLUMN_CONTEXT);
	row->headers = as_read(values, nulls, COLUMN_HEADERS);
	row->content_type = as_read(values, nulls, COLUMN_CONTENT_TYPE);
	row->body_size = FIXED(COLUMN_BODY_SIZE, DatumGetInt64, -1);
	row->body_sha256 = as_read(values, nulls, COLUMN_BODY_SHA256);
	row->body = as_read(values, nulls, COLUMN_BODY);
	row->recovery_point = as_read(values, nulls, COLUMN_RECOVERY_POINT);
	row->checkpoint = as_read(values, nulls, COLUMN_CHECKPOINT);
}

static bool
is_text(Datum value, const text *wanted)
{
	const text *got = DatumGetTextPP(value);
	size_t		len = VARSIZE_ANY_EXHDR(wanted);

	return VARSIZE_ANY_EXHDR(got) == len &&
		memcmp(VARDATA_ANY(got), VARDATA_ANY(wanted), len) == 0;
}

/*
 * idem_store_row_is
 *		Whether the values are those of this key.
 */
bool
idem_store_row_is(const IdemKey *id, const Datum *values)
{
	return is_text(values[COLUMN_SCOPE], id->scope) &&
		is_text(values[COLUMN_KEY], id->key);
}

static void
put_pointer(Datum *values, bool *nulls, IdemColumn column, const void *pointer)
{
	values[column] = PointerGetDatum(pointer);
	nulls[column] = pointer == NULL;
}

/*
 * idem_store_row_values
 *		The values of a row, to be written.
 */
void
idem_store_row_values(const IdemKey *id, const IdemRow *row, Datum *values,
					  bool *nulls)
{
	memset(nulls, false, IDEM_NUM_COLUMNS * sizeof(bool));
	put_pointer(values, nulls, COLUMN_SCOPE, id->scope);
	put_pointer(values, nulls, COLUMN_KEY, id->key);
	values[COLUMN_STATE] = CharGetDatum(row->state);
	values[COLUMN_ATTEMPT] = Int32GetDatum(row->attempt);
	values[COLUMN_TOKEN] = Int64GetDatum(row->token);
	values[COLUMN_CLAIM_XID] = UInt64GetDatum(row->claim_xid);
	values[COLUMN_CREATED_AT] = TimestampTzGetDatum(row->created_at);
	values[COLUMN_FINISHED_AT] = TimestampTzGetDatum(row->finished_at);
	nulls[COLUMN_FINISHED_AT] = TIMESTAMP_IS_NOBEGIN(row->finished_at);
	values[COLUMN_LEASE_UNTIL] = TimestampTzGetDatum(row->lease_until);
	values[COLUMN_EXPIRES_AT] = TimestampTzGetDatum(row->expires_at);
	values[COLUMN_PURGE_AT] = TimestampTzGetDatum(row->purge_at);
	values[COLUMN_TTL] = Int64GetDatum(row->ttl);
	nulls[COLUMN_TTL] = row->ttl < 0;
	values[COLUMN_STATUS_CODE] = Int32GetDatum(row->status_code);
	nulls[COLUMN_STATUS_CODE] = row->status_code == 0;
	put_pointer(values, nulls, COLUMN_OWNER,
				row->has_owner ? &row->owner : NULL);
	put_pointer(values, nulls, COLUMN_POLICY, row->policy);
	put_pointer(values, nulls, COLUMN_CLAIMED_BY, row->claimed_by);
	put_pointer(values, nulls, COLUMN_FINGERPRINT, row->fingerprint);
	put_pointer(values, nulls, COLUMN_CONTEXT, row->context);
	put_pointer(values, nulls, COLUMN_HEADERS, row->headers);
	put_pointer(values, nulls, COLUMN_CONTENT_TYPE, row->content_type);
	values[COLUMN_BODY_SIZE] = Int64GetDatum(row->body_size);
	nulls[COLUMN_BODY_SIZE] = row->body_size < 0;
	put_pointer(values, nulls, COLUMN_BODY_SHA256, row->body_sha256);
	put_pointer(values, nulls, COLUMN_BODY, row->body);
	put_pointer(values, nulls, COLUMN_RECOVERY_POINT, row->recovery_point);
	put_pointer(values, nulls, COLUMN_CHECKPOINT, row->checkpoint);
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
			 errmsg("more than one row for key %s in scope %s",
					idem_digest_log_id(id->key),
					idem_digest_log_id(id->scope)),
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
			 errmsg("a change of key %s in scope %s was suppressed",
					idem_digest_log_id(id->key),
					idem_digest_log_id(id->scope)),
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
