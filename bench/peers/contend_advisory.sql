-- As advisory.sql, on one key, but waiting for the lock, so that all get the answer.
BEGIN;
SELECT floor(extract(epoch FROM clock_timestamp()) * 10)::text AS k \gset
SELECT pg_advisory_xact_lock(hashtext(:k::text));
SELECT count(*) AS stored, min(response::text) AS answer FROM peer_requests WHERE scope = 'contention advisory' AND key = :k \gset
\if :stored = 0
SELECT handler('{"sku": 1, "quantity": 1}') AS answer \gset
INSERT INTO peer_requests VALUES ('contention advisory', :k, '', :answer::jsonb, now() + interval '24 h');
\endif
COMMIT;
