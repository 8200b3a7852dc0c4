-- Claim, work and answer in one statement, under a policy with audit: two rows of the log.
\set k random(1, 1000000000000000000)
\set sku random(1, :skus)
SELECT * FROM idem_run('handler(jsonb)', 'bench', :k, jsonb_build_object('sku', :sku::integer, 'quantity', 1), 'audited');
