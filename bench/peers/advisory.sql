-- An advisory lock keeps rivals off, the key is looked up, and its row is
-- inserted after the work.  A request that does not get the lock is refused;
-- so is, now and then, another one whose hash is the same.
\set k random(1, 1000000000000000000)
\set sku random(1, :skus)
BEGIN;
SELECT pg_try_advisory_xact_lock(hashtext(:k))::integer AS mine \gset
\if :mine
SELECT count(*) AS stored, min(response::text) AS answer FROM peer_requests WHERE scope = 'advisory' AND key = :k \gset
\if :stored = 0
SELECT handler(jsonb_build_object('sku', :sku::integer, 'quantity', 1)) AS answer \gset
INSERT INTO peer_requests VALUES ('advisory', :k, '', :answer::jsonb, now() + interval '24 h');
\endif
\else
INSERT INTO refusals VALUES (:k);
\endif
COMMIT;
