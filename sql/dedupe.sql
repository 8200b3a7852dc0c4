--
-- idem_dedupe: the inbox of a message consumer.
--
-- In input order; a key twice is first once; the second call finds them all.
SELECT * FROM idem_dedupe('dedupe', ARRAY['m3', 'm1', 'm2', 'm1', 'M1', 'm3', ' m1', 'ä', '😀']);
SELECT * FROM idem_dedupe('dedupe', ARRAY['m4', 'm3', 'm1', 'm5', 'm4']);
SELECT * FROM idem_dedupe('dedupe', '{}');
SELECT * FROM idem_dedupe('dedupe other', '{m1}');

-- What a key marked so is for the other functions.
SELECT outcome, attempt, status_code, body, body_size, finished_at - created_at AS took, expires_at - finished_at AS kept
FROM idem_lookup('dedupe', 'm1');
SELECT outcome, status_code FROM idem_claim('dedupe', 'm1');
SELECT outcome FROM idem_claim('dedupe', 'm1', '{"a": 1}');
SELECT policy, claimed_by = current_user AS mine, purge_at >= expires_at AS not_purged_before
FROM idempotency_keys WHERE scope = 'dedupe' AND key = 'm1';

-- Rows in every state: an expired key is first again, any other row is not.
SELECT idem_policy('dedupe-refuse', on_expiry => 'reject', tombstone => '1 day');
SELECT outcome FROM idem_claim('dedupe', 'running');
SELECT outcome FROM idem_claim('dedupe', 'lease over');
SELECT outcome FROM idem_claim('dedupe', 'abandoned');
SELECT outcome FROM idem_claim('dedupe', 'completed');
SELECT outcome FROM idem_claim('dedupe', 'retryable');
SELECT outcome FROM idem_claim('dedupe', 'failed');
SELECT outcome FROM idem_claim('dedupe', 'released');
SELECT outcome FROM idem_claim('dedupe', 'expired', '{"a": 1}', context => '\x01', policy => 'dedupe-refuse');
SELECT outcome FROM idem_claim('dedupe', 'long gone', '{"a": 1}', context => '\x01', policy => 'dedupe-refuse');
SELECT (idem_complete('dedupe', 'completed', '{}', token => regress.token('dedupe', 'completed'))).outcome IS NOT NULL AS done;
SELECT (idem_fail('dedupe', 'retryable', '{}', token => regress.token('dedupe', 'retryable'))).outcome IS NOT NULL AS done;
SELECT (idem_fail('dedupe', 'failed', '{}', retryable => false, token => regress.token('dedupe', 'failed'))).outcome IS NOT NULL AS done;
SELECT idem_release('dedupe', 'released', regress.token('dedupe', 'released'));
SELECT (idem_complete('dedupe', 'expired', '{}', 201, '{"A": "1"}', token => regress.token('dedupe', 'expired'))).outcome IS NOT NULL AS done;
SELECT (idem_complete('dedupe', 'long gone', '{}', 201, '{"A": "1"}', token => regress.token('dedupe', 'long gone'))).outcome IS NOT NULL AS done;
SELECT regress.age('dedupe', 'lease over', '1 hour'), regress.age('dedupe', 'abandoned', '2 days'), regress.age('dedupe', 'm5', '2 days'),
	regress.age('dedupe', 'expired', '25 hours'), regress.age('dedupe', 'long gone', '3 days');
SELECT key, token INTO TEMP tokens FROM idempotency_keys WHERE scope = 'dedupe';
SELECT key, first FROM idem_dedupe('dedupe', ARRAY['running', 'lease over', 'abandoned', 'completed', 'retryable', 'failed',
	'released', 'expired', 'long gone', 'm5', 'm5', 'new']);
-- again: only now they are marked
SELECT count(*) FILTER (WHERE first) AS first FROM idem_dedupe('dedupe', ARRAY['abandoned', 'released', 'long gone', 'm5', 'new']);
-- nothing old is left in a row that was first again, and the token is greater
SELECT k.key, state, k.token > coalesce(t.token, 0) AS greater, fingerprint, context, headers, body, status_code, policy
FROM idempotency_keys k JOIN tokens t USING (key)
WHERE scope = 'dedupe' AND k.token IS DISTINCT FROM t.token ORDER BY k.key COLLATE "C";

-- Its own claim in the same transaction.
BEGIN;
SELECT outcome FROM idem_claim('dedupe', 'own');
SELECT count(*) AS of_claim FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() \gset
SELECT key, first FROM idem_dedupe('dedupe', '{own,also}');
SELECT key, first FROM idem_dedupe('dedupe', '{also,own}');
SELECT count(*) - :of_claim AS more_key_locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
ROLLBACK;
-- rolled back, they come for the first time again
BEGIN;
SELECT key, first FROM idem_dedupe('dedupe', '{own,also}');
SAVEPOINT s;
SELECT key, first FROM idem_dedupe('dedupe', '{third}');
ROLLBACK TO s;
SELECT key, first FROM idem_dedupe('dedupe', '{also,third}');
SELECT count(*) AS key_locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
COMMIT;

-- Many keys in one call.
SELECT count(*) AS keys, count(*) FILTER (WHERE first) AS first, bool_and(ord::text = key) AS in_order
FROM idem_dedupe('dedupe many', ARRAY(SELECT i::text FROM generate_series(1, 2000) i));
SELECT count(*) AS keys, count(*) FILTER (WHERE first) AS first, bool_and(first = (key::integer > 2000 AND ord <= 2500)) AS right
FROM idem_dedupe('dedupe many', ARRAY(SELECT (i % 2500 + 1)::text FROM generate_series(0, 4999) i));

-- The policy: format of keys, retention, audit, the number of live keys.
SELECT idem_policy('dedupe-uuid', key_format => 'uuid', completed_ttl => '2 hours', audit => true);
-- each key comes back as it was given, and is stored in one spelling
SELECT * FROM idem_dedupe('dedupe', '{8E03978E-40D5-43DD-BC93-6894A57F9324,8e03978e-40d5-43dd-bc93-6894a57f9324}', 'dedupe-uuid');
SELECT * FROM idem_dedupe('dedupe', '{8e03978E-40d5-43dd-bc93-6894a57f9324}');
SELECT key, policy, expires_at - finished_at AS kept FROM idempotency_keys WHERE scope = 'dedupe' AND key LIKE '8%';
SELECT count(*) AS audited FROM idempotency_audit_log
WHERE entity_id = idem_log_id('dedupe') || '/' || idem_log_id('8e03978e-40d5-43dd-bc93-6894a57f9324');
SELECT idem_policy('dedupe-few', max_live_keys => 3);
\set VERBOSITY sqlstate
SELECT * FROM idem_dedupe('dedupe few', '{a,b,c,d}', 'dedupe-few');
SELECT * FROM idem_dedupe('dedupe few', '{a,b,c,c}', 'dedupe-few');
SELECT * FROM idem_dedupe('dedupe few', '{a,b}', 'dedupe-few');
SELECT * FROM idem_dedupe('dedupe few', '{a,d}', 'dedupe-few');
-- a bad key anywhere, and nothing is marked
SELECT * FROM idem_dedupe('dedupe', ARRAY['good', '']);
SELECT * FROM idem_dedupe('dedupe', ARRAY['good', NULL]);
SELECT * FROM idem_dedupe('dedupe', ARRAY['good', repeat('k', 256)]);
SELECT * FROM idem_dedupe('dedupe', '{8e03978e-40d5-43dd-bc93-6894a57f9324,good}', 'dedupe-uuid');
-- another role's key, and nothing is marked
CREATE ROLE regress_idem_consumer;
SELECT idem_grant('regress_idem_consumer', 'app');
SET ROLE regress_idem_consumer;
SELECT * FROM idem_dedupe('dedupe', ARRAY['good', 'm1']);
RESET ROLE;
\set VERBOSITY default
SELECT count(*) FROM idempotency_keys WHERE key = 'good' OR scope = 'dedupe few' AND key = 'd';
-- but its expired one is free
SELECT regress.age('dedupe', 'm2', '2 days');
SET ROLE regress_idem_consumer;
SELECT key, first FROM idem_dedupe('dedupe', '{m2}');
RESET ROLE;
SELECT claimed_by FROM idempotency_keys WHERE scope = 'dedupe' AND key = 'm2';

DROP OWNED BY regress_idem_consumer;
DROP ROLE regress_idem_consumer;
SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'dedupe-%';

-- A key whose time is over counts against the cap when it is first again.
SELECT idem_policy('dedupe-cap', max_live_keys => 1);
SELECT key, first FROM idem_dedupe('dedupe-cap', '{b}', 'dedupe-cap');
UPDATE idempotency_keys SET expires_at = expires_at - interval '1 week', purge_at = purge_at - interval '1 week' WHERE scope = 'dedupe-cap';
SELECT key, first FROM idem_dedupe('dedupe-cap', '{a}', 'dedupe-cap');
\set VERBOSITY sqlstate
SELECT key, first FROM idem_dedupe('dedupe-cap', '{b}', 'dedupe-cap');
\set VERBOSITY default
SELECT idem_policy_drop('dedupe-cap');

-- Keys are looked at by ranges of the index: some are there, some between them are
-- nobody's, some are of other scopes; long ones are compressed in the index.
SELECT idem_policy('dedupe-long', max_key_bytes => 1024);
CREATE TEMP TABLE there AS
	SELECT 'k' || lpad(i::text, 6, '0') AS key FROM generate_series(0, 6000) i WHERE i % 7 = 0 AND i % 2000 > 500
	UNION ALL SELECT 'k' || i FROM generate_series(1, 300, 3) i
	UNION ALL SELECT md5(i::text) FROM generate_series(1, 400) i
	UNION ALL SELECT 'long ' || repeat('x', 900) || i FROM generate_series(1, 200, 4) i;
CREATE TEMP TABLE asked AS
	SELECT 'k' || lpad(i::text, 6, '0') AS key FROM generate_series(0, 6000) i WHERE i % 3 > 0 OR i > 4000
	UNION ALL SELECT 'k' || i FROM generate_series(1, 300) i
	UNION ALL SELECT md5(i::text) FROM generate_series(200, 600) i
	UNION ALL SELECT 'long ' || repeat('x', 900) || i FROM generate_series(1, 200) i;
SELECT count(*) FILTER (WHERE NOT first) AS not_first
FROM idem_dedupe('dedupe ranges', ARRAY(SELECT key FROM there ORDER BY md5(key)), 'dedupe-long');
SELECT count(*) AS others FROM idem_dedupe('dedupe range', ARRAY(SELECT key FROM asked), 'dedupe-long') a,
	idem_dedupe('dedupe rangez', '{k000001}') z;
SELECT count(*) = (SELECT count(*) FROM asked) AS complete,
	count(*) FILTER (WHERE first = EXISTS (SELECT FROM there t WHERE t.key = d.key)) AS wrong
FROM idem_dedupe('dedupe ranges', ARRAY(SELECT key FROM asked ORDER BY md5(key)), 'dedupe-long') d;
SELECT count(*) = (SELECT count(*) FROM (SELECT key FROM asked UNION SELECT key FROM there) u) AS each_once
FROM idempotency_keys WHERE scope = 'dedupe ranges';
-- rolled back, and so in the index, they are first again
BEGIN;
SELECT count(*) FILTER (WHERE first) AS first FROM idem_dedupe('dedupe again', ARRAY(SELECT i::text FROM generate_series(1, 500) i));
ROLLBACK;
SELECT count(*) FILTER (WHERE first) AS first FROM idem_dedupe('dedupe again', ARRAY(SELECT i::text FROM generate_series(1, 500) i));
SELECT idem_policy_drop('dedupe-long');
