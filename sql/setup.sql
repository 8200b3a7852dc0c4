--
-- What other tests share: it is run before them, in the same database.  To run
-- one alone: make installcheck REGRESS='setup claim'
--
SET client_min_messages = warning;
CREATE EXTENSION idempotency CASCADE;
RESET client_min_messages;
CREATE SCHEMA regress;
GRANT USAGE ON SCHEMA regress TO PUBLIC;

-- Make a key older: all its times move into the past.
CREATE FUNCTION regress.age(in_scope text, in_key text, by interval)
RETURNS void LANGUAGE sql AS $$
	UPDATE idempotency_keys
	SET created_at = created_at - by, finished_at = finished_at - by,
		lease_until = lease_until - by, expires_at = expires_at - by,
		purge_at = purge_at - by
	WHERE scope = in_scope AND key = in_key;
$$;

CREATE FUNCTION regress.token(in_scope text, in_key text)
RETURNS bigint LANGUAGE sql AS $$
	SELECT token FROM idempotency_keys WHERE scope = in_scope AND key = in_key;
$$;

-- The columns of a result that are not null, in their order.
CREATE FUNCTION regress.given(result idem_result)
RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(key, ' ' ORDER BY ord)
	FROM json_each_text(row_to_json(result)) WITH ORDINALITY e (key, value, ord)
	WHERE value IS NOT NULL;
$$;

-- SQLSTATE of a statement; what it did is undone.
CREATE FUNCTION regress.sqlstate_of(sql text)
RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		EXECUTE sql;
		RAISE EXCEPTION USING ERRCODE = 'P9999';
	EXCEPTION WHEN OTHERS OR query_canceled THEN
		RETURN CASE SQLSTATE WHEN 'P9999' THEN 'no error' ELSE SQLSTATE END;
	END;
END
$$;

-- And whether it has a hint; a null argument says all by itself.
CREATE FUNCTION regress.error_of(sql text)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	hint text;
BEGIN
	BEGIN
		EXECUTE sql;
		RAISE EXCEPTION USING ERRCODE = 'P9999';
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
		RETURN CASE SQLSTATE WHEN 'P9999' THEN 'no error'
			WHEN '22004' THEN SQLSTATE
			ELSE SQLSTATE || CASE hint WHEN '' THEN ' without a hint' ELSE '' END END;
	END;
END
$$;

-- A handler that does nothing.
CREATE FUNCTION regress.answer(request jsonb) RETURNS json LANGUAGE sql AS $$ SELECT '1'::json $$;

-- Claim a key of scope "finish" and finish it in one transaction by the call
-- given; and what repeats of such keys get.
CREATE FUNCTION regress.finish(in_key text, call text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idem_require('finish', in_key);
	EXECUTE format('SELECT ' || call, in_key);
END
$$;

CREATE VIEW regress.finished AS
SELECT key, l.outcome, l.status_code AS status, l.headers, l.content_type,
	left(encode(l.body, 'escape'), 40) AS body, l.body_size AS size,
	l.body_sha256 = sha256(l.body) AS digest, l.expires_at - l.finished_at AS kept
FROM idempotency_keys k, LATERAL idem_lookup(k.scope, k.key) l
WHERE scope = 'finish';
