-- What an administrator does once, before the workers of an adcp server start:
-- the extension, the roles, and the tables of the demo handler.
--
-- To be run by a superuser, in an empty database:
--
--     psql --set ON_ERROR_STOP=1 --single-transaction --file schema.sql adcp
--
-- Roles:
--
--     idempotency_owner  owns the tables of keys; its functions run as this role
--     adcp_app           the workers: their pools connect as this role
--
-- PgBackend.create_schema() makes the extension by itself when a superuser calls
-- it in a database that has none, which is handy for development.  Here a role
-- that cannot log in owns the keys, and the workers are no superusers.

CREATE SCHEMA idempotency;
CREATE EXTENSION idempotency SCHEMA idempotency CASCADE;
CREATE ROLE idempotency_owner NOLOGIN;
GRANT USAGE ON SCHEMA idempotency TO idempotency_owner;
ALTER TABLE idempotency.idempotency_keys OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_policies OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_limiters OWNER TO idempotency_owner;

-- 'app' for get and put; 'operator' since the workers themselves set the policy
-- and look at the health in create_schema(), and sweep in delete_expired().
CREATE ROLE adcp_app LOGIN;
SELECT idempotency.idem_grant('adcp_app', 'app');
SELECT idempotency.idem_grant('adcp_app', 'operator');

-- What the demo handler works on.  Nothing is unique in an order but its id:
-- what keeps it from being placed twice is its idempotency key alone.
CREATE TABLE budgets (
	tenant text PRIMARY KEY,
	cents bigint NOT NULL CHECK (cents >= 0)
);

CREATE TABLE orders (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	tenant text NOT NULL REFERENCES budgets,
	item text NOT NULL,
	cents bigint NOT NULL CHECK (cents > 0)
);

GRANT SELECT, INSERT ON orders TO adcp_app;
GRANT SELECT, UPDATE ON budgets TO adcp_app;
