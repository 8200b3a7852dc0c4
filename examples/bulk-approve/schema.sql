-- An admin API that approves many pending items at once: whatever is repeated,
-- no key is good for more than one approval.
--
-- To be run once, by a superuser, in an empty database:
--
--     psql --set ON_ERROR_STOP=1 --file schema.sql approvals
--
-- Roles, none of which has rights that it does not need:
--
--     idempotency_owner  owns the tables of keys; the extension runs as this role
--     bulk_keys          owns the keys, and nothing else
--     bulk_api           the API server, server.py

CREATE ROLE idempotency_owner NOLOGIN;
CREATE ROLE bulk_keys NOLOGIN;
CREATE ROLE bulk_api LOGIN;

CREATE SCHEMA idempotency;
CREATE EXTENSION idempotency SCHEMA idempotency CASCADE;
GRANT USAGE ON SCHEMA idempotency TO idempotency_owner;
ALTER TABLE idempotency.idempotency_keys OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_policies OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_limiters OWNER TO idempotency_owner;

-- A key that has been used is refused for ever, whatever the repeat asks for.
-- Nobody's answer is ever replayed, so none is stored: see server.py.
--
-- A repeat that comes while the first is still at work waits for its end, since
-- only then is it known whether the key has been used.  The keys outlive any
-- login role, so they belong to a role of their own: a successor of bulk_api
-- becomes a member of it, and refuses the old keys, too.
SELECT idempotency.idem_policy('bulk-approve',
	on_repeat => 'reject',
	completed_ttl => '0',
	wait => '10 s',
	require_fingerprint => true,
	key_format => 'any',
	max_key_bytes => 80,
	owner_role => 'bulk_keys');
GRANT bulk_keys TO bulk_api;

-- A server whose host has vanished would hold its keys and items until TCP
-- gives its connections up.
ALTER ROLE bulk_api SET idle_in_transaction_session_timeout = '30 s';

-- Level app is power over every scope.  Here is one application; where others
-- use the same database, see "Security" in the README of the extension.
SELECT idempotency.idem_grant('bulk_api', 'app');

CREATE SCHEMA admin;

CREATE TABLE admin.items (
	id bigint PRIMARY KEY,
	state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'approved'))
);

-- Who approved what, and by which request.  Nothing is unique here but the id:
-- what keeps a request from being done twice is its idempotency key alone.
CREATE TABLE admin.approvals (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	item bigint NOT NULL REFERENCES admin.items,
	approved_by text NOT NULL,
	key text NOT NULL,
	approved_at timestamptz NOT NULL DEFAULT current_timestamp
);

GRANT USAGE ON SCHEMA admin TO bulk_api;
GRANT SELECT, UPDATE (state) ON admin.items TO bulk_api;
GRANT SELECT, INSERT ON admin.approvals TO bulk_api;
