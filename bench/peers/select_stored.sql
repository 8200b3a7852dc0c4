-- The columns as they are stored: what is computed when it is read is null.
\set k 100000000000 + random(1, :keys) * 61803398875 % 899999999981
SELECT state, attempt, token, status_code, headers, content_type, body, body_size, body_sha256, recovery_point, checkpoint, fingerprint, created_at, finished_at, lease_until, expires_at FROM idempotency_keys WHERE scope = 'bench' AND key = :k;
