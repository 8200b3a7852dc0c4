--
-- Claiming: what the policy decides.
--
SELECT idem_policy('claim-print', require_fingerprint => true);
SELECT regress.error_of($$SELECT idem_claim('claim', 'required', policy => 'claim-print')$$) AS "none",
	regress.error_of($$SELECT idem_claim('claim', 'required', '{}', policy => 'claim-print')$$) AS request,
	regress.error_of($$SELECT idem_claim('claim', 'required', fingerprint => '\x01', policy => 'claim-print')$$) AS fingerprint,
	regress.error_of($$SELECT idem_claim('claim', 'required', '{}', fingerprint => '\x01')$$) AS "both";

-- A policy that is gone: "default" decides.
SELECT idem_policy('claim-gone', on_repeat => 'reject', mismatch_status => 400, key_format => 'uuid');
SELECT outcome FROM idem_claim('claim', '11111111-1111-4111-8111-111111111111', '{}', policy => 'claim-gone');
SELECT (idem_complete('claim', '11111111-1111-4111-8111-111111111111', '{}',
	token => regress.token('claim', '11111111-1111-4111-8111-111111111111'))).outcome IS NOT NULL AS done;
SELECT outcome FROM idem_claim('claim', '11111111-1111-4111-8111-111111111111', '{}');
SELECT idem_policy_drop('claim-gone');
SELECT outcome FROM idem_claim('claim', '11111111-1111-4111-8111-111111111111', '{}');
SELECT outcome, http_status FROM idem_claim('claim', '11111111-1111-4111-8111-111111111111', '{"a": 1}');
SELECT regress.error_of($$SELECT idem_claim('claim', 'gone', policy => 'claim-gone')$$);

-- The policy of the first claim decides, whatever the call names.
SELECT idem_policy('claim-once', on_repeat => 'reject');
SELECT idem_policy('claim-replay');
SELECT outcome FROM idem_claim('claim', 'first policy', policy => 'claim-once');
SELECT (idem_complete('claim', 'first policy', token => regress.token('claim', 'first policy'))).outcome IS NOT NULL AS done;
SELECT outcome FROM idem_claim('claim', 'first policy', policy => 'claim-replay');

-- The number of live keys of a scope.
SELECT idem_policy('claim-few', max_live_keys => 2);
SELECT outcome FROM idem_claim('claim few', '1', policy => 'claim-few');
SELECT outcome FROM idem_claim('claim few', '2', policy => 'claim-few');
SELECT regress.error_of($$SELECT idem_claim('claim few', '3', policy => 'claim-few')$$) AS third;
-- a live key is still found, another scope is another number, and a key that
-- has expired or was given up is not live
SELECT outcome FROM idem_claim('claim few', '1', policy => 'claim-few');
SELECT outcome FROM idem_claim('claim few 2', '3', policy => 'claim-few');
SELECT regress.age('claim few', '1', '1 hour');
SELECT outcome, attempt FROM idem_claim('claim few', '1', policy => 'claim-few');
SELECT regress.age('claim few', '1', '2 days');
SELECT outcome, attempt FROM idem_claim('claim few', '3', policy => 'claim-few');
SELECT regress.error_of($$SELECT idem_claim('claim few', '1', policy => 'claim-few')$$) AS expired_one;
SELECT idem_release('claim few', '2', regress.token('claim few', '2'));
SELECT outcome, attempt FROM idem_claim('claim few', '1', policy => 'claim-few');
SELECT regress.error_of($$SELECT idem_claim('claim few', '2', policy => 'claim-few')$$) AS released_one;

-- The owner role of a policy, in place of the current user.
CREATE ROLE regress_idem_other;
SELECT idem_grant('regress_idem_other', 'app');
CREATE ROLE regress_idem_owner;
SELECT idem_policy('claim-owned', owner_role => 'regress_idem_owner');
SET ROLE regress_idem_other;
SELECT regress.error_of($$SELECT idem_claim('claim', 'owned', policy => 'claim-owned')$$) AS no_member;
RESET ROLE;
GRANT regress_idem_owner TO regress_idem_other;
SET ROLE regress_idem_other;
SELECT outcome FROM idem_claim('claim', 'owned', policy => 'claim-owned');
SELECT outcome FROM idem_claim('claim', 'not owned');
RESET ROLE;
SELECT key, claimed_by FROM idempotency_keys WHERE scope = 'claim' AND key LIKE '%owned' ORDER BY key COLLATE "C";
-- a role that is gone is nobody: only a superuser has its rights
CREATE ROLE regress_idem_gone;
SELECT idem_grant('regress_idem_gone', 'app');
SET ROLE regress_idem_gone;
SELECT outcome FROM idem_claim('claim', 'orphan');
RESET ROLE;
DROP OWNED BY regress_idem_gone;
DROP ROLE regress_idem_gone;
SET ROLE regress_idem_other;
SELECT regress.error_of($$SELECT idem_claim('claim', 'orphan')$$) AS orphan;
RESET ROLE;
SELECT outcome FROM idem_claim('claim', 'orphan');

DROP OWNED BY regress_idem_other, regress_idem_owner;
DROP ROLE regress_idem_other, regress_idem_owner;
SELECT count(idem_policy_drop(name)) AS dropped FROM idem_policy_list WHERE name LIKE 'claim-%';

-- Columns that somebody has added and dropped leave their numbers behind.
BEGIN;
ALTER TABLE idempotency_keys ADD COLUMN one integer, ADD COLUMN two integer, ADD COLUMN three integer;
ALTER TABLE idempotency_keys DROP COLUMN one, DROP COLUMN two, DROP COLUMN three;
SELECT outcome FROM idem_claim('claim', 'dropped columns');
SELECT (idem_complete('claim', 'dropped columns', '{"a":  1}'::json)).outcome IS NOT NULL AS stored;
SELECT outcome, idem_json(r) AS answer FROM idem_claim('claim', 'dropped columns') r;
ROLLBACK;
