-- The columns of an idem_result with their values, by primary key.
\set k 100000000000 + random(1, :keys) * 61803398875 % 899999999981
SELECT state, coalesce(attempt, 1) AS attempt, token, coalesce(status_code, 200) AS status_code, headers, coalesce(content_type, 'application/json') AS content_type, body, octet_length(body) AS body_size, sha256(body) AS body_sha256, recovery_point, checkpoint, fingerprint, created_at, finished_at, lease_until, expires_at FROM idempotency_keys WHERE scope = 'bench' AND key = :k;
