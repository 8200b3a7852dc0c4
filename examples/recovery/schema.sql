-- Payments at a provider outside: each is charged once, wherever a worker dies.
--
-- To be run once, by a superuser, in an empty database:
--
--     psql --set ON_ERROR_STOP=1 --single-transaction --file schema.sql payments
--
-- Roles, none of which has rights that it does not need:
--
--     idempotency_owner  owns keys and policies; the extension runs as this role
--     payments_owner     owns the tables
--     payments_worker    takes requests, and completes what others have left
--
-- A worker calls idem_claim itself: it is trusted with every scope.  One that
-- should not be gets wrappers, as in the other examples.

CREATE ROLE idempotency_owner NOLOGIN;
CREATE ROLE payments_owner NOLOGIN;
CREATE ROLE payments_worker LOGIN;

CREATE SCHEMA idempotency;
CREATE EXTENSION idempotency SCHEMA idempotency CASCADE;
GRANT USAGE ON SCHEMA idempotency TO idempotency_owner;
ALTER TABLE idempotency.idempotency_keys OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_policies OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_limiters OWNER TO idempotency_owner;

-- A claim that commits unfinished is listed for idem_recover.  What nobody
-- completes is remembered for failed_ttl after its lease, with the checkpoint
-- that has the provider's key: far longer than any outage.
SELECT idempotency.idem_policy('payments',
	recoverable => true,
	lease => '30 seconds',
	completed_ttl => '30 days',
	failed_ttl => '30 days',
	require_fingerprint => true,
	audit => true);

CREATE SCHEMA payments AUTHORIZATION payments_owner;
SET ROLE payments_owner;

-- What is to be paid, written with the claim: idem_recover knows the key and
-- not the request, and whoever completes it has nothing but the database.  An
-- order whose key has been forgotten after completed_ttl is refused here.
CREATE TABLE payments.orders (
	order_id text PRIMARY KEY,
	amount integer NOT NULL CHECK (amount > 0),
	accepted_at timestamptz NOT NULL DEFAULT current_timestamp
);

-- What was paid.  Nothing is unique here but the id: what keeps a payment from
-- being booked twice is its idempotency key alone.
CREATE TABLE payments.ledger (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	order_id text NOT NULL REFERENCES payments.orders,
	charge text NOT NULL,
	amount integer NOT NULL CHECK (amount > 0),
	booked_at timestamptz NOT NULL DEFAULT current_timestamp
);

GRANT USAGE ON SCHEMA payments TO payments_worker;
GRANT SELECT, INSERT ON payments.orders TO payments_worker;
GRANT INSERT ON payments.ledger TO payments_worker;
RESET ROLE;

SELECT idempotency.idem_grant('payments_worker', 'app');
ALTER ROLE payments_worker SET search_path = payments, idempotency;
