--
-- Claiming: a claim of one's own, what each outcome shows, and what it leaves
-- alone.
--
--
-- Its own claim: in every state, in the claiming transaction.
--
BEGIN;
SELECT outcome, attempt FROM idem_claim('claim', 'own', '{"a": 1}', context => '\xc0',
	owner => '00000000-0000-4000-8000-000000000001');
SELECT regress.token('claim', 'own') AS first_token \gset
SELECT outcome FROM idem_claim('claim', 'own', '{"a": 1}', context => '\xc0');
-- nothing is compared, and nobody waits
SELECT outcome, retry_after_ms > 0 AS retry, http_status, error_code
FROM idem_claim('claim', 'own', '{"a": 2}', wait => '1 minute');
SELECT outcome, attempt, token = :first_token AS same_token
FROM idem_claim('claim', 'own', '{"a": 2}', owner => '00000000-0000-4000-8000-000000000001');
SELECT outcome FROM idem_claim('claim', 'own', '{"a": 2}',
							   owner => '00000000-0000-4000-8000-000000000002');
-- its lease over or not
SELECT regress.age('claim', 'own', '1 hour');
SELECT outcome FROM idem_claim('claim', 'own', '{"a": 1}', context => '\xc0');
SELECT outcome, attempt, token = :first_token AS same_token
FROM idem_claim('claim', 'own', owner => '00000000-0000-4000-8000-000000000001');
-- finished, it is like any other
SELECT (idem_complete('claim', 'own', '"done"')).outcome IS NOT NULL AS done;
SELECT outcome, idem_json(idem_claim) FROM idem_claim('claim', 'own', '{"a": 1}', context => '\xc0');
SELECT outcome FROM idem_claim('claim', 'own', '{"a": 2}', context => '\xc0');
COMMIT;
BEGIN;
SELECT outcome, attempt FROM idem_claim('claim', 'own failed');
SELECT (idem_fail('claim', 'own failed')).outcome IS NOT NULL AS failed;
SELECT outcome, attempt FROM idem_claim('claim', 'own failed');
SELECT idem_release('claim', 'own failed');
SELECT outcome, attempt FROM idem_claim('claim', 'own failed');
SELECT (idem_fail('claim', 'own failed', retryable => false)).outcome IS NOT NULL AS failed;
SELECT outcome, attempt FROM idem_claim('claim', 'own failed');
COMMIT;

--
-- What each outcome shows.
--
SELECT idem_policy('claim-show', on_expiry => 'reject', tombstone => '1 day',
				   mismatch_status => 409);
SELECT idem_policy('claim-show-once', on_repeat => 'reject');

SELECT c.outcome, c.attempt, c.http_status, c.error_code, regress.given(c)
FROM idem_claim('claim', 'show', '{"a": 1}', policy => 'claim-show') c;
-- of a claim without a fingerprint
SELECT c.outcome, c.attempt, c.http_status, c.error_code, regress.given(c)
FROM idem_claim('claim', 'show bare') c;
SELECT c.outcome, c.http_status, c.error_code, c.retry_after_ms > 50000 AS later,
	c.retry_after_ms <= 60000 AS in_time, regress.given(c)
FROM idem_claim('claim', 'show', '{"a": 1}') c;
SELECT c.outcome, c.http_status, c.error_code, regress.given(c)
FROM idem_claim('claim', 'show', '{"a": 2}') c;
-- the status is that of the policy of the first claim, not of the call's
SELECT c.outcome, c.http_status FROM idem_claim('claim', 'show bare', '{"a": 2}', policy => 'claim-show') c;

-- taken over, with a checkpoint
SELECT isfinite(idem_checkpoint('claim', 'show', regress.token('claim', 'show'), 'paid', '{"charge": 7}')) AS checkpoint;
SELECT regress.token('claim', 'show') AS first_token \gset
SELECT regress.age('claim', 'show', '2 minutes');
SELECT c.outcome, c.attempt, c.token > :first_token AS greater, c.recovery_point, c.checkpoint,
	regress.given(c)
FROM idem_claim('claim', 'show', '{"a": 1}') c;

SELECT (idem_complete('claim', 'show', '{"ok": true}', 201, '{"Location": "/1"}',
					 token => regress.token('claim', 'show'))).outcome IS NOT NULL AS done;
SELECT c.outcome, c.attempt, c.status_code, c.headers, c.content_type,
	convert_from(c.body, 'UTF8') AS body, c.body_size,
	c.body_sha256 = sha256(c.body) AS digest_right, c.http_status, c.error_code
FROM idem_claim('claim', 'show', '{"a": 1}') c;
SELECT regress.given(c) FROM idem_claim('claim', 'show', '{"a": 1}') c;
SELECT regress.given(c) FROM idem_claim('claim', 'show', '{"a": 2}') c;
-- an answer without headers and body
SELECT c.outcome FROM idem_claim('claim', 'show empty') c;
SELECT (idem_complete('claim', 'show empty', token => regress.token('claim', 'show empty'))).outcome IS NOT NULL AS done;
SELECT c.outcome, c.status_code, c.http_status, regress.given(c) FROM idem_claim('claim', 'show empty') c;

SELECT regress.age('claim', 'show', '25 hours');
SELECT c.outcome, c.http_status, c.error_code, regress.given(c)
FROM idem_claim('claim', 'show', '{"a": 1}') c;
-- every time
SELECT c.outcome FROM idem_claim('claim', 'show', '{"a": 1}') c;
SELECT regress.age('claim', 'show', '1 day');
-- the tombstone is over: a fresh row, nothing old left in it
SELECT c.outcome, c.attempt, c.token > :first_token AS greater, regress.given(c)
FROM idem_claim('claim', 'show') c;
SELECT state, attempt, finished_at, ttl, status_code, owner, policy, fingerprint, context, headers,
	content_type, body_size, body_sha256, body, recovery_point, checkpoint
FROM idempotency_keys WHERE scope = 'claim' AND key = 'show' \gx

SELECT outcome FROM idem_claim('claim', 'show once', '{"a": 1}', policy => 'claim-show-once');
SELECT c.outcome FROM idem_claim('claim', 'show once', '{"a": 1}') c;
SELECT (idem_complete('claim', 'show once', 'true', token => regress.token('claim', 'show once'))).outcome IS NOT NULL AS done;
SELECT c.outcome, c.http_status, c.error_code, regress.given(c)
FROM idem_claim('claim', 'show once', '{"a": 1}') c;
SELECT outcome FROM idem_claim('claim', 'show once', '{"a": 2}');

-- failed for good: the failure is the answer
SELECT outcome FROM idem_claim('claim', 'show failed');
SELECT (idem_fail('claim', 'show failed', '{"error": 1}', 400, retryable => false,
				 token => regress.token('claim', 'show failed'))).outcome IS NOT NULL AS failed;
SELECT c.outcome, c.status_code, c.http_status, idem_json(c), regress.given(c)
FROM idem_claim('claim', 'show failed') c;

-- one that has expired
SELECT outcome FROM idem_claim('claim', 'show expired', policy => 'claim-show');
SELECT (idem_complete('claim', 'show expired', token => regress.token('claim', 'show expired'))).outcome IS NOT NULL AS done;
SELECT regress.age('claim', 'show expired', '25 hours');

--
-- An outcome that writes nothing has no transaction id, no row lock, no key
-- lock.
--
SELECT outcome FROM idem_claim('claim', 'quiet', '{"a": 1}', owner => '00000000-0000-4000-8000-000000000001');
BEGIN;
SELECT outcome FROM idem_claim('claim', 'quiet', '{"a": 1}');
SELECT outcome FROM idem_claim('claim', 'quiet', '{"a": 2}');
SELECT outcome FROM idem_claim('claim', 'show failed');
SELECT outcome FROM idem_claim('claim', 'show once', '{"a": 1}');
SELECT outcome FROM idem_claim('claim', 'show expired');
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid,
	(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS key_locks,
	(SELECT count(*) FROM pg_locks WHERE mode IN ('RowShareLock', 'RowExclusiveLock')
	 AND pid = pg_backend_pid()) AS table_locks;
COMMIT;
-- The repetition of one's own claim lets somebody work: it holds the row.
BEGIN;
SELECT outcome FROM idem_claim('claim', 'quiet', '{"a": 1}', owner => '00000000-0000-4000-8000-000000000001');
SELECT pg_current_xact_id_if_assigned() IS NOT NULL AS has_xid;
ROLLBACK;

--
-- idem_require: the token, or an error for each other outcome.
--
SELECT idem_require('claim', 'require', '{"a": 1}') = regress.token('claim', 'require') AS token;
SELECT idem_require('claim', 'require owner', owner => '00000000-0000-4000-8000-000000000001')
	= idem_require('claim', 'require owner', owner => '00000000-0000-4000-8000-000000000001') AS same_token;
SELECT what, regress.error_of('SELECT idem_require(' || args || ')')
FROM (VALUES
	('replayed', $$'claim', 'show failed'$$),
	('in progress', $$'claim', 'require', '{"a": 1}'$$),
	('mismatch', $$'claim', 'require', '{"a": 2}'$$),
	('mismatch', $$'claim', 'require', '{"a": 1}', context => '\x01'$$),
	('expired', $$'claim', 'show expired'$$),
	('duplicate', $$'claim', 'show once'$$)) v (what, args);

SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'claim-%';
