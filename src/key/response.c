/*-------------------------------------------------------------------------
 *
 * response.c
 *	  Answers: from what SQL gives to what is stored.
 *
 * Owns the byte form of an answer: text is UTF-8 as given, nothing is parsed
 * and written anew.  Touches no table.  Messages never repeat a part of the
 * answer, nor does an error context: JSON is checked by the lexer directly.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/typcache.h"

#include "base/args.h"
#include "base/bytes.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/digest.h"
#include "key/headers.h"
#include "key/response.h"

#define MEDIA_TYPE_JSON "application/json"
#define MEDIA_TYPE_BYTES "application/octet-stream"
#define JSON_SUFFIX "+json"
#define TEXT_PREFIX "text/"

/* Attributes of idem_response. */
typedef enum ResponseColumn
{
	RESPONSE_STATUS_CODE,
	RESPONSE_HEADERS,
	RESPONSE_CONTENT_TYPE,
	RESPONSE_BODY
} ResponseColumn;

#define RESPONSE_COLUMNS (RESPONSE_BODY + 1)

/*
 * idem_response_init
 *		An answer with a status and nothing else; 22023.
 */
void
idem_response_init(IdemResponse *answer, int status)
{
	/* what no HTTP server could send is no answer */
	if (status < IDEM_MIN_STATUS || status > IDEM_MAX_STATUS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("status code is out of range"),
				 errhint("Give an HTTP status code, %d to %d.",
						 IDEM_MIN_STATUS, IDEM_MAX_STATUS)));
	memset(answer, 0, sizeof(*answer));
	answer->status = status;
	answer->body_size = -1;
}

/*
 * idem_response_set_headers
 *		Headers as json; 22023 for such as could not be given back, ID008.
 */
void
idem_response_set_headers(IdemResponse *answer, Datum headers)
{
	text	   *value = DatumGetTextPP(headers);

	/* before it is parsed, which takes memory in proportion */
	if (VARSIZE_ANY_EXHDR(value) > IDEM_MAX_HEADERS_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_TOO_LARGE),
				 errmsg("headers are larger than %d bytes", IDEM_MAX_HEADERS_BYTES),
				 errhint("Leave out headers that a repeat does not need.")));
	idem_headers_check(value);
	answer->headers = value;
}

/*
 * idem_response_set_content_type
 *		A media type, since it becomes a header; 22023.
 */
void
idem_response_set_content_type(IdemResponse *answer, text *content_type)
{
	if (VARSIZE_ANY_EXHDR(content_type) > IDEM_MAX_MEDIA_TYPE_BYTES ||
		!idem_headers_is_media_type(content_type))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("content type is not a media type"),
				 errhint("Give a media type such as 'application/json', of at most %d bytes and without control characters.",
						 IDEM_MAX_MEDIA_TYPE_BYTES)));
	answer->content_type = content_type;
}

/* RFC 6838: application/json and every structured syntax suffix +json. */
static bool
is_json(const text *content_type)
{
	const char *c = VARDATA_ANY(content_type);
	int			len = 0;
	int			max = VARSIZE_ANY_EXHDR(content_type);

	/* parameters, such as a charset, do not change what it is */
	while (len < max && c[len] != ';')
		len++;
	while (len > 0 && c[len - 1] == ' ')
		len--;
	if (len == strlen(MEDIA_TYPE_JSON) &&
		pg_strncasecmp(c, MEDIA_TYPE_JSON, len) == 0)
		return true;
	return len > strlen(JSON_SUFFIX) &&
		pg_strncasecmp(c + len - strlen(JSON_SUFFIX), JSON_SUFFIX,
					   strlen(JSON_SUFFIX)) == 0;
}

static bool
is_text(const text *content_type)
{
	return VARSIZE_ANY_EXHDR(content_type) >= strlen(TEXT_PREFIX) &&
		pg_strncasecmp(VARDATA_ANY(content_type), TEXT_PREFIX,
					   strlen(TEXT_PREFIX)) == 0;
}

/* Text of the server's encoding is stored as UTF-8. */
static bytea *
to_utf8(text *value)
{
	char	   *data = VARDATA_ANY(value);
	char	   *utf8 = pg_server_to_any(data, VARSIZE_ANY_EXHDR(value), PG_UTF8);

	return utf8 == data ? value : cstring_to_text(utf8);
}

/* Bytes in the text form that bytea has by default. */
static bool
is_hex_bytes(const char *data, int len)
{
	int			i;

	if (len < 2 || data[0] != '\\' || data[1] != 'x')
		return false;
	for (i = 2; i < len; i++)
		if (!isxdigit((unsigned char) data[i]))
			return false;
	return true;
}

/*
 * Hold text to its content type; 22P02, 22023.  Drivers send bytes whose type
 * nobody told them in their text form: an image would be replayed as that.
 */
static void
check_text(const text *content_type, char *data, int len)
{
	/* text without a content type becomes JSON, so it must be */
	if (content_type == NULL || is_json(content_type))
	{
		if (!idem_compat_json_is_valid(data, len, GetDatabaseEncoding()))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
					 errmsg("the response is not valid JSON"),
					 content_type == NULL ?
					 errdetail("Text is \"%s\" where no content_type is given.",
							   MEDIA_TYPE_JSON) :
					 errdetail("Its content type says that it is."),
					 errhint("Give another content_type, such as 'text/plain', or cast the response to what it is: $1::json, $1::bytea.")));
	}
	else if (!is_text(content_type) && is_hex_bytes(data, len))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the response is text in the form of bytes"),
				 errdetail("Its content type is neither JSON nor text/..., so it would be replayed as hexadecimal digits."),
				 errhint("Cast the response: $1::bytea, decode(..., 'hex') or '\\x...'::bytea.")));
}

/*
 * Empty text is no body to be of a type.  One that is given stays, unless it
 * promises JSON, of which there is none.
 */
static void
set_empty(IdemResponse *answer)
{
	if (answer->content_type != NULL && is_json(answer->content_type))
		answer->content_type = NULL;
	answer->body = cstring_to_text_with_len("", 0);
}

/*
 * idem_response_set_body
 *		The body from a response of type text, json, jsonb or bytea.  Sets the
 *		content type of the type where none is set.  22P02 for text that must
 *		be JSON and is not, 22023 for text that should have been bytes.
 */
void
idem_response_set_body(IdemResponse *answer, Datum response, Oid type)
{
	struct varlena *value = PG_DETOAST_DATUM_PACKED(response);
	char	   *data = VARDATA_ANY(value);
	int			len = VARSIZE_ANY_EXHDR(value);

	/* for 202 and 204; the other types have no empty value but bytea's */
	if (type == TEXTOID && len == 0)
	{
		set_empty(answer);
		return;
	}
	if (type == TEXTOID)
		check_text(answer->content_type, data, len);
	if (answer->content_type == NULL)
		answer->content_type = cstring_to_text(type == BYTEAOID ?
											   MEDIA_TYPE_BYTES :
											   MEDIA_TYPE_JSON);

	/* json and text go as they are, byte for byte; jsonb has no other text */
	if (type == JSONBOID)
	{
		Datum		json = DirectFunctionCall1(jsonb_out, response);

		value = cstring_to_text(DatumGetCString(json));
	}
	answer->body = type == BYTEAOID ? value : to_utf8(value);
}

/*
 * idem_response_set_response
 *		The whole answer from an idem_response; a null status is 200.
 */
void
idem_response_set_response(IdemResponse *answer, Datum response)
{
	HeapTupleHeader tuple = DatumGetHeapTupleHeader(response);
	Datum		values[RESPONSE_COLUMNS];
	bool		nulls[RESPONSE_COLUMNS];
	int			i;

	for (i = 0; i < RESPONSE_COLUMNS; i++)
		values[i] = GetAttributeByNum(tuple, i + 1, &nulls[i]);
	idem_response_init(answer, nulls[RESPONSE_STATUS_CODE] ? IDEM_STATUS_OK :
					   DatumGetInt32(values[RESPONSE_STATUS_CODE]));
	if (!nulls[RESPONSE_HEADERS])
		idem_response_set_headers(answer, values[RESPONSE_HEADERS]);
	if (nulls[RESPONSE_BODY])
		return;
	if (!nulls[RESPONSE_CONTENT_TYPE])
	{
		Datum		content_type = values[RESPONSE_CONTENT_TYPE];

		idem_response_set_content_type(answer, DatumGetTextPP(content_type));
	}
	idem_response_set_body(answer, values[RESPONSE_BODY], BYTEAOID);
}

/*
 * idem_response_drop_body
 *		Keep of the body its size and SHA-256 only, by which a repeated finish is
 *		recognized.
 */
void
idem_response_drop_body(IdemResponse *answer)
{
	IdemBytes	body = idem_bytes_of(answer->body);

	answer->body_size = body.len;
	answer->body_sha256 = idem_digest_bytea(body.data, body.len);
	answer->body = NULL;
}

/*
 * idem_response_is_oversize
 *		Whether the body is larger than a policy keeps.
 */
bool
idem_response_is_oversize(const IdemResponse *answer, const IdemPolicy *policy)
{
	return answer->body != NULL &&
		VARSIZE_ANY_EXHDR(answer->body) > policy->max_body_bytes;
}

/*
 * idem_response_limit
 *		Hold the body to what the policy keeps: ID008, or only its digest.
 */
void
idem_response_limit(IdemResponse *answer, const IdemKey *id,
					const IdemPolicy *policy)
{
	if (!idem_response_is_oversize(answer, policy))
		return;
	if (!policy->digest_oversize)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_TOO_LARGE),
				 errmsg("the response for %s is too large",
						idem_digest_key(id)),
				 errdetail("It has %lld bytes; policy \"%s\" keeps at most %d.",
						   (long long) VARSIZE_ANY_EXHDR(answer->body),
						   NameStr(policy->name), policy->max_body_bytes),
				 errhint("Raise \"max_body_bytes\" of the policy, or set its \"on_oversize\" to \"digest\".")));
	idem_response_drop_body(answer);
}

static bool
is_media_type(const text *content_type, const char *media_type)
{
	return VARSIZE_ANY_EXHDR(content_type) == strlen(media_type) &&
		memcmp(VARDATA_ANY(content_type), media_type, strlen(media_type)) == 0;
}

/*
 * idem_response_size
 *		The size of the body of a finished row, kept or not; -1: it has none.
 */
int64
idem_response_size(const IdemRow *row)
{
	return row->body == NULL ? row->body_size :
		(int64) toast_raw_datum_size(PointerGetDatum(row->body)) - VARHDRSZ;
}

/*
 * idem_response_content_type
 *		The content type of a finished row; NULL: it has none.
 */
text *
idem_response_content_type(const IdemRow *row)
{
	/* an empty body without one was text, which is given none */
	if (row->content_type == NULL)
		return idem_response_size(row) > 0 ?
			cstring_to_text(MEDIA_TYPE_JSON) : NULL;
	if (VARSIZE_ANY_EXHDR(row->content_type) == 0)
		return cstring_to_text(MEDIA_TYPE_BYTES);
	return row->content_type;
}

/*
 * idem_response_store
 *		Put the answer into a row.
 */
void
idem_response_store(const IdemResponse *answer, IdemRow *row)
{
	row->status_code = answer->status;
	row->headers = answer->headers;
	row->content_type = answer->content_type;
	row->body = answer->body;
	row->body_size = answer->body_size;
	row->body_sha256 = answer->body_sha256;

	/* what idem_response_content_type() gives without being told */
	if (row->content_type == NULL)
		return;
	if (is_media_type(row->content_type, MEDIA_TYPE_BYTES))
		row->content_type = cstring_to_text_with_len("", 0);
	else if (is_media_type(row->content_type, MEDIA_TYPE_JSON) &&
			 idem_response_size(row) > 0)
		row->content_type = NULL;
}

static bool
same_bytes(const void *a, const void *b)
{
	return idem_bytes_equal(idem_bytes_of(a == NULL ? NULL : PG_DETOAST_DATUM_PACKED(PointerGetDatum(a))),
							idem_bytes_of(b == NULL ? NULL : PG_DETOAST_DATUM_PACKED(PointerGetDatum(b))));
}

/* Whether a row has the body of an answer, or its size and SHA-256. */
static bool
is_stored_body(const bytea *body, const IdemRow *row)
{
	if (row->body != NULL)
		return same_bytes(body, row->body);
	if (body == NULL)
		return row->body_size < 0;
	return (int64) VARSIZE_ANY_EXHDR(body) == row->body_size &&
		same_bytes(idem_digest_bytea(VARDATA_ANY(body), VARSIZE_ANY_EXHDR(body)),
				   row->body_sha256);
}

/*
 * idem_response_is_stored
 *		Whether the row has this very answer, which is not limited yet.
 */
bool
idem_response_is_stored(const IdemResponse *answer, const IdemRow *row)
{
	return answer->status == row->status_code &&
		is_stored_body(answer->body, row) &&
		same_bytes(answer->headers, row->headers) &&
		same_bytes(answer->content_type, idem_response_content_type(row));
}

IDEM_FUNCTION(idem_respond);

/*
 * idem_respond(status_code integer, response json, headers json)
 *		RETURNS idem_response
 *		Make a JSON answer; for handlers of idem_run.  22004, 22023.
 */
Datum
idem_respond(PG_FUNCTION_ARGS)
{
	IdemResponse answer;
	Datum		values[RESPONSE_COLUMNS];
	bool		nulls[RESPONSE_COLUMNS];
	TupleDesc	desc;
	Datum		result;

	idem_args_require(fcinfo, 0, "status_code");
	idem_response_init(&answer, PG_GETARG_INT32(0));
	if (!PG_ARGISNULL(2))
		idem_response_set_headers(&answer, PG_GETARG_DATUM(2));
	if (!PG_ARGISNULL(1))
		idem_response_set_body(&answer, PG_GETARG_DATUM(1), JSONOID);

	/* checked and converted already, and so it is once more by idem_run */
	values[RESPONSE_STATUS_CODE] = Int32GetDatum(answer.status);
	nulls[RESPONSE_STATUS_CODE] = false;
	values[RESPONSE_HEADERS] = PointerGetDatum(answer.headers);
	nulls[RESPONSE_HEADERS] = answer.headers == NULL;
	values[RESPONSE_CONTENT_TYPE] = PointerGetDatum(answer.content_type);
	nulls[RESPONSE_CONTENT_TYPE] = answer.content_type == NULL;
	values[RESPONSE_BODY] = PointerGetDatum(answer.body);
	nulls[RESPONSE_BODY] = answer.body == NULL;
	desc = lookup_rowtype_tupdesc(idem_catalog()->response_type, -1);
	result = HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
	ReleaseTupleDesc(desc);
	return result;
}
