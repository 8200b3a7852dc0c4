-- The same into a table of the same shape.  It does not say which were new.
\set k random(1, 1000000000000000)
INSERT INTO peer_keys (scope, key, state, claim_xid, created_at, finished_at, expires_at, purge_at, claimed_by) SELECT 'inbox', k, 'c', '3'::xid8, now(), now(), now() + interval '24 h', date_bin('86.4 s', now() + interval '24 h', '2000-01-01 00:00+00') + interval '86.4 s', 'app' FROM unnest(ARRAY(SELECT (:k::bigint * 1000 + g)::text FROM generate_series(0, 999) g)) k ON CONFLICT DO NOTHING;
