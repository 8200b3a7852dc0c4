-- The same for the answer alone, which is what the peers return.
\set k random(1, 1000000000000000000)
\set sku random(1, :skus)
SELECT idem_json(idem_run('handler(jsonb)', 'bench', :k, jsonb_build_object('sku', :sku::integer, 'quantity', 1)));
