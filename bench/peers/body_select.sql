-- The columns of an idem_result with their values, by primary key.
\set k random(:bytes * 10000 + 1, :bytes * 10000 + :bodies)
SELECT state, coalesce(attempt, 1) AS attempt, token, coalesce(status_code, 200) AS status_code, headers, coalesce(nullif(content_type, ''), 'application/octet-stream') AS content_type, body, octet_length(body) AS body_size, sha256(body) AS body_sha256, recovery_point, checkpoint, fingerprint, created_at, finished_at, lease_until, expires_at FROM idempotency_keys WHERE scope = 'bodies' AND key = :k;
