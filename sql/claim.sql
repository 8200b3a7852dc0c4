--
-- Claiming: every row of the decision table, in every state, and what each
-- outcome shows.  Rows are made old by UPDATE and never by sleeping.
--

--
-- The table as a matrix: policy, state of the key and its age against who
-- asks.  Keys are made in one transaction, made old in the next and asked for
-- in a third; what a claim did is undone, so each finds the same row.
--
SELECT idem_policy('claim-replay');
SELECT idem_policy('claim-once', on_repeat => 'reject');
SELECT idem_policy('claim-refuse', on_expiry => 'reject', tombstone => '1 day');
SELECT idem_policy('claim-both', on_repeat => 'reject', on_expiry => 'reject',
				   tombstone => '1 day');

CREATE TEMP TABLE made AS
SELECT policy, state, age, state || '/' || age AS key
FROM (VALUES (1, 'claim-replay'), (2, 'claim-once'), (3, 'claim-refuse'),
			 (4, 'claim-both')) p (pno, policy),
	 (VALUES (1, 'running'), (2, 'lease over'), (3, 'completed'),
			 (4, 'retryable'), (5, 'failed'), (6, 'released')) s (sno, state),
	 (VALUES (1, 'live'), (2, 'expired'), (3, 'long gone')) a (ano, age)
ORDER BY pno, sno, ano;
ALTER TABLE made ADD id serial;

DO $$
DECLARE
	m record;
BEGIN
	FOR m IN SELECT * FROM made ORDER BY id LOOP
		PERFORM idem_claim(m.policy, m.key, '{"a": 1}', policy => m.policy,
						   context => '\xc0', owner => '00000000-0000-4000-8000-000000000001',
						   lease => '1 hour', ttl => '1 day');
		CASE m.state
			WHEN 'completed' THEN PERFORM idem_complete(m.policy, m.key, '{}');
			WHEN 'retryable' THEN PERFORM idem_fail(m.policy, m.key, '{}');
			WHEN 'failed' THEN PERFORM idem_fail(m.policy, m.key, '{}', retryable => false);
			WHEN 'released' THEN PERFORM idem_release(m.policy, m.key);
			ELSE NULL;
		END CASE;
	END LOOP;
END
$$;

-- A key in progress expires an hour of lease and a day after it was claimed.
DO $$
BEGIN
	PERFORM regress.age(policy, key,
						CASE age WHEN 'expired' THEN interval '26 hours'
							 WHEN 'long gone' THEN interval '51 hours'
							 ELSE '0' END)
	FROM made;
	PERFORM regress.age(policy, key, '2 hours')
	FROM made WHERE state = 'lease over' AND age = 'live';
	UPDATE idempotency_keys SET lease_until = clock_timestamp() + interval '1 hour'
	WHERE key LIKE 'running/%' AND scope LIKE 'claim-%';
END
$$;

CREATE FUNCTION pg_temp.ask(in_policy text, in_key text, in_request jsonb,
							in_context bytea, in_owner uuid)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result idem_result;
BEGIN
	BEGIN
		result := idem_claim(in_policy, in_key, in_request, policy => in_policy,
							 context => in_context, owner => in_owner);
		RAISE EXCEPTION USING ERRCODE = 'P9999';
	EXCEPTION WHEN SQLSTATE 'P9999' THEN
		RETURN result.outcome
			|| CASE result.outcome WHEN 'claimed' THEN ' ' || result.attempt ELSE '' END
			|| CASE WHEN result.token = regress.token(in_policy, in_key)
				THEN ' (same)' ELSE '' END;
	WHEN OTHERS THEN
		RETURN SQLSTATE;
	END;
END
$$;

-- "again" is the request and context of the claim; the others differ from it
-- in one thing.  "(same)": the token is the one of the claim.
SELECT policy, state, age,
	pg_temp.ask(policy, key, '{"a": 1}', '\xc0', NULL) AS again,
	pg_temp.ask(policy, key, '{"a": 1}', '\xc0', '00000000-0000-4000-8000-000000000001') AS owner,
	pg_temp.ask(policy, key, '{"a": 1}', '\xc0', '00000000-0000-4000-8000-000000000002') AS stranger
FROM made ORDER BY id;

SELECT policy, state, age,
	pg_temp.ask(policy, key, '{"a": 2}', '\xc0', NULL) AS request,
	pg_temp.ask(policy, key, NULL, '\xc0', NULL) AS "no request",
	pg_temp.ask(policy, key, '{"a": 1}', '\xc1', NULL) AS context,
	pg_temp.ask(policy, key, '{"a": 1}', NULL, NULL) AS "no context",
	pg_temp.ask(policy, key, '{"a": 2}', '\xc1', '00000000-0000-4000-8000-000000000001') AS owner
FROM made ORDER BY id;

-- Another role gets what is free, and nothing else.
CREATE ROLE regress_idem_other;
SELECT idem_grant('regress_idem_other', 'app');
GRANT SELECT ON made TO regress_idem_other;
GRANT SELECT ON idempotency_keys TO regress_idem_other;
SET ROLE regress_idem_other;
SELECT policy, state, age,
	pg_temp.ask(policy, key, '{"a": 1}', '\xc0', NULL) AS again,
	pg_temp.ask(policy, key, '{"a": 2}', '\xc0', '00000000-0000-4000-8000-000000000001') AS other
FROM made ORDER BY id;
RESET ROLE;
REVOKE SELECT ON idempotency_keys FROM regress_idem_other;

-- Given now and not then.
SELECT outcome, attempt FROM idem_claim('claim', 'bare');
SELECT outcome, attempt FROM idem_claim('claim', 'bare', '{"a": 1}');
SELECT outcome, attempt FROM idem_claim('claim', 'bare', fingerprint => '\x01');
SELECT outcome, attempt FROM idem_claim('claim', 'bare', context => '\x01');
SELECT outcome, attempt FROM idem_claim('claim', 'bare', owner => '00000000-0000-4000-8000-000000000001');
SELECT outcome, attempt FROM idem_claim('claim', 'bare');

-- A request and its fingerprint are the same; the fingerprint is canonical.
SELECT outcome FROM idem_claim('claim', 'print', '{"a": 1, "b": [1.0, 2]}');
SELECT outcome FROM idem_claim('claim', 'print', '{"b": [1, 2e0], "a": 1}');
SELECT outcome FROM idem_claim('claim', 'print',
							   fingerprint => idem_fingerprint('{"a": 1, "b": [1, 2]}'));
SELECT outcome FROM idem_claim('claim', 'print', '{"a": 1, "b": [2, 1]}');
-- Bytes that are a prefix of the others are other bytes.
SELECT outcome FROM idem_claim('claim', 'prefix', fingerprint => '\x0102');
SELECT outcome FROM idem_claim('claim', 'prefix', fingerprint => '\x01');
SELECT outcome FROM idem_claim('claim', 'prefix', fingerprint => '\x010200');

DROP OWNED BY regress_idem_other;
DROP ROLE regress_idem_other;
SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'claim-%';
