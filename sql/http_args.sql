--
-- The HTTP binding: what an API function can say besides, and what a limiter
-- charges; t/053_http_limiter.pl has what needs a bucket.
--
CREATE SCHEMA regress_http;
CREATE TABLE regress_http.effects (what text);
CREATE FUNCTION regress_http.work(request jsonb) RETURNS json LANGUAGE sql AS
$$ INSERT INTO regress_http.effects VALUES (request ->> 'what'); SELECT json_build_object('what', request ->> 'what') $$;
-- One request, as PostgREST gives it, with the rest of the arguments as text.
CREATE FUNCTION regress_http.send(header text, arguments text, what text DEFAULT 'x', OUT status text, OUT code text, OUT body text)
LANGUAGE plpgsql AS $$
DECLARE
	answer json;
BEGIN
	PERFORM set_config('request.method', 'POST', true), set_config('request.path', '/rpc/args', true),
		set_config('request.headers', json_strip_nulls(json_build_object('idempotency-key', header, 'x-request-id', 'id'))::text, true),
		set_config('request.jwt.claims', '{"sub": "ada"}', true);
	EXECUTE format('SELECT idem_http_run(%s)', concat_ws(', ', '''regress_http.work(jsonb)''', quote_literal(json_build_object('what', what)), arguments))
		INTO answer;
	status := current_setting('response.status');
	code := answer ->> 'code';
	body := CASE WHEN code IS NULL THEN answer::text END;
END
$$;

-- The context is compared, and so is the fingerprint, in place of the request's.
SELECT arguments, s.* FROM unnest(ARRAY['context => ''me''', 'context => ''me''', 'context => ''you''', NULL]) arguments, regress_http.send('args-context', arguments) s;
SELECT what, arguments, s.* FROM (VALUES ('a', 'fingerprint => ''f'''), ('b', 'fingerprint => ''f'''), ('a', 'fingerprint => ''g'''), ('a', NULL)) v (what, arguments),
	regress_http.send('args-fingerprint', arguments, what) s;
-- The key of another header, spelled as one; the header Idempotency-Key is not looked at then.
SELECT arguments, s.* FROM unnest(ARRAY['key => ''args-1''', 'key => ''"args-1"''', 'key => '' args-1 ''', 'key => NULL', 'key => ''''', 'key => ''two, keys''',
	'key => repeat(''k'', 256)', 'key => current_setting(''request.headers'')::json ->> ''x-request-id''', 'key => current_setting(''request.headers'')::json ->> ''x-none''']) arguments,
	regress_http.send(NULL, arguments) s;
SELECT status, code FROM regress_http.send('two, keys', 'key => ''args-1''');
SELECT key FROM idempotency_keys WHERE scope = idem_scope('ada', 'POST', '/rpc/args') ORDER BY key;

-- With a limiter: what is no new work costs nothing, and needs no bucket.
SET client_min_messages = warning;
SELECT idem_limiter('http-args', 1, '1 hour');
RESET client_min_messages;
SELECT header, s.* FROM (VALUES ('args-context', ', context => ''me'''), ('args-context', ', context => ''you'''), (NULL, ''), ('two, keys', '')) v (header, more),
	regress_http.send(header, 'limiter => ''http-args''' || more) s;
SELECT count(*) AS effects FROM regress_http.effects;
-- Misuse is raised, whatever the request is.
SELECT arguments, regress.error_of(format('SELECT regress_http.send(NULL, %L)', arguments)) AS error FROM unnest(ARRAY['limiter => ''http-none''', 'limiter => ''''',
	'limiter => ''http-args'', subject => ''''', 'limiter => ''http-args'', subject => repeat(''s'', 1025)', 'context => ''''', 'context => convert_to(repeat(''c'', 1025), ''UTF8'')',
	'fingerprint => ''''', 'fingerprint => convert_to(repeat(''f'', 1025), ''UTF8'')']) arguments;
SELECT idem_limiter_drop('http-args');

SET client_min_messages = warning;
DROP SCHEMA regress_http CASCADE;
RESET client_min_messages;
DELETE FROM idempotency_keys WHERE scope = idem_scope('ada', 'POST', '/rpc/args');
