-- A repeat of a request whose answer is one of :bytes.
\set k random(:bytes * 10000 + 1, :bytes * 10000 + :bodies)
SELECT * FROM idem_claim('bodies', :k, jsonb_build_object('sku', 1, 'quantity', 1, 'bytes', :bytes::integer));
