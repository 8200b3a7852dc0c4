-- A lean table of leases, with as many stored keys as the others.

CREATE TABLE peer_leases (
	scope text COLLATE "C",
	key text COLLATE "C",
	fingerprint bytea NOT NULL,
	token bigint NOT NULL,
	lease_until timestamptz NOT NULL,
	response jsonb,
	expires_at timestamptz NOT NULL,
	PRIMARY KEY (scope, key)
) WITH (fillfactor = 80);
CREATE INDEX ON peer_leases (expires_at);
GRANT SELECT, INSERT, UPDATE ON peer_leases TO app;

INSERT INTO peer_leases
	SELECT scope, key, fingerprint, 1, expires_at - interval '24 h', response, expires_at
	FROM peer_requests;
