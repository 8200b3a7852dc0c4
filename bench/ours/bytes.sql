-- As run.sql; the number of the SKU has so many digits that the answer, which
-- repeats it, takes 50 bytes.
\set k random(1, 1000000000000000000)
\set sku random(1, :skus)
SELECT * FROM idem_run('handler(jsonb)', 'bench', :k, jsonb_build_object('sku', lpad(:sku::text, 15, '0'), 'quantity', 1));
