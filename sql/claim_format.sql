--
-- Formats of keys: a policy says which are refused, and has no say in how they are spelled.
--
SELECT idem_policy('claim-uuid', key_format => 'uuid');
SELECT idem_policy('claim-uuidv4', key_format => 'uuidv4');
SELECT idem_policy('claim-uuidv7', key_format => 'uuidv7');
SELECT key,
	regress.error_of(format('SELECT idem_claim(''claim'', %L, policy => ''claim-uuid'')', key)) AS uuid,
	regress.error_of(format('SELECT idem_claim(''claim'', %L, policy => ''claim-uuidv4'')', key)) AS v4,
	regress.error_of(format('SELECT idem_claim(''claim'', %L, policy => ''claim-uuidv7'')', key)) AS v7
FROM unnest(ARRAY[
	'8e03978e-40d5-43dd-bc93-6894a57f9324', '8E03978E-40D5-43DD-BC93-6894A57F9324',
	'8e03978e40d543ddbc936894a57f9324', '{8e03978e-40d5-43dd-bc93-6894a57f9324}',
	'017f22e2-79b0-7cc3-98c4-dc0c0c07398f', 'c232ab00-9414-11ec-b3c8-9f6bdeced846',
	'00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff',
	-- the variant is not that of RFC 9562
	'8e03978e-40d5-43dd-7c93-6894a57f9324', '017f22e2-79b0-7cc3-f8c4-dc0c0c07398f',
	'8e03978e-40d5-43dd-bc93-6894a57f932', '8e03978e-40d5-43dd-bc93-6894a57f93245',
	'8e03978e-40d5-43dd-bc93-6894a57f932g', ' 8e03978e-40d5-43dd-bc93-6894a57f9324',
	'8e03978e-40d5-43dd-bc93-6894a57f9324 ', '{8e03978e-40d5-43dd-bc93-6894a57f9324',
	'not a uuid'
]) key;

-- A UUID is one key in any case, under every policy and in every function.
SELECT outcome FROM idem_claim('claim', '8E03978E-40D5-43DD-BC93-6894A57F9324', policy => 'claim-uuidv4', ttl => '1 hour');
SELECT outcome FROM idem_claim('claim', '8e03978e-40d5-43dd-bc93-6894a57f9324', policy => 'claim-uuidv4');
SELECT key FROM idempotency_keys WHERE scope = 'claim' AND policy LIKE 'claim-uuid%';
SELECT outcome FROM idem_lookup('claim', '8E03978E-40D5-43DD-bc93-6894A57F9324');
SELECT idem_extend('claim', '8E03978E-40D5-43DD-BC93-6894A57F9324', token, '1 hour') IS NOT NULL AS extended,
	idem_checkpoint('claim', '8E03978E-40D5-43DD-BC93-6894A57F9324', token, 'half') IS NOT NULL AS remembered,
	(idem_complete('claim', '8E03978E-40D5-43DD-BC93-6894A57F9324', '{}', token => token)).outcome IS NOT NULL AS done
FROM idempotency_keys WHERE scope = 'claim' AND key = '8e03978e-40d5-43dd-bc93-6894a57f9324';
SELECT outcome FROM idem_claim('claim', '8E03978E-40d5-43dd-bc93-6894a57f9324', policy => 'claim-uuidv4');
SELECT idem_forget('claim', '8E03978E-40D5-43DD-BC93-6894A57F9324');
SELECT outcome FROM idem_lookup('claim', '8e03978e-40d5-43dd-bc93-6894a57f9324');
-- braces and missing hyphens make other keys
SELECT outcome FROM idem_claim('claim', '8E03978E-40D5-43DD-BC93-6894A57F9324');
SELECT outcome FROM idem_claim('claim', '8e03978e-40d5-43dd-bc93-6894a57f9324');
SELECT outcome FROM idem_lookup('claim', '{8e03978e-40d5-43dd-bc93-6894a57f9324}');
SELECT outcome FROM idem_claim('claim', '{8E03978E-40D5-43DD-BC93-6894A57F9324}')
UNION ALL SELECT outcome FROM idem_claim('claim', '8E03978E40D543DDBC936894A57F9324');
SELECT key FROM idempotency_keys WHERE scope = 'claim' AND upper(key) LIKE '%8E03978E%' ORDER BY key COLLATE "C";

-- The policy changes, is dropped, or is another caller's: a repeat is never new.
CREATE FUNCTION pg_temp.never(jsonb) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'the work is done twice';
END
$$;
CREATE FUNCTION pg_temp.repeats(in_key text) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(outcome::text, ' ' ORDER BY n) FROM (
		SELECT 1 AS n, outcome FROM idem_claim('claim spelled', upper(in_key), policy => 'claim-spelled')
		UNION ALL SELECT 2, outcome FROM idem_claim('claim spelled', lower(in_key), policy => 'claim-spelled')
		UNION ALL SELECT 3, outcome FROM idem_claim('claim spelled', upper(in_key))
		UNION ALL SELECT 4, outcome FROM idem_claim('claim spelled', in_key, policy => 'claim-uuid')
		UNION ALL SELECT 5, outcome FROM idem_run('pg_temp.never(jsonb)', 'claim spelled', upper(in_key))
		UNION ALL SELECT 6, outcome FROM idem_run('pg_temp.never(jsonb)', 'claim spelled', lower(in_key), policy => 'claim-uuidv4')
		UNION ALL SELECT 7, CASE WHEN first THEN 'claimed' ELSE 'duplicate' END::idem_outcome
		FROM idem_dedupe('claim spelled', ARRAY[upper(in_key)], 'claim-spelled')) r
$$;
CREATE FUNCTION pg_temp.finish(in_key text, in_policy text) RETURNS timestamptz LANGUAGE sql AS $$
	SELECT (idem_complete('claim spelled', in_key, '{}', token => token)).expires_at FROM idem_claim('claim spelled', in_key, policy => in_policy)
$$;
SELECT idem_policy('claim-spelled');
SELECT pg_temp.finish('8E03978E-40D5-43DD-BC93-6894A57F9001', 'claim-spelled') IS NOT NULL AS any;
SELECT idem_policy('claim-spelled', key_format => 'uuid');
SELECT pg_temp.finish('8E03978E-40D5-43DD-BC93-6894A57F9002', 'claim-spelled') IS NOT NULL AS uuid;
SELECT pg_temp.repeats('8e03978e-40d5-43dd-bc93-6894a57f900' || n) FROM generate_series(1, 2) n;
SELECT idem_policy('claim-spelled', key_format => 'any');
SELECT pg_temp.repeats('8e03978e-40d5-43dd-bc93-6894a57f900' || n) FROM generate_series(1, 2) n;
SELECT idem_policy_drop('claim-spelled');
SELECT idem_policy('claim-spelled', key_format => 'uuidv4');
SELECT pg_temp.repeats('8e03978e-40d5-43dd-bc93-6894a57f900' || n) FROM generate_series(1, 2) n;
SELECT count(*) AS keys FROM idempotency_keys WHERE scope = 'claim spelled';
SELECT regress.error_of($$SELECT idem_require('claim spelled', '8e03978e-40d5-43dd-BC93-6894a57f9001')$$) AS require;
SELECT token FROM idem_claim('claim spelled', '8E03978E-40D5-43DD-BC93-6894A57F9003') \gset
SELECT (idem_fail('claim spelled', '8e03978e-40d5-43dd-bc93-6894a57f9003', token => :token)).outcome IS NOT NULL AS failed;
SELECT attempt, token FROM idem_claim('claim spelled', '8e03978e-40d5-43dd-bc93-6894a57f9003') \gset
-- a log id is that of the key as it is stored
SELECT count(*) AS activity FROM idem_activity WHERE scope_id = idem_log_id('claim spelled')
	AND key_id = idem_log_id('8e03978e-40d5-43dd-bc93-6894a57f9003');
SELECT idem_release('claim spelled', '8E03978E-40D5-43DD-BC93-6894A57F9003', :token) AS released, :attempt AS attempt;

-- Keys are bytes: no case, space or collation makes two of them one.
SELECT count(*) AS claimed
FROM unnest(ARRAY['a', 'A', ' a', 'a ', 'ä', E'a\u0308', E'a\n', E'\u001e', '%', '''', '"', '\', '€', '😀']) key,
	LATERAL idem_claim('claim bytes', key) c
WHERE outcome = 'claimed';
-- and the same key in another scope is another key
SELECT outcome FROM idem_claim('claim bytes 2', 'a');
SELECT regress.error_of(format('SELECT idem_claim(%L, %L)', repeat('s', s), repeat('k', k))) AS state, s, k
FROM (VALUES (1, 1), (1024, 255), (1025, 1), (1, 256), (0, 1), (1, 0)) v (s, k);

SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'claim-%';
