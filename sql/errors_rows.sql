--
-- Errors for rows that are another's, or must not be.  After errors, whose keys
-- and functions these are.
--

--
-- The keys of another role: 42501 of every function that names a key.
--
CREATE ROLE regress_idem_stranger;
SELECT idem_grant('regress_idem_stranger', 'app'), idem_grant('regress_idem_stranger', 'operator');
GRANT USAGE ON SCHEMA regress_errors TO regress_idem_stranger;
SET ROLE regress_idem_stranger;
SELECT call, t.state, t.hint, t.leak
FROM unnest(ARRAY[
	'idem_claim(''errors'', ''canary-done'', ''{"a": 1}'')', 'idem_require(''errors'', ''canary-done'', ''{"a": 1}'')',
	'idem_run(''regress_errors.handler(jsonb)'', ''errors'', ''canary-done'', ''{"a": 1}'')',
	'idem_dedupe(''errors'', ''{canary-done}'')', 'idem_dedupe(''errors'', ''{canary-running}'')',
	'idem_lookup(''errors'', ''canary-done'')', 'idem_lookup(''errors'', ''canary-gone'')',
	'idem_complete(''errors'', ''canary-running'', token => 1)', 'idem_complete(''errors'', ''canary-running'', NULL::json, token => 1)',
	'idem_complete(''errors'', ''canary-running'', NULL::jsonb, token => 1)', 'idem_complete(''errors'', ''canary-running'', NULL::bytea, token => 1)',
	'idem_fail(''errors'', ''canary-running'', token => 1)', 'idem_fail(''errors'', ''canary-running'', NULL::json, token => 1)',
	'idem_fail(''errors'', ''canary-running'', NULL::jsonb, token => 1)', 'idem_fail(''errors'', ''canary-running'', NULL::bytea, token => 1)',
	'idem_extend(''errors'', ''canary-running'', 1, ''1 s'')', 'idem_checkpoint(''errors'', ''canary-running'', 1, ''p'')',
	'idem_release(''errors'', ''canary-running'', 1)']) call,
	LATERAL regress_errors.try(call) t;
-- and what only a superuser or an owner may do
SELECT call, t.state FROM unnest(ARRAY[
	'idem_secret(''context'', ''0123456789012345'')', 'idem_secret_drop(''context'', 1)', 'idem_grant(''regress_idem_stranger'', ''app'')',
	'count(*) FROM idempotency_keys', 'count(*) FROM idempotency_policies',
	'count(*) FROM idempotency_audit_log', 'count(*) FROM idempotency_secrets']) call,
	LATERAL regress_errors.try(call) t;
RESET ROLE;

-- What no one has: two rows for one key, found in spite of the primary key.
BEGIN;
ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_pkey;
INSERT INTO idempotency_keys SELECT * FROM idempotency_keys WHERE scope = 'errors' AND key = 'canary-done';
SELECT call, t.state, t.hint, t.leak FROM unnest(ARRAY[
	'idem_claim(''errors'', ''canary-done'', ''{"a": 1}'')', 'idem_lookup(''errors'', ''canary-done'')',
	'idem_complete(''errors'', ''canary-done'', token => 1)', 'idem_forget(''errors'', ''canary-done'')',
	'idem_claim(''errors'', ''canary-new'')', 'idem_dedupe(''errors'', ''{canary-new}'')']) call,
	LATERAL regress_errors.try(call) t;
ROLLBACK;

DROP OWNED BY regress_idem_stranger;
DROP ROLE regress_idem_stranger;
SET client_min_messages = warning;
DROP SCHEMA regress_errors CASCADE;
RESET client_min_messages;
SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'errors-%';
SELECT idem_limiter_drop('errors-limiter');
