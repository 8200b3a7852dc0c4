--
-- Rate limiters: what is defined and what is refused.  What they do is in
-- t/050_throttle.pl and t/051_throttle_flood.pl, the arithmetic in
-- test/unit/token_bucket.c: before 17 buckets need the library to be preloaded, and
-- a notice says so.
--
SET client_min_messages = warning;

SELECT idem_limiter('throttle-a', 20, '1 min');
SELECT idem_limiter('throttle-b', 1000000000, '3660 days', '1 us', '3660 days', 'allow');
SELECT idem_limiter(repeat('é', 31), 1, '1 us', '2 h', when_full => 'refuse');
SELECT * FROM idempotency_limiters ORDER BY name;

-- a change is one of the whole limiter
SELECT idem_limiter('throttle-b', 1, '1 day', '1 s');
SELECT * FROM idempotency_limiters WHERE name = 'throttle-b';
BEGIN;
SELECT idem_limiter('throttle-b', 2, '1 day');
SELECT idem_limiter_drop('throttle-a');
ROLLBACK;
SELECT name, capacity FROM idempotency_limiters ORDER BY name;

-- What idem_limiter() refuses, a direct change does not get past, either.
CREATE FUNCTION pg_temp.error_of(change text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('UPDATE idempotency_limiters SET %s WHERE name = ''throttle-b''', change);
	RETURN 'none';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;
SELECT change, pg_temp.error_of(change) AS error FROM unnest(ARRAY[
	$$name = ''$$, $$name = repeat('n', 64)$$, $$name = 'throttle-a'$$, $$capacity = 0$$, $$capacity = 1000000001$$,
	$$capacity = NULL$$, $$per = '0'$$, $$per = '-1 s'$$, $$per = '1 month'$$, $$per = '3661 days'$$, $$per = NULL$$,
	$$backoff_base = '0'$$, $$backoff_base = '1 year'$$, $$backoff_base = '3661 days'$$, $$backoff_max = '1 ms'$$,
	$$backoff_max = '1 month'$$, $$backoff_base = NULL, backoff_max = '1 h'$$, $$when_full = 'perhaps'$$,
	$$when_full = NULL$$, $$backoff_base = '1 h', backoff_max = '1 h'$$]) change;

-- What is refused of a call, before any bucket is asked.
CREATE FUNCTION pg_temp.error_of_call(call text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	hint text;
BEGIN
	EXECUTE 'SELECT * FROM ' || call;
	RETURN 'none';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
	RETURN SQLSTATE || CASE WHEN hint = '' AND SQLSTATE <> '22004' THEN ' without a hint' ELSE '' END;
END
$$;
SELECT call, pg_temp.error_of_call(call) AS error FROM unnest(ARRAY[
	$$idem_throttle_all(NULL, '{s}')$$, $$idem_throttle_all('{throttle-a}', NULL)$$,
	$$idem_throttle_all('{throttle-a,NULL}', '{s,s}')$$, $$idem_throttle_all('{throttle-a,throttle-a}', '{s,NULL}')$$,
	$$idem_throttle_all('{throttle-a}', '{s}', '{NULL}')$$, $$idem_throttle_all('{}', '{}')$$,
	$$idem_throttle_all('{throttle-a}', '{}')$$, $$idem_throttle_all('{throttle-a}', '{s,s}')$$,
	$$idem_throttle_all('{throttle-a,throttle-a}', '{s}')$$, $$idem_throttle_all('{throttle-a}', '{s}', '{}')$$,
	$$idem_throttle_all('{throttle-a}', '{s}', '{1,1}')$$, $$idem_throttle_all('{throttle-a}', '{s}', '{-1}')$$,
	$$idem_throttle_all('{throttle-a}', '{""}')$$, $$idem_throttle_all('{throttle-a}', ARRAY[repeat('s', 1025)])$$,
	$$idem_throttle_all('{{throttle-a}}', '{s}')$$, $$idem_throttle_all('{throttle-a}', '{{s}}')$$,
	$$idem_throttle_all('{throttle-a}', '{s}', '{{1}}')$$,
	$$idem_throttle_all(array_fill('throttle-a'::text, '{33}'), array_fill('s'::text, '{33}'))$$,
	$$idem_throttle_all('{throttle-none}', '{s}')$$, $$idem_throttle_all('{throttle-a,throttle-none}', '{s,s}')$$,
	$$idem_throttle_all('{""}', '{s}')$$,
	$$idem_throttle_peek('throttle-a', 's', NULL)$$, $$idem_throttle_peek('throttle-a', 's', -1)$$,
	$$idem_throttle_return(NULL, 's')$$, $$idem_throttle_return('throttle-a', NULL)$$,
	$$idem_throttle_return('throttle-a', 's', NULL)$$, $$idem_throttle_return('throttle-a', 's', -1)$$,
	$$idem_throttle_return('throttle-a', '')$$, $$idem_throttle_return('throttle-none', 's')$$]) call;

-- Nobody has asked for a bucket; and what a read-only transaction may not do.
SELECT count(*) AS buckets FROM idem_throttle_activity WHERE limiter LIKE 'throttle-%';
SELECT count(*) AS checked FROM idem_health() WHERE check_name = 'buckets';
\set VERBOSITY sqlstate
BEGIN READ ONLY;
SELECT idem_limiter('throttle-a', 1, '1 s');
ROLLBACK;
BEGIN READ ONLY;
SELECT idem_limiter_drop('throttle-a');
ROLLBACK;
SELECT idem_limiter_changed();
\set VERBOSITY default

SELECT name, idem_limiter_drop(name), idem_limiter_drop(name) AS again
FROM (SELECT name FROM idempotency_limiters WHERE name LIKE 'throttle-%' OR name LIKE 'é%' ORDER BY name) l;
SELECT idem_limiter_drop('throttle-never');
