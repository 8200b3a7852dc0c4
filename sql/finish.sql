--
-- Finishing: each way to call it, how long what is stored is kept, and what is
-- not stored.
--
--
-- Overloads and defaults.
--
SELECT regress.finish('call 1', $$idem_complete('finish', %L)$$);
SELECT regress.finish('call 2', $$idem_complete('finish', %L, '{"a": 1}')$$);
SELECT regress.finish('call 3', $$idem_complete('finish', %L, NULL)$$);
SELECT regress.finish('call 4', $$idem_complete('finish', %L, '{"b":1,  "a":1}'::json)$$);
SELECT regress.finish('call 5', $$idem_complete('finish', %L, '{"b":1,  "a":1}'::jsonb)$$);
SELECT regress.finish('call 6', $$idem_complete('finish', %L, '\x00ff'::bytea)$$);
SELECT regress.finish('call 7', $$idem_complete('finish', %L, 'plain', content_type => 'text/plain')$$);
SELECT regress.finish('call 8', $$idem_complete('finish', %L, status_code => 204)$$);
SELECT regress.finish('call 9', $$idem_complete('finish', %L, '{}', 201, '{"A": "b"}', 'application/hal+json')$$);
SELECT regress.finish('call a', $$idem_complete('finish', %L, NULL::json, 303)$$);
SELECT regress.finish('call b', $$idem_complete('finish', %L, NULL::bytea, content_type => 'image/png')$$);
SELECT regress.finish('call c', $$idem_complete('finish', %L, NULL::jsonb, headers => '[]')$$);
SELECT regress.finish('fail 1', $$idem_fail('finish', %L)$$);
SELECT regress.finish('fail 2', $$idem_fail('finish', %L, '{"error": "x"}')$$);
SELECT regress.finish('fail 3', $$idem_fail('finish', %L, '{"error": "x"}', 402, retryable => false)$$);
SELECT regress.finish('fail 4', $$idem_fail('finish', %L, '{"error":  "x"}'::json)$$);
SELECT regress.finish('fail 5', $$idem_fail('finish', %L, '{"error":  "x"}'::jsonb)$$);
SELECT regress.finish('fail 6', $$idem_fail('finish', %L, '\x00ff'::bytea, 422, '{"A": "b"}', 'a/b', retryable => false)$$);
SELECT * FROM regress.finished WHERE key ~ '^(call|fail) ' ORDER BY key COLLATE "C";
SELECT key, r.outcome, r.attempt FROM idempotency_keys k, LATERAL idem_claim(scope, key) r
WHERE scope = 'finish' AND key ~ '^fail ' ORDER BY key COLLATE "C";

-- How long each kind is kept, and what the call returns.
SELECT idem_policy('finish-times', completed_ttl => '2 hours', failed_ttl => '3 hours');
SELECT idem_policy('finish-ever', completed_ttl => '0', failed_ttl => '0');
SELECT outcome, expires_at - lease_until AS kept FROM idem_claim('finish', 'ttl 1', policy => 'finish-times');
SELECT outcome, expires_at - lease_until AS kept FROM idem_claim('finish', 'ttl 2', policy => 'finish-times');
SELECT outcome, expires_at - lease_until AS kept FROM idem_claim('finish', 'ttl 3', policy => 'finish-times', ttl => '1 hour');
SELECT outcome, expires_at FROM idem_claim('finish', 'ttl 4', policy => 'finish-ever');
SELECT outcome, expires_at FROM idem_claim('finish', 'ttl 5', policy => 'finish-ever');
SELECT outcome, expires_at - lease_until AS kept FROM idem_claim('finish', 'ttl 6', policy => 'finish-ever', ttl => '1 hour');
CREATE TEMP TABLE returned (key text, expires_at timestamptz);
INSERT INTO returned VALUES
	('ttl 1', (idem_complete('finish', 'ttl 1', token => regress.token('finish', 'ttl 1'))).expires_at),
	('ttl 2', (idem_fail('finish', 'ttl 2', token => regress.token('finish', 'ttl 2'))).expires_at),
	('ttl 3', (idem_complete('finish', 'ttl 3', token => regress.token('finish', 'ttl 3'))).expires_at),
	('ttl 4', (idem_complete('finish', 'ttl 4', token => regress.token('finish', 'ttl 4'))).expires_at),
	('ttl 5', (idem_fail('finish', 'ttl 5', token => regress.token('finish', 'ttl 5'))).expires_at),
	('ttl 6', (idem_fail('finish', 'ttl 6', token => regress.token('finish', 'ttl 6'))).expires_at);
-- for ever is null wherever it is returned, and has no header
SELECT key, coalesce(r.expires_at, 'infinity') = k.expires_at AS returned, (idem_lookup('finish', key)).expires_at IS NOT DISTINCT FROM r.expires_at AS looked_up,
	(idem_http_headers(idem_lookup('finish', key))::text LIKE '%Idempotency-Expires%') = (r.expires_at IS NOT NULL) AS header,
	CASE k.expires_at WHEN 'infinity' THEN 'for ever' ELSE (k.expires_at - finished_at)::text END AS kept,
	purge_at >= k.expires_at AS not_purged_before
FROM idempotency_keys k JOIN returned r USING (key) WHERE scope = 'finish' ORDER BY key COLLATE "C";

--
-- Statuses that are not kept.
--
SELECT status, regress.error_of(format($$SELECT regress.finish('atomic', 'idem_complete(''finish'', %%L, status_code => %s)')$$, status)) AS claiming_transaction
FROM unnest(ARRAY[200, 304, 400, 404, 428, 429, 430, 499, 500, 503, 599]) status;
SELECT count(outcome) FROM unnest(ARRAY[200, 304, 400, 404, 428, 429, 430, 499, 500, 503, 599]) status,
	LATERAL idem_claim('finish', 'leased ' || status);
SELECT count(idem_complete('finish', 'leased ' || status, '"x"', status, token => regress.token('finish', 'leased ' || status)))
FROM unnest(ARRAY[200, 304, 400, 404, 428, 429, 430, 499, 500, 503, 599]) status;
SELECT key, l.outcome, l.status_code, l.http_status, r.outcome, r.attempt
FROM idempotency_keys k, LATERAL idem_lookup(scope, key) l, LATERAL idem_claim(scope, key) r
WHERE scope = 'finish' AND key LIKE 'leased %' ORDER BY key COLLATE "C";
-- the same again, before somebody claims it
SELECT outcome FROM idem_claim('finish', 'freed twice');
SELECT (idem_complete('finish', 'freed twice', '"x"', 503, token => regress.token('finish', 'freed twice'))).expires_at
	= (idem_complete('finish', 'freed twice', '"x"', 503, token => regress.token('finish', 'freed twice'))).expires_at AS same_time;
-- idem_fail commits what was done and says so, whatever the status
BEGIN;
SELECT outcome FROM idem_claim('finish', 'failed here');
SELECT (idem_fail('finish', 'failed here', '"x"', 503)).outcome IS NOT NULL AS failed;
COMMIT;
-- the policy's statuses
SELECT idem_policy('finish-release', release_statuses => '{[404,405)}');
SELECT count(outcome) FROM unnest(ARRAY[404, 405, 500]) status,
	LATERAL idem_claim('finish', 'policy ' || status, policy => 'finish-release');
SELECT count(idem_complete('finish', 'policy ' || status, status_code => status, token => regress.token('finish', 'policy ' || status)))
FROM unnest(ARRAY[404, 405, 500]) status;
SELECT key, outcome FROM regress.finished WHERE key LIKE 'policy %' ORDER BY key COLLATE "C";
-- statuses that are none
SELECT status, regress.error_of(format($$SELECT regress.finish('atomic', 'idem_complete(''finish'', %%L, status_code => %s)')$$, status))
FROM unnest(ARRAY[-1, 0, 99, 100, 600, 2000000000]) status;

--
-- Answers that are too large.
--
SELECT idem_policy('finish-small', max_body_bytes => 4);
SELECT idem_policy('finish-digest', max_body_bytes => 4, on_oversize => 'digest');
SELECT idem_policy('finish-none', max_body_bytes => 0, on_oversize => 'digest');
SELECT idem_policy('finish-nothing', max_body_bytes => 0);
CREATE FUNCTION pg_temp.finish_under(in_policy text, in_key text, body text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_require('finish', in_key, policy => in_policy);
	PERFORM idem_complete('finish', in_key, body, 201, '{"Location": "/a/long/path"}', 'text/plain');
END
$$;
SELECT policy, body, regress.error_of(format('SELECT pg_temp.finish_under(%L, ''size'', %L)', policy, body))
FROM unnest(ARRAY['finish-small', 'finish-digest', 'finish-none', 'finish-nothing']) policy,
	unnest(ARRAY[NULL, '', '1234', '12345', 'ä12', 'ä123']) body;
SELECT pg_temp.finish_under('finish-digest', 'size 1', '1234');
SELECT pg_temp.finish_under('finish-digest', 'size 2', '12345');
SELECT pg_temp.finish_under('finish-none', 'size 3', '1');
SELECT key, r.outcome, r.status_code, r.headers, r.content_type, r.body, r.body_size,
	r.body_sha256 = sha256(given::bytea) AS digest, idem_json(r) IS NULL AS no_json
FROM (VALUES ('size 1', '1234'), ('size 2', '12345'), ('size 3', '1')) v (key, given),
	LATERAL idem_claim('finish', key) r ORDER BY key;
-- the same again is still known by its digest
SELECT (idem_complete('finish', 'size 2', '12345', 201, '{"Location": "/a/long/path"}', 'text/plain', token => regress.token('finish', 'size 2'))).outcome IS NOT NULL AS same;
SELECT regress.error_of(format($$SELECT idem_complete('finish', 'size 2', '12346', 201, '{"Location": "/a/long/path"}', 'text/plain', token => %s)$$, regress.token('finish', 'size 2'))) AS other;
-- the shipped limit: 1 MiB, of failures as well
SELECT regress.error_of($$SELECT regress.finish('mega', 'idem_complete(''finish'', %L, repeat(''x'', 1048576), content_type => ''text/plain'')')$$) AS "1 MiB",
	regress.error_of($$SELECT regress.finish('mega', 'idem_complete(''finish'', %L, repeat(''x'', 1048577), content_type => ''text/plain'')')$$) AS "one more",
	regress.error_of($$SELECT regress.finish('mega', 'idem_fail(''finish'', %L, repeat(''x'', 1048577), content_type => ''text/plain'')')$$) AS "failure",
	regress.error_of($$SELECT regress.finish('mega', 'idem_complete(''finish'', %L, convert_to(repeat(''x'', 2097152), ''UTF8''))')$$) AS "a megabyte too much";

SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'finish-%';
