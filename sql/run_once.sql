--
-- idem_run: within a handler, what is written, and what is locked.
--
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir '/sql/run.inc'
\set ECHO none
\i :include
\set ECHO all

--
-- Nested: the key of a running call, from within its handler.
--
CREATE FUNCTION regress_run.nest(request jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	r idem_result;
BEGIN
	IF (request ->> 'depth')::integer = 0 THEN
		RETURN '"innermost"';
	END IF;
	r := idem_run('regress_run.nest(jsonb)', 'run', request ->> 'key' || COALESCE(request ->> 'next', ''),
				  request || jsonb_build_object('depth', (request ->> 'depth')::integer - 1), wait => '10 s');
	RETURN jsonb_build_object('inner', r.outcome, 'http', r.http_status, 'says', idem_json(r));
END
$$;
SELECT r.outcome, idem_json(r) FROM idem_run('regress_run.nest(jsonb)', 'run', 'nest', '{"key": "nest", "depth": 1}') r;
SELECT r.outcome, idem_json(r) FROM idem_run('regress_run.nest(jsonb)', 'run', 'nest a', '{"key": "nest a", "next": "b", "depth": 1}') r;
SELECT r.outcome, idem_json(r) FROM idem_claim('run', 'nest ab', '{"key": "nest a", "next": "b", "depth": 0}') r;
-- other calls for it
CREATE FUNCTION regress_run.inside(request jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	RETURN jsonb_build_object(
		'claim', (idem_claim('run', 'inside', wait => '10 s')).outcome,
		'lookup', (idem_lookup('run', 'inside')).outcome,
		'release', idem_release('run', 'inside'),
		'forget', idem_forget('run', 'inside'),
		'complete', regress.sqlstate_of($q$SELECT idem_complete('run', 'inside')$q$),
		'fail', regress.sqlstate_of($q$SELECT idem_fail('run', 'inside')$q$),
		'require', regress.sqlstate_of($q$SELECT idem_require('run', 'inside')$q$),
		'dedupe', (SELECT first FROM idem_dedupe('run', '{inside}')),
		'another', (idem_claim('run', 'inside another')).outcome);
END
$$;
SELECT r.outcome, e.key, e.value
FROM idem_run('regress_run.inside(jsonb)', 'run', 'inside') r, LATERAL json_each(idem_json(r)) e ORDER BY e.key COLLATE "C";
-- after an error in the handler nothing is left of the running call
SELECT regress.sqlstate_of($$SELECT idem_run('regress_run.work(jsonb)', 'run', 'after', '{"what": "after", "error": "P0001"}')$$);
SELECT r.outcome FROM idem_claim('run', 'after') r;
BEGIN;
SELECT regress.sqlstate_of($$SELECT idem_run('regress_run.work(jsonb)', 'run', 'after 2', '{"what": "after", "error": "P0001"}')$$);
SELECT r.outcome FROM idem_claim('run', 'after 2') r;
SELECT (idem_complete('run', 'after 2', '1')).outcome IS NOT NULL AS done;
COMMIT;

--
-- An executed call writes one row version.
--
CREATE TEMP VIEW written AS
SELECT sum(pg_stat_get_xact_tuples_inserted(oid)) AS inserted,
	sum(pg_stat_get_xact_tuples_updated(oid)) AS updated,
	sum(pg_stat_get_xact_tuples_deleted(oid)) AS deleted
FROM pg_class
WHERE oid = 'idempotency_keys'::regclass
	OR oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'idempotency_keys'::regclass);
BEGIN;
SELECT inserted AS i, updated AS u, deleted AS d FROM written \gset
SELECT outcome FROM idem_run('regress_run.work(jsonb)', 'run', 'one version', '{"what": "one"}');
SELECT inserted - :i AS inserted, updated - :u AS updated, deleted - :d AS deleted FROM written;
SELECT outcome FROM idem_run('regress_run.work(jsonb)', 'run', 'one version', '{"what": "one"}');
SELECT inserted - :i AS inserted, updated - :u AS updated, deleted - :d AS deleted FROM written;
COMMIT;
BEGIN;
SELECT inserted AS i, updated AS u, deleted AS d FROM written \gset
SELECT outcome FROM idem_run('regress_run.work(jsonb)', 'run', 'one recorded', '{"what": "one", "error": "P0001"}', on_error => 'record');
SELECT inserted - :i AS inserted, updated - :u AS updated, deleted - :d AS deleted FROM written;
SELECT outcome, attempt FROM idem_run('regress_run.work(jsonb)', 'run', 'one recorded', '{"what": "one", "error": "P0001"}', on_error => 'record');
SELECT inserted - :i AS inserted, updated - :u AS updated, deleted - :d AS deleted FROM written;
COMMIT;

--
-- The key lock: while the handler runs there is one, and afterwards to the end
-- of the transaction in the SQL way, none in the direct way, which a partitioned
-- table has not.
--
CREATE VIEW regress_run.key_locks AS
SELECT count(*) AS key_locks FROM pg_locks
WHERE locktype = 'advisory' AND objsubid = 478 AND pid = pg_backend_pid();
CREATE FUNCTION regress_run.count_locks(request jsonb) RETURNS text LANGUAGE sql AS
$$ SELECT key_locks::text FROM regress_run.key_locks $$;
BEGIN;
SET LOCAL idempotency.storage = 'sql';
SELECT outcome, idem_json(r) AS key_locks FROM idem_run('regress_run.count_locks(jsonb)', 'run', 'locks') r;
SELECT key_locks FROM regress_run.key_locks;
COMMIT;
SELECT key_locks FROM regress_run.key_locks;
BEGIN;
SET LOCAL idempotency.storage = 'auto';
SELECT outcome, idem_json(r) AS key_locks FROM idem_run('regress_run.count_locks(jsonb)', 'run', 'locks too') r;
SELECT key_locks = CASE relkind WHEN 'r' THEN 0 ELSE 1 END AS key_locks_as_said
FROM regress_run.key_locks, pg_class WHERE oid = 'idempotency_keys'::regclass;
COMMIT;

--
-- A new key's row is written once, at the end, so it is due when its answer has
-- expired and its tombstone is over, rounded up by a thousandth of that.
--
SELECT idem_policy('run-short', completed_ttl => '5 s', on_expiry => 'reject', tombstone => '1 s');
SELECT outcome FROM idem_run('regress_run.work(jsonb)', 'run', 'short', '{"what": "short"}', 'run-short');
SELECT purge_at - expires_at BETWEEN interval '1 s' AND interval '1.006 s' AS due FROM idempotency_keys WHERE scope = 'run' AND key = 'short';

SET client_min_messages = warning;
DROP SCHEMA regress_run CASCADE;
RESET client_min_messages;
SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'run-%';
