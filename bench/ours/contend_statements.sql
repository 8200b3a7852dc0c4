-- As contend.sql by statements of one transaction.
BEGIN;
SELECT (outcome = 'claimed')::integer AS mine, k FROM (SELECT floor(extract(epoch FROM clock_timestamp()) * 10)::text AS k) AS clock, idem_claim('contention statements', k, '{"sku": 1, "quantity": 1}', wait => '10 s') \gset
\if :mine
SELECT handler('{"sku": 1, "quantity": 1}') AS answer \gset
SELECT idem_complete('contention statements', :k, :answer::jsonb);
\endif
COMMIT;
