-- The work alone, without a key; the answer is one of :bytes.
\set sku random(1, :skus)
SELECT body_handler(jsonb_build_object('sku', :sku::integer, 'quantity', 1, 'bytes', :bytes::integer));
