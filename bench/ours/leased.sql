-- A claim in a transaction of its own, and the completion with its token in a
-- second one.  The work would be done in between, outside the database.
\set k random(1, 1000000000000000000)
\set sku random(1, :skus)
SELECT outcome, token FROM idem_claim('bench', :k, jsonb_build_object('sku', :sku::integer, 'quantity', 1)) \gset
SELECT idem_complete('bench', :k, jsonb_build_object('sku', :sku::integer, 'remaining', 1), token => :token);
