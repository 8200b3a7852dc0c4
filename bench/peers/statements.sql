-- Insertion of the key, work and update by hand, as statements of one
-- transaction.  From the count of inserted rows a client sees whether the key
-- is new; here it always is.
\set k random(1, 1000000000000000000)
\set sku random(1, :skus)
BEGIN;
INSERT INTO peer_requests VALUES ('bench', :k, sha256(convert_to(jsonb_build_object('sku', :sku::integer, 'quantity', 1)::text, 'UTF8')), NULL, now() + interval '24 h') ON CONFLICT DO NOTHING;
SELECT handler(jsonb_build_object('sku', :sku::integer, 'quantity', 1)) AS answer \gset
UPDATE peer_requests SET response = :answer::jsonb WHERE scope = 'bench' AND key = :k;
COMMIT;
