--
-- What an operator sees of keys of other roles: names in clear, never an answer;
-- and whose transaction has one.
--
CREATE ROLE regress_idem_operator;
SELECT idem_grant('regress_idem_operator', 'operator');
GRANT USAGE ON SCHEMA regress TO regress_idem_operator;
SELECT idem_policy('find', audit => false, completed_ttl => '0');
SELECT coalesce(max(id), 0) AS start FROM idempotency_audit_log \gset
CREATE VIEW regress.find_log AS
SELECT id, action, entity, replace(replace(entity_id, idem_log_id('find'), 'S'), idem_log_id('a run'), 'K') AS entity_id, attempt,
	token, nullif(effective_role, session_role) AS role, replace(replace(detail::text, idem_log_id('find'), 'S'), idem_log_id('a run'), 'K') AS detail
FROM idempotency_audit_log;
SELECT outcome FROM unnest(ARRAY['a run', 'lease over', 'abandoned', 'completed', 'failed', 'for good', 'released', 'expired']) key,
	LATERAL idem_claim('find', key, jsonb_build_object('key', key), lease => '1 h', policy => CASE key WHEN 'completed' THEN 'find' ELSE 'default' END);
SELECT isfinite(idem_checkpoint('find', 'a run', regress.token('find', 'a run'), 'paid', '{"n": 1}')) AS checkpoint;
SELECT (idem_complete('find', 'completed', '"secret"', token => regress.token('find', 'completed'))).expires_at IS NULL AS completed,
	(idem_complete('find', 'expired', '"secret"', token => regress.token('find', 'expired'))).outcome IS NOT NULL AS expired,
	(idem_fail('find', 'failed', '"secret"', token => regress.token('find', 'failed'))).outcome IS NOT NULL AS failed,
	(idem_fail('find', 'for good', '"secret"', retryable => false, token => regress.token('find', 'for good'))).outcome IS NOT NULL AS for_good,
	idem_release('find', 'released', regress.token('find', 'released')) AS released;
SELECT count(regress.age('find', 'lease over', '2 h')), count(regress.age('find', 'expired', '3 days')), count(regress.age('find', 'abandoned', '3 days')) AS aged;
SELECT outcome, attempt FROM idem_claim('find', 'lease over', '{"key": "lease over"}');
SELECT count(first) FROM idem_dedupe('find 2', '{a run}');

SET ROLE regress_idem_operator;
-- by scope: in the order of its keys
SELECT scope, key, state, policy, attempt, claimed_by = session_user AS by_other, created_at IS NOT NULL AS created,
	lease_until > now() AS leased, expires_at > now() AS kept, recovery_point, checkpoint
FROM idem_find(scope => 'find');
-- by log ids, as a message has them
SELECT scope, key FROM idem_find(idem_log_id('find'), idem_log_id('a run'));
SELECT scope, key FROM idem_find(key_id => upper(idem_log_id('a run')));
SELECT scope, count(*) FROM idem_find(idem_log_id('find')) GROUP BY scope;
SELECT scope, key FROM idem_find(key_id => idem_log_id('a run'), scope => 'find 2');
SELECT count(*) FROM idem_find(idem_log_id('find'), scope => 'find 2');
-- by state: each key has one
SELECT word, (SELECT string_agg(key, ', ') FROM idem_find(scope => 'find', state => word)) AS keys
FROM unnest(ARRAY['in_progress', 'completed', 'failed', 'released', 'expired']) word;
SELECT scope, key FROM idem_find(state => 'in_progress', max_rows => 1000000) WHERE scope LIKE 'find%';
-- so many at the most; all where nothing is asked for
SELECT key FROM idem_find(scope => 'find', max_rows => 2);
SELECT count(*) FROM idem_find(max_rows => 3);
SELECT count(*) > 8 AS all FROM idem_find(max_rows => 1000000);
-- nobody has a key that is committed; the caller may be it himself
SELECT count(*) FROM idem_holder('find', 'a run');
RESET ROLE;
BEGIN;
SAVEPOINT s;
SELECT outcome FROM idem_claim('find', 'mine');
RELEASE s;
SELECT pid = pg_backend_pid() AS me, since = now() AS since, how FROM idem_holder('find', 'mine');
SAVEPOINT s;
SELECT (idem_complete('find', 'a run', token => regress.token('find', 'a run'))).outcome IS NOT NULL AS completed;
SELECT pid = pg_backend_pid() AS me, since = now() AS since, how FROM idem_holder('find', 'a run');
ROLLBACK TO s;
SELECT 1 FROM idempotency_keys WHERE scope = 'find' AND key = 'for good' FOR KEY SHARE;
SELECT pid = pg_backend_pid() AS me, how FROM idem_holder('find', 'for good');
ROLLBACK;
SELECT count(*) FROM idem_holder('find', 'mine');
CREATE FUNCTION regress.asks(request jsonb) RETURNS json LANGUAGE sql AS $$
	SELECT json_agg(json_build_object('me', pid = pg_backend_pid(), 'since', since = now(), 'how', how))
	FROM idem_holder('find', request->>'key');
$$;
SELECT outcome, idem_json(r) FROM unnest(ARRAY['new', 'failed']) key,
	LATERAL idem_run('regress.asks(jsonb)', 'find', key, jsonb_build_object('key', key)) r;

-- Errors: all with a hint, none with a name.
SELECT call, regress.error_of('SELECT ' || call) AS state FROM unnest(ARRAY[
	'idem_find(''a run'')', 'idem_find(key_id => ''0123456789abcdeg'')', 'idem_find(idem_log_id(''find'') || ''0'')',
	'idem_find(scope => '''')', 'idem_find(scope => repeat(''s'', 1025))', 'idem_find(state => ''done'')', 'idem_find(state => '''')',
	'idem_find(max_rows => 0)', 'idem_find(max_rows => NULL)', 'idem_holder(NULL, ''a run'')', 'idem_holder(''find'', NULL)',
	'idem_holder('''', ''a run'')', 'idem_holder(''find'', '''')', 'idem_end_lease(NULL, ''a run'')', 'idem_end_lease(''find'', NULL)',
	'idem_end_lease('''', ''a run'')', 'idem_end_lease(''find'', '''')', 'idem_forget_scope(NULL)', 'idem_forget_scope('''')',
	'idem_forget_scope(''find'', NULL)', 'idem_forget_scope(''find'', 0)', 'idem_forget_scope(''find'', -1)']) call;

-- Each call has its row, by log ids.
SELECT action, entity, entity_id, attempt, token, detail FROM regress.find_log
WHERE id > :start AND role = 'regress_idem_operator' AND detail NOT LIKE '%100000%' ORDER BY id;
SELECT count(*) AS in_clear FROM idempotency_audit_log WHERE id > :start AND concat_ws(' ', entity_id, detail) ~ 'find|run|good|over';

DELETE FROM idempotency_keys WHERE scope LIKE 'find%';
DROP VIEW regress.find_log;
DROP FUNCTION regress.asks(jsonb);
DROP OWNED BY regress_idem_operator;
DROP ROLE regress_idem_operator;
SELECT idem_policy_drop('find');
