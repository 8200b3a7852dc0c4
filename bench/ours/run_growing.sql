-- Claim, work and answer in one statement, with a key that grows with time, as UUIDv7 does.
\set sku random(1, :skus)
SELECT * FROM idem_run('handler(jsonb)', 'bench', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint || '-' || :client_id, jsonb_build_object('sku', :sku::integer, 'quantity', 1));
