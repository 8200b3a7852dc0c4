-- The same into a table of the same shape.  It does not say which were new.
\set k random(1, 1000000000000000)
INSERT INTO peer_keys (scope, key, state, attempt, token, claim_xid, created_at, finished_at, lease_until, expires_at, purge_at, status_code, policy, claimed_by) SELECT 'inbox', k, 'c', 1, 1, '3'::xid8, now(), now(), now(), now() + interval '24 h', now() + interval '24 h', 200, 'default', 'app' FROM unnest(ARRAY(SELECT (:k::bigint * 1000 + g)::text FROM generate_series(0, 999) g)) k ON CONFLICT DO NOTHING;
