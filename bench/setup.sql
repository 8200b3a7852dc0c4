-- A shop with stock, a million stored keys, and the tables of the peers.
--
-- psql -v keys=1000000 -v skus=100000 -v peers=1 -f setup.sql, as superuser.

\set ON_ERROR_STOP on
SET client_min_messages = warning;
SET synchronous_commit = off;

CREATE EXTENSION idempotency CASCADE;
SELECT 'CREATE ROLE app LOGIN'
	WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'app') \gexec
SELECT idem_grant('app', 'app');

--
-- The work: stock goes down by what was ordered, never below zero.
--

CREATE TABLE stock (
	sku integer PRIMARY KEY,
	quantity bigint NOT NULL CHECK (quantity >= 0)
) WITH (fillfactor = 80);
INSERT INTO stock SELECT g, 1000000000 FROM generate_series(1, :skus) g;

CREATE FUNCTION handler(request jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	wanted integer := request->>'quantity';
	remaining bigint;
BEGIN
	UPDATE stock SET quantity = quantity - wanted
		WHERE sku = (request->>'sku')::integer AND quantity >= wanted
		RETURNING quantity INTO remaining;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'sold out';
	END IF;
	RETURN jsonb_build_object('sku', request->'sku', 'remaining', remaining);
END
$$;
GRANT SELECT, UPDATE ON stock TO app;

-- Requests which a peer refused: the work that the stock does not show.
CREATE TABLE refusals (key text);
GRANT INSERT ON refusals TO app;

--
-- Stored keys, as an executed idem_run with a request of this kind leaves
-- them: completed, with fingerprint and a body of some 50 bytes.
--

CREATE FUNCTION fill(scope text, first bigint, last bigint, retention interval)
RETURNS SETOF idempotency_keys
LANGUAGE sql AS $$
	SELECT scope, (100000000000 + g)::text, 'c', 1,
		(extract(epoch FROM at) * 1000000)::bigint, xid, at, at,
		at + interval '60 s', at + retention,
		at + retention + interval '60 s', NULL::bigint, 200, NULL::uuid,
		'default', 'app', request.fingerprint, NULL::bytea, NULL::json,
		'application/json', length(body), sha256(body), body,
		NULL::text, NULL::jsonb
	FROM generate_series(first, last) g,
		LATERAL (SELECT now() + g * interval '1 us') AS a (at),
		pg_current_xact_id() AS xid,
		LATERAL (SELECT convert_to('{"sku": ' || g % 100000 + 1
			|| ', "remaining": ' || 1000000000 - g || '}', 'UTF8')) AS b (body),
		idem_fingerprint('{"sku": 7, "quantity": 1}') AS request (fingerprint)
$$;

-- A million at a time, for many millions not to be one statement.
SELECT format($$INSERT INTO idempotency_keys SELECT * FROM fill('bench', %s, %s, '24 h')$$,
		g, least(g + 999999, :keys))
	FROM generate_series(1, :keys, 1000000) g \gexec

GRANT SELECT ON idempotency_keys TO app;	-- for peers/select.sql

--
-- Peers.
--

\if :peers
-- peers/insert.sql, peers/delete.sql: a table of the same shape.
CREATE TABLE peer_keys (LIKE idempotency_keys INCLUDING ALL);
INSERT INTO peer_keys SELECT * FROM idempotency_keys;
GRANT SELECT, INSERT ON peer_keys TO app;

\ir peers/plpgsql_function.sql
\ir peers/delete_procedure.sql
\endif

VACUUM ANALYZE;
CHECKPOINT;
