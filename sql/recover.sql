--
-- idem_recover: what was abandoned under a policy that is recoverable.
--
SELECT idem_policy('recover', lease => '1 min', recoverable => true), idem_policy('recover-not', lease => '1 min');
CREATE VIEW leases AS
SELECT key, l.policy, l.token = k.token AS token, l.lease_until = k.lease_until AS lease, l.purge_at = k.purge_at AS purge
FROM idempotency_leases l LEFT JOIN idempotency_keys k USING (scope, key) WHERE scope = 'recover' ORDER BY key;
-- as if the holder had been gone that long
CREATE FUNCTION abandon(in_key text, since interval) RETURNS void LANGUAGE sql AS $$
	UPDATE idempotency_keys SET lease_until = clock_timestamp() - since WHERE scope = 'recover' AND key = in_key;
	UPDATE idempotency_leases SET lease_until = clock_timestamp() - since WHERE scope = 'recover' AND key = in_key;
$$;

-- Listed is a claim in progress, and nothing else.
SELECT outcome FROM idem_claim('recover', 'other', policy => 'recover-not');
SELECT outcome FROM idem_run('regress.answer(jsonb)', 'recover', 'run', '{}', policy => 'recover');
SELECT count(*) FROM idem_dedupe('recover', ARRAY['deduped'], policy => 'recover');
BEGIN;
SELECT outcome, (idem_complete('recover', 'at once')).outcome FROM idem_claim('recover', 'at once', policy => 'recover');
COMMIT;
SELECT count(*) AS none FROM leases;
SELECT c.outcome, count(*) FROM unnest(ARRAY['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h']) key,
	idem_claim('recover', key, policy => 'recover', fingerprint => '\x01', context => '\x02') c GROUP BY 1;
SELECT isfinite(idem_extend('recover', 'b', regress.token('recover', 'b'), '5 min')) AS extended;
SELECT idem_checkpoint('recover', 'c', regress.token('recover', 'c'), 'charged', '{"charge": 7}') = (idem_lookup('recover', 'c')).lease_until AS checkpoint;
SELECT (idem_complete('recover', 'd', token => regress.token('recover', 'd'))).outcome;
SELECT (idem_fail('recover', 'e', token => regress.token('recover', 'e'))).outcome;
SELECT idem_release('recover', 'f', regress.token('recover', 'f')) AS released;
SELECT idem_forget('recover', 'g') AS forgotten;
SELECT * FROM leases;

-- Nothing is abandoned yet.
SELECT count(*) FROM idem_recover('recover', 10);
-- Longest abandoned first, with what the next attempt needs; whose lease runs is left.
SELECT abandon('a', '2 s'), abandon('c', '3 s'), abandon('h', '1 s');
CREATE TEMP TABLE before AS SELECT key, token FROM idempotency_keys WHERE scope = 'recover';
SELECT scope, r.key, attempt, r.token > b.token AS greater, recovery_point, checkpoint, fingerprint,
	r.created_at < r.lease_until AS created, r.lease_until > clock_timestamp() + interval '59 s' AS lease
FROM idem_recover('recover') r JOIN before b USING (key);
SELECT r.key, attempt, recovery_point, r.lease_until < clock_timestamp() + interval '10 s' AS lease
FROM idem_recover('recover', 10, '10 s') r;
SELECT count(*) FROM idem_recover('recover', 10);
SELECT * FROM leases;
-- each was given a token to finish with, and the old one is lost
SELECT regress.error_of(format('SELECT idem_complete(''recover'', ''c'', token => %s)', token)) AS old FROM before WHERE key = 'c';
SELECT (idem_complete('recover', 'c', '"done"', token => regress.token('recover', 'c'))).outcome;
SELECT outcome, attempt, body FROM idem_claim('recover', 'c', policy => 'recover', fingerprint => '\x01', context => '\x02');
-- a completer may die, too
SELECT abandon('a', '1 s');
SELECT key, attempt FROM idem_recover('recover', 10);
-- a claim or idem_run takes over as before, and the list knows
SELECT abandon('a', '1 s'), abandon('b', '1 s');
SELECT outcome, attempt FROM idem_claim('recover', 'a', policy => 'recover', fingerprint => '\x01', context => '\x02');
SELECT outcome, attempt FROM idem_run('regress.answer(jsonb)', 'recover', 'b', '{}', policy => 'recover', fingerprint => '\x01', context => '\x02');
SELECT * FROM leases;
-- rolled back, nothing was taken
SELECT abandon('a', '1 s');
BEGIN;
SELECT key, attempt FROM idem_recover('recover', 10);
SELECT count(*) FROM idem_recover('recover', 10);
ROLLBACK;
BEGIN;
SELECT key, attempt, (idem_complete('recover', key, '"here"')).outcome FROM idem_recover('recover', 10);
COMMIT;
-- not what this transaction has claimed itself, though its lease has ended
BEGIN;
SELECT outcome FROM idem_claim('recover', 'own', policy => 'recover', lease => '1 us');
SELECT count(*) FROM idem_recover('recover', 10);
ROLLBACK;

-- The role rule.
CREATE ROLE regress_idem_recover_1;
CREATE ROLE regress_idem_recover_2;
SELECT idem_grant(r::regrole, 'app') FROM unnest(ARRAY['regress_idem_recover_1', 'regress_idem_recover_2']) r;
GRANT USAGE ON SCHEMA public TO regress_idem_recover_1, regress_idem_recover_2;
SET ROLE regress_idem_recover_1;
SELECT outcome FROM idem_claim('recover', 'of 1', policy => 'recover', lease => '1 us');
SET ROLE regress_idem_recover_2;
SELECT outcome FROM idem_claim('recover', 'of 2', policy => 'recover', lease => '1 us');
SELECT key FROM idem_recover('recover', 10, '1 us');
SET ROLE regress_idem_recover_1;
SELECT key FROM idem_recover('recover', 10, '1 us');
RESET ROLE;
SELECT key, claimed_by FROM idem_recover('recover', 10) JOIN idempotency_keys USING (scope, key) ORDER BY key;

-- Entries that are wrong: the policy was changed, the row is gone or another's.
SELECT idem_policy('recover', recoverable => false);
SELECT regress.error_of($$SELECT idem_recover('recover')$$) AS not_recoverable;
SELECT (idem_complete('recover', 'of 1', token => regress.token('recover', 'of 1'))).outcome;
DELETE FROM idempotency_keys WHERE scope = 'recover' AND key = 'of 2';
SELECT outcome FROM idem_claim('recover', 'of 2', policy => 'recover-not');
SELECT idem_policy('recover', recoverable => true);
SELECT abandon('of 1', '1 s'), abandon('of 2', '1 s');
SELECT key, token, lease FROM leases WHERE key LIKE 'of%';
SELECT count(*) FROM idem_recover('recover', 10);
SELECT count(*) AS dropped FROM leases WHERE key LIKE 'of%';
-- the sweep takes what is past its time
SELECT outcome FROM idem_claim('recover', 'swept', policy => 'recover', lease => '1 us', ttl => '1 us');
SELECT count(*) AS listed FROM leases WHERE key = 'swept';
SELECT idem_sweep() > 0 AS swept;
SELECT count(*) AS listed FROM leases WHERE key = 'swept';
-- for default, by its name
SELECT idem_policy('default', recoverable => true);
SELECT outcome FROM idem_claim('recover', 'default', lease => '1 us');
SELECT key, policy FROM leases WHERE key = 'default';
SELECT key, attempt FROM idem_recover('default');
SELECT idem_forget('recover', 'default') AS forgotten, idem_policy_drop('default') AS dropped;

-- More than are read at a time, most of them of another role.
SET ROLE regress_idem_recover_1;
SELECT count(idem_claim('recover', 'many ' || i, policy => 'recover', lease => '1 us')) FROM generate_series(1, 200) i;
SET ROLE regress_idem_recover_2;
SELECT count(idem_claim('recover', 'few ' || i, policy => 'recover', lease => '1 us')) FROM generate_series(1, 50) i;
SELECT count(*) AS few, count(DISTINCT key) AS keys FROM idem_recover('recover', 60);
RESET ROLE;
SELECT count(*) AS many, count(DISTINCT key) AS keys FROM idem_recover('recover', 10000) WHERE key LIKE 'many%';

-- What the owner of the tables may have written: nulls, and longer names than ours.
BEGIN;
SELECT idem_policy('recover', on_unfinished => 'error');
ALTER TABLE idempotency_leases ALTER claimed_by DROP NOT NULL;
UPDATE idempotency_leases SET claimed_by = NULL, lease_until = now() - interval '1 s' WHERE scope = 'recover' AND key <> 'few 1';
UPDATE idempotency_leases SET scope = repeat('s', 9000), lease_until = now() - interval '1 s' WHERE scope = 'recover' AND key = 'few 1';
UPDATE idempotency_keys SET scope = repeat('s', 9000), lease_until = now() - interval '1 s' WHERE scope = 'recover' AND key = 'few 1';
SELECT length(scope), key FROM idem_recover('recover', 1000);
ROLLBACK;

SELECT count(idem_forget(scope, key)) > 0 AS forgotten FROM idempotency_keys WHERE scope = 'recover';
SELECT count(*) AS left FROM leases;
DROP OWNED BY regress_idem_recover_1, regress_idem_recover_2;
DROP ROLE regress_idem_recover_1, regress_idem_recover_2;
SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'recover%';
