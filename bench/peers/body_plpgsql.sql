-- A hand-written function; see body_function.sql.
\set k random(1, 1000000000000000000)
\set sku random(1, :skus)
SELECT peer_body_run('bench', :k, jsonb_build_object('sku', :sku::integer, 'quantity', 1, 'bytes', :bytes::integer));
