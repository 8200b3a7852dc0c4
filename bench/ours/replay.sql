-- A repeat of a finished request; its fingerprint was computed by the client.
-- Stored keys are numbered by stored_key() in setup.sql.
\set k 100000000000 + random(1, :keys) * 61803398875 % 899999999981
SELECT * FROM idem_claim('bench', :k, fingerprint => '\xafaf494bc58c00cbff5b56b5eeed53cc1be90f80fef26aa1cf047e0ae4f4feb2');
