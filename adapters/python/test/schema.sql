-- What the applications of apps.py have: orders, each with the name that the test
-- gave it, and the role, policies and limiter of their servers.
--
-- To be run once, by a superuser, in an empty database; ../run does.

CREATE SCHEMA idempotency;
CREATE EXTENSION idempotency SCHEMA idempotency CASCADE;

CREATE ROLE web_app LOGIN;
SELECT idempotency.idem_grant('web_app', 'app');

-- The work: one row is one effect.  An error that only COMMIT finds: an order
-- whose customer is unknown.
CREATE TABLE customers (name text PRIMARY KEY);
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL,
	customer text REFERENCES customers DEFERRABLE INITIALLY DEFERRED);
CREATE INDEX ON orders (name);
GRANT INSERT, SELECT ON customers, orders TO web_app;

-- Handlers are run again: how often, no rollback undoes.
CREATE SEQUENCE runs;
GRANT USAGE ON SEQUENCE runs TO web_app;

-- An error with this SQLSTATE, the first so many times that it is called.
CREATE FUNCTION stumble(state text, times integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF nextval('runs') > times THEN
		RETURN;
	ELSIF state = '57P01' THEN
		PERFORM pg_terminate_backend(pg_backend_pid());
	ELSE
		RAISE EXCEPTION 'stumbled' USING ERRCODE = state;
	END IF;
END $$;

SELECT idempotency.idem_policy('web', on_unfinished => 'error', require_fingerprint => true,
	max_body_bytes => 65536);
SELECT idempotency.idem_policy('digest', on_unfinished => 'error', max_body_bytes => 0, on_oversize => 'digest');
SELECT idempotency.idem_limiter('few', capacity => 3, per => '1 day');
