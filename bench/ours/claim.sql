-- A new key.  Rolled back: a claim that commits in progress is flushed to disk
-- whatever synchronous_commit says, and that would be all there is to see.
\set k random(1, 1000000000000000000)
BEGIN;
SELECT * FROM idem_claim('bench', :k, '{"sku": 7, "quantity": 1}');
ROLLBACK;
