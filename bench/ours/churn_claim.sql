-- Claim and answer in a transaction, a new key each.
\set k random(1, 1000000000000000000)
BEGIN;
SELECT * FROM idem_claim('churn', :k, '{"quantity": 1}', policy => 'churn');
SELECT idem_complete('churn', :k, '{"status": "shipped"}', 201);
COMMIT;
