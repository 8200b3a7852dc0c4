-- As plpgsql_function.sql, with an answer of the size that the request asks
-- for.  The bytes are random, so that TOAST cannot compress them.

CREATE TABLE bodies (size integer PRIMARY KEY, body bytea NOT NULL);
INSERT INTO bodies
	SELECT size, substr(string_agg(gen_random_bytes(1000), ''), 1, size)
	FROM unnest('{100, 10000, 1000000}'::integer[]) AS size,
		generate_series(1, size, 1000)
	GROUP BY size;
GRANT SELECT ON bodies TO app;

CREATE FUNCTION body_handler(request jsonb) RETURNS bytea LANGUAGE plpgsql AS $$
BEGIN
	PERFORM handler(request);
	RETURN (SELECT body FROM bodies WHERE size = (request->>'bytes')::integer);
END
$$;

CREATE TABLE peer_bodies (
	scope text COLLATE "C",
	key text COLLATE "C",
	fingerprint bytea NOT NULL,
	response bytea,
	expires_at timestamptz NOT NULL,
	PRIMARY KEY (scope, key)
) WITH (fillfactor = 80);
CREATE INDEX ON peer_bodies (expires_at);
GRANT SELECT, INSERT, UPDATE ON peer_bodies TO app;

CREATE FUNCTION peer_body_run(scope text, key text, request jsonb) RETURNS bytea
LANGUAGE plpgsql AS $$
DECLARE
	hash bytea := sha256(convert_to(request::text, 'UTF8'));
	stored peer_bodies;
	wanted integer := request->>'quantity';
	answer bytea;
BEGIN
	INSERT INTO peer_bodies
		VALUES (scope, key, hash, NULL, clock_timestamp() + interval '24 h')
		ON CONFLICT DO NOTHING;
	IF NOT FOUND THEN
		SELECT * INTO stored FROM peer_bodies r
			WHERE r.scope = peer_body_run.scope AND r.key = peer_body_run.key;
		IF stored.fingerprint <> hash THEN
			RAISE EXCEPTION 'key reused with another request';
		END IF;
		RETURN stored.response;
	END IF;
	UPDATE stock SET quantity = quantity - wanted
		WHERE sku = (request->>'sku')::integer AND quantity >= wanted;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'sold out';
	END IF;
	SELECT body INTO answer FROM bodies WHERE size = (request->>'bytes')::integer;
	UPDATE peer_bodies r SET response = answer
		WHERE r.scope = peer_body_run.scope AND r.key = peer_body_run.key;
	RETURN answer;
END
$$;

-- Answers to be replayed, stored by idem_run itself under the application's
-- role: the keys of a size start at 10,000 times that.
SET ROLE app;
SELECT count(*) AS stored FROM generate_series(1, :bodies) g,
	unnest('{100, 10000, 1000000}'::bigint[]) AS size,
	idem_run('body_handler(jsonb)', 'bodies', (10000 * size + g)::text,
		jsonb_build_object('sku', 1, 'quantity', 1, 'bytes', size)) r
	WHERE outcome = 'completed' AND octet_length(r.body) = size;
RESET ROLE;
