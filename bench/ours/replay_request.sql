-- The same with the request given, so that the server computes the fingerprint.
\set k random(100000000001, 100000000000 + :keys)
SELECT * FROM idem_claim('bench', :k, '{"sku": 7, "quantity": 1}');
