--
-- What the holder of a claim does besides: heartbeat, checkpoints, giving up; and
-- forgetting.
--
--
-- Heartbeat and checkpoints.
--
SELECT outcome FROM idem_claim('finish', 'beat');
SELECT abs(extract(epoch FROM idem_extend('finish', 'beat', regress.token('finish', 'beat'), '1 hour') - clock_timestamp()) - 3600) < 30 AS in_an_hour;
SELECT lease_until - clock_timestamp() > '59 min' AS moved, expires_at - lease_until AS kept,
	purge_at >= expires_at AS not_purged_before FROM idempotency_keys WHERE scope = 'finish' AND key = 'beat';
SELECT lease, regress.error_of(format('SELECT idem_extend(''finish'', ''beat'', %s, %L)', regress.token('finish', 'beat'), lease))
FROM unnest(ARRAY['1 us', '1 day', '24:00:00.000001', '0', '-1 s', '1 month']) lease;
-- a lease that had ended runs again
SELECT regress.age('finish', 'beat', '2 hours');
SELECT idem_extend('finish', 'beat', regress.token('finish', 'beat'), '1 min') > clock_timestamp() AS runs;
SELECT outcome, attempt FROM idem_claim('finish', 'beat');

SELECT isfinite(idem_checkpoint('finish', 'beat', regress.token('finish', 'beat'), 'charged', '{"id": 7}')) AS checkpoint;
SELECT regress.age('finish', 'beat', '2 minutes');
SELECT outcome, attempt, recovery_point, checkpoint FROM idem_claim('finish', 'beat');
-- nothing but the last one, and it goes on to the third attempt
SELECT isfinite(idem_checkpoint('finish', 'beat', regress.token('finish', 'beat'), 'mailed')) AS checkpoint;
SELECT (idem_fail('finish', 'beat', token => regress.token('finish', 'beat'))).outcome IS NOT NULL AS failed;
SELECT outcome, attempt, recovery_point, checkpoint FROM idem_claim('finish', 'beat');
-- rolled back with its transaction
BEGIN;
SELECT isfinite(idem_checkpoint('finish', 'beat', regress.token('finish', 'beat'), 'undone')) AS checkpoint;
ROLLBACK;
SELECT recovery_point FROM idempotency_keys WHERE scope = 'finish' AND key = 'beat';
SELECT regress.error_of(format('SELECT idem_checkpoint(''finish'', ''beat'', %s, %L, %L)', regress.token('finish', 'beat'), point, data)) AS state,
	length(point) AS point, length(data) AS data
FROM (VALUES (repeat('p', 1024), NULL), (repeat('p', 1025), NULL), ('', NULL),
	('p', '"' || repeat('d', 2000000) || '"')) v (point, data);

--
-- Giving up, and forgetting.
--
SELECT outcome, attempt FROM idem_claim('finish', 'released', '{"a": 1}', context => '\x01');
SELECT regress.token('finish', 'released') AS first_token \gset
SELECT idem_release('finish', 'released', :first_token);
SELECT idem_release('finish', 'released', :first_token) AS again;
SELECT l IS NULL AS no_such_key FROM idem_lookup('finish', 'released') l;
SELECT regress.error_of(format('SELECT idem_complete(''finish'', ''released'', token => %s)', :first_token)) AS complete;
SELECT outcome, attempt, token > :first_token AS greater FROM idem_claim('finish', 'released', '{"a": 2}');
SELECT regress.error_of(format('SELECT idem_release(''finish'', ''released'', %s)', :first_token)) AS stale;
BEGIN;
SELECT outcome, attempt FROM idem_claim('finish', 'released here');
SELECT idem_release('finish', 'released here');
SELECT outcome, attempt FROM idem_claim('finish', 'released here');
ROLLBACK;

-- one completed, one that failed and was claimed again, one that failed for good
SELECT regress.finish('forget 1', $$idem_complete('finish', %L)$$), regress.finish('forget 2', $$idem_fail('finish', %L)$$),
	regress.finish('forget 3', $$idem_fail('finish', %L, retryable => false)$$);
SELECT outcome, attempt FROM idem_claim('finish', 'forget 2');
SELECT idem_forget('finish', 'released'), idem_forget('finish', 'forget 1'), idem_forget('finish', 'forget 2'),
	idem_forget('finish', 'forget 3'), idem_forget('finish', 'forget 1') AS again;
SELECT action, entity, entity_id = idem_log_id('finish') || '/' || idem_log_id(key) AS right_id, attempt, token IS NOT NULL AS token
FROM idempotency_audit_log, unnest(ARRAY['released', 'forget 1', 'forget 2', 'forget 3']) key
WHERE entity_id LIKE idem_log_id('finish') || '/' || idem_log_id(key) ORDER BY id;
SELECT outcome, attempt FROM idem_claim('finish', 'forget 1');
