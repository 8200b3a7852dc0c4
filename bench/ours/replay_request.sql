-- The same with the request given, so that the server computes the fingerprint.
\set k 100000000000 + random(1, :keys) * 61803398875 % 899999999981
SELECT * FROM idem_claim('bench', :k, '{"sku": 7, "quantity": 1}');
