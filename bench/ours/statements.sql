-- Claim, work and completion as statements of one transaction.
\set k random(1, 1000000000000000000)
\set sku random(1, :skus)
BEGIN;
SELECT * FROM idem_claim('bench', :k, jsonb_build_object('sku', :sku::integer, 'quantity', 1));
SELECT handler(jsonb_build_object('sku', :sku::integer, 'quantity', 1)) AS answer \gset
SELECT idem_complete('bench', :k, :answer::jsonb);
COMMIT;
