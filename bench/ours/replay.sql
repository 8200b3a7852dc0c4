-- A repeat of a finished request; its fingerprint was computed by the client.
\set k random(100000000001, 100000000000 + :keys)
SELECT * FROM idem_claim('bench', :k, fingerprint => '\xafaf494bc58c00cbff5b56b5eeed53cc1be90f80fef26aa1cf047e0ae4f4feb2');
