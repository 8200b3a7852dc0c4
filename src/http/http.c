/*-------------------------------------------------------------------------
 *
 * http.c
 *	  Refusals and headers as HTTP has them.
 *
 * Owns the problems (RFC 9457) and what their types, titles and advice are.
 * A refusal is whatever has an error_code and an http_status, so that a row
 * that an application makes itself, such as that of a rate limit, is answered
 * in the same shape.  Nothing here shows a key or a scope.
 *
 * Touches no table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/timestamp.h"

#include "base/args.h"
#include "base/json_pairs.h"
#include "http/http.h"
#include "key/headers.h"
#include "key/outcome.h"

/* Of refusals before there is a result; those of outcomes: key/outcome.c. */
static const struct
{
	int			status;
	IdemProblem problem;
}			problems[] = {

	{
		400, {
			"idempotency_key_missing",
			"urn:idempotency:key-missing",
			"Idempotency-Key missing",
			"This operation needs the header Idempotency-Key. Send a key that is new for each operation, such as a UUID, and the same key with each repeat."
		}
	},
	{
		400, {
			"idempotency_key_invalid",
			"urn:idempotency:key-invalid",
			"Idempotency-Key invalid",
			"The header Idempotency-Key is malformed, or its key is too long or not of the format that is wanted here. Send one key as a quoted string, such as a UUID."
		}
	},
	{
		500, {
			"idempotency_answer_unreadable",
			"urn:idempotency:answer-unreadable",
			"Answer not available here",
			"The request with this Idempotency-Key was processed, and its answer is stored, but not as JSON. It was not processed again."
		}
	},
	{
		401, {
			"principal_missing",
			"urn:idempotency:principal-missing",
			"Authentication required",
			"It is not known who sends this request. Authenticate, and send it again with the same Idempotency-Key."
		}
	},
	{
		429, {
			"rate_limited",
			"urn:idempotency:rate-limited",
			"Too many requests",
			"Too many requests were sent, and this one was not processed. Send it again, not before the time in Retry-After if there is one."
		}
	}
};

/* RFC 9110, 15.5 and 15.6, with RFC 6585 and RFC 7725. */
static const struct
{
	int			status;
	const char *phrase;
}			phrases[] = {
	{400, "Bad Request"},
	{401, "Unauthorized"},
	{402, "Payment Required"},
	{403, "Forbidden"},
	{404, "Not Found"},
	{405, "Method Not Allowed"},
	{406, "Not Acceptable"},
	{407, "Proxy Authentication Required"},
	{408, "Request Timeout"},
	{409, "Conflict"},
	{410, "Gone"},
	{411, "Length Required"},
	{412, "Precondition Failed"},
	{413, "Content Too Large"},
	{414, "URI Too Long"},
	{415, "Unsupported Media Type"},
	{416, "Range Not Satisfiable"},
	{417, "Expectation Failed"},
	{421, "Misdirected Request"},
	{422, "Unprocessable Content"},
	{423, "Locked"},
	{424, "Failed Dependency"},
	{425, "Too Early"},
	{426, "Upgrade Required"},
	{428, "Precondition Required"},
	{429, "Too Many Requests"},
	{431, "Request Header Fields Too Large"},
	{451, "Unavailable For Legal Reasons"},
	{500, "Internal Server Error"},
	{501, "Not Implemented"},
	{502, "Bad Gateway"},
	{503, "Service Unavailable"},
	{504, "Gateway Timeout"},
	{505, "HTTP Version Not Supported"},
	{507, "Insufficient Storage"},
	{511, "Network Authentication Required"}
};

/*
 * idem_http_is_refusal
 *		Whether a result is answered with a problem.
 */
bool
idem_http_is_refusal(const IdemResultHttp *result)
{
	return result->error_code != NULL && result->status != 0;
}

/* RFC 9457, 4.2.1: about:blank has the status's own phrase as its title. */
static const char *
find_phrase(int status)
{
	int			i;

	for (i = 0; i < lengthof(phrases); i++)
		if (phrases[i].status == status)
			return phrases[i].phrase;
	return status < 500 ? "Bad Request" : "Internal Server Error";
}

/* The problem of a code, and the status that it has; NULL: not one of ours. */
static const IdemProblem *
find_problem(const char *code, int *status)
{
	int			i;

	for (i = 0; i < lengthof(problems); i++)
		if (strcmp(problems[i].problem.code, code) == 0)
		{
			*status = problems[i].status;
			return &problems[i].problem;
		}
	return idem_outcome_problem(code, status);
}

/* A time as RFC 3339 in UTC; NULL where that has no form for it. */
static char *
format_time(TimestampTz time)
{
	char text[	MAXDATELEN + 1];

	/* A timestamptz counts in UTC, and a timestamp is shown as it counts. */
	JsonEncodeDateTime(text, TimestampTzGetDatum(time), TIMESTAMPOID, NULL);

	/* infinity, and years of other than four digits, or BC */
	if (text[4] != '-' || text[strlen(text) - 1] == 'C')
		return NULL;
	return psprintf("%sZ", text);
}

static void
put_member(StringInfo json, const char *name, const char *value)
{
	appendStringInfo(json, "%s\"%s\": ", json->len > 1 ? ", " : "", name);
	escape_json(json, value);
}

/* RFC 9110, 10.2.3: whole seconds, not too early, and never at once */
static char *
format_retry_after(int64 ms)
{
	return psprintf(INT64_FORMAT, Max(ms / 1000 + (ms % 1000 != 0), 1));
}

/*
 * idem_http_status
 *		The status of a code; 0: it is not one of ours.
 */
int
idem_http_status(const char *code)
{
	int			status;

	return find_problem(code, &status) == NULL ? 0 : status;
}

/*
 * idem_http_write_problem
 *		Problem details of a refusal, as JSON; 22023 for a status that is no
 *		error.
 *
 * A detail in place of the code's own, or NULL; retry_after_ms is -1 where
 * there is none.
 */
text *
idem_http_write_problem(const char *code, int status, const char *detail,
						int64 retry_after_ms)
{
	IdemProblem other = {code, "about:blank", NULL,
	"The request was refused. The member \"code\" says why."};
	const IdemProblem *problem;
	StringInfoData json;
	int			own_status;

	/*
	 * With a status of success a client would take the problem for the
	 * answer.
	 */
	if (status < 400 || status > IDEM_MAX_STATUS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the HTTP status of a refusal is out of range"),
				 errhint("Set \"http_status\" to a code from 400 to %d.",
						 IDEM_MAX_STATUS)));
	problem = find_problem(code, &own_status);
	if (problem == NULL)
	{
		other.title = find_phrase(status);
		problem = &other;
	}
	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	put_member(&json, "type", problem->type);
	put_member(&json, "title", problem->title);
	appendStringInfo(&json, ", \"status\": %d", status);
	put_member(&json, "detail", detail != NULL ? detail : problem->detail);
	put_member(&json, "code", code);
	put_member(&json, "time", format_time(GetCurrentTimestamp()));
	if (retry_after_ms >= 0)
		appendStringInfo(&json, ", \"retry_after\": %s",
						 format_retry_after(retry_after_ms));
	appendStringInfoChar(&json, '}');
	return cstring_to_text_with_len(json.data, json.len);
}

/*
 * idem_http_begin_headers, idem_http_add_header, idem_http_end_headers
 *		Write headers, in their order.
 */
void
idem_http_begin_headers(IdemHttpHeaders *headers)
{
	headers->has_type = false;
	initStringInfo(&headers->json);
	appendStringInfoChar(&headers->json, '[');
}

void
idem_http_add_header(IdemHttpHeaders *headers, const char *name,
					 const char *value)
{
	StringInfo	json = &headers->json;

	appendStringInfoString(json, json->len > 1 ? ", {" : "{");
	escape_json(json, name);
	appendStringInfoString(json, ": ");
	escape_json(json, value);
	appendStringInfoChar(json, '}');
	headers->has_type |= pg_strcasecmp(name, IDEM_HTTP_CONTENT_TYPE) == 0;
}

char *
idem_http_end_headers(IdemHttpHeaders *headers)
{
	appendStringInfoChar(&headers->json, ']');
	return headers->json.data;
}

/*
 * idem_http_add_retry_after
 *		When to ask again.
 */
void
idem_http_add_retry_after(IdemHttpHeaders *headers, int64 ms)
{
	idem_http_add_header(headers, "Retry-After", format_retry_after(ms));
}

/*
 * idem_http_add_result
 *		What idem_http_headers() gives.
 */
void
idem_http_add_result(IdemHttpHeaders *headers, const IdemResultHttp *result)
{
	char	   *expires = format_time(result->expires_at);
	ListCell   *cell;

	/*
	 * What is not for a repeat is left out of the first answer, too: the two
	 * are the same but for one header (sql/http_run).
	 */
	if (result->headers != NULL)
	{
		foreach(cell, idem_headers_to_send(result->headers))
		{
			IdemPair   *pair = lfirst(cell);

			idem_http_add_header(headers, pair->name, pair->value);
		}
	}
	if (result->replayed)
		idem_http_add_header(headers, "Idempotency-Replayed", "true");
	if (expires != NULL)
		idem_http_add_header(headers, "Idempotency-Expires", expires);
	if (!idem_http_is_refusal(result) || result->retry_after_ms == 0)
		return;
	idem_http_add_retry_after(headers, result->retry_after_ms);
}

IDEM_FUNCTION(idem_http_problem);

/*
 * idem_http_problem(result idem_result) RETURNS json
 *		Problem details (RFC 9457) of a refusal, null for what is none: for a
 *		result without error_code or http_status.  22023 for a status that is
 *		no error.
 */
Datum
idem_http_problem(PG_FUNCTION_ARGS)
{
	IdemResultHttp result;

	idem_result_read(PG_GETARG_HEAPTUPLEHEADER(0), &result);
	if (!idem_http_is_refusal(&result))
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(idem_http_write_problem(text_to_cstring(result.error_code),
											 result.status, NULL, -1));
}

IDEM_FUNCTION(idem_http_problem_of);

/*
 * idem_http_problem(code text, detail text, retry_after_ms bigint) RETURNS json
 *		Problem details of a refusal that has no result.  Raises 22004; 22023
 *		for a code that is not one of ours, and a negative time.
 */
Datum
idem_http_problem_of(PG_FUNCTION_ARGS)
{
	char	   *code;
	char	   *detail = NULL;
	int64		ms = -1;
	int			status;

	code = text_to_cstring(idem_args_text(fcinfo, 0, "code"));
	status = idem_http_status(code);
	if (status == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for argument \"%s\"", "code"),
				 errhint("Give a code of the extension, such as \"%s\". A code of your own goes into an idem_result, with its http_status.",
						 problems[0].problem.code)));
	if (!PG_ARGISNULL(1))
		detail = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (!PG_ARGISNULL(2))
	{
		ms = PG_GETARG_INT64(2);
		if (ms < 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("argument \"%s\" must not be negative", "retry_after_ms"),
					 errhint("Give the time that is left to wait, in milliseconds, or null.")));
	}
	PG_RETURN_TEXT_P(idem_http_write_problem(code, status, detail, ms));
}

IDEM_FUNCTION(idem_http_time);

/*
 * idem_http_time(at timestamptz) RETURNS text
 *		RFC 3339 in UTC, with "Z"; null for what that has no form for:
 *		infinity, and years of other than four digits.
 */
Datum
idem_http_time(PG_FUNCTION_ARGS)
{
	char	   *time = format_time(PG_GETARG_TIMESTAMPTZ(0));

	if (time == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(time));
}

IDEM_FUNCTION(idem_http_headers);

/*
 * idem_http_headers(result idem_result) RETURNS json
 *		The headers of an answer, as an array of single-key objects.  Raises
 *		nothing for what was stored.
 */
Datum
idem_http_headers(PG_FUNCTION_ARGS)
{
	IdemResultHttp result;
	IdemHttpHeaders headers;

	idem_result_read(PG_GETARG_HEAPTUPLEHEADER(0), &result);
	idem_http_begin_headers(&headers);
	idem_http_add_result(&headers, &result);
	PG_RETURN_TEXT_P(cstring_to_text(idem_http_end_headers(&headers)));
}
