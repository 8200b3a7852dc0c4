-- What the clients of a history write.  No constraint on the effects: an effect
-- that happened twice is to be seen.
CREATE EXTENSION amcheck;
CREATE SCHEMA idempotency;
CREATE EXTENSION idempotency SCHEMA idempotency CASCADE;

CREATE TABLE effect (
	id bigint GENERATED ALWAYS AS IDENTITY,
	scope text NOT NULL,
	key text NOT NULL,
	variant integer,
	body bytea,
	status integer,
	headers text,
	content_type text,
	failed boolean NOT NULL DEFAULT false,
	xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
	at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE INDEX ON effect (scope);

-- Keys that an operator took away, in the transaction that did; of a whole scope
-- where key is null.
CREATE TABLE ended (
	scope text NOT NULL,
	key text,
	xid xid8 NOT NULL DEFAULT pg_current_xact_id());
CREATE INDEX ON ended (scope);

GRANT SELECT, INSERT ON effect, ended TO client;

-- The work: an effect, and an answer that no other work has.
CREATE FUNCTION work(request jsonb, answer bytea, status integer, headers text, content_type text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF request->>'mode' = 'raise' THEN
		INSERT INTO effect (scope, key, variant, body)
			VALUES (request->>'scope', request->>'key', (request->>'variant')::integer, 'undone');
		RAISE EXCEPTION 'the work fails' USING ERRCODE = 'P0002';
	END IF;
	INSERT INTO effect (scope, key, variant, body, status, headers, content_type)
		VALUES (request->>'scope', request->>'key', (request->>'variant')::integer, answer,
			status, headers, content_type);
END $$;

CREATE FUNCTION answer_text() RETURNS text LANGUAGE sql VOLATILE AS $$
	SELECT format('{ "nonce" : "%s",  "n": 1.50, "n": 2, "ü": "%s" }', gen_random_uuid(),
		repeat('x', (random() * 40)::integer)) $$;

CREATE FUNCTION work_json(request jsonb) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
	answer text := answer_text();
BEGIN
	PERFORM work(request, convert_to(answer, 'UTF8'), 200, NULL, 'application/json');
	RETURN answer;
END $$;

CREATE FUNCTION work_jsonb(request jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	answer jsonb := answer_text();
BEGIN
	PERFORM work(request, convert_to(answer::text, 'UTF8'), 200, NULL, 'application/json');
	RETURN answer;
END $$;

CREATE FUNCTION work_text(request jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	answer text := answer_text();
BEGIN
	PERFORM work(request, convert_to(answer, 'UTF8'), 200, NULL, 'application/json');
	RETURN answer;
END $$;

CREATE FUNCTION work_bytea(request jsonb) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
	answer bytea := '\x00ff5c27'::bytea || uuid_send(gen_random_uuid());
BEGIN
	PERFORM work(request, answer, 200, NULL, 'application/octet-stream');
	RETURN answer;
END $$;

CREATE FUNCTION work_response(request jsonb) RETURNS idempotency.idem_response LANGUAGE plpgsql AS $$
DECLARE
	answer text := answer_text();
	headers text := '[{"X-A": "1"},  {"X-A": "2"}]';
	status integer := CASE request->>'mode' WHEN 'release' THEN 503 ELSE 201 END;
BEGIN
	PERFORM work(request, convert_to(answer, 'UTF8'), status, headers, 'application/json');
	RETURN idempotency.idem_respond(status, answer::json, headers::json);
END $$;

SET search_path = public, idempotency;
SELECT idem_grant('client', 'app'), idem_grant('client', 'operator');
-- Nothing but the log may tell an operator's test from an application's.
SELECT idem_policy('keep', audit => true);
SELECT idem_policy('plain');
SELECT idem_policy('reject', on_repeat => 'reject', audit => true);
SELECT idem_policy('brief', completed_ttl => '40 milliseconds', failed_ttl => '40 milliseconds',
	audit => true);
SELECT idem_policy('tomb', completed_ttl => '40 milliseconds', failed_ttl => '40 milliseconds',
	on_expiry => 'reject', tombstone => '30 days', audit => true);
SELECT idem_policy('strict', on_unfinished => 'error', audit => true);
SELECT idem_policy('lease', lease => '120 milliseconds', recoverable => true, audit => true);
SELECT idem_secret('context', gen_random_bytes(32)), idem_secret('audit', gen_random_bytes(32));
