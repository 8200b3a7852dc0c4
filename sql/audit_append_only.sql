--
-- The audit log: append-only, for the owner of the tables as well.
--
CREATE ROLE regress_idem_clerk;
SELECT idem_grant('regress_idem_clerk', 'app');
CREATE ROLE regress_idem_owner;
ALTER TABLE idempotency_keys OWNER TO regress_idem_owner;
ALTER TABLE idempotency_policies OWNER TO regress_idem_owner;
ALTER TABLE idempotency_limiters OWNER TO regress_idem_owner;
ALTER TABLE idempotency_audit_log OWNER TO regress_idem_owner;
ALTER TABLE idempotency_secrets OWNER TO regress_idem_owner;
GRANT INSERT, UPDATE, DELETE, TRUNCATE, SELECT ON idempotency_audit_log TO regress_idem_clerk;
SELECT idem_grant('regress_idem_owner', 'app');
SELECT idem_policy('audit-on', audit => true);
SELECT idem_audit('sold', 'order', '1') IS NOT NULL AS a_row;
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
SELECT what, regress.sqlstate_of(call) AS owner FROM tries ORDER BY id;
SELECT regress.sqlstate_of($$SELECT idem_audit('sold', 'order', '1')$$) AS idem_audit;
RESET ROLE;
-- of another role that was granted everything, row level security hides no
-- row and lets none in
SET ROLE regress_idem_clerk;
SELECT what, CASE WHEN what IN ('update', 'update, same', 'delete', 'merge') THEN 'no row changed' ELSE regress.sqlstate_of(call) END AS granted
FROM tries ORDER BY id;
UPDATE idempotency_audit_log SET action = 'x';
DELETE FROM idempotency_audit_log;
SELECT count(*) = :rows_before AS sees_all FROM idempotency_audit_log;
SELECT regress.sqlstate_of($$SELECT idem_audit('sold', 'order', '1')$$) AS idem_audit;
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
SELECT regress.sqlstate_of($$SELECT idem_audit('sold', 'order', '1')$$) AS "before, same";
DROP TRIGGER aaa ON idempotency_audit_log;
CREATE TRIGGER aaa BEFORE INSERT ON idempotency_audit_log FOR EACH ROW EXECUTE FUNCTION regress_audit_forge('same', 'replace');
SELECT regress.sqlstate_of($$SELECT idem_audit('sold', 'order', '1')$$) AS "before, same, in its place";
DROP TRIGGER aaa ON idempotency_audit_log;
CREATE TRIGGER aaa BEFORE INSERT ON idempotency_audit_log FOR EACH ROW EXECUTE FUNCTION regress_audit_forge('other', 'add');
SELECT regress.sqlstate_of($$SELECT idem_audit('sold', 'order', '1')$$) AS "before, other";
DROP TRIGGER aaa ON idempotency_audit_log;
CREATE TRIGGER zzz BEFORE INSERT ON idempotency_audit_log FOR EACH ROW EXECUTE FUNCTION regress_audit_forge('same', 'add');
SELECT regress.sqlstate_of($$SELECT idem_audit('sold', 'order', '1')$$) AS "later, same";
DROP TRIGGER zzz ON idempotency_audit_log;
CREATE TRIGGER zzz AFTER INSERT ON idempotency_audit_log FOR EACH ROW EXECUTE FUNCTION regress_audit_forge('same', 'add');
SELECT regress.sqlstate_of($$SELECT idem_audit('sold', 'order', '1')$$) AS "after, same";
DROP TRIGGER zzz ON idempotency_audit_log;
SELECT count(*) AS forged FROM idempotency_audit_log WHERE effective_role = 'nobody' OR action = 'forged';
-- nothing of the pass is left after an error
SET ROLE regress_idem_owner;
SELECT regress.sqlstate_of($$INSERT INTO idempotency_audit_log (at, xid, action, entity, entity_id, session_role, effective_role)
	VALUES (now(), '3', 'sold', 'order', '1', 'a', 'b')$$) AS afterwards;
-- and the transitions are still written, under that owner
SELECT outcome FROM idem_claim('audit', 'gone', policy => 'audit-on');
RESET ROLE;
SELECT action, attempt FROM idempotency_audit_log
WHERE entity_id = idem_log_id('audit') || '/' || idem_log_id('gone');
SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'idempotency_audit_log'::regclass AND NOT tgisinternal ORDER BY 1;
SELECT relrowsecurity FROM pg_class WHERE oid = 'idempotency_audit_log'::regclass;

ALTER TABLE idempotency_keys OWNER TO CURRENT_USER;
ALTER TABLE idempotency_policies OWNER TO CURRENT_USER;
ALTER TABLE idempotency_limiters OWNER TO CURRENT_USER;
ALTER TABLE idempotency_audit_log OWNER TO CURRENT_USER;
ALTER TABLE idempotency_secrets OWNER TO CURRENT_USER;
DROP OWNED BY regress_idem_clerk, regress_idem_owner;
DROP ROLE regress_idem_clerk, regress_idem_owner;
DROP FUNCTION regress_audit_forge;
SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'audit-%';
