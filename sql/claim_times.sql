--
-- Claiming: attempts, tokens and times, and what a claim holds.
--
--
-- Attempts and tokens: each claim has a greater token.
--
CREATE TEMP TABLE tokens (ord serial, attempt integer, token bigint);
INSERT INTO tokens (attempt, token) SELECT attempt, token FROM idem_claim('claim', 'tokens');
SELECT regress.age('claim', 'tokens', '2 minutes');
INSERT INTO tokens (attempt, token) SELECT attempt, token FROM idem_claim('claim', 'tokens');
SELECT (idem_fail('claim', 'tokens', token => regress.token('claim', 'tokens'))).outcome IS NOT NULL AS failed;
INSERT INTO tokens (attempt, token) SELECT attempt, token FROM idem_claim('claim', 'tokens');
SELECT idem_release('claim', 'tokens', regress.token('claim', 'tokens'));
INSERT INTO tokens (attempt, token) SELECT attempt, token FROM idem_claim('claim', 'tokens');
-- a row from a clock that was ahead
UPDATE idempotency_keys SET token = token + 1000000000000 WHERE scope = 'claim' AND key = 'tokens';
INSERT INTO tokens (attempt, token) SELECT 0, regress.token('claim', 'tokens');
SELECT regress.age('claim', 'tokens', '2 minutes');
INSERT INTO tokens (attempt, token) SELECT attempt, token FROM idem_claim('claim', 'tokens');
-- expired: the attempts begin anew, the tokens do not
SELECT regress.age('claim', 'tokens', '25 hours');
INSERT INTO tokens (attempt, token) SELECT attempt, token FROM idem_claim('claim', 'tokens');
SELECT ord, attempt, token > lag(token) OVER (ORDER BY ord) AS greater,
	token = lag(token) OVER (ORDER BY ord) + 1 AS by_one
FROM tokens ORDER BY ord;
-- the wall clock in microseconds
SELECT abs(token - extract(epoch FROM clock_timestamp()) * 1000000) < 60000000 AS now
FROM idem_claim('claim', 'tokens now');

--
-- ttl, lease and wait of the call; a day is 24 hours, whatever the time zone.
--
SELECT lease_until - created_at AS lease, expires_at - lease_until AS kept
FROM idem_claim('claim', 'default times');
SELECT lease_until - created_at AS lease, expires_at - lease_until AS kept
FROM idem_claim('claim', 'own times', lease => '90 s', ttl => '2 hours');
-- a completion is kept that long from its finish
SELECT expires_at AS returned FROM idem_complete('claim', 'own times', token => regress.token('claim', 'own times')) \gset
SELECT expires_at = :'returned' AS returned, expires_at - finished_at AS kept
FROM idem_lookup('claim', 'own times');

SET timezone = 'Europe/Berlin';
SELECT count(*) AS keys, count(*) FILTER (WHERE kept <> days * 86400) AS wrong
FROM generate_series(20, 400, 20) days,
	LATERAL (SELECT extract(epoch FROM expires_at) - extract(epoch FROM lease_until) AS kept
			 FROM idem_claim('claim', 'berlin ' || days, ttl => make_interval(days => days))) c;
SELECT extract(epoch FROM lease_until) - extract(epoch FROM created_at) AS lease
FROM idem_claim('claim', 'berlin lease', lease => '1 day');
RESET timezone;

-- 0 is for ever
SELECT expires_at FROM idem_claim('claim', 'for ever', ttl => '0');
SELECT expires_at FROM idem_complete('claim', 'for ever', token => regress.token('claim', 'for ever'));
SELECT regress.age('claim', 'for ever', '1000 years');
SELECT outcome, expires_at FROM idem_claim('claim', 'for ever');
SELECT purge_at FROM idempotency_keys WHERE scope = 'claim' AND key = 'for ever';

-- a later claim keeps what the first one gave, or changes it
SELECT outcome FROM idem_claim('claim', 'again', ttl => '2 hours', lease => '10 min');
SELECT regress.age('claim', 'again', '1 hour');
SELECT attempt, expires_at - lease_until AS kept FROM idem_claim('claim', 'again');
SELECT regress.age('claim', 'again', '1 hour');
SELECT attempt, expires_at - lease_until AS kept FROM idem_claim('claim', 'again', ttl => '3 hours');

SELECT args, regress.error_of(format('SELECT idem_claim(''claim'', ''bounds'', %s)', args))
FROM unnest(ARRAY[
	'lease => ''1 day''', 'lease => ''24:00:00''', 'lease => ''1 day 1 us''',
	'lease => ''1 us''', 'lease => ''0''', 'lease => ''-1 s''', 'lease => ''1 month''',
	'lease => ''1 month -30 days''',
	'ttl => ''400 days''', 'ttl => ''400 days 1 us''', 'ttl => ''1 us''', 'ttl => ''-1 us''',
	'ttl => ''1 day -25 hours''', 'ttl => ''1 month''', 'ttl => ''1 year''',
	'ttl => ''2000000000 days''',
	'wait => ''0''', 'wait => ''1 min''', 'wait => ''1 min 1 us''', 'wait => ''-1 s''',
	'wait => ''1 month'''
]) args;

-- a wait ends by itself, and returns as soon as it must
SELECT outcome FROM idem_claim('claim', 'default times', wait => '0');
SELECT outcome FROM idem_claim('claim', 'default times', wait => '20 ms');
UPDATE idempotency_keys SET lease_until = clock_timestamp() + interval '50 ms'
WHERE scope = 'claim' AND key = 'default times';
SELECT outcome, attempt FROM idem_claim('claim', 'default times', wait => '1 min');

--
-- What a claim holds besides its row, whether that is new or one whose time is
-- over: in the SQL way a key lock, in the direct way, which a partitioned table
-- has not, nothing.
--
SELECT outcome FROM idem_claim('claim', 'over');
SELECT regress.age('claim', 'over', '1 week');
BEGIN;
SET LOCAL idempotency.storage = 'sql';
SELECT outcome, count(*) AS claims
FROM unnest(ARRAY['over', 'held 1', 'held 2']) k, LATERAL idem_claim('claim', k) GROUP BY outcome;
SELECT count(*) AS key_locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
ROLLBACK;
BEGIN;
SET LOCAL idempotency.storage = 'auto';
SELECT outcome, count(*) AS claims
FROM unnest(ARRAY['over', 'held 1', 'held 2']) k, LATERAL idem_claim('claim', k) GROUP BY outcome;
SELECT (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())
	= CASE relkind WHEN 'r' THEN 0 ELSE 3 END AS key_locks_as_said
FROM pg_class WHERE oid = 'idempotency_keys'::regclass;
ROLLBACK;

--
-- Savepoints and FROM.
--
BEGIN;
SAVEPOINT s;
SELECT outcome FROM idem_claim('claim', 'savepoint');
ROLLBACK TO s;
SELECT outcome, attempt FROM idem_claim('claim', 'savepoint');
ROLLBACK;
SELECT outcome, attempt FROM idem_claim('claim', 'savepoint');
-- FROM calls once: a second call would find the first one's claim
SELECT outcome, attempt, http_status FROM idem_claim('claim', 'from');
