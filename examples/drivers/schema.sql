-- What the drivers are tried with; to be run once, by a superuser, in an empty
-- database.  Each driver gets a copy of it, and connects as driver_app, a role
-- that has the level "app" and nothing else.

CREATE SCHEMA idempotency;
CREATE EXTENSION idempotency SCHEMA idempotency CASCADE;
CREATE ROLE driver_app LOGIN;
ALTER ROLE driver_app SET search_path = idempotency, driver;
SELECT idempotency.idem_grant('driver_app', 'app');

SELECT idempotency.idem_secret('context', sha256('for the test alone'));
SELECT idempotency.idem_policy('day', completed_ttl => '1 day', failed_ttl => '1 day');
SELECT idempotency.idem_policy('forever', completed_ttl => '0', failed_ttl => '0');
SELECT idempotency.idem_policy('jobs', recoverable => true);
SELECT idempotency.idem_limiter('calls', 100, '1 day');
SELECT idempotency.idem_limiter('once', 1, '1 day');

CREATE SCHEMA driver;
GRANT USAGE ON SCHEMA driver TO driver_app;
CREATE FUNCTION driver.give_jsonb(request jsonb) RETURNS jsonb
	LANGUAGE sql IMMUTABLE RETURN request;
CREATE FUNCTION driver.give_bytes(request jsonb) RETURNS bytea
	LANGUAGE sql IMMUTABLE RETURN '\x00ff5c27c3a43f'::bytea;
CREATE FUNCTION driver.give_response(request jsonb) RETURNS idempotency.idem_response
	LANGUAGE sql IMMUTABLE
	RETURN idempotency.idem_respond(201, request::json, '{"Location": "/orders/1"}');
