/* idempotency--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION idempotency SCHEMA idempotency CASCADE" to load this file. \quit

-- In a schema where others may create objects, a planted function could be
-- bound by the statements below in place of ours.
CREATE FUNCTION @extschema@.idem_schema_check() RETURNS void
AS 'MODULE_PATHNAME', 'idem_schema_check'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

SELECT @extschema@.idem_schema_check();

DROP FUNCTION @extschema@.idem_schema_check();

--
-- Types
--

CREATE TYPE @extschema@.idem_outcome AS ENUM (
	'claimed',
	'completed',
	'failed',
	'replayed',
	'duplicate',
	'in_progress',
	'mismatch',
	'expired'
);
COMMENT ON TYPE @extschema@.idem_outcome IS
'what a claim, a run or a lookup found';

CREATE TYPE @extschema@.idem_response AS (
	status_code integer,
	headers json,
	content_type text,
	body bytea
);
COMMENT ON TYPE @extschema@.idem_response IS
'an answer: HTTP status, headers, media type and bytes';

CREATE TYPE @extschema@.idem_result AS (
	outcome @extschema@.idem_outcome,
	attempt integer,
	token bigint,
	status_code integer,
	headers json,
	content_type text,
	body bytea,
	body_size bigint,
	body_sha256 bytea,
	recovery_point text,
	checkpoint jsonb,
	fingerprint bytea,
	created_at timestamptz,
	finished_at timestamptz,
	lease_until timestamptz,
	expires_at timestamptz,
	retry_after_ms bigint,
	http_status integer,
	error_code text
);
COMMENT ON TYPE @extschema@.idem_result IS
'the outcome of a claim with what is known of the key';

--
-- Tables.  Nothing is granted on them: access is through the functions, which
-- run as the owner of idempotency_keys.
--

CREATE TABLE @extschema@.idempotency_keys (
	created_at timestamptz NOT NULL,
	expires_at timestamptz NOT NULL,
	purge_at timestamptz NOT NULL,
	claim_xid xid8 NOT NULL,
	finished_at timestamptz,
	lease_until timestamptz,
	token bigint,
	ttl bigint,
	body_size bigint,
	attempt integer,
	status_code integer,
	state "char" NOT NULL,
	scope text COLLATE pg_catalog."C" NOT NULL,
	key text COLLATE pg_catalog."C" NOT NULL,
	policy text,
	claimed_by text NOT NULL,
	owner uuid,
	fingerprint bytea,
	context bytea,
	headers json,
	content_type text,
	body_sha256 bytea,
	body bytea,
	recovery_point text,
	checkpoint jsonb,
	CONSTRAINT idempotency_keys_pkey PRIMARY KEY (scope, key)
) WITH (fillfactor = 95);

-- A null costs nothing, and alignment costs what the order of the columns makes
-- it: so what most rows have in common is null, and wide columns come first.

-- purge_at is set at the claim and moves only when the finish exceeds it, so
-- that a completion can be a HOT update.
CREATE INDEX idempotency_keys_purge_at
	ON @extschema@.idempotency_keys (purge_at);

COMMENT ON TABLE @extschema@.idempotency_keys IS
'idempotency keys: one row for each (scope, key)';
COMMENT ON COLUMN @extschema@.idempotency_keys.state IS
'p in progress, c completed, r failed and retryable, f failed for good, x released';
COMMENT ON COLUMN @extschema@.idempotency_keys.claim_xid IS
'top-level transaction that made the claim; means nothing after a restore';
COMMENT ON COLUMN @extschema@.idempotency_keys.purge_at IS
'not before this time may the sweep remove the row: at least expiry plus tombstone, rounded up';
COMMENT ON COLUMN @extschema@.idempotency_keys.lease_until IS
'null in a row that was written finished';
COMMENT ON COLUMN @extschema@.idempotency_keys.token IS
'fencing token; null when nobody was given one';
COMMENT ON COLUMN @extschema@.idempotency_keys.body_size IS
'null when the body is kept, or there is none';
COMMENT ON COLUMN @extschema@.idempotency_keys.body_sha256 IS
'null when the body is kept, or there is none';
COMMENT ON COLUMN @extschema@.idempotency_keys.attempt IS
'null: 1';
COMMENT ON COLUMN @extschema@.idempotency_keys.status_code IS
'null: 200, or not finished';
COMMENT ON COLUMN @extschema@.idempotency_keys.policy IS
'null: default';
COMMENT ON COLUMN @extschema@.idempotency_keys.content_type IS
'null: application/json, or none where there is no body or an empty one; empty: application/octet-stream';
COMMENT ON COLUMN @extschema@.idempotency_keys.ttl IS
'retention given with the claim, in microseconds; 0 for ever, null for the policy''s';
COMMENT ON COLUMN @extschema@.idempotency_keys.claimed_by IS
'name of the role whose rights a caller needs';

-- Written by claims under a policy that is recoverable, and removed when they
-- end: what idem_recover() has to look at is as long as what is open.
CREATE TABLE @extschema@.idempotency_leases (
	lease_until timestamptz NOT NULL,
	purge_at timestamptz NOT NULL,
	token bigint NOT NULL,
	scope text COLLATE pg_catalog."C" NOT NULL,
	key text COLLATE pg_catalog."C" NOT NULL,
	policy text COLLATE pg_catalog."C" NOT NULL,
	claimed_by text NOT NULL,
	CONSTRAINT idempotency_leases_pkey PRIMARY KEY (scope, key)
);
CREATE INDEX idempotency_leases_ended
	ON @extschema@.idempotency_leases (policy, lease_until);
CREATE INDEX idempotency_leases_purge_at
	ON @extschema@.idempotency_leases (purge_at);
COMMENT ON TABLE @extschema@.idempotency_leases IS
'claims in progress that idem_recover may take over';

CREATE TABLE @extschema@.idempotency_policies (
	name text COLLATE pg_catalog."C" NOT NULL,
	completed_ttl interval,
	failed_ttl interval,
	lease interval,
	wait interval,
	on_repeat text,
	on_expiry text,
	tombstone interval,
	require_fingerprint boolean,
	on_unfinished text,
	recoverable boolean,
	key_format text,
	max_key_bytes integer,
	mismatch_status integer,
	release_statuses int4multirange,
	max_body_bytes integer,
	on_oversize text,
	owner_role text,
	max_live_keys integer,
	audit boolean,
	CONSTRAINT idempotency_policies_pkey PRIMARY KEY (name),
	-- idem_policy() says it better; these are for a direct UPDATE
	CONSTRAINT idempotency_policies_name_check
		CHECK (name <> '' AND octet_length(name) < 64),
	CONSTRAINT idempotency_policies_positive_check
		CHECK (LEAST(completed_ttl, failed_ttl, wait, tombstone) >= '0' AND lease > '0'),
	CONSTRAINT idempotency_policies_completed_ttl_check
		CHECK (extract(year FROM completed_ttl) OPERATOR(pg_catalog.=) 0 AND extract(month FROM completed_ttl) OPERATOR(pg_catalog.=) 0),
	CONSTRAINT idempotency_policies_failed_ttl_check
		CHECK (extract(year FROM failed_ttl) OPERATOR(pg_catalog.=) 0 AND extract(month FROM failed_ttl) OPERATOR(pg_catalog.=) 0),
	CONSTRAINT idempotency_policies_lease_check
		CHECK (extract(year FROM lease) OPERATOR(pg_catalog.=) 0 AND extract(month FROM lease) OPERATOR(pg_catalog.=) 0),
	CONSTRAINT idempotency_policies_wait_check
		CHECK (extract(year FROM wait) OPERATOR(pg_catalog.=) 0 AND extract(month FROM wait) OPERATOR(pg_catalog.=) 0),
	CONSTRAINT idempotency_policies_tombstone_check
		CHECK (extract(year FROM tombstone) OPERATOR(pg_catalog.=) 0 AND extract(month FROM tombstone) OPERATOR(pg_catalog.=) 0),
	CONSTRAINT idempotency_policies_on_repeat_check
		CHECK (on_repeat IN ('replay', 'reject')),
	CONSTRAINT idempotency_policies_on_expiry_check
		CHECK (on_expiry IN ('reuse', 'reject')
			AND (on_expiry = 'reuse' OR coalesce(tombstone, '0') > '0')),
	CONSTRAINT idempotency_policies_on_unfinished_check
		CHECK (on_unfinished IN ('lease', 'error')),
	CONSTRAINT idempotency_policies_key_format_check
		CHECK (key_format IN ('any', 'uuid', 'uuidv4', 'uuidv7')),
	CONSTRAINT idempotency_policies_max_key_bytes_check
		CHECK (max_key_bytes BETWEEN 1 AND 1024),
	CONSTRAINT idempotency_policies_mismatch_status_check
		CHECK (mismatch_status BETWEEN 400 AND 499),
	CONSTRAINT idempotency_policies_max_body_bytes_check
		CHECK (max_body_bytes BETWEEN 0 AND 536870912),
	CONSTRAINT idempotency_policies_on_oversize_check
		CHECK (on_oversize IN ('error', 'digest')),
	CONSTRAINT idempotency_policies_owner_role_check
		CHECK (octet_length(owner_role) < 64),
	CONSTRAINT idempotency_policies_max_live_keys_check
		CHECK (max_live_keys >= 0)
);
COMMENT ON TABLE @extschema@.idempotency_policies IS
'policies that someone has set; a null column has the shipped value';

CREATE TABLE @extschema@.idempotency_limiters (
	name text COLLATE pg_catalog."C" NOT NULL,
	capacity integer NOT NULL,
	per interval NOT NULL,
	backoff_base interval,
	backoff_max interval,
	when_full text NOT NULL,
	CONSTRAINT idempotency_limiters_pkey PRIMARY KEY (name),
	-- idem_limiter() says it better; these are for a direct UPDATE
	CONSTRAINT idempotency_limiters_name_check
		CHECK (name <> '' AND octet_length(name) < 64),
	CONSTRAINT idempotency_limiters_capacity_check
		CHECK (capacity BETWEEN 1 AND 1000000000),
	CONSTRAINT idempotency_limiters_per_check
		CHECK (extract(year FROM per) OPERATOR(pg_catalog.=) 0 AND extract(month FROM per) OPERATOR(pg_catalog.=) 0
			AND per > '0' AND per <= '3660 days'),
	CONSTRAINT idempotency_limiters_backoff_base_check
		CHECK (extract(year FROM backoff_base) OPERATOR(pg_catalog.=) 0 AND extract(month FROM backoff_base) OPERATOR(pg_catalog.=) 0
			AND backoff_base > '0' AND backoff_base <= '3660 days'),
	CONSTRAINT idempotency_limiters_backoff_max_check
		CHECK (extract(year FROM backoff_max) OPERATOR(pg_catalog.=) 0 AND extract(month FROM backoff_max) OPERATOR(pg_catalog.=) 0
			AND backoff_max >= backoff_base AND backoff_max <= '3660 days'
			AND (backoff_max IS NULL OR backoff_base IS NOT NULL)),
	CONSTRAINT idempotency_limiters_when_full_check
		CHECK (when_full IN ('refuse', 'allow'))
);
COMMENT ON TABLE @extschema@.idempotency_limiters IS
'rate limiters; what subjects have left is in shared memory';

-- Rows are in partitions by time, which idem_audit_seal() makes in advance; a
-- partition is no member of the extension, so that pg_dump dumps it.  Indexes
-- are those of the partitions alone: each restored partition brings its own,
-- and ATTACH would have made it another one for an index of the whole log;
-- pg_dump would dump the ATTACH of its index to one that no dump brings.
CREATE TABLE @extschema@.idempotency_audit_log (
	id bigint GENERATED BY DEFAULT AS IDENTITY,
	at timestamptz NOT NULL,
	xid xid8 NOT NULL,
	action text NOT NULL,
	entity text NOT NULL,
	entity_id text NOT NULL,
	attempt integer,
	token bigint,
	session_role name NOT NULL,
	effective_role name NOT NULL,
	client_addr inet,
	application_name text,
	detail jsonb
) PARTITION BY RANGE (at);
ALTER TABLE @extschema@.idempotency_audit_log ENABLE ROW LEVEL SECURITY;
CREATE POLICY idempotency_audit_read
	ON @extschema@.idempotency_audit_log FOR SELECT USING (true);
COMMENT ON TABLE @extschema@.idempotency_audit_log IS
'append-only audit log, written by functions only';

CREATE TABLE @extschema@.idempotency_audit_log_default
	PARTITION OF @extschema@.idempotency_audit_log (
	CONSTRAINT idempotency_audit_log_default_pkey PRIMARY KEY (id)
) DEFAULT;
-- For the history of one entity.
CREATE INDEX idempotency_audit_log_default_entity
	ON @extschema@.idempotency_audit_log_default (entity, entity_id, id);
ALTER TABLE @extschema@.idempotency_audit_log_default ENABLE ROW LEVEL SECURITY;
CREATE POLICY idempotency_audit_read
	ON @extschema@.idempotency_audit_log_default FOR SELECT USING (true);
COMMENT ON TABLE @extschema@.idempotency_audit_log_default IS
'rows of the audit log for whose time there is no other partition';

CREATE TABLE @extschema@.idempotency_audit_seals (
	segment bigint NOT NULL,
	kind "char" NOT NULL,
	sealed_at timestamptz NOT NULL,
	id_from bigint,
	id_to bigint,
	xid_from xid8,
	xid_to xid8,
	at_from timestamptz,
	at_to timestamptz,
	first_at timestamptz,
	last_at timestamptz,
	next_id bigint,
	next_xid xid8,
	origin bigint,
	closed boolean,
	rows bigint NOT NULL,
	rows_sha256 bytea,
	pruned int8multirange,
	previous bytea NOT NULL,
	key_id integer,
	seal bytea NOT NULL,
	hmac bytea,
	CONSTRAINT idempotency_audit_seals_pkey PRIMARY KEY (segment)
);
ALTER TABLE @extschema@.idempotency_audit_seals ENABLE ROW LEVEL SECURITY;
CREATE POLICY idempotency_audit_read
	ON @extschema@.idempotency_audit_seals FOR SELECT USING (true);
COMMENT ON TABLE @extschema@.idempotency_audit_seals IS
'seals of the audit log, each over a segment of its rows and the seal before';
COMMENT ON COLUMN @extschema@.idempotency_audit_seals.kind IS
's rows were sealed, p segments were pruned, k a key was introduced';
COMMENT ON COLUMN @extschema@.idempotency_audit_seals.id_from IS
'rows of the segment: id_from < id <= id_to, xid_from <= xid < xid_to, at_from <= at < at_to';
COMMENT ON COLUMN @extschema@.idempotency_audit_seals.next_id IS
'transactions from next_xid on had taken no id up to this one';
COMMENT ON COLUMN @extschema@.idempotency_audit_seals.origin IS
'first id of the cluster that made the seal';
COMMENT ON COLUMN @extschema@.idempotency_audit_seals.closed IS
'whether all rows of these transactions are sealed';
COMMENT ON COLUMN @extschema@.idempotency_audit_seals.pruned IS
'segments whose rows were removed';

-- Where the log of this cluster begins: ids before came with a restore.
-- No policy: pg_write_all_data, which row security holds, must not change it.
CREATE TABLE @extschema@.idempotency_audit_origin (
	first_id bigint NOT NULL
);
ALTER TABLE @extschema@.idempotency_audit_origin ENABLE ROW LEVEL SECURITY;
COMMENT ON TABLE @extschema@.idempotency_audit_origin IS
'first id of the audit log that is of this cluster; not dumped';

-- No policy: pg_read_all_data and pg_write_all_data see no row and add none.
CREATE TABLE @extschema@.idempotency_secrets (
	key_id integer NOT NULL,
	purpose text COLLATE pg_catalog."C" NOT NULL,
	secret bytea NOT NULL,
	created_at timestamptz NOT NULL,
	CONSTRAINT idempotency_secrets_pkey PRIMARY KEY (key_id)
);
ALTER TABLE @extschema@.idempotency_secrets ENABLE ROW LEVEL SECURITY;
COMMENT ON TABLE @extschema@.idempotency_secrets IS
'HMAC keys of idem_secret, empty once dropped; granted to nobody, not dumped';

REVOKE ALL ON
	@extschema@.idempotency_keys,
	@extschema@.idempotency_leases,
	@extschema@.idempotency_policies,
	@extschema@.idempotency_limiters,
	@extschema@.idempotency_audit_log,
	@extschema@.idempotency_audit_log_default,
	@extschema@.idempotency_audit_seals,
	@extschema@.idempotency_audit_origin,
	@extschema@.idempotency_secrets
FROM PUBLIC;

-- All but the secrets is dumped: whoever restores sets those anew.  So is a
-- partitioned table, by its partitions.
SELECT pg_catalog.pg_extension_config_dump('idempotency_keys', '');
SELECT pg_catalog.pg_extension_config_dump('idempotency_leases', '');
SELECT pg_catalog.pg_extension_config_dump('idempotency_policies', '');
SELECT pg_catalog.pg_extension_config_dump('idempotency_limiters', '');
SELECT pg_catalog.pg_extension_config_dump('idempotency_audit_log_default', '');
SELECT pg_catalog.pg_extension_config_dump('idempotency_audit_log_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('idempotency_audit_seals', '');

--
-- Triggers.  Both fire whatever session_replication_role says.
--

CREATE FUNCTION @extschema@.idem_policy_changed() RETURNS trigger
AS 'MODULE_PATHNAME', 'idem_policy_changed'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_policy_changed() IS
'trigger: tells every backend that policies have changed';

-- for each row: a subscriber of logical replication fires no others
CREATE TRIGGER idempotency_policies_changed
	AFTER INSERT OR UPDATE OR DELETE
	ON @extschema@.idempotency_policies
	FOR EACH ROW EXECUTE FUNCTION @extschema@.idem_policy_changed();
CREATE TRIGGER idempotency_policies_truncated
	AFTER TRUNCATE
	ON @extschema@.idempotency_policies
	FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.idem_policy_changed();
ALTER TABLE @extschema@.idempotency_policies
	ENABLE ALWAYS TRIGGER idempotency_policies_changed;
ALTER TABLE @extschema@.idempotency_policies
	ENABLE ALWAYS TRIGGER idempotency_policies_truncated;
COMMENT ON TRIGGER idempotency_policies_changed
	ON @extschema@.idempotency_policies IS
'tells every backend that policies have changed';
COMMENT ON TRIGGER idempotency_policies_truncated
	ON @extschema@.idempotency_policies IS
'tells every backend that policies have changed';

CREATE FUNCTION @extschema@.idem_limiter_changed() RETURNS trigger
AS 'MODULE_PATHNAME', 'idem_limiter_changed'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_limiter_changed() IS
'trigger: tells every backend that limiters have changed';

CREATE TRIGGER idempotency_limiters_changed
	AFTER INSERT OR UPDATE OR DELETE
	ON @extschema@.idempotency_limiters
	FOR EACH ROW EXECUTE FUNCTION @extschema@.idem_limiter_changed();
CREATE TRIGGER idempotency_limiters_truncated
	AFTER TRUNCATE
	ON @extschema@.idempotency_limiters
	FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.idem_limiter_changed();
ALTER TABLE @extschema@.idempotency_limiters
	ENABLE ALWAYS TRIGGER idempotency_limiters_changed;
ALTER TABLE @extschema@.idempotency_limiters
	ENABLE ALWAYS TRIGGER idempotency_limiters_truncated;
COMMENT ON TRIGGER idempotency_limiters_changed
	ON @extschema@.idempotency_limiters IS
'tells every backend that limiters have changed';
COMMENT ON TRIGGER idempotency_limiters_truncated
	ON @extschema@.idempotency_limiters IS
'tells every backend that limiters have changed';

CREATE FUNCTION @extschema@.idem_audit_guard() RETURNS trigger
AS 'MODULE_PATHNAME', 'idem_audit_guard'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_audit_guard() IS
'trigger: refuses every change of the audit log but the extension''s own row';

CREATE TRIGGER idempotency_audit_guard_row
	BEFORE INSERT OR UPDATE OR DELETE
	ON @extschema@.idempotency_audit_log
	FOR EACH ROW EXECUTE FUNCTION @extschema@.idem_audit_guard();
CREATE TRIGGER idempotency_audit_guard_truncate
	BEFORE TRUNCATE
	ON @extschema@.idempotency_audit_log
	FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.idem_audit_guard();
CREATE TRIGGER idempotency_audit_guard_truncate
	BEFORE TRUNCATE
	ON @extschema@.idempotency_audit_log_default
	FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.idem_audit_guard();
CREATE TRIGGER idempotency_audit_guard_row
	BEFORE INSERT OR UPDATE OR DELETE
	ON @extschema@.idempotency_audit_seals
	FOR EACH ROW EXECUTE FUNCTION @extschema@.idem_audit_guard();
CREATE TRIGGER idempotency_audit_guard_truncate
	BEFORE TRUNCATE
	ON @extschema@.idempotency_audit_seals
	FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.idem_audit_guard();
ALTER TABLE @extschema@.idempotency_audit_log
	ENABLE ALWAYS TRIGGER idempotency_audit_guard_row;
ALTER TABLE @extschema@.idempotency_audit_log
	ENABLE ALWAYS TRIGGER idempotency_audit_guard_truncate;
ALTER TABLE @extschema@.idempotency_audit_log_default
	ENABLE ALWAYS TRIGGER idempotency_audit_guard_truncate;
ALTER TABLE @extschema@.idempotency_audit_seals
	ENABLE ALWAYS TRIGGER idempotency_audit_guard_row;
ALTER TABLE @extschema@.idempotency_audit_seals
	ENABLE ALWAYS TRIGGER idempotency_audit_guard_truncate;
COMMENT ON TRIGGER idempotency_audit_guard_row
	ON @extschema@.idempotency_audit_log IS
'refuses every change but the extension''s own row';
COMMENT ON TRIGGER idempotency_audit_guard_truncate
	ON @extschema@.idempotency_audit_log IS
'refuses TRUNCATE';
COMMENT ON TRIGGER idempotency_audit_guard_truncate
	ON @extschema@.idempotency_audit_log_default IS
'refuses TRUNCATE';
COMMENT ON TRIGGER idempotency_audit_guard_row
	ON @extschema@.idempotency_audit_seals IS
'refuses every change but the extension''s own';
COMMENT ON TRIGGER idempotency_audit_guard_truncate
	ON @extschema@.idempotency_audit_seals IS
'refuses TRUNCATE';

--
-- Claiming
--

CREATE FUNCTION @extschema@.idem_claim(
	scope text,
	key text,
	request jsonb DEFAULT NULL,
	fingerprint bytea DEFAULT NULL,
	policy text DEFAULT 'default',
	context bytea DEFAULT NULL,
	owner uuid DEFAULT NULL,
	wait interval DEFAULT NULL,
	lease interval DEFAULT NULL,
	ttl interval DEFAULT NULL
)
RETURNS @extschema@.idem_result
AS 'MODULE_PATHNAME', 'idem_claim'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_claim(text, text, jsonb, bytea, text, bytea, uuid, interval, interval, interval) IS
'claim a key, or say what became of it';

CREATE FUNCTION @extschema@.idem_require(
	scope text,
	key text,
	request jsonb DEFAULT NULL,
	fingerprint bytea DEFAULT NULL,
	policy text DEFAULT 'default',
	context bytea DEFAULT NULL,
	owner uuid DEFAULT NULL,
	wait interval DEFAULT NULL,
	lease interval DEFAULT NULL,
	ttl interval DEFAULT NULL
)
RETURNS bigint
AS 'MODULE_PATHNAME', 'idem_require'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_require(text, text, jsonb, bytea, text, bytea, uuid, interval, interval, interval) IS
'claim a key and return the token, or raise an error';

CREATE FUNCTION @extschema@.idem_run(
	handler regprocedure,
	scope text,
	key text,
	request jsonb DEFAULT NULL,
	policy text DEFAULT 'default',
	context bytea DEFAULT NULL,
	wait interval DEFAULT NULL,
	on_error text DEFAULT 'raise',
	fingerprint bytea DEFAULT NULL,
	ttl interval DEFAULT NULL
)
RETURNS @extschema@.idem_result
AS 'MODULE_PATHNAME', 'idem_run'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_run(regprocedure, text, text, jsonb, text, bytea, interval, text, bytea, interval) IS
'claim a key, call handler(request) and store its answer, in one statement';

CREATE FUNCTION @extschema@.idem_dedupe(
	scope text,
	keys text[],
	policy text DEFAULT 'default'
)
RETURNS TABLE (ord bigint, key text, first boolean)
AS 'MODULE_PATHNAME', 'idem_dedupe'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 1000;
COMMENT ON FUNCTION @extschema@.idem_dedupe(text, text[], text) IS
'mark keys as done and say which of them came for the first time';

CREATE FUNCTION @extschema@.idem_lookup(scope text, key text)
RETURNS @extschema@.idem_result
AS 'MODULE_PATHNAME', 'idem_lookup'
LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION @extschema@.idem_lookup(text, text) IS
'look at a key without changing anything';

--
-- Finishing
--

-- Only the text overload has a default for response: a call without one
-- would be ambiguous otherwise.

CREATE FUNCTION @extschema@.idem_complete(
	scope text,
	key text,
	response text DEFAULT NULL,
	status_code integer DEFAULT 200,
	headers json DEFAULT NULL,
	content_type text DEFAULT NULL,
	token bigint DEFAULT NULL,
	ttl interval DEFAULT NULL
)
RETURNS @extschema@.idem_result
AS 'MODULE_PATHNAME', 'idem_complete'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_complete(text, text, text, integer, json, text, bigint, interval) IS
'store the answer of a claimed key';

CREATE FUNCTION @extschema@.idem_complete(
	scope text,
	key text,
	response json,
	status_code integer DEFAULT 200,
	headers json DEFAULT NULL,
	content_type text DEFAULT NULL,
	token bigint DEFAULT NULL,
	ttl interval DEFAULT NULL
)
RETURNS @extschema@.idem_result
AS 'MODULE_PATHNAME', 'idem_complete'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_complete(text, text, json, integer, json, text, bigint, interval) IS
'store the answer of a claimed key';

CREATE FUNCTION @extschema@.idem_complete(
	scope text,
	key text,
	response jsonb,
	status_code integer DEFAULT 200,
	headers json DEFAULT NULL,
	content_type text DEFAULT NULL,
	token bigint DEFAULT NULL,
	ttl interval DEFAULT NULL
)
RETURNS @extschema@.idem_result
AS 'MODULE_PATHNAME', 'idem_complete'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_complete(text, text, jsonb, integer, json, text, bigint, interval) IS
'store the answer of a claimed key';

CREATE FUNCTION @extschema@.idem_complete(
	scope text,
	key text,
	response bytea,
	status_code integer DEFAULT 200,
	headers json DEFAULT NULL,
	content_type text DEFAULT NULL,
	token bigint DEFAULT NULL,
	ttl interval DEFAULT NULL
)
RETURNS @extschema@.idem_result
AS 'MODULE_PATHNAME', 'idem_complete'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_complete(text, text, bytea, integer, json, text, bigint, interval) IS
'store the answer of a claimed key';

CREATE FUNCTION @extschema@.idem_fail(
	scope text,
	key text,
	response text DEFAULT NULL,
	status_code integer DEFAULT 500,
	headers json DEFAULT NULL,
	content_type text DEFAULT NULL,
	token bigint DEFAULT NULL,
	retryable boolean DEFAULT true,
	ttl interval DEFAULT NULL
)
RETURNS @extschema@.idem_result
AS 'MODULE_PATHNAME', 'idem_fail'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_fail(text, text, text, integer, json, text, bigint, boolean, interval) IS
'store the failure of a claimed key';

CREATE FUNCTION @extschema@.idem_fail(
	scope text,
	key text,
	response json,
	status_code integer DEFAULT 500,
	headers json DEFAULT NULL,
	content_type text DEFAULT NULL,
	token bigint DEFAULT NULL,
	retryable boolean DEFAULT true,
	ttl interval DEFAULT NULL
)
RETURNS @extschema@.idem_result
AS 'MODULE_PATHNAME', 'idem_fail'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_fail(text, text, json, integer, json, text, bigint, boolean, interval) IS
'store the failure of a claimed key';

CREATE FUNCTION @extschema@.idem_fail(
	scope text,
	key text,
	response jsonb,
	status_code integer DEFAULT 500,
	headers json DEFAULT NULL,
	content_type text DEFAULT NULL,
	token bigint DEFAULT NULL,
	retryable boolean DEFAULT true,
	ttl interval DEFAULT NULL
)
RETURNS @extschema@.idem_result
AS 'MODULE_PATHNAME', 'idem_fail'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_fail(text, text, jsonb, integer, json, text, bigint, boolean, interval) IS
'store the failure of a claimed key';

CREATE FUNCTION @extschema@.idem_fail(
	scope text,
	key text,
	response bytea,
	status_code integer DEFAULT 500,
	headers json DEFAULT NULL,
	content_type text DEFAULT NULL,
	token bigint DEFAULT NULL,
	retryable boolean DEFAULT true,
	ttl interval DEFAULT NULL
)
RETURNS @extschema@.idem_result
AS 'MODULE_PATHNAME', 'idem_fail'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_fail(text, text, bytea, integer, json, text, bigint, boolean, interval) IS
'store the failure of a claimed key';

CREATE FUNCTION @extschema@.idem_extend(
	scope text,
	key text,
	token bigint,
	lease interval
)
RETURNS timestamptz
AS 'MODULE_PATHNAME', 'idem_extend'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_extend(text, text, bigint, interval) IS
'heartbeat: move the end of the lease';

CREATE FUNCTION @extschema@.idem_checkpoint(
	scope text,
	key text,
	token bigint,
	recovery_point text,
	data jsonb DEFAULT NULL
)
RETURNS timestamptz
AS 'MODULE_PATHNAME', 'idem_checkpoint'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_checkpoint(text, text, bigint, text, jsonb) IS
'remember how far the work has come, for a later attempt';

CREATE FUNCTION @extschema@.idem_release(scope text, key text, token bigint DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME', 'idem_release'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_release(text, text, bigint) IS
'give a claim up; the key is free at once';

CREATE FUNCTION @extschema@.idem_recover(
	policy text,
	max_keys integer DEFAULT 1,
	lease interval DEFAULT NULL
)
RETURNS TABLE (
	scope text,
	key text,
	attempt integer,
	token bigint,
	recovery_point text,
	checkpoint jsonb,
	fingerprint bytea,
	created_at timestamptz,
	lease_until timestamptz
)
AS 'MODULE_PATHNAME', 'idem_recover'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10;
COMMENT ON FUNCTION @extschema@.idem_recover(text, integer, interval) IS
'take over claims of a recoverable policy that were abandoned';

CREATE FUNCTION @extschema@.idem_forget(scope text, key text)
RETURNS boolean
AS 'MODULE_PATHNAME', 'idem_forget'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_forget(text, text) IS
'operator: remove a key in any state; audited';

CREATE FUNCTION @extschema@.idem_forget_scope(scope text, max_rows integer DEFAULT 10000)
RETURNS bigint
AS 'MODULE_PATHNAME', 'idem_forget_scope'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_forget_scope(text, integer) IS
'operator: remove keys of a scope that are not in progress; audited';

CREATE FUNCTION @extschema@.idem_end_lease(scope text, key text)
RETURNS boolean
AS 'MODULE_PATHNAME', 'idem_end_lease'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_end_lease(text, text) IS
'operator: let the lease of a claim end now; audited';

CREATE FUNCTION @extschema@.idem_holder(scope text, key text)
RETURNS TABLE (pid integer, since timestamptz, how text)
AS 'MODULE_PATHNAME', 'idem_holder'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 1;
COMMENT ON FUNCTION @extschema@.idem_holder(text, text) IS
'operator: whose open transaction has a key; audited';

CREATE FUNCTION @extschema@.idem_find(
	scope_id text DEFAULT NULL,
	key_id text DEFAULT NULL,
	scope text DEFAULT NULL,
	state text DEFAULT NULL,
	max_rows integer DEFAULT 100
)
RETURNS TABLE (
	scope text,
	key text,
	state text,
	policy text,
	attempt integer,
	claimed_by text,
	created_at timestamptz,
	lease_until timestamptz,
	expires_at timestamptz,
	recovery_point text,
	checkpoint jsonb
)
AS 'MODULE_PATHNAME', 'idem_find'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100;
COMMENT ON FUNCTION @extschema@.idem_find(text, text, text, text, integer) IS
'operator: keys by log ids, scope or state, without answers; audited';

--
-- Policies
--

CREATE FUNCTION @extschema@.idem_policy(
	name text,
	completed_ttl interval DEFAULT NULL,
	failed_ttl interval DEFAULT NULL,
	lease interval DEFAULT NULL,
	wait interval DEFAULT NULL,
	on_repeat text DEFAULT NULL,
	on_expiry text DEFAULT NULL,
	tombstone interval DEFAULT NULL,
	require_fingerprint boolean DEFAULT NULL,
	on_unfinished text DEFAULT NULL,
	recoverable boolean DEFAULT NULL,
	key_format text DEFAULT NULL,
	max_key_bytes integer DEFAULT NULL,
	mismatch_status integer DEFAULT NULL,
	release_statuses int4multirange DEFAULT NULL,
	max_body_bytes integer DEFAULT NULL,
	on_oversize text DEFAULT NULL,
	owner_role text DEFAULT NULL,
	max_live_keys integer DEFAULT NULL,
	audit boolean DEFAULT NULL
)
RETURNS void
AS 'MODULE_PATHNAME', 'idem_policy'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_policy(text, interval, interval, interval, interval, text, text, interval, boolean, text, boolean, text, integer, integer, int4multirange, integer, text, text, integer, boolean) IS
'create or change a policy; an omitted value stays';

CREATE FUNCTION @extschema@.idem_policy_drop(name text)
RETURNS boolean
AS 'MODULE_PATHNAME', 'idem_policy_drop'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_policy_drop(text) IS
'drop a policy; true if there was one';

CREATE FUNCTION @extschema@.idem_policy_values()
RETURNS TABLE (
	name text,
	completed_ttl interval,
	failed_ttl interval,
	lease interval,
	wait interval,
	on_repeat text,
	on_expiry text,
	tombstone interval,
	require_fingerprint boolean,
	on_unfinished text,
	recoverable boolean,
	key_format text,
	max_key_bytes integer,
	mismatch_status integer,
	release_statuses int4multirange,
	max_body_bytes integer,
	on_oversize text,
	owner_role text,
	max_live_keys integer,
	audit boolean
)
AS 'MODULE_PATHNAME', 'idem_policy_values'
LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION @extschema@.idem_policy_values() IS
'the values in force of every policy; behind the view idem_policy_list';

CREATE VIEW @extschema@.idem_policy_list AS
SELECT
	p.name,
	p.completed_ttl,
	p.failed_ttl,
	p.lease,
	p.wait,
	p.on_repeat,
	p.on_expiry,
	p.tombstone,
	p.require_fingerprint,
	p.on_unfinished,
	p.recoverable,
	p.key_format,
	p.max_key_bytes,
	p.mismatch_status,
	p.release_statuses,
	p.max_body_bytes,
	p.on_oversize,
	p.owner_role,
	p.max_live_keys,
	p.audit
FROM @extschema@.idem_policy_values() p;
REVOKE ALL ON @extschema@.idem_policy_list FROM PUBLIC;
COMMENT ON VIEW @extschema@.idem_policy_list IS
'every policy with the values in force, default included';

--
-- Expiry
--

CREATE FUNCTION @extschema@.idem_sweep(max_rows integer DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'idem_sweep'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_sweep(integer) IS
'remove keys past their retention, one batch; never waits';

CREATE PROCEDURE @extschema@.idem_sweep_all(max_duration interval DEFAULT NULL)
AS 'MODULE_PATHNAME', 'idem_sweep_all'
LANGUAGE C;
COMMENT ON PROCEDURE @extschema@.idem_sweep_all(interval) IS
'remove all keys past their retention, committing after every batch';

CREATE FUNCTION @extschema@.idem_schedule(schedule text DEFAULT '* * * * *')
RETURNS bigint
AS 'MODULE_PATHNAME', 'idem_schedule'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_schedule(text) IS
'let pg_cron sweep as the caller: makes the job idempotency-sweep, or changes it';

CREATE FUNCTION @extschema@.idem_unschedule()
RETURNS boolean
AS 'MODULE_PATHNAME', 'idem_unschedule'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_unschedule() IS
'remove the caller''s job idempotency-sweep from pg_cron; false when there is none';

--
-- Rate limiting
--

CREATE FUNCTION @extschema@.idem_limiter(
	name text,
	capacity integer,
	per interval,
	backoff_base interval DEFAULT NULL,
	backoff_max interval DEFAULT NULL,
	when_full text DEFAULT 'refuse'
) RETURNS void
AS 'MODULE_PATHNAME', 'idem_limiter'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_limiter(text, integer, interval, interval, interval, text) IS
'define or change a rate limiter';

CREATE FUNCTION @extschema@.idem_limiter_drop(name text) RETURNS boolean
AS 'MODULE_PATHNAME', 'idem_limiter_drop'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_limiter_drop(text) IS
'drop a rate limiter, with what its subjects have used';

CREATE FUNCTION @extschema@.idem_throttle(
	limiter text,
	subject text,
	cost integer DEFAULT 1
) RETURNS TABLE (allowed boolean, remaining integer, retry_after_ms bigint)
AS 'MODULE_PATHNAME', 'idem_throttle'
LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 1;
COMMENT ON FUNCTION @extschema@.idem_throttle(text, text, integer) IS
'take tokens from the bucket of a subject, for good; use it in FROM';

CREATE FUNCTION @extschema@.idem_throttle_all(
	limiters text[],
	subjects text[],
	costs integer[] DEFAULT NULL
) RETURNS TABLE (allowed boolean, limiter text, remaining integer, retry_after_ms bigint)
AS 'MODULE_PATHNAME', 'idem_throttle_all'
LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 1;
COMMENT ON FUNCTION @extschema@.idem_throttle_all(text[], text[], integer[]) IS
'take tokens from several buckets, from all or from none, for good; use it in FROM';

CREATE FUNCTION @extschema@.idem_throttle_return(
	limiter text,
	subject text,
	cost integer DEFAULT 1
) RETURNS integer
AS 'MODULE_PATHNAME', 'idem_throttle_return'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION @extschema@.idem_throttle_return(text, text, integer) IS
'give tokens back to the bucket of a subject, for good; what remains then';

CREATE FUNCTION @extschema@.idem_throttle_peek(
	limiter text,
	subject text,
	cost integer DEFAULT 1
) RETURNS TABLE (allowed boolean, remaining integer, retry_after_ms bigint)
AS 'MODULE_PATHNAME', 'idem_throttle_peek'
LANGUAGE C VOLATILE PARALLEL RESTRICTED ROWS 1;
COMMENT ON FUNCTION @extschema@.idem_throttle_peek(text, text, integer) IS
'what idem_throttle would say, without taking anything';

--
-- Audit
--

CREATE FUNCTION @extschema@.idem_audit(
	action text,
	entity text,
	entity_id text,
	detail jsonb DEFAULT NULL
)
RETURNS bigint
AS 'MODULE_PATHNAME', 'idem_audit'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_audit(text, text, text, jsonb) IS
'write a row of the audit log in this transaction';

CREATE FUNCTION @extschema@.idem_audit_seal() RETURNS bigint
AS 'MODULE_PATHNAME', 'idem_audit_seal'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_audit_seal() IS
'seal rows of the audit log that can no longer change';

CREATE FUNCTION @extschema@.idem_audit_verify(digest text DEFAULT NULL)
RETURNS TABLE (segment bigint, problem text, detail text)
AS 'MODULE_PATHNAME', 'idem_audit_verify'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_audit_verify(text) IS
'what is wrong with the audit log and its seals; no row when all is well';

CREATE FUNCTION @extschema@.idem_audit_digest() RETURNS text
AS 'MODULE_PATHNAME', 'idem_audit_digest'
LANGUAGE C STABLE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_audit_digest() IS
'head of the chain of seals, to be kept elsewhere for idem_audit_verify()';

CREATE FUNCTION @extschema@.idem_audit_prune(before timestamptz) RETURNS bigint
AS 'MODULE_PATHNAME', 'idem_audit_prune'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_audit_prune(timestamptz) IS
'remove sealed segments of the audit log that are older';

--
-- Helpers
--

CREATE FUNCTION @extschema@.idem_canonical(value jsonb)
RETURNS text
AS 'MODULE_PATHNAME', 'idem_canonical'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.idem_canonical(jsonb) IS
'canonical JSON (RFC 8785) that keeps the digits of every number';

CREATE FUNCTION @extschema@.idem_fingerprint(request jsonb)
RETURNS bytea
AS 'MODULE_PATHNAME', 'idem_fingerprint'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.idem_fingerprint(jsonb) IS
'SHA-256 of the canonical JSON';

CREATE FUNCTION @extschema@.idem_scope(VARIADIC components text[])
RETURNS text
AS 'MODULE_PATHNAME', 'idem_scope'
LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.idem_scope(text[]) IS
'join the components of a scope by U+001E';

CREATE FUNCTION @extschema@.idem_context(VARIADIC components text[])
RETURNS bytea
AS 'MODULE_PATHNAME', 'idem_context'
LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION @extschema@.idem_context(text[]) IS
'key ids and HMAC-SHA256s over the components, to bind a key to a client';

CREATE FUNCTION @extschema@.idem_secret(purpose text, secret bytea)
RETURNS integer
AS 'MODULE_PATHNAME', 'idem_secret'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_secret(text, bytea) IS
'store the next HMAC key of a purpose, context or audit';

CREATE FUNCTION @extschema@.idem_secret_drop(purpose text, key_id integer)
RETURNS boolean
AS 'MODULE_PATHNAME', 'idem_secret_drop'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_secret_drop(text, integer) IS
'forget an HMAC key';

CREATE FUNCTION @extschema@.idem_log_id(value text)
RETURNS text
AS 'MODULE_PATHNAME', 'idem_log_id'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.idem_log_id(text) IS
'pseudonym of a scope or a key for logs: 16 hex digits of its SHA-256';

CREATE FUNCTION @extschema@.idem_key(header text)
RETURNS text
AS 'MODULE_PATHNAME', 'idem_key'
LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.idem_key(text) IS
'the key in an Idempotency-Key header';

CREATE FUNCTION @extschema@.idem_json(result @extschema@.idem_result)
RETURNS json
AS 'MODULE_PATHNAME', 'idem_json'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.idem_json(@extschema@.idem_result) IS
'the stored body as JSON, or null';

CREATE FUNCTION @extschema@.idem_respond(
	status_code integer,
	response json,
	headers json DEFAULT NULL
)
RETURNS @extschema@.idem_response
AS 'MODULE_PATHNAME', 'idem_respond'
LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.idem_respond(integer, json, json) IS
'make a JSON answer with a status, for a handler of idem_run';

CREATE FUNCTION @extschema@.idem_key_lock(scope text, key text, wait boolean)
RETURNS boolean
AS 'MODULE_PATHNAME', 'idem_key_lock'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_key_lock(text, text, boolean) IS
'for statements of the extension on another node of Citus: locks a key';

CREATE FUNCTION @extschema@.idem_distribute(colocate_with regclass)
RETURNS void
AS 'MODULE_PATHNAME', 'idem_distribute'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_distribute(regclass) IS
'on the coordinator of Citus: distributes the keys beside a table of the application';

CREATE FUNCTION @extschema@.idem_distribute_node()
RETURNS void
AS 'MODULE_PATHNAME', 'idem_distribute_node'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_distribute_node() IS
'gives nodes of Citus their part of what idem_distribute() did, where it is missing';

CREATE FUNCTION @extschema@.idem_grant(role regrole, level text)
RETURNS void
AS 'MODULE_PATHNAME', 'idem_grant'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_grant(regrole, text) IS
'grant a role the level app, operator, auditor or monitor';

CREATE FUNCTION @extschema@.idem_health()
RETURNS TABLE (check_name text, ok boolean, detail text)
AS 'MODULE_PATHNAME', 'idem_health'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_health() IS
'check the installation';

--
-- HTTP
--

-- Volatile for the time in it, that of the call.
CREATE FUNCTION @extschema@.idem_http_problem(result @extschema@.idem_result)
RETURNS json
AS 'MODULE_PATHNAME', 'idem_http_problem'
LANGUAGE C VOLATILE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.idem_http_problem(@extschema@.idem_result) IS
'problem details (RFC 9457) of a refusal, or null';

CREATE FUNCTION @extschema@.idem_http_problem(
	code text,
	detail text DEFAULT NULL,
	retry_after_ms bigint DEFAULT NULL
)
RETURNS json
AS 'MODULE_PATHNAME', 'idem_http_problem_of'
LANGUAGE C VOLATILE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.idem_http_problem(text, text, bigint) IS
'problem details (RFC 9457) of a refusal that has no result';

CREATE FUNCTION @extschema@.idem_http_time(at timestamptz)
RETURNS text
AS 'MODULE_PATHNAME', 'idem_http_time'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.idem_http_time(timestamptz) IS
'a time as RFC 3339 in UTC, with Z; null for infinity';

CREATE FUNCTION @extschema@.idem_http_headers(result @extschema@.idem_result)
RETURNS json
AS 'MODULE_PATHNAME', 'idem_http_headers'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.idem_http_headers(@extschema@.idem_result) IS
'the headers of an answer, as an array of single-key objects';

-- For API functions alone: a client would choose principal and handler.
CREATE FUNCTION @extschema@.idem_http_run(
	handler regprocedure,
	request jsonb,
	policy text DEFAULT 'default',
	principal text DEFAULT NULL,
	context bytea DEFAULT NULL,
	fingerprint bytea DEFAULT NULL,
	limiter text DEFAULT NULL,
	subject text DEFAULT NULL,
	key text DEFAULT NULL
)
RETURNS json
AS 'MODULE_PATHNAME', 'idem_http_run'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.idem_http_run(regprocedure, jsonb, text, text, bytea, bytea, text, text, text) IS
'idem_run for an API function of PostgREST, which must be SECURITY DEFINER';

--
-- Seeing it
--

CREATE FUNCTION @extschema@.idem_stats_values()
RETURNS TABLE (
	datid oid,
	policy text,
	claimed bigint,
	completed bigint,
	failed bigint,
	replayed bigint,
	duplicate bigint,
	in_progress bigint,
	mismatch bigint,
	expired bigint,
	taken_over bigint,
	lost bigint,
	swept bigint,
	throttled bigint,
	refusals_dropped bigint,
	waits bigint,
	wait_usec bigint,
	stats_reset timestamptz
)
AS 'MODULE_PATHNAME', 'idem_stats_values'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION @extschema@.idem_stats_values() IS
'counters of this database, of all for pg_monitor; behind the view idem_stats';

CREATE VIEW @extschema@.idem_stats AS
SELECT
	d.datname,
	s.policy,
	s.claimed,
	s.replayed,
	s.in_progress,
	s.mismatch,
	s.duplicate,
	s.expired,
	s.completed,
	s.failed,
	s.taken_over,
	s.lost,
	s.swept,
	s.throttled,
	s.waits,
	s.wait_usec OPERATOR(pg_catalog./) 1000.0::double precision AS wait_ms,
	s.refusals_dropped,
	s.stats_reset
FROM @extschema@.idem_stats_values() s
LEFT JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) s.datid;
REVOKE ALL ON @extschema@.idem_stats FROM PUBLIC;
COMMENT ON VIEW @extschema@.idem_stats IS
'what was answered since stats_reset, by database and policy; nulls without preload';

CREATE FUNCTION @extschema@.idem_stats_reset()
RETURNS void
AS 'MODULE_PATHNAME', 'idem_stats_reset'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION @extschema@.idem_stats_reset() IS
'let the counters of this database begin anew';

CREATE FUNCTION @extschema@.idem_activity_values()
RETURNS TABLE (
	scope_id text,
	key_id text,
	policy text,
	attempt integer,
	claimed_by text,
	age interval,
	lease_left interval,
	recovery_point text
)
AS 'MODULE_PATHNAME', 'idem_activity_values'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION @extschema@.idem_activity_values() IS
'committed claims in progress; behind the view idem_activity';

CREATE VIEW @extschema@.idem_activity AS
SELECT
	a.scope_id,
	a.key_id,
	a.policy,
	a.attempt,
	a.claimed_by,
	a.age,
	a.lease_left,
	a.recovery_point
FROM @extschema@.idem_activity_values() a;
REVOKE ALL ON @extschema@.idem_activity FROM PUBLIC;
COMMENT ON VIEW @extschema@.idem_activity IS
'committed claims in progress, by log ids; reads the whole table';

CREATE FUNCTION @extschema@.idem_sweep_status_values(
	OUT last_run timestamptz,
	OUT last_duration interval,
	OUT last_rows bigint,
	OUT lag interval,
	OUT last_error text
)
AS 'MODULE_PATHNAME', 'idem_sweep_status_values'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION @extschema@.idem_sweep_status_values() IS
'the last sweep of this database; behind the view idem_sweep_status';

CREATE VIEW @extschema@.idem_sweep_status AS
SELECT
	s.last_run,
	s.last_duration,
	s.last_rows,
	s.lag,
	s.last_error
FROM @extschema@.idem_sweep_status_values() s;
REVOKE ALL ON @extschema@.idem_sweep_status FROM PUBLIC;
COMMENT ON VIEW @extschema@.idem_sweep_status IS
'the last sweep of this database, and how long the oldest key has been due';

CREATE FUNCTION @extschema@.idem_throttle_activity_values()
RETURNS TABLE (
	limiter text,
	subject_id text,
	remaining integer,
	pause_left interval,
	allowed bigint,
	refused bigint,
	last_call timestamptz
)
AS 'MODULE_PATHNAME', 'idem_throttle_activity_values'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION @extschema@.idem_throttle_activity_values() IS
'buckets of this database; behind the view idem_throttle_activity';

CREATE VIEW @extschema@.idem_throttle_activity AS
SELECT
	a.limiter,
	a.subject_id,
	a.remaining,
	a.pause_left,
	a.allowed,
	a.refused,
	a.last_call
FROM @extschema@.idem_throttle_activity_values() a
ORDER BY a.refused DESC, a.allowed DESC, a.limiter, a.subject_id;
REVOKE ALL ON @extschema@.idem_throttle_activity FROM PUBLIC;
COMMENT ON VIEW @extschema@.idem_throttle_activity IS
'subjects of the rate limiters, busiest first, by log ids';

--
-- Privileges: nothing is executable by PUBLIC but the pure helpers.  The rest
-- is granted by idem_grant, which must know every function.
--

REVOKE ALL ON ROUTINE
	@extschema@.idem_policy_changed(),
	@extschema@.idem_limiter_changed(),
	@extschema@.idem_audit_guard(),
	@extschema@.idem_claim(text, text, jsonb, bytea, text, bytea, uuid, interval, interval, interval),
	@extschema@.idem_require(text, text, jsonb, bytea, text, bytea, uuid, interval, interval, interval),
	@extschema@.idem_run(regprocedure, text, text, jsonb, text, bytea, interval, text, bytea, interval),
	@extschema@.idem_dedupe(text, text[], text),
	@extschema@.idem_lookup(text, text),
	@extschema@.idem_complete(text, text, text, integer, json, text, bigint, interval),
	@extschema@.idem_complete(text, text, json, integer, json, text, bigint, interval),
	@extschema@.idem_complete(text, text, jsonb, integer, json, text, bigint, interval),
	@extschema@.idem_complete(text, text, bytea, integer, json, text, bigint, interval),
	@extschema@.idem_fail(text, text, text, integer, json, text, bigint, boolean, interval),
	@extschema@.idem_fail(text, text, json, integer, json, text, bigint, boolean, interval),
	@extschema@.idem_fail(text, text, jsonb, integer, json, text, bigint, boolean, interval),
	@extschema@.idem_fail(text, text, bytea, integer, json, text, bigint, boolean, interval),
	@extschema@.idem_extend(text, text, bigint, interval),
	@extschema@.idem_checkpoint(text, text, bigint, text, jsonb),
	@extschema@.idem_release(text, text, bigint),
	@extschema@.idem_recover(text, integer, interval),
	@extschema@.idem_forget(text, text),
	@extschema@.idem_forget_scope(text, integer),
	@extschema@.idem_end_lease(text, text),
	@extschema@.idem_holder(text, text),
	@extschema@.idem_find(text, text, text, text, integer),
	@extschema@.idem_policy(text, interval, interval, interval, interval, text, text, interval, boolean, text, boolean, text, integer, integer, int4multirange, integer, text, text, integer, boolean),
	@extschema@.idem_policy_drop(text),
	@extschema@.idem_policy_values(),
	@extschema@.idem_sweep(integer),
	@extschema@.idem_sweep_all(interval),
	@extschema@.idem_schedule(text),
	@extschema@.idem_unschedule(),
	@extschema@.idem_limiter(text, integer, interval, interval, interval, text),
	@extschema@.idem_limiter_drop(text),
	@extschema@.idem_throttle(text, text, integer),
	@extschema@.idem_throttle_all(text[], text[], integer[]),
	@extschema@.idem_throttle_return(text, text, integer),
	@extschema@.idem_throttle_peek(text, text, integer),
	@extschema@.idem_throttle_activity_values(),
	@extschema@.idem_stats_values(),
	@extschema@.idem_stats_reset(),
	@extschema@.idem_activity_values(),
	@extschema@.idem_sweep_status_values(),
	@extschema@.idem_audit(text, text, text, jsonb),
	@extschema@.idem_audit_seal(),
	@extschema@.idem_audit_verify(text),
	@extschema@.idem_audit_digest(),
	@extschema@.idem_audit_prune(timestamptz),
	@extschema@.idem_canonical(jsonb),
	@extschema@.idem_fingerprint(jsonb),
	@extschema@.idem_scope(text[]),
	@extschema@.idem_context(text[]),
	@extschema@.idem_secret(text, bytea),
	@extschema@.idem_secret_drop(text, integer),
	@extschema@.idem_log_id(text),
	@extschema@.idem_key(text),
	@extschema@.idem_json(@extschema@.idem_result),
	@extschema@.idem_respond(integer, json, json),
	@extschema@.idem_http_problem(@extschema@.idem_result),
	@extschema@.idem_http_problem(text, text, bigint),
	@extschema@.idem_http_time(timestamptz),
	@extschema@.idem_http_headers(@extschema@.idem_result),
	@extschema@.idem_http_run(regprocedure, jsonb, text, text, bytea, bytea, text, text, text),
	@extschema@.idem_key_lock(text, text, boolean),
	@extschema@.idem_distribute(regclass),
	@extschema@.idem_distribute_node(),
	@extschema@.idem_grant(regrole, text),
	@extschema@.idem_health()
FROM PUBLIC;

-- Default privileges give what was made above to others, and its owner can
-- disable a trigger or replace a function.  So all is taken from everyone, and
-- given to the one role that is a superuser for ever, whoever creates the
-- extension; but for the tables whose owner the code becomes.
CREATE FUNCTION @extschema@.idem_install_own() RETURNS void
AS 'MODULE_PATHNAME', 'idem_install_own'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
SELECT @extschema@.idem_install_own();
DROP FUNCTION @extschema@.idem_install_own();

GRANT EXECUTE ON FUNCTION
	@extschema@.idem_canonical(jsonb),
	@extschema@.idem_fingerprint(jsonb),
	@extschema@.idem_scope(text[]),
	@extschema@.idem_log_id(text),
	@extschema@.idem_key(text),
	@extschema@.idem_json(@extschema@.idem_result),
	@extschema@.idem_respond(integer, json, json)
TO PUBLIC;
