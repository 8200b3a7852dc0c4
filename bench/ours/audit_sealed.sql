-- The same, while idem_audit_seal() is called again and again, a second apart.
\set k random(1, 1000000000000000000)
\set sku random(1, :skus)
SELECT * FROM idem_run('handler(jsonb)', 'bench', :k, jsonb_build_object('sku', :sku::integer, 'quantity', 1), 'audited');
