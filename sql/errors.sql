--
-- Misuse: each call gets its SQLSTATE and, but for a null argument, a hint; it
-- changes nothing, and its message shows nothing of the key.
--
CREATE SCHEMA regress_errors;
CREATE FUNCTION regress_errors.handler(request jsonb) RETURNS json LANGUAGE sql AS
$$ SELECT '{}'::json $$;
CREATE FUNCTION regress_errors.text_handler(request jsonb) RETURNS text LANGUAGE sql AS
$$ SELECT '{}' $$;
CREATE FUNCTION regress_errors.strict_handler(request jsonb) RETURNS json STRICT LANGUAGE sql AS
$$ SELECT '{}'::json $$;
CREATE FUNCTION regress_errors.no_handler(request jsonb) RETURNS integer LANGUAGE sql AS
$$ SELECT 1 $$;

CREATE FUNCTION regress_errors.headers_handler(request jsonb) RETURNS idem_response LANGUAGE plpgsql SET search_path FROM CURRENT AS
$$ BEGIN RETURN ROW(200, '{"canary": "canary\r"}', NULL, NULL)::idem_response; END $$;

-- A request of PostgREST.
SET request.method = 'POST';
SET request.path = '/canary';
SET request.headers = '{"idempotency-key": "canary-http"}';
SET request.jwt.claims = '{"sub": "canary"}';

-- Keys to do wrong things to: a claim of another transaction, an answer, a
-- failure for good, and one of another role.
SELECT outcome FROM idem_claim('errors', 'canary-running', '{"a": 1}', context => '\x01');
SELECT outcome FROM idem_claim('errors', 'canary-done', '{"a": 1}');
SELECT (idem_complete('errors', 'canary-done', '{"secret": "canary"}', token => token)).outcome IS NOT NULL AS done
FROM idempotency_keys WHERE scope = 'errors' AND key = 'canary-done';
SELECT idem_policy('errors-once', on_repeat => 'reject');
SELECT idem_policy('errors-gone', on_expiry => 'reject', tombstone => '400 days');
SELECT idem_policy('errors-uuid', key_format => 'uuid', require_fingerprint => true);
SELECT idem_policy('errors-full', max_live_keys => 1);
SELECT outcome FROM idem_claim('errors', 'canary-once', policy => 'errors-once');
SELECT (idem_complete('errors', 'canary-once', token => token)).outcome IS NOT NULL AS done
FROM idempotency_keys WHERE scope = 'errors' AND key = 'canary-once';
SELECT outcome FROM idem_claim('errors', 'canary-gone', policy => 'errors-gone', ttl => '1 us');
UPDATE idempotency_keys SET expires_at = created_at WHERE scope = 'errors' AND key = 'canary-gone';

SET client_min_messages = warning; -- a notice says that it cannot work
SELECT idem_limiter('errors-limiter', 1, '1 s');
RESET client_min_messages;

CREATE TEMP TABLE calls (id serial, state text, call text);
\set ECHO none
-- not shown: the calls, and how each is tried
INSERT INTO calls (state, call) VALUES
	-- nulls
	('22004', 'idem_claim(NULL, ''canary'')'),
	('ID012', 'idem_claim(''errors'', NULL)'),
	('22004', 'idem_claim(''errors'', ''canary'', policy => NULL)'),
	('22004', 'idem_require(NULL, ''canary'')'),
	('ID012', 'idem_require(''errors'', NULL)'),
	('22004', 'idem_require(''errors'', ''canary'', policy => NULL)'),
	('22004', 'idem_run(NULL, ''errors'', ''canary'')'),
	('22004', 'idem_run(''regress_errors.handler(jsonb)'', NULL, ''canary'')'),
	('ID012', 'idem_run(''regress_errors.handler(jsonb)'', ''errors'', NULL)'),
	('22004', 'idem_run(''regress_errors.handler(jsonb)'', ''errors'', ''canary'', policy => NULL)'),
	('22004', 'idem_run(''regress_errors.handler(jsonb)'', ''errors'', ''canary'', on_error => NULL)'),
	('22004', 'idem_run(''regress_errors.strict_handler(jsonb)'', ''errors'', ''canary'')'),
	('22004', 'idem_http_run(NULL, ''{}'')'),
	('22004', 'idem_http_problem(NULL)'),
	('22004', 'idem_http_run(''regress_errors.handler(jsonb)'', NULL)'),
	('22004', 'idem_http_run(''regress_errors.handler(jsonb)'', ''{}'', NULL)'),
	('22004', 'idem_dedupe(NULL, ''{canary}'')'),
	('22004', 'idem_dedupe(''errors'', NULL)'),
	('ID012', 'idem_dedupe(''errors'', ''{canary,NULL}'')'),
	('22004', 'idem_dedupe(''errors'', ''{canary}'', NULL)'),
	('22004', 'idem_lookup(NULL, ''canary'')'),
	('ID012', 'idem_lookup(''errors'', NULL)'),
	('22004', 'idem_complete(NULL, ''canary'')'),
	('ID012', 'idem_complete(''errors'', NULL)'),
	('22004', 'idem_complete(''errors'', ''canary-running'', status_code => NULL)'),
	('ID012', 'idem_complete(''errors'', NULL, ''{}''::json)'),
	('ID012', 'idem_complete(''errors'', NULL, ''{}''::jsonb)'),
	('ID012', 'idem_complete(''errors'', NULL, ''{}''::bytea)'),
	('22004', 'idem_fail(NULL, ''canary'')'),
	('ID012', 'idem_fail(''errors'', NULL)'),
	('22004', 'idem_fail(''errors'', ''canary-running'', status_code => NULL)'),
	('22004', 'idem_fail(''errors'', ''canary-running'', retryable => NULL)'),
	('ID012', 'idem_fail(''errors'', NULL, ''{}''::json)'),
	('ID012', 'idem_fail(''errors'', NULL, ''{}''::jsonb)'),
	('ID012', 'idem_fail(''errors'', NULL, ''{}''::bytea)'),
	('22004', 'idem_extend(NULL, ''canary'', 1, ''1 s'')'),
	('ID012', 'idem_extend(''errors'', NULL, 1, ''1 s'')'),
	('22004', 'idem_extend(''errors'', ''canary-running'', NULL, ''1 s'')'),
	('22004', 'idem_extend(''errors'', ''canary-running'', 1, NULL)'),
	('22004', 'idem_checkpoint(NULL, ''canary'', 1, ''p'')'),
	('ID012', 'idem_checkpoint(''errors'', NULL, 1, ''p'')'),
	('22004', 'idem_checkpoint(''errors'', ''canary-running'', NULL, ''p'')'),
	('22004', 'idem_checkpoint(''errors'', ''canary-running'', 1, NULL)'),
	('22004', 'idem_release(NULL, ''canary'')'),
	('ID012', 'idem_release(''errors'', NULL)'),
	('22004', 'idem_recover(NULL)'),
	('22004', 'idem_recover(''default'', NULL)'),
	('22023', 'idem_recover(''default'', 0)'),
	('22023', 'idem_recover(''default'', 10001)'),
	('22023', 'idem_recover(''default'', 1, ''0'')'),
	('42704', 'idem_recover(''errors-unknown'')'),
	('55000', 'idem_recover(''default'')'),
	('22023', 'idem_run(''regress_errors.handler(jsonb)'', ''errors'', ''canary'', ttl => ''1 month'')'),
	('22023', 'idem_run(''regress_errors.handler(jsonb)'', ''errors'', ''canary'', fingerprint => '''')'),
	('22023', 'idem_complete(''errors'', ''canary-running'', ttl => ''-1 s'')'),
	('22023', 'idem_fail(''errors'', ''canary-running'', ttl => ''401 days'')'),
	('22004', 'idem_forget(NULL, ''canary'')'),
	('ID012', 'idem_forget(''errors'', NULL)'),
	('22004', 'idem_forget_scope(NULL)'),
	('22004', 'idem_end_lease(NULL, ''canary'')'),
	('22004', 'idem_holder(NULL, ''canary'')'),
	('22004', 'idem_find(max_rows => NULL)'),
	('22004', 'idem_policy(NULL)'),
	('22004', 'idem_policy_drop(NULL)'),
	('22004', 'idem_limiter(NULL, 1, ''1 s'')'),
	('22004', 'idem_limiter(''errors'', NULL, ''1 s'')'),
	('22004', 'idem_limiter(''errors'', 1, NULL)'),
	('22004', 'idem_limiter(''errors'', 1, ''1 s'', when_full => NULL)'),
	('22004', 'idem_limiter_drop(NULL)'),
	('22004', 'idem_throttle(NULL, ''canary'')'),
	('22004', 'idem_throttle(''errors-limiter'', NULL)'),
	('22004', 'idem_throttle(''errors-limiter'', ''canary'', NULL)'),
	('22004', 'idem_throttle_peek(NULL, ''canary'')'),
	('22004', 'idem_throttle_peek(''errors-limiter'', NULL)'),
	('22004', 'idem_throttle_all(NULL, ''{canary}'')'),
	('22004', 'idem_audit(NULL, ''order'', ''canary'')'),
	('22004', 'idem_audit(''sold'', NULL, ''canary'')'),
	('22004', 'idem_audit(''sold'', ''order'', NULL)'),
	('22004', 'idem_audit_prune(NULL)'),
	('22004', 'idem_scope(VARIADIC NULL::text[])'),
	('22004', 'idem_scope(''canary'', NULL)'),
	('22004', 'idem_context(VARIADIC NULL::text[])'),
	('22004', 'idem_context(''canary'', NULL)'),
	('22004', 'idem_secret(NULL, ''canary canary canary'')'),
	('22004', 'idem_secret(''context'', NULL)'),
	('22004', 'idem_secret_drop(NULL, 1)'),
	('22004', 'idem_secret_drop(''context'', NULL)'),
	('ID012', 'idem_key(NULL)'),
	('22004', 'idem_respond(NULL, ''{}'')'),
	('22004', 'idem_grant(NULL, ''app'')'),
	('22004', 'idem_grant(current_user::regrole, NULL)'),
	('22004', 'idem_distribute(NULL)'),
	('22004', 'idem_key_lock(NULL, ''k'', true)'),
	('ID012', 'idem_key_lock(''s'', NULL, true)'),
	('22004', 'idem_key_lock(''s'', ''k'', NULL)'),
	('22004', 'idem_schedule(NULL)'),
	-- of these a null is no misuse
	('none', 'idem_sweep(NULL)'),
	('none', 'idem_canonical(NULL)'),
	('none', 'idem_fingerprint(NULL)'),
	('none', 'idem_log_id(NULL)'),
	('none', 'idem_json(NULL)'),
	('none', 'idem_http_problem(NULL::idem_result)'),
	('none', 'idem_http_time(NULL)'),
	('none', 'idem_http_headers(NULL)'),
	('none', 'idem_http_run(''regress_errors.handler(jsonb)'', ''{}'', principal => NULL)'),
	('none', 'idem_respond(200, NULL, NULL)'),
	-- scopes and keys
	('22023', 'idem_claim('''', ''canary'')'),
	('ID012', 'idem_claim(''errors'', '''')'),
	('22023', 'idem_claim(repeat(''s'', 1025), ''canary'')'),
	('ID012', 'idem_claim(''errors'', repeat(''canary'', 50))'),
	('ID012', 'idem_require(''errors'', '''')'),
	('ID012', 'idem_run(''regress_errors.handler(jsonb)'', ''errors'', '''')'),
	('ID012', 'idem_dedupe(''errors'', ARRAY[''canary'', ''''])'),
	('ID012', 'idem_dedupe(''errors'', ARRAY[''canary'', repeat(''k'', 256)])'),
	('ID012', 'idem_lookup(''errors'', '''')'),
	('22023', 'idem_lookup(repeat(''s'', 1025), ''canary'')'),
	('ID012', 'idem_lookup(''errors'', repeat(''k'', 1025))'),
	('ID012', 'idem_complete(''errors'', '''')'),
	('22023', 'idem_fail('''', ''canary'')'),
	('ID012', 'idem_extend(''errors'', '''', 1, ''1 s'')'),
	('ID012', 'idem_checkpoint(''errors'', '''', 1, ''p'')'),
	('ID012', 'idem_release(''errors'', '''')'),
	('ID012', 'idem_forget(''errors'', '''')'),
	('ID012', 'idem_claim(''errors'', ''canary-no-uuid'', ''{}'', policy => ''errors-uuid'')'),
	('ID012', 'idem_dedupe(''errors'', ''{canary-no-uuid}'', ''errors-uuid'')'),
	('ID012', 'idem_run(''regress_errors.handler(jsonb)'', ''errors'', ''canary-no-uuid'', ''{}'', ''errors-uuid'')'),
	-- limiters
	('22023', 'idem_limiter('''', 1, ''1 s'')'),
	('22023', 'idem_limiter(repeat(''n'', 64), 1, ''1 s'')'),
	('22023', 'idem_limiter(''errors'', 0, ''1 s'')'),
	('22023', 'idem_limiter(''errors'', -1, ''1 s'')'),
	('22023', 'idem_limiter(''errors'', 1000000001, ''1 s'')'),
	('22023', 'idem_limiter(''errors'', 1, ''0'')'),
	('22023', 'idem_limiter(''errors'', 1, ''-1 s'')'),
	('22023', 'idem_limiter(''errors'', 1, ''1 month'')'),
	('22023', 'idem_limiter(''errors'', 1, ''3661 days'')'),
	('22023', 'idem_limiter(''errors'', 1, ''178000000 days'')'),
	('22023', 'idem_limiter(''errors'', 1, ''1 s'', ''0'')'),
	('22023', 'idem_limiter(''errors'', 1, ''1 s'', ''-1 s'')'),
	('22023', 'idem_limiter(''errors'', 1, ''1 s'', ''1 year'')'),
	('22023', 'idem_limiter(''errors'', 1, ''1 s'', ''3661 days'')'),
	('22023', 'idem_limiter(''errors'', 1, ''1 s'', ''2 s'', ''1 s'')'),
	('22023', 'idem_limiter(''errors'', 1, ''1 s'', ''1 s'', ''3661 days'')'),
	('22023', 'idem_limiter(''errors'', 1, ''1 s'', backoff_max => ''1 s'')'),
	('22023', 'idem_limiter(''errors'', 1, ''1 s'', when_full => ''canary'')'),
	('22023', 'idem_throttle(''errors-limiter'', '''')'),
	('22023', 'idem_throttle(''errors-limiter'', repeat(''canary'', 200))'),
	('22023', 'idem_throttle(''errors-limiter'', ''canary'', -1)'),
	('22023', 'idem_throttle_peek(''errors-limiter'', '''')'),
	('22023', 'idem_throttle_all(''{errors-limiter}'', ARRAY[repeat(''canary'', 200)])'),
	('22023', 'idem_throttle_return(''errors-limiter'', repeat(''canary'', 200))'),
	('42704', 'idem_throttle(''errors-none'', ''canary'')'),
	('42704', 'idem_throttle('''', ''canary'')'),
	('42704', 'idem_throttle(repeat(''n'', 64), ''canary'')'),
	('42704', 'idem_throttle_peek(''errors-none'', ''canary'')'),
	('22023', 'idem_audit(''limited'', ''idempotency_limiter'', ''canary'')'),
	-- fingerprints and contexts
	('22023', 'idem_claim(''errors'', ''11111111-1111-4111-8111-111111111111'', policy => ''errors-uuid'')'),
	('22023', 'idem_run(''regress_errors.handler(jsonb)'', ''errors'', ''11111111-1111-4111-8111-111111111111'', policy => ''errors-uuid'')'),
	('22023', 'idem_claim(''errors'', ''canary'', ''{}'', ''\x01'')'),
	('22023', 'idem_claim(''errors'', ''canary'', fingerprint => '''')'),
	('22023', 'idem_claim(''errors'', ''canary'', context => '''')'),
	('22023', 'idem_claim(''errors'', ''canary'', context => convert_to(repeat(''c'', 1025), ''UTF8''))'),
	-- intervals
	('22023', 'idem_claim(''errors'', ''canary'', wait => ''-1 s'')'),
	('22023', 'idem_claim(''errors'', ''canary'', lease => ''-1 s'')'),
	('22023', 'idem_claim(''errors'', ''canary'', ttl => ''-1 s'')'),
	('22023', 'idem_claim(''errors'', ''canary'', ttl => ''1 month'')'),
	('22023', 'idem_claim(''errors'', ''canary'', ttl => ''401 days'')'),
	('22023', 'idem_require(''errors'', ''canary'', lease => ''25 hours'')'),
	('22023', 'idem_run(''regress_errors.handler(jsonb)'', ''errors'', ''canary'', wait => ''-1 s'')'),
	('22023', 'idem_run(''regress_errors.handler(jsonb)'', ''errors'', ''canary'', wait => ''2 min'')'),
	('22023', 'idem_extend(''errors'', ''canary-running'', 1, ''-1 s'')'),
	-- policies
	('42704', 'idem_claim(''errors'', ''canary'', policy => ''errors-unknown'')'),
	('42704', 'idem_claim(''errors'', ''canary'', policy => '''')'),
	('42704', 'idem_claim(''errors'', ''canary'', policy => repeat(''p'', 100))'),
	('42704', 'idem_require(''errors'', ''canary'', policy => ''errors-unknown'')'),
	('42704', 'idem_run(''regress_errors.handler(jsonb)'', ''errors'', ''canary'', policy => ''errors-unknown'')'),
	('42704', 'idem_http_run(''regress_errors.handler(jsonb)'', ''{}'', ''errors-unknown'')'),
	('42704', 'idem_http_run(''regress_errors.handler(jsonb)'', ''{}'', limiter => ''errors-unknown'')'),
	('42704', 'idem_dedupe(''errors'', ''{canary}'', ''errors-unknown'')'),
	('22023', 'idem_policy('''')'),
	('22023', 'idem_policy(repeat(''p'', 64))'),
	-- handlers
	('22023', 'idem_run(''regress_errors.no_handler(jsonb)'', ''errors'', ''canary'')'),
	('22023', 'idem_run(''regress_errors.handler(jsonb)'', ''errors'', ''canary'', on_error => ''canary'')'),
	-- answers
	('22P02', 'idem_complete(''errors'', ''canary-running'', ''{canary'')'),
	('22P02', 'idem_fail(''errors'', ''canary-running'', ''{canary'')'),
	('22023', 'idem_complete(''errors'', ''canary-running'', headers => ''"canary"'')'),
	('22023', 'idem_complete(''errors'', ''canary-running'', headers => ''null'')'),
	('22023', 'idem_complete(''errors'', ''canary-running'', ''{}'', content_type => '''')'),
	('22023', 'idem_complete(''errors'', ''canary-running'', status_code => 99)'),
	('22023', 'idem_respond(1000, ''{}'')'),
	('22023', 'idem_respond(200, ''{}'', ''1'')'),
	('22023', 'idem_respond(200, ''{}'', ''{"canary": "canary\r"}'')'),
	('22023', 'idem_respond(200, ''{}'', ''{"canary:": "canary"}'')'),
	('22023', 'idem_respond(200, ''{}'', ''["canary"]'')'),
	('22023', 'idem_complete(''errors'', ''canary-running'', headers => ''{"canary": "\u0000"}'')'),
	('22023', 'idem_complete(''errors'', ''canary-running'', ''{}''::json, headers => ''{"canary": null}'')'),
	('22023', 'idem_complete(''errors'', ''canary-running'', ''{}''::jsonb, headers => ''{"canary": [[]]}'')'),
	('22023', 'idem_complete(''errors'', ''canary-running'', ''{}''::bytea, headers => ''[["canary"]]'')'),
	('22023', 'idem_fail(''errors'', ''canary-running'', headers => ''{"canary": "canary\n"}'')'),
	('22023', 'idem_fail(''errors'', ''canary-running'', ''{}''::json, headers => ''{"canary canary": "1"}'')'),
	('22023', 'idem_fail(''errors'', ''canary-running'', ''{}''::jsonb, headers => ''[{"canary": "1", "b": "2"}]'')'),
	('22023', 'idem_fail(''errors'', ''canary-running'', ''{}''::bytea, headers => ''{"": "1"}'')'),
	('22023', 'idem_run(''regress_errors.headers_handler(jsonb)'', ''errors'', ''canary'', ''{}'')'),
	('22023', 'idem_http_run(''regress_errors.headers_handler(jsonb)'', ''{}'')'),
	('22023', 'idem_complete(''errors'', ''canary-running'', ''{}'', content_type => ''canary'')'),
	('22023', 'idem_complete(''errors'', ''canary-running'', ''{}'', content_type => ''text/plain, canary'')'),
	-- tokens
	('ID001', 'idem_complete(''errors'', ''canary'')'),
	('ID001', 'idem_extend(''errors'', ''canary'', 1, ''1 s'')'),
	('ID002', 'idem_complete(''errors'', ''canary-running'')'),
	('ID002', 'idem_complete(''errors'', ''canary-running'', token => 1)'),
	('ID002', 'idem_release(''errors'', ''canary-running'')'),
	('ID002', 'idem_complete(''errors'', ''canary-done'')'),
	('ID003', 'idem_complete(''errors'', ''canary-done'', ''{"canary": 2}'', token => (SELECT token FROM idempotency_keys WHERE scope = ''errors'' AND key = ''canary-done''))'),
	('ID001', 'idem_release(''errors'', ''canary-done'', (SELECT token FROM idempotency_keys WHERE scope = ''errors'' AND key = ''canary-done''))'),
	('ID008', 'idem_complete(''errors'', ''canary-running'', repeat(''c'', 2097152), content_type => ''text/plain'', token => (SELECT token FROM idempotency_keys WHERE scope = ''errors'' AND key = ''canary-running''))'),
	('ID008', 'idem_complete(''errors'', ''canary-running'', headers => to_json(ARRAY[repeat(''canary'', 20000)]))'),
	-- outcomes as errors
	('ID003', 'idem_require(''errors'', ''canary-done'', ''{"a": 1}'')'),
	('ID004', 'idem_require(''errors'', ''canary-running'', ''{"a": 1}'', context => ''\x01'')'),
	('ID005', 'idem_require(''errors'', ''canary-done'', ''{"canary": 2}'')'),
	('ID005', 'idem_require(''errors'', ''canary-running'', ''{"a": 1}'', context => ''\x02'')'),
	('ID006', 'idem_require(''errors'', ''canary-gone'')'),
	('ID007', 'idem_require(''errors'', ''canary-once'')'),
	('ID009', 'idem_claim(''errors'', ''canary'', policy => ''errors-full'')'),
	('ID009', 'idem_run(''regress_errors.handler(jsonb)'', ''errors'', ''canary'', policy => ''errors-full'')'),
	('ID009', 'idem_dedupe(''errors'', ''{canary}'', ''errors-full'')'),
	-- the rest
	('22023', 'idem_checkpoint(''errors'', ''canary-running'', 1, '''')'),
	('22023', 'idem_checkpoint(''errors'', ''canary-running'', 1, ''p'', to_jsonb(repeat(''canary'', 1000000)))'),
	('22023', 'idem_checkpoint(''errors'', ''canary-running'', 1, ''p'', (''['' || rpad('''', 90000, ''1e131071,'') || ''0]'')::jsonb)'),
	('22023', 'idem_audit(''sold'', ''order'', ''canary'', ''{"a": [1e131071, 1e131071, -1e131071, 1e131071, 1e131071, 1e131071, 1e131071, 1e131071, 1e131071]}'')'),
	('22023', 'idem_audit_verify(''canary'')'),
	('22023', 'idem_audit_verify(''idem1:1:'' || repeat(''0'', 63))'),
	('22023', 'idem_audit_verify(''idem1:1:'' || repeat(''0'', 65))'),
	('22023', 'idem_audit_verify(''idem1:-1:'' || repeat(''0'', 64))'),
	('22023', 'idem_audit('''', ''order'', ''canary'')'),
	('22023', 'idem_audit(''sold'', ''idempotency_key'', ''canary'')'),
	('22023', 'idem_audit(repeat(''canary'', 200), ''order'', ''1'')'),
	('22023', 'idem_sweep(0)'),
	('55000', 'idem_schedule()'),
	('55000', 'idem_schedule(''canary'')'),
	('55000', 'idem_unschedule()'),
	('22023', 'idem_sweep(-1)'),
	('22023', 'idem_scope(VARIADIC ''{}''::text[])'),
	('22023', 'idem_scope(''canary'', '''')'),
	('22023', 'idem_scope(E''canary\u001e'')'),
	('ID012', 'idem_key(''"canary'')'),
	('22023', 'idem_http_run(''regress_errors.no_handler(jsonb)'', ''{}'')'),
	('22023', 'idem_http_run(''regress_errors.text_handler(jsonb)'', ''{}'')'),
	('22023', 'idem_http_run(''regress_errors.handler(jsonb)'', ''{}'', principal => E''canary\u001e'')'),
	('22023', 'idem_http_run(''regress_errors.handler(jsonb)'', ''{}'', principal => repeat(''canary'', 200))'),
	('22023', 'idem_http_problem(json_populate_record(NULL::idem_result, ''{"error_code": "canary", "http_status": 200}''))'),
	('22023', 'idem_http_problem(''canary'')'),
	('22023', 'idem_http_problem(''rate_limited'', ''canary'', -1)'),
	('22023', 'idem_secret(''canary'', ''0123456789012345'')'),
	('22023', 'idem_secret(''context'', ''canary'')'),
	('22023', 'idem_secret_drop(''canary'', 1)'),
	('22023', 'idem_grant(current_user::regrole, ''canary'')'),
	('55000', 'idem_distribute(''pg_class'')'),
	('55000', 'idem_distribute_node()');

-- Runs a call and undoes it.  "leak": something of a key, an answer or a
-- secret is in the text of the error.
CREATE FUNCTION regress_errors.try(call text, OUT state text, OUT hint boolean, OUT leak boolean)
LANGUAGE plpgsql AS $$
DECLARE
	message text;
	detail text;
	advice text;
	rest text;
	texts text;
BEGIN
	BEGIN
		EXECUTE 'SELECT ' || call;
		RAISE EXCEPTION USING ERRCODE = 'P9999';
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
			advice = PG_EXCEPTION_HINT, rest = CONSTRAINT_NAME;
		texts := concat_ws(' ', message, detail, advice, rest);
		state := CASE SQLSTATE WHEN 'P9999' THEN 'none' ELSE SQLSTATE END;
		hint := advice <> '';
		leak := texts ILIKE '%canary%' OR texts LIKE '%scope errors%';
	END;
END
$$;
\set ECHO all

CREATE TEMP TABLE before AS
SELECT (SELECT count(*) FROM idempotency_keys) AS keys, (SELECT sum(token) FROM idempotency_keys) AS tokens,
	(SELECT count(*) FROM idempotency_policies) AS policies, (SELECT count(*) FROM idempotency_limiters) AS limiters,
	(SELECT count(*) FROM idempotency_audit_log) AS audit,
	(SELECT count(*) FROM idempotency_secrets) AS secrets,
	(SELECT md5(string_agg(k::text, ',' ORDER BY key)) FROM idempotency_keys k WHERE scope = 'errors') AS digest;

SELECT c.call, c.state AS must_be, t.state AS is, t.hint, t.leak
FROM calls c, LATERAL regress_errors.try(c.call) t
WHERE c.state <> t.state OR (c.state NOT IN ('none', '22004') AND NOT t.hint) OR t.leak ORDER BY id;
SELECT state, count(*) AS calls FROM calls GROUP BY state ORDER BY state COLLATE "C";

-- Nothing is changed; the same by each call in a transaction of its own.
SELECT format('SELECT FROM %s', call) FROM calls WHERE state <> 'none' ORDER BY id
\set ECHO none
\set VERBOSITY sqlstate
\gexec
\set VERBOSITY default
\set ECHO all
SELECT b.keys = (SELECT count(*) FROM idempotency_keys) AS keys, b.tokens = (SELECT sum(token) FROM idempotency_keys) AS tokens,
	b.policies = (SELECT count(*) FROM idempotency_policies) AS policies, b.limiters = (SELECT count(*) FROM idempotency_limiters) AS limiters,
	b.audit = (SELECT count(*) FROM idempotency_audit_log) AS audit,
	b.secrets = (SELECT count(*) FROM idempotency_secrets) AS secrets,
	b.digest = (SELECT md5(string_agg(k::text, ',' ORDER BY key)) FROM idempotency_keys k WHERE scope = 'errors') AS rows
FROM before b;
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();

-- Every function of the extension that can raise is in the list.
SELECT p.oid::regprocedure AS not_tried
FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
	AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotency')
	AND p.prorettype <> 'trigger'::regtype
	AND p.proname NOT IN ('idem_health', 'idem_policy_values', 'idem_sweep_all', 'idem_stats_values', 'idem_stats_reset',
		'idem_activity_values', 'idem_sweep_status_values', 'idem_audit_seal', 'idem_audit_digest', 'idem_throttle_activity_values')
	AND NOT EXISTS (SELECT FROM calls WHERE call LIKE p.proname || '(%')
ORDER BY 1;
