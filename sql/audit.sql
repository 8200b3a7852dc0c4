--
-- The audit log: what is written.
--
CREATE FUNCTION regress_audit_work(request jsonb) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
	IF request ? 'error' THEN
		RAISE EXCEPTION 'failed';
	END IF;
	RETURN '{}';
END
$$;

-- Rows of the log from here on, by key.
SELECT COALESCE(max(id), 0) AS start FROM idempotency_audit_log \gset
CREATE TEMP VIEW log AS
SELECT l.id, k.key, l.action, l.attempt, l.token
FROM idempotency_audit_log l
	JOIN unnest(ARRAY['lease', 'done', 'failed', 'free', 'gone', 'run', 'run failed', 'message', 'plain', 'undone', 'savepoint', 'denied']) k (key)
	ON l.entity_id = idem_log_id('audit') || '/' || idem_log_id(k.key)
WHERE l.entity = 'idempotency_key';

--
-- Transitions of keys whose policy has "audit".
--
SELECT idem_policy('audit-on', audit => true);
SELECT outcome FROM idem_claim('audit', 'lease', policy => 'audit-on');
UPDATE idempotency_keys SET lease_until = created_at WHERE scope = 'audit' AND key = 'lease';
SELECT outcome FROM idem_claim('audit', 'lease');
SELECT idem_extend('audit', 'lease', regress.token('audit', 'lease'), '1 min') IS NOT NULL AS extended;
SELECT isfinite(idem_checkpoint('audit', 'lease', regress.token('audit', 'lease'), 'p')) AS checkpoint;
SELECT (idem_complete('audit', 'lease', token => regress.token('audit', 'lease'))).outcome IS NOT NULL AS done;
SELECT (idem_complete('audit', 'lease', token => regress.token('audit', 'lease'))).outcome IS NOT NULL AS again;
SELECT outcome FROM idem_claim('audit', 'lease');
SELECT outcome FROM idem_claim('audit', 'lease', '{}');
SELECT outcome FROM idem_lookup('audit', 'lease');
SELECT outcome FROM idem_claim('audit', 'failed', policy => 'audit-on');
SELECT (idem_fail('audit', 'failed', token => regress.token('audit', 'failed'))).outcome IS NOT NULL AS failed;
SELECT outcome FROM idem_claim('audit', 'failed');
SELECT (idem_complete('audit', 'failed', status_code => 503, token => regress.token('audit', 'failed'))).outcome IS NOT NULL AS failed;
SELECT outcome FROM idem_claim('audit', 'failed');
SELECT (idem_fail('audit', 'failed', retryable => false, token => regress.token('audit', 'failed'))).outcome IS NOT NULL AS failed;
SELECT outcome FROM idem_claim('audit', 'free', policy => 'audit-on');
SELECT idem_release('audit', 'free', regress.token('audit', 'free'));
SELECT idem_release('audit', 'free', 1) AS again;
SELECT outcome FROM idem_claim('audit', 'free', policy => 'audit-on');
SELECT idem_forget('audit', 'free'), idem_forget('audit', 'free') AS again;
SELECT outcome FROM idem_run('regress_audit_work(jsonb)', 'audit', 'run', '{}', 'audit-on');
SELECT outcome FROM idem_run('regress_audit_work(jsonb)', 'audit', 'run', '{}', 'audit-on');
SELECT outcome FROM idem_run('regress_audit_work(jsonb)', 'audit', 'run failed', '{"error": 1}', 'audit-on', on_error => 'record');
SELECT outcome FROM idem_run('regress_audit_work(jsonb)', 'audit', 'run failed', '{"error": 1}', 'audit-on', on_error => 'record');
SELECT ord, first FROM idem_dedupe('audit', '{message,message}', 'audit-on');
SELECT ord, first FROM idem_dedupe('audit', '{message}', 'audit-on');
-- not these: another policy, and what was rolled back
SELECT outcome FROM idem_claim('audit', 'plain');
BEGIN;
SELECT outcome FROM idem_claim('audit', 'undone', policy => 'audit-on');
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT outcome FROM idem_claim('audit', 'savepoint', policy => 'audit-on');
ROLLBACK TO s;
COMMIT;
SELECT key, string_agg(action || ' ' || attempt, ', ' ORDER BY id) AS actions,
	count(DISTINCT token) AS tokens, count(token) = count(*) AS all_with_token
FROM log WHERE id > :start GROUP BY key ORDER BY key COLLATE "C";
-- forgetting is always audited
SELECT idem_forget('audit', 'plain');
SELECT action, attempt FROM log WHERE key = 'plain' AND id > :start;

-- The columns, of application code's rows as well.
CREATE ROLE regress_idem_clerk;
SELECT idem_grant('regress_idem_clerk', 'app');
BEGIN;
SET LOCAL ROLE regress_idem_clerk;
SELECT idem_audit('sold', 'order', '4711', '{"sku": "a", "n": 2}') AS row_id \gset
SELECT outcome FROM idem_claim('audit', 'done', policy => 'audit-on');
RESET ROLE;
SELECT action, entity, CASE entity WHEN 'order' THEN entity_id END AS entity_id,
	attempt, token IS NOT NULL AS token, detail, xid = pg_current_xact_id() AS xid,
	session_role = session_user AS session, effective_role, application_name = current_setting('application_name') AS application,
	client_addr IS NOT DISTINCT FROM inet_client_addr() AS address,
	at BETWEEN now() AND clock_timestamp() AS at
FROM idempotency_audit_log WHERE xid = pg_current_xact_id() ORDER BY id;
SELECT id = :row_id AS returned FROM idempotency_audit_log WHERE entity = 'order' AND xid = pg_current_xact_id();
COMMIT;

-- What idem_audit takes.
SELECT what, regress.sqlstate_of(call) FROM (VALUES
	('reserved', $$SELECT idem_audit('claimed', 'idempotency_key', 'a/b')$$),
	('empty', $$SELECT idem_audit('', 'order', '1')$$),
	('empty', $$SELECT idem_audit('sold', '', '1')$$),
	('empty', $$SELECT idem_audit('sold', 'order', '')$$),
	('1024', $$SELECT idem_audit(repeat('a', 1024), repeat('e', 1024), repeat('i', 1024))$$),
	('1025', $$SELECT idem_audit(repeat('a', 1025), 'order', '1')$$),
	('1025', $$SELECT idem_audit('sold', repeat('e', 1025), '1')$$),
	('1025', $$SELECT idem_audit('sold', 'order', repeat('i', 1025))$$),
	('1 MB', $$SELECT idem_audit('sold', 'order', '1', to_jsonb(repeat('d', 1000000)))$$),
	('2 MB', $$SELECT idem_audit('sold', 'order', '1', to_jsonb(repeat('d', 2000000)))$$)) v (what, call);

-- What a reader could take for a row of the extension's own is not taken.
SELECT what, regress.sqlstate_of(format('SELECT idem_audit(%L, %L, %L)', 'claimed', entity, 'a/b')) FROM (VALUES
	('the other one', 'idempotency_limiter'),
	('a blank', 'idempotency_key '),
	('a blank', ' idempotency_key'),
	('a line feed', E'\nidempotency_key'),
	('case', 'Idempotency_Key'),
	('punctuation', 'idempotency-key'),
	('none', 'IdempotencyKey'),
	('quotes', '"idempotency_key"'),
	('zero width', U&'idempotency\200B_key'),
	('soft hyphen', U&'idem\00ADpotency_key'),
	('byte order mark', U&'\FEFFidempotency_key'),
	('combining', U&'id\0435mpotenc\0443\0301_key'),
	('full width', U&'\FF49\FF44\FF45\FF4D\FF50\FF4F\FF54\FF45\FF4E\FF43\FF59\FF3F\FF4B\FF45\FF59'),
	('a letter of another script', U&'idemp\043Etency_key'),
	('all that there are', U&'\0456\0501\0435m\0440\043Et\0435n\0441\0443_key'),
	('mathematical', U&'\+01D422dempotency_key'),
	('the beginning', 'idempotency'),
	('more', 'idempotency_keys_of_mine')) v (what, entity);
-- Others are, in all scripts.
SELECT what, regress.sqlstate_of(format('SELECT idem_audit(%L, %L, %L)', 'claimed', entity, 'a/b')) FROM (VALUES
	('in the middle', 'our_idempotency_key'),
	('another word', 'idempotent_request'),
	('another word', 'key'),
	('accents', U&'identit\00E9_m\00E9tier'),
	('Cyrillic', U&'\0434\043E\043A\0443\043C\0435\043D\0442\0430\0446\0438\044F \0437\0430\043A\0430\0437\0430'),
	('Cyrillic and Latin', U&'i-\0434\043E\043A\0443\043C\0435\043D\0442\0430\0446\0438\044F'),
	('Japanese and Latin', U&'\6CE8\6587ID'),
	('no letter at all', '???')) v (what, entity);

-- A row that cannot be written fails the transaction.
ALTER TABLE idempotency_audit_log ADD CONSTRAINT regress_check CHECK (action <> 'claimed' AND action <> 'sold') NOT VALID;
\set VERBOSITY sqlstate
SELECT outcome FROM idem_claim('audit', 'denied', policy => 'audit-on');
BEGIN;
SELECT outcome FROM idem_claim('audit', 'denied');
SELECT idem_audit('sold', 'order', '1');
COMMIT;
\set VERBOSITY default
SELECT count(*) AS keys FROM idempotency_keys WHERE scope = 'audit' AND key = 'denied';
ALTER TABLE idempotency_audit_log DROP CONSTRAINT regress_check;
-- nor can a rule swallow it
CREATE RULE regress_rule AS ON INSERT TO idempotency_audit_log DO INSTEAD NOTHING;
SELECT regress.sqlstate_of($$SELECT idem_claim('audit', 'denied', policy => 'audit-on')$$) AS claim,
	regress.sqlstate_of($$SELECT idem_audit('sold', 'order', '1')$$) AS audit;
DROP RULE regress_rule ON idempotency_audit_log;

DROP OWNED BY regress_idem_clerk;
DROP ROLE regress_idem_clerk;
DROP FUNCTION regress_audit_work;
SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'audit-%';
