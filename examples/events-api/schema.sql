-- Users create events through a web application; a form that is sent twice
-- creates one.
--
-- To be run once, by a superuser, in an empty database, which must be the one
-- that cron.database_name names:
--
--     psql --set ON_ERROR_STOP=1 --single-transaction --file schema.sql events
--
-- Roles, none of which has rights that it does not need:
--
--     idempotency_owner  owns the extension's tables; its functions run as it
--     events_keys        owns the keys, whichever role has claimed them
--     events_web         the web application
--     events_cron        the clean-up, as a job of pg_cron

CREATE ROLE idempotency_owner NOLOGIN;
CREATE ROLE events_keys NOLOGIN;
CREATE ROLE events_web LOGIN;
CREATE ROLE events_cron LOGIN;
GRANT events_keys TO events_web;

CREATE SCHEMA idempotency;
CREATE EXTENSION idempotency SCHEMA idempotency CASCADE;
ALTER TABLE idempotency.idempotency_keys OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_policies OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_limiters OWNER TO idempotency_owner;
GRANT USAGE ON SCHEMA idempotency TO idempotency_owner;

SELECT idempotency.idem_policy('events-api',
	key_format => 'uuidv4',
	completed_ttl => '7 days',
	failed_ttl => '1 day',
	require_fingerprint => true,
	owner_role => 'events_keys');

-- The web application is trusted with every scope: it makes them itself, of
-- the user whom it has been told and its own route.
SELECT idempotency.idem_grant('events_web', 'app');

-- A server that hangs in mid-request gives its keys back.
ALTER ROLE events_web SET idle_in_transaction_session_timeout = '30 s';

CREATE SCHEMA app;

CREATE TABLE app.accounts (
	user_id text PRIMARY KEY,
	free_left integer NOT NULL CHECK (free_left >= 0),
	credits integer NOT NULL CHECK (credits >= 0)
);

-- Nothing is unique here but the id: what keeps an event from being created
-- twice is its idempotency key alone.
CREATE TABLE app.events (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	user_id text NOT NULL REFERENCES app.accounts,
	title text NOT NULL,
	starts_at timestamptz NOT NULL,
	created_at timestamptz NOT NULL DEFAULT current_timestamp
);

CREATE TABLE app.drafts (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	user_id text NOT NULL,
	title text NOT NULL,
	starts_at timestamptz NOT NULL,
	created_at timestamptz NOT NULL DEFAULT current_timestamp
);

GRANT USAGE ON SCHEMA app TO events_web;
GRANT SELECT, UPDATE ON app.accounts TO events_web;
GRANT SELECT, INSERT ON app.events, app.drafts TO events_web;

-- pg_cron runs a job as the role that has scheduled it.
CREATE EXTENSION pg_cron;
GRANT USAGE ON SCHEMA cron TO events_cron;
SELECT idempotency.idem_grant('events_cron', 'operator');
SET ROLE events_cron;
SELECT idempotency.idem_schedule('*/10 * * * *');
RESET ROLE;
