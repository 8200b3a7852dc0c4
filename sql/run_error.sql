--
-- idem_run: a handler that fails.
--
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir '/sql/run.inc'
\set ECHO none
\i :include
\set ECHO all

--
-- on_error = 'raise': the error passes, and the key is free.
--
SELECT state, regress.sqlstate_of(format($$SELECT idem_run('regress_run.work(jsonb)', 'run', 'raise', '{"what": "raise", "error": "%s"}')$$, state)) AS raised
FROM unnest(ARRAY['P0001', '22012', '23505', '40001', '40P01', '53200', '57014', '58030', 'XX000', 'ID003', 'ID010']) state;
SELECT count(*) AS rows FROM idempotency_keys WHERE scope = 'run' AND key = 'raise';
SELECT count(*) AS effects FROM regress_run.effects WHERE what = 'raise';
-- free at once, in the same transaction after a savepoint
BEGIN;
SAVEPOINT s;
\set VERBOSITY sqlstate
SELECT idem_run('regress_run.work(jsonb)', 'run', 'raise', '{"what": "raise", "error": "P0001"}');
\set VERBOSITY default
ROLLBACK TO s;
SELECT r.outcome, r.attempt, idem_json(r) FROM idem_run('regress_run.work(jsonb)', 'run', 'raise', '{"what": "raise"}') r;
COMMIT;

--
-- on_error = 'record': the failure is stored, the work undone.
--
SELECT r.outcome, r.attempt, r.status_code, r.http_status, r.content_type, idem_json(r), regress.given(r)
FROM idem_run('regress_run.work(jsonb)', 'run', 'record', '{"what": "record", "error": "P0001"}', on_error => 'record') r;
SELECT outcome, status_code, idem_json(l) FROM idem_lookup('run', 'record') l;
SELECT count(*) AS effects FROM regress_run.effects WHERE what = 'record';
-- retryable: it runs again
SELECT r.outcome, r.attempt, idem_json(r) ->> 'sqlstate' AS sqlstate
FROM idem_run('regress_run.work(jsonb)', 'run', 'record', '{"what": "record", "error": "P0001"}', on_error => 'record') r;
SELECT r.outcome, r.attempt, idem_json(r) FROM idem_run('regress_run.work(jsonb)', 'run', 'mended', '{"what": "mended"}', on_error => 'record') r;
SELECT r.outcome, r.attempt, idem_json(r) FROM idem_run('regress_run.work(jsonb)', 'run', 'mended', '{"what": "mended"}', on_error => 'record') r;
SELECT count(*) AS effects FROM regress_run.effects WHERE what = 'mended';
-- what is stored, and what always passes
SELECT state, regress.sqlstate_of(format($$SELECT idem_run('regress_run.work(jsonb)', 'run', 'record %1$s', '{"what": "record", "error": "%1$s"}', on_error => 'record')$$, state)) AS raised
FROM unnest(ARRAY['P0001', '22012', '23505', '42501', '25006', '40002', 'ID002', '55000',
				  '40001', '40P01', '53000', '53100', '53200', '53300', '57014', '57P01', '57P02', '57P03', '57P04', '57P05',
				  '58000', '58030', 'XX000', 'XX001', 'XX002']) state;
SELECT count(*) AS effects FROM regress_run.effects WHERE what = 'record';
-- the surrounding transaction goes on
BEGIN;
INSERT INTO regress_run.effects (what) VALUES ('around');
SELECT r.outcome FROM idem_run('regress_run.work(jsonb)', 'run', 'around', '{"what": "around", "error": "23505"}', on_error => 'record') r;
INSERT INTO regress_run.effects (what) VALUES ('around');
COMMIT;
SELECT count(*) AS effects FROM regress_run.effects WHERE what = 'around';
SELECT outcome FROM idem_lookup('run', 'around');
-- an answer that cannot be stored is a failure like others
SELECT r.outcome, idem_json(r) ->> 'sqlstate' AS sqlstate FROM idem_run('regress_run.to_broken_text(jsonb)', 'run', 'broken', on_error => 'record') r;
SELECT idem_policy('run-small', max_body_bytes => 5);
SELECT r.outcome, r.body, r.body_size > 5 AS size FROM idem_run('regress_run.to_json(jsonb)', 'run', 'small', policy => 'run-small', on_error => 'record') r;
SELECT regress.sqlstate_of($$SELECT idem_run('regress_run.to_json(jsonb)', 'run', 'small 2', policy => 'run-small')$$) AS raise;
SELECT regress.sqlstate_of($$SELECT idem_run('regress_run.to_json(jsonb)', 'run', 'on error', on_error => 'ignore')$$) AS "ignore",
	regress.sqlstate_of($$SELECT idem_run('regress_run.to_json(jsonb)', 'run', 'on error', on_error => NULL)$$) AS "null";

-- A status that is not kept.
SELECT status, regress.sqlstate_of(format($$SELECT idem_run('regress_run.work_with_status(jsonb)', 'run', 'status', '{"what": "status", "status": %s}')$$, status)) AS raise
FROM unnest(ARRAY[200, 404, 429, 500, 503, 600]) status;
SELECT count(*) AS effects FROM regress_run.effects WHERE what = 'status';
SELECT status, r.outcome, r.status_code, r.headers, idem_json(r), r.http_status
FROM unnest(ARRAY[200, 404, 429, 500, 503]) status,
	LATERAL idem_run('regress_run.work_with_status(jsonb)', 'run', 'status ' || status,
					 jsonb_build_object('what', 'status', 'status', status), on_error => 'record') r
ORDER BY status;
SELECT count(*) AS effects FROM regress_run.effects WHERE what = 'status';
SELECT r.outcome, r.attempt FROM idem_run('regress_run.work_with_status(jsonb)', 'run', 'status 503', '{"what": "status", "status": 503}', on_error => 'record') r;
-- the policy decides which: at a retry that of the first claim
SELECT idem_policy('run-release', release_statuses => '{[404,405)}');
SELECT r.outcome, r.attempt FROM idem_run('regress_run.work_with_status(jsonb)', 'run', 'status 503', '{"what": "status", "status": 503}', 'run-release', on_error => 'record') r;
SELECT r.outcome FROM idem_run('regress_run.work_with_status(jsonb)', 'run', 'release', '{"what": "release", "status": 503}', policy => 'run-release') r;
SELECT regress.sqlstate_of($$SELECT idem_run('regress_run.work_with_status(jsonb)', 'run', 'release 2', '{"what": "release", "status": 404}', policy => 'run-release')$$) AS "404";

SET client_min_messages = warning;
DROP SCHEMA regress_run CASCADE;
RESET client_min_messages;
SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'run-%';
