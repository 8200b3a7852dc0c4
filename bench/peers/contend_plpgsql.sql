-- As ours/contend.sql by the hand-written function: a rival waits in its INSERT.
SELECT peer_run('contention plpgsql', floor(extract(epoch FROM clock_timestamp()) * 10)::text, '{"sku": 1, "quantity": 1}');
