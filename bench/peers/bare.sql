-- The work alone, without a key: not safe to repeat.
\set sku random(1, :skus)
SELECT handler(jsonb_build_object('sku', :sku::integer, 'quantity', 1));
