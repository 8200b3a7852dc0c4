--
-- Secrets that come and go, and contexts made with them: each test is a
-- transaction that is rolled back.
--
-- The key ids and HMACs of a context, and a handler.
CREATE FUNCTION pg_temp.entries(context bytea)
RETURNS TABLE (key_id integer, mac bytea) LANGUAGE sql AS $$
	SELECT ('x' || encode(substr(context, n, 4), 'hex'))::bit(32)::integer, substr(context, n + 4, 32)
	FROM generate_series(5, length(context) - 35, 36) n;
$$;
CREATE FUNCTION regress_context_work(request jsonb) RETURNS json LANGUAGE sql AS $$ SELECT '{}'::json $$;

BEGIN;
DELETE FROM idempotency_secrets;
SELECT regress.sqlstate_of($$SELECT idem_context('a', 'b')$$) AS no_secret;
SELECT idem_secret('audit', '\x000102030405060708090a0b0c0d0e0f') AS audit_key;
SELECT idem_context('a', 'b') AS by_audit \gset
SELECT length(:'by_audit'::bytea) AS bytes, substr(:'by_audit'::bytea, 1, 8) AS mark_and_key_id;
SELECT idem_secret('context', '\x000102030405060708090a0b0c0d0e0f') AS context_key;
SELECT idem_context('a', 'b') AS by_context \gset
-- the secret "context" comes before "audit"; the key id tells which it was
SELECT substr(:'by_context'::bytea, 1, 8) AS mark_and_key_id, idem_context('a', 'b') = :'by_context'::bytea AS same,
	-- the same secret for another purpose: the derived key is that of contexts
	substr(:'by_context'::bytea, 9) = substr(:'by_audit'::bytea, 9) AS by_its_use;
-- HMAC-SHA256 over the components, each after its length, with a derived key
SELECT substr(:'by_context'::bytea, 9) = hmac('\x000000016100000001' || 'b'::bytea,
	hmac('idempotency 1 context'::bytea, '\x000102030405060708090a0b0c0d0e0f', 'sha256'), 'sha256') AS as_documented;
SELECT substr(:'by_context'::bytea, 9) <> hmac('\x000000016100000001' || 'b'::bytea, '\x000102030405060708090a0b0c0d0e0f', 'sha256') AS not_by_the_secret;
-- other components, other bytes
SELECT count(DISTINCT c) AS different FROM unnest(ARRAY[
	idem_context('a', 'bc'), idem_context('ab', 'c'), idem_context('abc'), idem_context('abc', ''), idem_context('', 'abc'),
	idem_context('a', 'b', 'c'), idem_context('A', 'bc'), idem_context(E'a\u001ebc')]) c;
SELECT regress.sqlstate_of($$SELECT idem_context(NULL::text)$$) AS "null", regress.sqlstate_of($$SELECT idem_context('a', NULL)$$) AS a_null,
	regress.sqlstate_of($$SELECT idem_context(VARIADIC '{}'::text[])$$) AS "none";
-- a new one for "audit" changes nothing here
SELECT idem_secret('audit', '\x202122232425262728292a2b2c2d2e2f') AS next_audit_key;
SELECT idem_context('a', 'b') = :'by_context'::bytea AS same;
-- a new one for "context": both, the newest first, the older one as it was
SELECT idem_secret('context', '\x101112131415161718191a1b1c1d1e1f') AS next_key;
SELECT key_id, '\x00696301'::bytea || int4send(key_id) || mac = :'by_context'::bytea AS as_before FROM pg_temp.entries(idem_context('a', 'b'));
SELECT key_id, purpose, length(secret) AS bytes FROM idempotency_secrets ORDER BY key_id;
SELECT regress.sqlstate_of($$SELECT idem_secret('context', '\x000102030405060708090a0b0c0d0e')$$) AS "15 bytes",
	regress.sqlstate_of($$SELECT idem_secret('context', convert_to(repeat('s', 1024), 'UTF8'))$$) AS "1024 bytes",
	regress.sqlstate_of($$SELECT idem_secret('context', convert_to(repeat('s', 1025), 'UTF8'))$$) AS "1025 bytes",
	regress.sqlstate_of($$SELECT idem_secret('Context', '\x000102030405060708090a0b0c0d0e0f')$$) AS purpose;
CREATE ROLE regress_idem_user;
SELECT idem_grant('regress_idem_user', 'app');
GRANT EXECUTE ON FUNCTION idem_secret, idem_secret_drop TO regress_idem_user;
SET LOCAL ROLE regress_idem_user;
SELECT regress.sqlstate_of($$SELECT idem_secret('context', '\x000102030405060708090a0b0c0d0e0f')$$) AS set_by_user,
	regress.sqlstate_of($$SELECT idem_secret_drop('context', 2)$$) AS dropped_by_user,
	regress.sqlstate_of($$SELECT * FROM idempotency_secrets$$) AS read_by_user;
SELECT length(idem_context('a', 'b')) AS used_by_user;
RESET ROLE;
ROLLBACK;

--
-- Four of a purpose live; a key id is never given again.
--
BEGIN;
DELETE FROM idempotency_secrets;
SELECT count(idem_secret('context', convert_to(repeat(n::text, 16), 'UTF8'))) FROM generate_series(1, 4) n;
SELECT regress.error_of($$SELECT idem_secret('context', '0123456789abcdef')$$) AS fifth;
SELECT idem_secret('audit', '0123456789abcdef') AS of_audit;
SELECT array_agg(key_id) AS key_ids, max(length(idem_context('a'))) AS bytes FROM pg_temp.entries(idem_context('a'));
SELECT purpose, key_id, idem_secret_drop(purpose, key_id) FROM (VALUES ('audit', 1), ('context', 5), ('context', 6), ('context', 0), ('context', -1),
	('context', 2), ('context', 2), ('context', 4)) v (purpose, key_id);
SELECT array_agg(key_id) AS key_ids FROM pg_temp.entries(idem_context('a'));
SELECT idem_secret_drop('audit', 5) AS the_newest, idem_secret('context', '0123456789abcdef') AS the_next;
SELECT array_agg(key_id) AS key_ids FROM pg_temp.entries(idem_context('a'));
-- nothing is left of a secret that was dropped
SELECT key_id, purpose, length(secret) AS bytes FROM idempotency_secrets ORDER BY key_id;
SELECT count(*) AS dropped FROM generate_series(1, 6) n WHERE idem_secret_drop('context', n);
SELECT regress.sqlstate_of($$SELECT idem_context('a')$$) AS no_secret;
SELECT regress.error_of(format('SELECT idem_secret_drop(%s)', args)) AS error
FROM unnest(ARRAY['NULL, 1', '''audit'', NULL', '''Audit'', 1']) args;
SET TRANSACTION READ ONLY;
SELECT regress.error_of($$SELECT idem_secret_drop('audit', 1)$$) AS read_only;
ROLLBACK;

-- Two secrets set by one statement have two key ids.
BEGIN;
SELECT a < b AS in_order FROM (SELECT idem_secret('context', convert_to(repeat('c', 16), 'UTF8')) AS a,
	idem_secret('audit', convert_to(repeat('a', 16), 'UTF8')) AS b) s;
ROLLBACK;

--
-- A repeat matches across a rotation, as long as the older secret lives.
--
BEGIN;
DELETE FROM idempotency_secrets;
SELECT idem_secret('context', '0123456789abcdef') AS older;
SELECT outcome FROM idem_run('regress_context_work(jsonb)', 'context', 'k', '{"sku": "anvil"}', context => idem_context('me'));
SELECT idem_secret('context', 'fedcba9876543210') AS newer;
SELECT outcome FROM idem_claim('context', 'k', '{"sku": "anvil"}', context => idem_context('me'));
SELECT outcome FROM idem_claim('context', 'k', '{"sku": "anvil"}', context => idem_context('you'));
-- one that is claimed now is bound to both, and the row keeps what was given
SELECT outcome FROM idem_run('regress_context_work(jsonb)', 'context', 'l', '{"sku": "anvil"}', context => idem_context('me'));
SELECT key, length(context) AS bytes FROM idempotency_keys WHERE scope = 'context' ORDER BY key;
SELECT idem_secret_drop('context', 1);
SELECT key, (idem_claim('context', key, '{"sku": "anvil"}', context => idem_context('me'))).outcome FROM unnest(ARRAY['k', 'l']) key;
-- bytes of an application's own are compared as they are
SELECT outcome FROM idem_claim('context', 'k', '{"sku": "anvil"}', context => substr(idem_context('me'), 1, 39));
SELECT outcome FROM idem_run('regress_context_work(jsonb)', 'context', 'own', context => 'mine');
SELECT context, (idem_claim('context', 'own', context => context)).outcome FROM unnest(ARRAY['mine', 'min', 'mine ']::bytea[]) context;
ROLLBACK;

--
-- Seals go on with the next newest secret, and without any; what was made with
-- one that was dropped cannot be verified, and that is told once.
--
SELECT idem_audit('written', 'context', '1') > 0 AS written;
BEGIN;
DELETE FROM idempotency_secrets;
SELECT idem_secret('audit', '0123456789abcdef') AS first, idem_secret('audit', 'fedcba9876543210') AS second,
	idem_secret('audit', 'aaaaaaaaaaaaaaaa') AS third;
SELECT problem, detail FROM idem_audit_verify();
SELECT idem_secret_drop('audit', 1), idem_secret_drop('audit', 3);
SELECT problem, detail FROM idem_audit_verify();
SELECT idem_audit_seal() > 0 AS sealed;
SELECT kind, key_id, hmac IS NOT NULL AS signed FROM idempotency_audit_seals ORDER BY segment DESC LIMIT 1;
-- pruning puts a seal behind the others, too
SELECT idem_secret_drop('audit', 2), idem_audit_prune('infinity') > 0 AS pruned;
SELECT kind, key_id, hmac IS NOT NULL AS signed FROM idempotency_audit_seals ORDER BY segment DESC LIMIT 1;
SELECT problem, detail FROM idem_audit_verify();
SELECT idem_secret('audit', 'bbbbbbbbbbbbbbbb') AS fourth;
SELECT problem, detail FROM idem_audit_verify();
ROLLBACK;
DROP FUNCTION regress_context_work;
