-- A shop with stock, a million stored keys, and the tables of the peers.
--
-- psql -v keys=1000000 -v skus=100000 -v peers=1 -f setup.sql, as superuser.
-- With no keys nothing is analyzed: plans are then made as for tables that grow.

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
-- Stored keys, as an executed idem_run with a request of this kind leaves them:
-- completed, with fingerprint and a body of some 40 bytes.  They came in over
-- twelve hours, the last an hour ago, so that those of a measurement are told
-- from them by purge_at.
--

-- Keys are no sequence, but all over the numbers of twelve digits, where new
-- ones fall, too.  The modulus is a prime: no two are the same.
CREATE FUNCTION stored_key(g bigint) RETURNS text LANGUAGE sql IMMUTABLE
	RETURN (100000000000 + g * 61803398875 % 899999999981)::text;

-- Of "total" keys store those from first to last.
CREATE PROCEDURE fill(target regclass, scope text, first bigint, last bigint, total bigint,
	retention interval DEFAULT '24 h')
LANGUAGE plpgsql AS $$
BEGIN
	-- Columns that idem_run leaves null are not named; bench/run compares.
	EXECUTE format($sql$
		INSERT INTO %s (scope, key, state, created_at, finished_at,
			expires_at, purge_at, claim_xid, claimed_by, fingerprint, body)
		SELECT $1, stored_key(g), 'c', at, at,
			at + $5, date_bin('86.4 s', at + $5, '2000-01-01 00:00+00') + interval '86.4 s',
			pg_current_xact_id(), 'app', fingerprint, body
		FROM generate_series($2, $3) g,
			LATERAL (SELECT now() - interval '13 h' + interval '12 h' * (g / $4::float8)) AS a (at),
			LATERAL (SELECT convert_to('{"sku": ' || g %% 100000 + 1
				|| ', "remaining": ' || 1000000000 - g || '}', 'UTF8')) AS b (body),
			idem_fingerprint('{"sku": 7, "quantity": 1}') AS request (fingerprint)
		$sql$, target) USING scope, first, last, total, retention;
END
$$;

-- A million at a time, for many millions not to be one statement.
SELECT format($$CALL fill('idempotency_keys', 'bench', %s, %s, %s)$$,
		g, least(g + 999999, :keys), :keys)
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
\ir peers/leased_table.sql
\ir peers/delete_procedure.sql
\endif

SELECT :keys > 0 AS filled \gset
\if :filled
VACUUM ANALYZE;
\endif
CHECKPOINT;
