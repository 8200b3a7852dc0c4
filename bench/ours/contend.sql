-- All clients ask for one key, a new one ten times a second, and wait for it.
SELECT * FROM idem_run('handler(jsonb)', 'contention', floor(extract(epoch FROM clock_timestamp()) * 10)::text, '{"sku": 1, "quantity": 1}', wait => '10 s');
