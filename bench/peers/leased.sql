-- The same two by hand; see leased_table.sql.  A claim whose lease is over is
-- taken over; who completes must have the token of the last claim.  From the
-- counts of rows a client sees whether the key was free, and its lease kept.
\set k random(1, 1000000000000000000)
\set token random(1, 9000000000000000000)
\set sku random(1, :skus)
INSERT INTO peer_leases AS l VALUES ('bench', :k, sha256(convert_to(jsonb_build_object('sku', :sku::integer, 'quantity', 1)::text, 'UTF8')), :token, now() + interval '60 s', NULL, now() + interval '24 h') ON CONFLICT (scope, key) DO UPDATE SET token = excluded.token, lease_until = excluded.lease_until WHERE l.response IS NULL AND l.lease_until <= now();
UPDATE peer_leases SET response = jsonb_build_object('sku', :sku::integer, 'remaining', 1) WHERE scope = 'bench' AND key = :k AND token = :token;
