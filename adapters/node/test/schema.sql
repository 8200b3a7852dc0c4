-- What the servers of the test work on: each row is something that a handler did.

CREATE SCHEMA idempotency;
CREATE EXTENSION idempotency SCHEMA idempotency CASCADE;

CREATE ROLE web_app LOGIN;
CREATE TABLE effects (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key text NOT NULL, body text);
GRANT INSERT, SELECT ON effects TO web_app;

SELECT idempotency.idem_grant('web_app', 'app');
SELECT idempotency.idem_policy('web', require_fingerprint => true, on_unfinished => 'error', max_body_bytes => 65536);
SELECT idempotency.idem_policy('strict', on_repeat => 'reject', key_format => 'uuid', mismatch_status => 409);
SELECT idempotency.idem_policy('digest', max_body_bytes => 1000, on_oversize => 'digest');
SELECT idempotency.idem_secret('context', decode(repeat('5a', 32), 'hex'));
SELECT idempotency.idem_limiter('orders', 2, '1 hour');
