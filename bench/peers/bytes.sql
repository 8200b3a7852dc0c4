-- As plpgsql.sql, with answers of 50 bytes as in ours/bytes.sql.
\set k random(1, 1000000000000000000)
\set sku random(1, :skus)
SELECT peer_run('bench', :k, jsonb_build_object('sku', lpad(:sku::text, 15, '0'), 'quantity', 1));
