--
-- The audit log: what is written, and who can write nothing else.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency CASCADE;
RESET client_min_messages;

CREATE FUNCTION pg_temp.error_of(sql text)
RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		EXECUTE sql;
		RAISE EXCEPTION USING ERRCODE = 'P9999';
	EXCEPTION WHEN OTHERS THEN
		RETURN CASE SQLSTATE WHEN 'P9999' THEN 'no error' ELSE SQLSTATE END;
	END;
END
$$;

CREATE FUNCTION pg_temp.token(in_key text)
RETURNS bigint LANGUAGE sql AS $$
	SELECT token FROM idempotency_keys WHERE scope = 'audit' AND key = in_key;
$$;
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
SELECT idem_extend('audit', 'lease', pg_temp.token('lease'), '1 min') IS NOT NULL AS extended;
SELECT idem_checkpoint('audit', 'lease', pg_temp.token('lease'), 'p');
SELECT idem_complete('audit', 'lease', token => pg_temp.token('lease')) IS NOT NULL AS done;
SELECT idem_complete('audit', 'lease', token => pg_temp.token('lease')) IS NOT NULL AS again;
SELECT outcome FROM idem_claim('audit', 'lease');
SELECT outcome FROM idem_claim('audit', 'lease', '{}');
SELECT outcome FROM idem_lookup('audit', 'lease');
SELECT outcome FROM idem_claim('audit', 'failed', policy => 'audit-on');
SELECT idem_fail('audit', 'failed', token => pg_temp.token('failed')) IS NOT NULL AS failed;
SELECT outcome FROM idem_claim('audit', 'failed');
SELECT idem_complete('audit', 'failed', status_code => 503, token => pg_temp.token('failed')) IS NOT NULL AS failed;
SELECT outcome FROM idem_claim('audit', 'failed');
SELECT idem_fail('audit', 'failed', retryable => false, token => pg_temp.token('failed')) IS NOT NULL AS failed;
SELECT outcome FROM idem_claim('audit', 'free', policy => 'audit-on');
SELECT idem_release('audit', 'free', pg_temp.token('free'));
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
SELECT what, pg_temp.error_of(call) FROM (VALUES
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
SELECT what, pg_temp.error_of(format('SELECT idem_audit(%L, %L, %L)', 'claimed', entity, 'a/b')) FROM (VALUES
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
SELECT what, pg_temp.error_of(format('SELECT idem_audit(%L, %L, %L)', 'claimed', entity, 'a/b')) FROM (VALUES
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
SELECT pg_temp.error_of($$SELECT idem_claim('audit', 'denied', policy => 'audit-on')$$) AS claim,
	pg_temp.error_of($$SELECT idem_audit('sold', 'order', '1')$$) AS audit;
DROP RULE regress_rule ON idempotency_audit_log;

--
-- Append-only, for the owner of the tables as well.
--
CREATE ROLE regress_idem_owner;
ALTER TABLE idempotency_keys OWNER TO regress_idem_owner;
ALTER TABLE idempotency_policies OWNER TO regress_idem_owner;
ALTER TABLE idempotency_limiters OWNER TO regress_idem_owner;
ALTER TABLE idempotency_audit_log OWNER TO regress_idem_owner;
ALTER TABLE idempotency_secrets OWNER TO regress_idem_owner;
GRANT INSERT, UPDATE, DELETE, TRUNCATE, SELECT ON idempotency_audit_log TO regress_idem_clerk;
SELECT idem_grant('regress_idem_owner', 'app');
CREATE TEMP TABLE tries (id serial, what text, call text);
INSERT INTO tries (what, call) VALUES
	('insert', $$INSERT INTO idempotency_audit_log (at, xid, action, entity, entity_id, session_role, effective_role)
		VALUES (now(), '3', 'sold', 'order', '1', 'a', 'b')$$),
	('insert select', $$INSERT INTO idempotency_audit_log (at, xid, action, entity, entity_id, session_role, effective_role)
		SELECT at, xid, action, entity, entity_id, session_role, effective_role FROM idempotency_audit_log LIMIT 1$$),
	('update', $$UPDATE idempotency_audit_log SET action = 'x'$$),
	('update, same', $$UPDATE idempotency_audit_log SET action = action$$),
	('delete', $$DELETE FROM idempotency_audit_log$$),
	('truncate', $$TRUNCATE idempotency_audit_log$$),
	('merge', $$MERGE INTO idempotency_audit_log l USING (VALUES (1)) v (a) ON true WHEN MATCHED THEN DELETE$$);
GRANT SELECT ON tries TO regress_idem_clerk, regress_idem_owner;
SELECT count(*) AS rows_before FROM idempotency_audit_log \gset
SET ROLE regress_idem_owner;
SELECT what, pg_temp.error_of(call) AS owner FROM tries ORDER BY id;
SELECT pg_temp.error_of($$SELECT idem_audit('sold', 'order', '1')$$) AS idem_audit;
RESET ROLE;
-- of another role that was granted everything, row level security hides no
-- row and lets none in
SET ROLE regress_idem_clerk;
SELECT what, CASE WHEN what IN ('update', 'update, same', 'delete', 'merge') THEN 'no row changed' ELSE pg_temp.error_of(call) END AS granted
FROM tries ORDER BY id;
UPDATE idempotency_audit_log SET action = 'x';
DELETE FROM idempotency_audit_log;
SELECT count(*) = :rows_before AS sees_all FROM idempotency_audit_log;
SELECT pg_temp.error_of($$SELECT idem_audit('sold', 'order', '1')$$) AS idem_audit;
RESET ROLE;
SELECT count(*) = :rows_before AS unchanged FROM idempotency_audit_log;

-- A trigger of the owner's cannot use the pass of our row for one of its own.
CREATE FUNCTION regress_audit_forge() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF pg_trigger_depth() = 1 THEN
		INSERT INTO public.idempotency_audit_log (at, xid, action, entity, entity_id, session_role, effective_role)
		VALUES (NEW.at, NEW.xid, CASE TG_ARGV[0] WHEN 'same' THEN NEW.action ELSE 'forged' END, NEW.entity,
				NEW.entity_id, 'nobody', 'nobody');
	END IF;
	RETURN CASE TG_ARGV[1] WHEN 'replace' THEN NULL ELSE NEW END;
END
$$;
CREATE TRIGGER aaa BEFORE INSERT ON idempotency_audit_log FOR EACH ROW EXECUTE FUNCTION regress_audit_forge('same', 'add');
SELECT pg_temp.error_of($$SELECT idem_audit('sold', 'order', '1')$$) AS "before, same";
DROP TRIGGER aaa ON idempotency_audit_log;
CREATE TRIGGER aaa BEFORE INSERT ON idempotency_audit_log FOR EACH ROW EXECUTE FUNCTION regress_audit_forge('same', 'replace');
SELECT pg_temp.error_of($$SELECT idem_audit('sold', 'order', '1')$$) AS "before, same, in its place";
DROP TRIGGER aaa ON idempotency_audit_log;
CREATE TRIGGER aaa BEFORE INSERT ON idempotency_audit_log FOR EACH ROW EXECUTE FUNCTION regress_audit_forge('other', 'add');
SELECT pg_temp.error_of($$SELECT idem_audit('sold', 'order', '1')$$) AS "before, other";
DROP TRIGGER aaa ON idempotency_audit_log;
CREATE TRIGGER zzz BEFORE INSERT ON idempotency_audit_log FOR EACH ROW EXECUTE FUNCTION regress_audit_forge('same', 'add');
SELECT pg_temp.error_of($$SELECT idem_audit('sold', 'order', '1')$$) AS "later, same";
DROP TRIGGER zzz ON idempotency_audit_log;
CREATE TRIGGER zzz AFTER INSERT ON idempotency_audit_log FOR EACH ROW EXECUTE FUNCTION regress_audit_forge('same', 'add');
SELECT pg_temp.error_of($$SELECT idem_audit('sold', 'order', '1')$$) AS "after, same";
DROP TRIGGER zzz ON idempotency_audit_log;
SELECT count(*) AS forged FROM idempotency_audit_log WHERE effective_role = 'nobody' OR action = 'forged';
-- nothing of the pass is left after an error
SET ROLE regress_idem_owner;
SELECT pg_temp.error_of($$INSERT INTO idempotency_audit_log (at, xid, action, entity, entity_id, session_role, effective_role)
	VALUES (now(), '3', 'sold', 'order', '1', 'a', 'b')$$) AS afterwards;
-- and the transitions are still written, under that owner
SELECT outcome FROM idem_claim('audit', 'gone', policy => 'audit-on');
RESET ROLE;
SELECT action, attempt FROM log WHERE key = 'gone';
SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'idempotency_audit_log'::regclass AND NOT tgisinternal ORDER BY 1;
SELECT relrowsecurity FROM pg_class WHERE oid = 'idempotency_audit_log'::regclass;

ALTER TABLE idempotency_keys OWNER TO CURRENT_USER;
ALTER TABLE idempotency_policies OWNER TO CURRENT_USER;
ALTER TABLE idempotency_limiters OWNER TO CURRENT_USER;
ALTER TABLE idempotency_audit_log OWNER TO CURRENT_USER;
ALTER TABLE idempotency_secrets OWNER TO CURRENT_USER;
DROP OWNED BY regress_idem_clerk, regress_idem_owner;
DROP ROLE regress_idem_clerk, regress_idem_owner;
DROP FUNCTION regress_audit_work, regress_audit_forge;
SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'audit-%';
