--
-- The sweep removes what is past its retention, and nothing else.
--
-- nothing is left of other tests, nor expires while we count
DELETE FROM idempotency_keys;
CALL idem_sweep_all();
SELECT idem_sweep() AS nothing;

SELECT idem_policy('sweep-refuse', on_expiry => 'reject', tombstone => '1 day');
SELECT count(c.outcome) FROM generate_series(1, 6) i, LATERAL idem_claim('sweep', 'old ' || i) c;
SELECT count(c.outcome) FROM unnest(ARRAY['live', 'live done', 'for ever', 'expired', 'boundary']) k, LATERAL
	idem_claim('sweep', k, policy => CASE k WHEN 'expired' THEN 'sweep-refuse' ELSE 'default' END, ttl => CASE k WHEN 'for ever' THEN interval '0' END) c;
SELECT (idem_complete('sweep', key, token => token)).outcome IS NOT NULL AS done FROM idempotency_keys WHERE scope = 'sweep' AND key IN ('live done', 'expired');
UPDATE idempotency_keys SET purge_at = timestamptz '2001-01-01' + make_interval(days => 10 - right(key, 1)::integer)
WHERE scope = 'sweep' AND key LIKE 'old %';
UPDATE idempotency_keys SET expires_at = clock_timestamp(), purge_at = clock_timestamp() + interval '1 day'
WHERE scope = 'sweep' AND key = 'expired';
UPDATE idempotency_keys SET expires_at = clock_timestamp(), purge_at = clock_timestamp() WHERE scope = 'sweep' AND key = 'boundary';

-- Oldest first, up to max_rows.
SELECT idem_sweep(2);
SELECT string_agg(key, ', ' ORDER BY key) AS left FROM idempotency_keys WHERE scope = 'sweep' AND key LIKE 'old %';
-- by default idempotency.sweep_batch rows
SET idempotency.sweep_batch = 1;
SELECT idem_sweep(), idem_sweep(NULL) AS "null";
SELECT string_agg(key, ', ' ORDER BY key) AS left FROM idempotency_keys WHERE scope = 'sweep' AND key LIKE 'old %';
-- rolled back with its transaction
BEGIN;
SELECT idem_sweep(10);
ROLLBACK;
SELECT count(*) AS left FROM idempotency_keys WHERE scope = 'sweep' AND key LIKE 'old %';

-- without its index it goes another way
BEGIN;
DROP INDEX idempotency_keys_purge_at;
SELECT idem_sweep(1);
SELECT string_agg(key, ', ' ORDER BY key) AS left FROM idempotency_keys WHERE scope = 'sweep' AND key LIKE 'old %';
ROLLBACK;

-- idem_sweep_all: batch after batch until nothing is left.
CALL idem_sweep_all();
SELECT key FROM idempotency_keys WHERE scope = 'sweep' ORDER BY key COLLATE "C";
RESET idempotency.sweep_batch;
-- what was swept is new; the tombstone still refuses
SELECT outcome, attempt FROM idem_claim('sweep', 'old 1');
SELECT outcome FROM idem_claim('sweep', 'expired');
UPDATE idempotency_keys SET expires_at = expires_at - interval '1 day', purge_at = clock_timestamp() WHERE scope = 'sweep' AND key = 'expired';
SELECT idem_sweep();
SELECT outcome, attempt FROM idem_claim('sweep', 'expired');

-- Never inside a block or a function; DO by itself is neither.
\set VERBOSITY sqlstate
BEGIN;
CALL idem_sweep_all();
ROLLBACK;
DO $$ BEGIN CALL idem_sweep_all(); END $$;
CREATE FUNCTION pg_temp.sweep() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CALL idem_sweep_all(); END $$;
SELECT pg_temp.sweep();
BEGIN READ ONLY;
SELECT idem_sweep();
ROLLBACK;
SET default_transaction_read_only = on;
CALL idem_sweep_all();
RESET default_transaction_read_only;
SELECT idem_sweep(0);
SELECT idem_sweep(-1);
CALL idem_sweep_all('-1 s');
CALL idem_sweep_all('1 month');
\set VERBOSITY default

-- As many as there are, both ways; of more than are kept in memory at a time.
-- What other files have left may become due just now.
DELETE FROM idempotency_keys WHERE scope <> 'sweep';
SELECT idem_policy('sweep-many', completed_ttl => '1 us');
SELECT count(*) FROM idem_dedupe('sweep-many', ARRAY(SELECT i::text FROM generate_series(1, 10001) i), 'sweep-many');
SET idempotency.storage = 'sql';
SELECT idem_sweep(2147483647) AS swept;
SET idempotency.storage = 'auto';
SELECT idem_sweep(2147483647) AS swept;
RESET idempotency.storage;

-- It commits as the caller, and leaves the caller's state as it was.
CREATE ROLE regress_idem_sweeper;
SELECT idem_grant('regress_idem_sweeper', 'operator');
UPDATE idempotency_keys SET purge_at = clock_timestamp() WHERE scope = 'sweep' AND key = 'live';
SET ROLE regress_idem_sweeper;
SET search_path = pg_catalog, public;
CALL idem_sweep_all('1 min');
SELECT current_user, current_setting('search_path') AS path, current_setting('enable_seqscan') AS seqscan;
RESET search_path;
RESET ROLE;
SELECT count(*) FROM idempotency_keys WHERE scope = 'sweep' AND key = 'live';
DROP OWNED BY regress_idem_sweeper;
DROP ROLE regress_idem_sweeper;
SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'sweep-%';
