/*-------------------------------------------------------------------------
 *
 * result.c
 *	  The composite idem_result.
 *
 * Owns what each outcome shows of a key.  A caller whose request is another
 * one than the first learns when, but never what was answered.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "executor/executor.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "base/catalog.h"
#include "base/compat.h"
#include "base/digest.h"
#include "key/outcome.h"
#include "key/response.h"
#include "key/result.h"

typedef enum ResultColumn
{
	RESULT_OUTCOME,
	RESULT_ATTEMPT,
	RESULT_TOKEN,
	RESULT_STATUS_CODE,
	RESULT_HEADERS,
	RESULT_CONTENT_TYPE,
	RESULT_BODY,
	RESULT_BODY_SIZE,
	RESULT_BODY_SHA256,
	RESULT_RECOVERY_POINT,
	RESULT_CHECKPOINT,
	RESULT_FINGERPRINT,
	RESULT_CREATED_AT,
	RESULT_FINISHED_AT,
	RESULT_LEASE_UNTIL,
	RESULT_EXPIRES_AT,
	RESULT_RETRY_AFTER_MS,
	RESULT_HTTP_STATUS,
	RESULT_ERROR_CODE
} ResultColumn;

#define RESULT_COLUMNS (RESULT_ERROR_CODE + 1)

/* When to ask again after a rival whose row cannot be seen yet. */
#define RETRY_AFTER_UNSEEN_MS 1000

static void
put(Datum *values, bool *nulls, ResultColumn column, Datum value)
{
	values[column] = value;
	nulls[column] = false;
}

static void
put_pointer(Datum *values, bool *nulls, ResultColumn column,
			const void *pointer)
{
	if (pointer != NULL)
		put(values, nulls, column, PointerGetDatum(pointer));
}

static void
put_answer(Datum *values, bool *nulls, const IdemRow *row)
{
	bytea	   *sha256 = row->body_sha256;

	put(values, nulls, RESULT_STATUS_CODE, Int32GetDatum(row->status_code));
	put(values, nulls, RESULT_HTTP_STATUS, Int32GetDatum(row->status_code));
	put_pointer(values, nulls, RESULT_HEADERS, row->headers);
	put_pointer(values, nulls, RESULT_CONTENT_TYPE,
				idem_response_content_type(row));
	if (idem_response_size(row) >= 0)
		put(values, nulls, RESULT_BODY_SIZE,
			Int64GetDatum(idem_response_size(row)));
	if (row->body != NULL)
	{
		bytea	   *body = PG_DETOAST_DATUM_PACKED(PointerGetDatum(row->body));

		/* a row that keeps the body needs no digest of it */
		put_pointer(values, nulls, RESULT_BODY, body);
		sha256 = idem_digest_bytea(VARDATA_ANY(body), VARSIZE_ANY_EXHDR(body));
	}
	put_pointer(values, nulls, RESULT_BODY_SHA256, sha256);
}

static void
put_row(Datum *values, bool *nulls, const IdemRow *row)
{
	put(values, nulls, RESULT_ATTEMPT, Int32GetDatum(row->attempt));
	put_pointer(values, nulls, RESULT_FINGERPRINT, row->fingerprint);
	put(values, nulls, RESULT_CREATED_AT, TimestampTzGetDatum(row->created_at));
	if (!TIMESTAMP_IS_NOBEGIN(row->finished_at))
		put(values, nulls, RESULT_FINISHED_AT,
			TimestampTzGetDatum(row->finished_at));
	if (!TIMESTAMP_IS_NOBEGIN(row->lease_until))
		put(values, nulls, RESULT_LEASE_UNTIL,
			TimestampTzGetDatum(row->lease_until));
	/* for ever is null: not every driver can read infinity */
	if (!TIMESTAMP_IS_NOEND(row->expires_at))
		put(values, nulls, RESULT_EXPIRES_AT,
			TimestampTzGetDatum(row->expires_at));
}

/* In how many milliseconds to ask again: when the lease ends. */
static int64
retry_after_ms(const IdemRow *row, TimestampTz now)
{
	if (row == NULL)
		return RETRY_AFTER_UNSEEN_MS;
	return Max((row->lease_until - now + 999) / 1000, 1);
}

static void
put_progress(Datum *values, bool *nulls, const IdemRow *row)
{
	put_pointer(values, nulls, RESULT_RECOVERY_POINT, row->recovery_point);
	put_pointer(values, nulls, RESULT_CHECKPOINT, row->checkpoint);
}

static Datum
form_tuple(Datum *values, bool *nulls)
{
	TupleDesc	desc = lookup_rowtype_tupdesc(idem_catalog()->result_type, -1);
	Datum		result;

	/* the library was updated, and the extension in this database was not */
	if (desc->natts != RESULT_COLUMNS)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("type \"%s\" is not that of this library", "idem_result"),
				 errhint("Run ALTER EXTENSION idempotency UPDATE.")));
	result = HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
	ReleaseTupleDesc(desc);
	return result;
}

/*
 * idem_result_form
 *		An idem_result as a datum; row is NULL where none can be seen.
 */
Datum
idem_result_form(IdemOutcome outcome, const IdemRow *row, int mismatch_status,
				 TimestampTz now)
{
	const IdemOutcomeMeaning *meaning = &idem_outcomes[outcome];
	Datum		values[RESULT_COLUMNS];
	bool		nulls[RESULT_COLUMNS];

	memset(nulls, true, sizeof(nulls));
	put(values, nulls, RESULT_OUTCOME,
		ObjectIdGetDatum(idem_outcome_label(outcome)));
	/* a refusal is the same for every key, but for the policy's own status */
	if (meaning->problem.code != NULL)
	{
		put(values, nulls, RESULT_HTTP_STATUS,
			Int32GetDatum(meaning->http_status != 0 ?
						  meaning->http_status : mismatch_status));
		put(values, nulls, RESULT_ERROR_CODE,
			CStringGetTextDatum(meaning->problem.code));
	}

	/* none where a rival's row cannot be seen, or idem_run has none yet */
	if (row != NULL)
		put_row(values, nulls, row);

	switch (outcome)
	{
		case IDEM_OUTCOME_CLAIMED:
			put(values, nulls, RESULT_TOKEN, Int64GetDatum(row->token));
			put_progress(values, nulls, row);
			break;
		case IDEM_OUTCOME_IN_PROGRESS:
			if (row != NULL)
				put_progress(values, nulls, row);
			put(values, nulls, RESULT_RETRY_AFTER_MS,
				Int64GetDatum(retry_after_ms(row, now)));
			break;
		case IDEM_OUTCOME_COMPLETED:
		case IDEM_OUTCOME_FAILED:
		case IDEM_OUTCOME_REPLAYED:
			put_answer(values, nulls, row);
			break;
		case IDEM_OUTCOME_DUPLICATE:
		case IDEM_OUTCOME_MISMATCH:
		case IDEM_OUTCOME_EXPIRED:
			/* whoever sent another request must not learn the answer */
			break;
	}
	return form_tuple(values, nulls);
}

/* One column of an idem_result, with a substitute for a null. */
static Datum
get(HeapTupleHeader result, ResultColumn column, Datum substitute)
{
	bool		isnull;
	Datum		value = GetAttributeByNum(result, column + 1, &isnull);

	return isnull ? substitute : value;
}

/* A varlena column, detoasted; NULL: null. */
static void *
get_varlena(HeapTupleHeader result, ResultColumn column)
{
	Datum		value = get(result, column, (Datum) 0);

	return value == (Datum) 0 ? NULL : PG_DETOAST_DATUM_PACKED(value);
}

/*
 * idem_result_read
 *		What an HTTP server needs of an idem_result.
 */
void
idem_result_read(HeapTupleHeader result, IdemResultHttp *http)
{
	Oid			replayed = idem_outcome_label(IDEM_OUTCOME_REPLAYED);
	Datum		outcome = get(result, RESULT_OUTCOME, ObjectIdGetDatum(InvalidOid));

	http->replayed = DatumGetObjectId(outcome) == replayed;
	http->headers = get_varlena(result, RESULT_HEADERS);
	http->content_type = get_varlena(result, RESULT_CONTENT_TYPE);
	http->body = get_varlena(result, RESULT_BODY);
	http->expires_at = DatumGetTimestampTz(get(result, RESULT_EXPIRES_AT,
											   TimestampTzGetDatum(DT_NOEND)));
	http->retry_after_ms = DatumGetInt64(get(result, RESULT_RETRY_AFTER_MS,
											 Int64GetDatum(0)));
	http->status = DatumGetInt32(get(result, RESULT_HTTP_STATUS,
									 Int32GetDatum(0)));
	http->error_code = get_varlena(result, RESULT_ERROR_CODE);
}

/* A character in a JSON string by its number. */
static void
append_escape(StringInfo out, pg_wchar c)
{
	if (c > 0xffff)
		appendStringInfo(out, "\\u%04x\\u%04x",
						 (unsigned int) (0xd800 + ((c - 0x10000) >> 10)),
						 (unsigned int) (0xdc00 + ((c - 0x10000) & 0x3ff)));
	else
		appendStringInfo(out, "\\u%04x", (unsigned int) c);
}

/*
 * Valid JSON of UTF-8 in the database's encoding.  What that cannot express
 * is in a string, where it may be escaped: an answer that was stored must be
 * readable in every database.
 */
static text *
json_to_server(const char *json, int len)
{
	int			encoding = GetDatabaseEncoding();
	Oid			proc = FindDefaultConversionProc(PG_UTF8, encoding);
	StringInfoData out;
	int			i;
	int			size;

	initStringInfo(&out);
	for (i = 0; i < len; i += size)
	{
		unsigned char *c = (unsigned char *) json + i;
		unsigned char converted[MAX_CONVERSION_GROWTH * MAX_MULTIBYTE_CHAR_LEN + 1];

		/* verified as UTF-8 by the caller: a character never ends beyond it */
		size = pg_utf_mblen(c);
		if (size == 1)
			appendStringInfoCharMacro(&out, *c);
		else if (OidIsValid(proc) &&
				 pg_do_encoding_conversion_buf(proc, PG_UTF8, encoding, c,
											   size, converted,
											   sizeof(converted), true) == size)
			appendStringInfoString(&out, (char *) converted);
		else
			append_escape(&out, utf8_to_unicode(c));
	}
	return cstring_to_text_with_len(out.data, out.len);
}

/*
 * idem_result_json
 *		A stored body as JSON, its text exactly as stored, but for characters
 *		that the database's encoding does not have; NULL where it is no valid
 *		JSON.
 */
text *
idem_result_json(bytea *body)
{
	char	   *text = VARDATA_ANY(body);
	int			len = VARSIZE_ANY_EXHDR(body);

	/* bytea can be anything, and so can rows of a restore */
	if (!pg_verify_mbstr(PG_UTF8, text, len, true) ||
		!idem_compat_json_is_valid(text, len, PG_UTF8))
		return NULL;
	if (GetDatabaseEncoding() == PG_UTF8 ||
		GetDatabaseEncoding() == PG_SQL_ASCII)
		return cstring_to_text_with_len(text, len);
	return json_to_server(text, len);
}

IDEM_FUNCTION(idem_json);

/*
 * idem_json(result idem_result) RETURNS json
 *		The stored body as JSON, its text exactly as stored; null where it is
 *		no valid JSON.  Bodies are UTF-8: a character that the database's
 *		encoding does not have is escaped.
 */
Datum
idem_json(PG_FUNCTION_ARGS)
{
	bytea	   *body = get_varlena(PG_GETARG_HEAPTUPLEHEADER(0), RESULT_BODY);
	text	   *json = body == NULL ? NULL : idem_result_json(body);

	if (json == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(json);
}
