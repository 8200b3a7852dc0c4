-- The stored columns of an idem_result, by primary key.
\set k random(:bytes * 10000 + 1, :bytes * 10000 + :bodies)
SELECT state, attempt, token, status_code, headers, content_type, body, body_size, body_sha256, recovery_point, checkpoint, fingerprint, created_at, finished_at, lease_until, expires_at FROM idempotency_keys WHERE scope = 'bodies' AND key = :k;
