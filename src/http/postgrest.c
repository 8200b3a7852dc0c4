/*-------------------------------------------------------------------------
 *
 * postgrest.c
 *	  idem_run for an API function of PostgREST.
 *
 * Reads the request from the settings of PostgREST's transaction and leaves
 * status and headers in two others, all transaction-local.  What is wrong
 * with the request is answered, not raised, and found out before idem_run is
 * called, so that no subtransaction is needed: an error would roll back what
 * the API function did before, and what idem_run stored.  What is wrong with
 * the API function is raised.
 *
 * Whoever may call this chooses principal and handler; so it is for API
 * functions that are SECURITY DEFINER, never for clients.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/syscache.h"

#include "base/args.h"
#include "base/compat.h"
#include "base/json_pairs.h"
#include "http/http.h"
#include "key/headers.h"
#include "key/name.h"
#include "key/run.h"
#include "limit/limiter.h"
#include "limit/throttle.h"

#define KEY_HEADER "idempotency-key"
#define MEDIA_TYPE_JSON "application/json"	/* what PostgREST says itself */
#define UNREADABLE "idempotency_answer_unreadable"
#define MEDIA_TYPE_PROBLEM "application/problem+json"

/* Arguments of idem_http_run. */
typedef enum HttpRunArg
{
	ARG_HANDLER,
	ARG_REQUEST,
	ARG_POLICY,
	ARG_PRINCIPAL,
	ARG_CONTEXT,
	ARG_FINGERPRINT,
	ARG_LIMITER,
	ARG_SUBJECT,
	ARG_KEY
} HttpRunArg;

/* What PostgREST says of the request. */
typedef struct HttpRequest
{
	text	   *method;
	text	   *path;
	List	   *headers;		/* of IdemPair */
} HttpRequest;

/* Who pays for new work, and what the limiter said of it. */
typedef struct HttpCharge
{
	text	   *limiter;		/* NULL: nobody */
	text	   *subject;
	IdemBucketResult result;
} HttpCharge;

/* A setting, or NULL. */
static char *
get_setting(const char *name)
{
	const char *value = GetConfigOption(name, true, false);

	/* once set in a session it is empty, no more missing */
	return value == NULL || *value == '\0' ? NULL : pstrdup(value);
}

/* As set_config(name, value, true). */
static void
set_setting(const char *name, const char *value)
{
	/*
	 * Local: PostgREST pools its connections, and the next request is another
	 * client's (sql/http_run).
	 */
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
}

/* 55000 outside of PostgREST. */
static void
read_request(HttpRequest *request)
{
	char	   *method = get_setting("request.method");
	char	   *path = get_setting("request.path");
	char	   *headers = get_setting("request.headers");

	if (method == NULL || path == NULL || headers == NULL ||
		!idem_json_pairs_read(headers, strlen(headers), &request->headers))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this is not a request of PostgREST"),
				 errdetail("The settings \"request.method\", \"request.path\" and \"request.headers\" are needed, the last as JSON."),
				 errhint("Call idem_http_run() in a function that PostgREST calls, and idem_run() elsewhere.")));
	request->method = cstring_to_text(method);
	request->path = cstring_to_text(path);
}

/* 22023 for a handler whose answers are no JSON. */
static void
check_handler(Oid handler)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(handler));
	Oid			result = InvalidOid;

	/* all else that is wrong with it idem_run says */
	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_proc) GETSTRUCT(tuple))->prorettype;
		ReleaseSysCache(tuple);
	}
	if (result == TEXTOID || result == BYTEAOID)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the handler does not return JSON"),
				 errhint("Let it return json, jsonb or idem_response, or call idem_run().")));
}

/* Who sends the request, or NULL; an empty text is nobody. */
static text *
find_principal(FunctionCallInfo fcinfo)
{
	text	   *principal = NULL;

	if (!PG_ARGISNULL(ARG_PRINCIPAL))
		principal = PG_GETARG_TEXT_PP(ARG_PRINCIPAL);
	else
	{
		char	   *claims = get_setting("request.jwt.claims");
		List	   *pairs;
		ListCell   *cell;

		/* The same reader takes arrays, for headers; claims are an object. */
		if (claims == NULL || *claims != '{' ||
			!idem_json_pairs_read(claims, strlen(claims), &pairs))
			return NULL;

		/* Of a claim that comes twice the last one counts (RFC 7519, 4). */
		foreach(cell, pairs)
		{
			IdemPair   *pair = lfirst(cell);

			/* no string (RFC 7519): 42 and "42" would be one principal */
			if (strcmp(pair->name, "sub") == 0)
				principal = !pair->is_string || pair->in_list ? NULL :
					cstring_to_text(pair->value);
		}
	}
	return principal == NULL || VARSIZE_ANY_EXHDR(principal) == 0 ? NULL :
		principal;
}

/*
 * The key as the policy wants it, from the argument or the header; returns what
 * is wrong with it, or NULL.
 */
static const char *
find_key(FunctionCallInfo fcinfo, const HttpRequest *request,
		 const IdemPolicy *policy, text **key)
{
	static const char *const invalid = "idempotency_key_invalid";
	bool		given = !PG_ARGISNULL(ARG_KEY);
	const char *header = NULL;
	ListCell   *cell;

	/* that of another header, and spelled as one */
	if (given)
		header = text_to_cstring(PG_GETARG_TEXT_PP(ARG_KEY));
	foreach(cell, request->headers)
	{
		IdemPair   *pair = lfirst(cell);

		if (given || pg_strcasecmp(pair->name, KEY_HEADER) != 0)
			continue;

		/* Two keys are not one key, whichever of them would be taken. */
		if (!pair->is_string || pair->in_list || header != NULL)
			return invalid;
		header = pair->value;
	}
	if (header == NULL)
		return "idempotency_key_missing";
	*key = idem_name_header_key(header, strlen(header));
	if (*key != NULL)
		*key = idem_name_formatted_key(*key, policy);
	return *key == NULL ? invalid : NULL;
}

/* idem_scope(principal, method, path); 22023. */
static text *
make_scope(text *principal, const HttpRequest *request)
{
	Datum		components[3];
	ArrayType  *array;

	/*
	 * By idem_scope(): whoever looks for the key later, such as an operator,
	 * has that function to name its scope.
	 */
	components[0] = PointerGetDatum(principal);
	components[1] = PointerGetDatum(request->method);
	components[2] = PointerGetDatum(request->path);
	array = construct_array(components, lengthof(components), TEXTOID, -1,
							false, TYPALIGN_INT);
	return DatumGetTextPP(DirectFunctionCall1(idem_scope,
											  PointerGetDatum(array)));
}

/* Tell PostgREST the status and the headers. */
static void
leave(int status, IdemHttpHeaders *headers)
{
	set_setting("response.status", psprintf("%d", status));
	set_setting("response.headers", idem_http_end_headers(headers));
}

static text *
answer_problem(const char *code, int status, int64 retry_after_ms,
			   IdemHttpHeaders *headers)
{
	idem_http_add_header(headers, IDEM_HTTP_CONTENT_TYPE, MEDIA_TYPE_PROBLEM);
	leave(status, headers);
	return idem_http_write_problem(code, status, NULL, retry_after_ms);
}

/* The answer to a request that comes with no principal or no good key. */
static text *
answer_bad_request(const char *code)
{
	int			status = idem_http_status(code);
	IdemHttpHeaders headers;

	idem_http_begin_headers(&headers);

	/* RFC 9110, 15.5.2: a 401 says how to authenticate */
	if (status == 401)
		idem_http_add_header(&headers, "WWW-Authenticate", "Bearer");
	return answer_problem(code, status, -1, &headers);
}

/* The answer to a request for which there is no token left. */
static text *
answer_limited(const HttpCharge *charge)
{
	static const char *const code = "rate_limited";
	int64		usec = charge->result.retry_after;
	int64		ms = -1;
	IdemHttpHeaders headers;

	idem_http_begin_headers(&headers);
	if (usec != PG_INT64_MAX)
	{
		ms = usec / 1000 + (usec % 1000 != 0);
		idem_http_add_retry_after(&headers, ms);
	}
	return answer_problem(code, idem_http_status(code), ms, &headers);
}

/* The answer of idem_run; NULL: without a body, or with an empty one. */
static text *
answer_result(const IdemResultHttp *result)
{
	IdemHttpHeaders headers;
	text	   *body = NULL;
	bool		has_body;

	idem_http_begin_headers(&headers);
	idem_http_add_result(&headers, result);
	if (idem_http_is_refusal(result))
		return answer_problem(text_to_cstring(result->error_code),
							  result->status, -1, &headers);
	has_body = result->body != NULL && VARSIZE_ANY_EXHDR(result->body) > 0;
	if (has_body)
		body = idem_result_json(result->body);

	/*
	 * A body that is no JSON cannot be an answer.  Of a replay, which other
	 * means than ours have stored, that is said; the work of a handler that
	 * makes one is undone by an error.
	 */
	if (has_body && body == NULL && result->replayed)
		return answer_problem(UNREADABLE, idem_http_status(UNREADABLE), -1,
							  &headers);
	if (has_body && body == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the answer is not JSON"),
				 errhint("Make it with idem_respond(), or call idem_run().")));
	if (result->content_type != NULL && !headers.has_type &&
		idem_headers_is_media_type(result->content_type))
	{
		char	   *type = text_to_cstring(result->content_type);

		/* PostgREST says that one itself (sql/http_run) */
		if (strcmp(type, MEDIA_TYPE_JSON) != 0)
			idem_http_add_header(&headers, IDEM_HTTP_CONTENT_TYPE, type);
	}
	/* idem_dedupe marks a key as done without an answer */
	leave(result->status == 0 ? 200 : result->status, &headers);
	return body;
}

/* IdemRunRequest.admit: new work costs a token, and nothing else does. */
static bool
take_token(void *arg)
{
	HttpCharge *charge = arg;

	idem_throttle_take(charge->limiter, charge->subject, 1, &charge->result);
	return charge->result.allowed;
}

/* What the API function says of the work; 22004, 22023, 42704. */
static void
read_arguments(FunctionCallInfo fcinfo, IdemRunRequest *run,
			   HttpCharge *charge, IdemPolicy *policy)
{
	IdemLimiter limiter;

	idem_args_require_writable();
	idem_args_require(fcinfo, ARG_HANDLER, "handler");
	idem_args_require(fcinfo, ARG_REQUEST, "request");	/* else no fingerprint */
	idem_args_require(fcinfo, ARG_POLICY, "policy");
	check_handler(PG_GETARG_OID(ARG_HANDLER));
	run->handler = PG_GETARG_OID(ARG_HANDLER);
	run->request = fcinfo->args[ARG_REQUEST];
	run->policy = PG_GETARG_TEXT_PP(ARG_POLICY);
	run->context = idem_args_digest(fcinfo, ARG_CONTEXT, "context");
	run->fingerprint = idem_args_digest(fcinfo, ARG_FINGERPRINT, "fingerprint");
	run->wait = -1;
	run->ttl = -1;
	idem_policy_get(text_to_cstring(run->policy), policy);
	if (!PG_ARGISNULL(ARG_SUBJECT))
		charge->subject = idem_args_label(fcinfo, ARG_SUBJECT, "subject");
	if (PG_ARGISNULL(ARG_LIMITER))
		return;
	charge->limiter = PG_GETARG_TEXT_PP(ARG_LIMITER);
	idem_limiter_get(text_to_cstring(charge->limiter), &limiter);
	run->admit = take_token;
	run->admit_arg = charge;
}

IDEM_FUNCTION(idem_http_run);

/*
 * idem_http_run(handler regprocedure, request jsonb, policy text,
 *				 principal text, context bytea, fingerprint bytea,
 *				 limiter text, subject text, key text) RETURNS json
 *		idem_run under the key of PostgREST's request, in the scope of
 *		principal, method and path; sets response.status and response.headers,
 *		returns the body or the problem.
 *
 * Raises what idem_run raises, 55000 outside of PostgREST, 22023 for a
 * handler, an answer or a principal that cannot be used here, and with a
 * limiter what idem_throttle raises.
 */
Datum
idem_http_run(PG_FUNCTION_ARGS)
{
	HttpRequest request;
	IdemRunRequest run = {0};
	HttpCharge	charge = {0};
	IdemPolicy	policy;
	Datum		answered;
	IdemResultHttp result;
	text	   *principal;
	const char *fault;
	text	   *answer;

	/*
	 * What is wrong with the API function is raised before anything of the
	 * request is judged, so that each request shows it.  A GET comes in a
	 * read-only transaction, in which no key could be kept
	 * (sql/http_refused).
	 */
	read_arguments(fcinfo, &run, &charge, &policy);
	read_request(&request);
	principal = find_principal(fcinfo);
	if (principal == NULL)
		PG_RETURN_TEXT_P(answer_bad_request("principal_missing"));
	if (charge.subject == NULL)
		charge.subject = principal;

	/*
	 * Here, and not in idem_run: it would raise, and roll back what the API
	 * function did before.
	 */
	fault = find_key(fcinfo, &request, &policy, &run.key);
	if (fault != NULL)
		PG_RETURN_TEXT_P(answer_bad_request(fault));
	run.scope = make_scope(principal, &request);
	answered = idem_run_execute(&run);
	if (answered == (Datum) 0)
		PG_RETURN_TEXT_P(answer_limited(&charge));
	idem_result_read(DatumGetHeapTupleHeader(answered), &result);
	answer = answer_result(&result);
	if (answer == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(answer);
}
