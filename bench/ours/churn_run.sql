-- Claim, work and answer in one statement, a new key each.
\set k random(1, 1000000000000000000)
SELECT * FROM idem_run('handler(jsonb)', 'churn', :k, '{"quantity": 1}', 'churn');
