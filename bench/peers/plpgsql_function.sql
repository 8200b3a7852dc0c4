-- What a careful developer writes by hand: one round trip, key, work and
-- answer in one transaction, another request refused, retention indexed.
-- A tuned one: the work is written out in it, no exception block (which is a
-- subtransaction for each call), a hash by a built-in function, a lean table
-- with room for HOT updates.
--
-- It has no lease, policies, roles or audit, and a repeat of a request that is
-- in progress can only wait.

CREATE TABLE peer_requests (
	scope text COLLATE "C",
	key text COLLATE "C",
	fingerprint bytea NOT NULL,
	response jsonb,
	expires_at timestamptz NOT NULL,
	PRIMARY KEY (scope, key)
) WITH (fillfactor = 80);
CREATE INDEX ON peer_requests (expires_at);

CREATE FUNCTION peer_run(scope text, key text, request jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
	hash bytea := sha256(convert_to(request::text, 'UTF8'));
	stored peer_requests;
	wanted integer := request->>'quantity';
	remaining bigint;
	answer jsonb;
BEGIN
	INSERT INTO peer_requests
		VALUES (scope, key, hash, NULL, clock_timestamp() + interval '24 h')
		ON CONFLICT DO NOTHING;
	IF NOT FOUND THEN
		SELECT * INTO stored FROM peer_requests r
			WHERE r.scope = peer_run.scope AND r.key = peer_run.key;
		IF stored.fingerprint <> hash THEN
			RAISE EXCEPTION 'key reused with another request';
		END IF;
		RETURN stored.response;
	END IF;
	UPDATE stock SET quantity = quantity - wanted
		WHERE sku = (request->>'sku')::integer AND quantity >= wanted
		RETURNING quantity INTO remaining;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'sold out';
	END IF;
	answer := jsonb_build_object('sku', request->'sku', 'remaining', remaining);
	UPDATE peer_requests r SET response = answer
		WHERE r.scope = peer_run.scope AND r.key = peer_run.key;
	RETURN answer;
END
$$;

GRANT SELECT, INSERT, UPDATE ON peer_requests TO app;

-- As many stored keys as the extension has.
INSERT INTO peer_requests
	SELECT scope, key, fingerprint, convert_from(body, 'UTF8')::jsonb, expires_at
	FROM idempotency_keys;
