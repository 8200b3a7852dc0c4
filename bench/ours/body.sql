-- Claim, work and answer in one statement; the answer is one of :bytes.
\set k random(1, 1000000000000000000)
\set sku random(1, :skus)
SELECT * FROM idem_run('body_handler(jsonb)', 'new bodies', :k, jsonb_build_object('sku', :sku::integer, 'quantity', 1, 'bytes', :bytes::integer));
