-- An identity hub: owners' devices, the channels of their nodes, certificates.
--
-- To be run once, by a superuser, in an empty database:
--
--     psql --set ON_ERROR_STOP=1 --single-transaction --file schema.sql hub
--
-- Roles, none of which has rights that it does not need:
--
--     idempotency_owner  owns keys and policies; the extension runs as this role
--     hub_owner          owns the hub; its functions run as this role
--     hub_web            the HTTP server: may call hub.handle(), no more
--
-- Then, as a superuser, the secret that binds keys to clients; without it no
-- request is served:
--
--     SELECT idempotency.idem_secret('context', idempotency.gen_random_bytes(32));

CREATE ROLE idempotency_owner NOLOGIN;
CREATE ROLE hub_owner NOLOGIN;
CREATE ROLE hub_web LOGIN;

CREATE SCHEMA idempotency;
CREATE EXTENSION idempotency SCHEMA idempotency CASCADE;
GRANT USAGE ON SCHEMA idempotency TO idempotency_owner;
ALTER TABLE idempotency.idempotency_keys OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_policies OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_limiters OWNER TO idempotency_owner;

-- An answer is repeated for a day.  For 30 days after that the key is refused;
-- until then it is not executed again.  A caller whose request is being
-- executed by another one waits for that answer.
SELECT idempotency.idem_policy('hub',
	completed_ttl => '24 hours',
	on_expiry => 'reject',
	tombstone => '30 days',
	require_fingerprint => true,
	wait => '30 seconds');

CREATE SCHEMA hub AUTHORIZATION hub_owner;
SELECT idempotency.idem_grant('hub_owner', 'app');
SET ROLE hub_owner;

CREATE TABLE hub.hub_subnets (
	subnet_id text PRIMARY KEY
);

CREATE TABLE hub.hub_channels (
	node_id text PRIMARY KEY,
	token text NOT NULL,
	subnet_id text NOT NULL REFERENCES hub.hub_subnets,
	expires_at timestamptz NOT NULL,
	created_at timestamptz NOT NULL DEFAULT current_timestamp,
	rotated_at timestamptz,
	revoked boolean NOT NULL DEFAULT false
);

-- Nothing is unique here, or in the events, but the id: what keeps a request
-- from taking effect twice is its idempotency key alone.
CREATE TABLE hub.denylist (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	subnet_id text NOT NULL REFERENCES hub.hub_subnets,
	entry text NOT NULL,
	added_by text NOT NULL,
	added_at timestamptz NOT NULL DEFAULT current_timestamp
);

CREATE TABLE hub.certificate_requests (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	node_id text NOT NULL,
	csr text NOT NULL,
	certificate text,
	signed_at timestamptz
);
CREATE INDEX certificate_requests_queued
	ON hub.certificate_requests (id) WHERE certificate IS NULL;

CREATE TABLE hub.principals (
	principal text PRIMARY KEY,
	requests bigint NOT NULL
);

CREATE TABLE hub.events (
	id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	at timestamptz NOT NULL DEFAULT current_timestamp,
	principal text NOT NULL,
	kind text NOT NULL,
	subject text
);

-- The parts of a handler.  They run as hub_owner, by hub.handle(), and see its
-- search_path and the principal that it leaves in a setting.

CREATE FUNCTION hub.refuse(state text, code text, detail text)
RETURNS void LANGUAGE plpgsql
AS $$
BEGIN
	RAISE EXCEPTION USING ERRCODE = state, MESSAGE = code, DETAIL = detail;
END
$$;

-- The end of every handler: the request is counted, the event written, and the
-- answer is an envelope with both.  The principal's row is locked last, so that
-- nobody waits for another one's work, and no two can deadlock.
CREATE FUNCTION hub.answer(kind text, subject text, data json)
RETURNS idempotency.idem_response
LANGUAGE plpgsql
AS $$
DECLARE
	caller text := current_setting('hub.principal');
	event uuid;
	counted bigint;
BEGIN
	INSERT INTO events (principal, kind, subject)
		VALUES (caller, answer.kind, answer.subject)
		RETURNING id INTO event;
	INSERT INTO principals (principal, requests) VALUES (caller, 1)
		ON CONFLICT (principal)
			DO UPDATE SET requests = principals.requests + 1
		RETURNING requests INTO counted;
	RETURN idem_respond(200,
		json_build_object('ok', true, 'event_id', event,
			'server_time', idem_http_time(current_timestamp),
			'principal', caller, 'requests', counted, 'data', data),
		json_build_array(json_build_object('X-Event-Id', event),
			json_build_object('Cache-Control', 'no-store')));
END
$$;

-- The handlers of idem_run.  Each gets the body of the request.  An error with
-- a SQLSTATE HBnnn is answered with the status nnn, and frees the key.

-- {"node_id": …}: a new token for the channel of a node.
CREATE FUNCTION hub.rotate_channel_token(request jsonb)
RETURNS idempotency.idem_response
LANGUAGE plpgsql
AS $$
DECLARE
	channel hub.hub_channels;
BEGIN
	UPDATE hub_channels
		SET token = encode(gen_random_bytes(32), 'hex'),
			rotated_at = current_timestamp,
			expires_at = current_timestamp + interval '90 days'
		WHERE node_id = request ->> 'node_id' AND NOT revoked
		RETURNING * INTO channel;
	IF NOT FOUND THEN
		PERFORM refuse('HB404', 'channel_not_found',
			'There is no such channel, or it has been revoked.');
	END IF;
	RETURN answer('channel.rotated', channel.node_id,
		json_build_object('node_id', channel.node_id, 'token', channel.token,
			'subnet_id', channel.subnet_id,
			'expires_at', idem_http_time(channel.expires_at),
			'created_at', idem_http_time(channel.created_at),
			'rotated_at', idem_http_time(channel.rotated_at)));
END
$$;

-- {"subnet_id": …, "entry": …}: an entry in the denylist of a subnet.
CREATE FUNCTION hub.deny(request jsonb)
RETURNS idempotency.idem_response
LANGUAGE plpgsql
AS $$
DECLARE
	added hub.denylist;
BEGIN
	IF coalesce(request ->> 'entry', '') = '' THEN
		PERFORM refuse('HB400', 'entry_missing', 'Say what is to be denied.');
	END IF;
	INSERT INTO denylist (subnet_id, entry, added_by)
		SELECT subnet_id, request ->> 'entry', current_setting('hub.principal')
		FROM hub_subnets WHERE subnet_id = request ->> 'subnet_id'
		RETURNING * INTO added;
	IF NOT FOUND THEN
		PERFORM refuse('HB404', 'subnet_not_found', 'There is no such subnet.');
	END IF;
	RETURN answer('denylist.added', added.subnet_id,
		json_build_object('id', added.id, 'subnet_id', added.subnet_id,
			'entry', added.entry, 'added_at', idem_http_time(added.added_at)));
END
$$;

-- {"id": …}, or {} for the one that has waited longest: sign a certificate
-- request.  Signers do not wait for one another.  This is no X.509: in place
-- of a signature there is an HMAC with a key that is for tests.
CREATE FUNCTION hub.sign_certificate(request jsonb)
RETURNS idempotency.idem_response
LANGUAGE plpgsql
AS $$
DECLARE
	signed hub.certificate_requests;
BEGIN
	SELECT * INTO signed FROM certificate_requests
		WHERE certificate IS NULL
			AND (NOT request ? 'id' OR id::text = request ->> 'id')
		ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED;
	IF NOT FOUND THEN
		PERFORM refuse('HB404', 'nothing_to_sign',
			'There is no such certificate request, or somebody else has it.');
	END IF;
	UPDATE certificate_requests
		SET certificate = encode(hmac(csr, 'a key for tests', 'sha256'), 'hex'),
			signed_at = current_timestamp
		WHERE id = signed.id
		RETURNING * INTO signed;
	RETURN answer('certificate.signed', signed.node_id,
		json_build_object('id', signed.id, 'node_id', signed.node_id,
			'certificate', signed.certificate,
			'signed_at', idem_http_time(signed.signed_at)));
END
$$;

-- Any body: a sign of life, which does nothing but be counted.
CREATE FUNCTION hub.count_request(request jsonb)
RETURNS idempotency.idem_response
LANGUAGE plpgsql
AS $$
BEGIN
	RETURN answer('request.counted', NULL, NULL);
END
$$;

-- The identity of a request is its key and this: so another method, path or
-- principal, or another body, is another request under the same key.
CREATE FUNCTION hub.scope(method text, path text, principal text, body jsonb)
RETURNS text LANGUAGE sql STABLE
RETURN idempotency.idem_scope(method, path, principal,
	encode(idempotency.idem_fingerprint(body), 'hex'));

-- What the HTTP server calls, once for each request.  The context binds the key
-- to origin, address and user agent.  A repeat gets the very headers of the
-- first answer: so nothing says that it is one.
CREATE FUNCTION hub.handle(method text, path text, principal text,
	key_header text, body jsonb, origin text, address text, user_agent text)
RETURNS TABLE (status integer, headers json, content_type text, answer bytea)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = hub, idempotency, pg_temp
AS $$
DECLARE
	handler regprocedure := CASE method || ' ' || path
		WHEN 'POST /channels/token' THEN 'hub.rotate_channel_token(jsonb)'
		WHEN 'PUT /channels/token' THEN 'hub.rotate_channel_token(jsonb)'
		WHEN 'POST /denylist' THEN 'hub.deny(jsonb)'
		WHEN 'POST /certificates/sign' THEN 'hub.sign_certificate(jsonb)'
		WHEN 'POST /requests' THEN 'hub.count_request(jsonb)'
	END;
	result idem_result;
	problem json;
BEGIN
	IF coalesce(principal, '') = '' THEN
		problem := idem_http_problem('principal_missing');
	ELSIF key_header IS NULL THEN
		problem := idem_http_problem('idempotency_key_missing');
	ELSE
		PERFORM set_config('hub.principal', principal, true);
		SELECT * INTO result FROM idem_run(handler,
			scope(method, path, principal, body), idem_key(key_header), body,
			'hub', idem_context(coalesce(origin, ''), address, coalesce(user_agent, '')));
		problem := idem_http_problem(result);
	END IF;
	RETURN QUERY SELECT coalesce(result.http_status, (problem ->> 'status')::integer),
		coalesce(idem_http_headers(result), '[]'),
		CASE WHEN problem IS NULL THEN result.content_type
			ELSE 'application/problem+json' END,
		CASE WHEN problem IS NULL THEN result.body
			ELSE convert_to(problem::text, 'UTF8') END;
END
$$;

-- The scope is made by hub.handle(), so that the HTTP server has no power over
-- the keys of anything else.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA hub FROM PUBLIC;
GRANT USAGE ON SCHEMA hub TO hub_web;
GRANT EXECUTE ON FUNCTION hub.handle(text, text, text, text, jsonb, text, text, text) TO hub_web;
RESET ROLE;
