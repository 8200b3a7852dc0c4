--
-- The furniture shop of examples/furnitureops keeps its promises.
-- How it fares with many clients at once: scripts/demo, t/060_shop.pl.
--
-- A database of its own, since the example installs the extension itself.
--
\set regress_database :DBNAME
CREATE DATABASE regress_idempotency_shop TEMPLATE template0 ENCODING 'UTF8';
\c regress_idempotency_shop
SET client_min_messages = warning;
\getenv abs_srcdir PG_ABS_SRCDIR
\set schema :abs_srcdir '/examples/furnitureops/schema.sql'
\set ECHO none
\o /dev/null
\i :schema
\o
\set ECHO all

-- what is the same after everything that must change nothing
\set state 'SELECT s.sku, s.quantity, s.sold, (SELECT count(*) FROM shop.sales x WHERE x.sku = s.sku) AS sales, (SELECT count(*) FROM idempotency.idempotency_keys) AS keys, (SELECT count(*) FROM idempotency.idempotency_audit_log) AS audit FROM shop.stock s WHERE s.sku = ''sofa'';'

-- the policy: valid for 60 seconds, refused for a day, 409 for another payload
SELECT * FROM idempotency.idem_policy_list WHERE name = 'furnitureops' \gx

-- the first purchase runs, repeats get its answer
SET SESSION AUTHORIZATION shop_web;
SELECT outcome, http_status, headers, content_type, convert_from(body, 'UTF8') AS body
	FROM shop.buy('ada', 'k1', '{"sku": "sofa", "quantity": 2, "reference": "r1"}');
SELECT outcome, http_status, headers, content_type, convert_from(body, 'UTF8') AS body
	FROM shop.buy('ada', 'k1', '{"sku": "sofa", "quantity": 2, "reference": "r1"}');
-- spacing and order of a JSON object are no difference
SELECT outcome, http_status, idempotency.idem_json(b) ->> 'left' AS "left"
	FROM shop.buy('ada', 'k1', '{"reference":"r1","quantity":2,"sku":"sofa"}') b;
RESET SESSION AUTHORIZATION;
:state

-- another payload under the same key is refused
SET SESSION AUTHORIZATION shop_web;
SELECT outcome, http_status, error_code, body IS NULL AS no_body
	FROM shop.buy('ada', 'k1', '{"sku": "sofa", "quantity": 1, "reference": "r1"}');
-- and so is a key without a payload
\set VERBOSITY sqlstate
SELECT outcome FROM shop.buy('ada', 'k1', NULL);
\set VERBOSITY default
RESET SESSION AUTHORIZATION;
:state

-- a sold-out article, an unknown one, and what is no purchase at all
SET SESSION AUTHORIZATION shop_web;
\set VERBOSITY terse
SELECT outcome FROM shop.buy('ada', 'k2', '{"sku": "sofa", "quantity": 2}');
\echo :LAST_ERROR_SQLSTATE
SELECT outcome FROM shop.buy('ada', 'k2', '{"sku": "unicorn", "quantity": 1}');
\echo :LAST_ERROR_SQLSTATE
SELECT outcome FROM shop.buy('ada', 'k2', '{"sku": "sofa", "quantity": 0}');
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY sqlstate
SELECT outcome FROM shop.buy('ada', 'k2', '{"sku": "sofa", "quantity": -1}');
SELECT outcome FROM shop.buy('ada', 'k2', '{"sku": "sofa", "quantity": 1.5}');
SELECT outcome FROM shop.buy('ada', 'k2', '{"sku": "sofa", "quantity": null}');
SELECT outcome FROM shop.buy('ada', 'k2', '{"sku": "sofa", "quantity": 100000}');
SELECT outcome FROM shop.buy('ada', 'k2', '{"quantity": 1}');
SELECT outcome FROM shop.buy('ada', 'k2', '["sofa", 1]');
SELECT outcome FROM shop.buy('ada', 'k2', '"sofa"');
RESET SESSION AUTHORIZATION;
-- nothing has changed
:state
-- not even the owner of the shop can sell what is not there
SET SESSION AUTHORIZATION shop_owner;
UPDATE shop.stock SET quantity = quantity - 2 WHERE sku = 'sofa';
\set VERBOSITY default

-- an error frees the key: after a delivery the same request succeeds
UPDATE shop.stock SET quantity = quantity + 10 WHERE sku = 'sofa';
SET SESSION AUTHORIZATION shop_web;
SELECT outcome, attempt, http_status, convert_from(body, 'UTF8') AS body
	FROM shop.buy('ada', 'k2', '{"sku": "sofa", "quantity": 2}');

-- a key belongs to its customer, whose name cannot reach another one's scope
SELECT outcome FROM shop.buy('bob', 'k1', '{"sku": "sofa", "quantity": 1, "reference": "r1"}');
\set VERBOSITY sqlstate
SELECT outcome FROM shop.buy(E'ada\x1eb', 'k1', '{"sku": "sofa", "quantity": 1}');
SELECT outcome FROM shop.buy('', 'k1', '{"sku": "sofa", "quantity": 1}');
SELECT outcome FROM shop.buy('ada', '', '{"sku": "sofa", "quantity": 1}');
SELECT outcome FROM shop.buy('ada', NULL, '{"sku": "sofa", "quantity": 1}');
\set VERBOSITY default

-- a rollback undoes purchase, key and audit rows together
RESET SESSION AUTHORIZATION;
:state
SET SESSION AUTHORIZATION shop_web;
BEGIN;
SELECT outcome FROM shop.buy('ada', 'k3', '{"sku": "sofa", "quantity": 1}');
ROLLBACK;
RESET SESSION AUTHORIZATION;
:state

-- the trusted server, with a transaction of its own and the same keys
SET SESSION AUTHORIZATION shop_backend;
SELECT outcome, http_status, convert_from(body, 'UTF8') AS body
	FROM idempotency.idem_claim(idempotency.idem_scope('furnitureops', 'buy', 'ada'), 'k1',
		'{"sku": "sofa", "quantity": 2, "reference": "r1"}', policy => 'furnitureops');
BEGIN;
SELECT outcome
	FROM idempotency.idem_claim(idempotency.idem_scope('furnitureops', 'buy', 'ada'), 'k4',
		'{"sku": "sofa", "quantity": 1}', policy => 'furnitureops');
SELECT status_code, headers, content_type, body
	FROM shop.decrement_stock_atomic('{"sku": "sofa", "quantity": 1}') \gset
SELECT (idempotency.idem_complete(idempotency.idem_scope('furnitureops', 'buy', 'ada'), 'k4',
	:'body'::bytea, :status_code, :'headers', :'content_type')).expires_at > now() AS kept;
COMMIT;
SET SESSION AUTHORIZATION shop_web;
SELECT outcome, http_status, headers, content_type, convert_from(body, 'UTF8') AS body
	FROM shop.buy('ada', 'k4', '{"sku": "sofa", "quantity": 1}');
RESET SESSION AUTHORIZATION;

-- a purchase and its audit rows are of one transaction
SELECT count(DISTINCT xid) AS transactions, array_agg(action ORDER BY id) AS actions,
	array_agg(DISTINCT session_role) AS session_roles
	FROM idempotency.idempotency_audit_log
	GROUP BY xid ORDER BY min(id);
SELECT a.entity_id AS sku, a.detail, s.sku = a.entity_id AND s.xmin = a.xid::xid AS same
	FROM idempotency.idempotency_audit_log a
	LEFT JOIN shop.sales s ON s.id = (a.detail ->> 'sale')::bigint
	WHERE a.action = 'sale' ORDER BY a.id;

-- if an audit row cannot be written, nothing is sold and the key stays free
:state
ALTER TABLE idempotency.idempotency_audit_log
	ADD CONSTRAINT broken CHECK (action <> 'sale') NOT VALID;
SET SESSION AUTHORIZATION shop_web;
\set VERBOSITY sqlstate
SELECT outcome FROM shop.buy('ada', 'k5', '{"sku": "sofa", "quantity": 1}');
RESET SESSION AUTHORIZATION;
ALTER TABLE idempotency.idempotency_audit_log DROP CONSTRAINT broken;
ALTER TABLE idempotency.idempotency_audit_log
	ADD CONSTRAINT broken CHECK (action <> 'completed') NOT VALID;
SET SESSION AUTHORIZATION shop_web;
SELECT outcome FROM shop.buy('ada', 'k5', '{"sku": "sofa", "quantity": 1}');
\set VERBOSITY default
RESET SESSION AUTHORIZATION;
:state
ALTER TABLE idempotency.idempotency_audit_log DROP CONSTRAINT broken;
SET SESSION AUTHORIZATION shop_web;
SELECT outcome, attempt FROM shop.buy('ada', 'k5', '{"sku": "sofa", "quantity": 1}');

-- the edge nodes may buy, and nothing else
SELECT * FROM shop.stock;
UPDATE shop.stock SET quantity = 0;
SELECT * FROM shop.sales;
SELECT * FROM idempotency.idempotency_keys;
DELETE FROM idempotency.idempotency_keys;
SELECT * FROM idempotency.idempotency_audit_log;
SELECT shop.decrement_stock_atomic('{"sku": "sofa", "quantity": 1}');
SELECT idempotency.idem_claim('furnitureops', 'k1');
SELECT idempotency.idem_run('shop.decrement_stock_atomic(jsonb)', 'mine', 'k1', '{}');
SELECT idempotency.idem_lookup('furnitureops', 'k1');
SELECT idempotency.idem_audit('sale', 'stock', 'sofa');
SELECT idempotency.idem_policy('furnitureops', audit => false);

-- nobody changes the audit log: neither who writes it nor who owns it
SET SESSION AUTHORIZATION shop_owner;
INSERT INTO idempotency.idempotency_audit_log SELECT * FROM idempotency.idempotency_audit_log;
UPDATE idempotency.idempotency_audit_log SET action = 'theft';
SELECT idempotency.idem_audit('completed', 'idempotency_key', 'k1');
SET SESSION AUTHORIZATION idempotency_owner;
UPDATE idempotency.idempotency_audit_log SET action = 'theft';
DELETE FROM idempotency.idempotency_audit_log;
TRUNCATE idempotency.idempotency_audit_log;
RESET SESSION AUTHORIZATION;
SELECT relrowsecurity FROM pg_class
	WHERE oid = 'idempotency.idempotency_audit_log'::regclass;
SELECT grantee::regrole, privilege_type
	FROM pg_class, aclexplode(relacl)
	WHERE oid = 'idempotency.idempotency_audit_log'::regclass AND grantee <> relowner;

-- when a key has expired its request is refused, every time, and any other
-- with that key as well; 60 seconds are long, so for now it is less
SELECT idempotency.idem_policy('furnitureops', completed_ttl => '10 ms');
SET SESSION AUTHORIZATION shop_web;
SELECT outcome FROM shop.buy('ada', 'k6', '{"sku": "sofa", "quantity": 1}');
SELECT pg_sleep(0.1);
RESET SESSION AUTHORIZATION;
:state
SET SESSION AUTHORIZATION shop_web;
SELECT outcome, http_status, error_code, body IS NULL AS no_body
	FROM shop.buy('ada', 'k6', '{"sku": "sofa", "quantity": 1}');
SELECT outcome, http_status, error_code, body IS NULL AS no_body
	FROM shop.buy('ada', 'k6', '{"sku": "sofa", "quantity": 1}');
SELECT outcome, http_status, error_code, body IS NULL AS no_body
	FROM shop.buy('ada', 'k6', '{"sku": "sofa", "quantity": 2}');
RESET SESSION AUTHORIZATION;
:state
-- for a day, and until then no sweep takes it away
SELECT idempotency.idem_policy('furnitureops', completed_ttl => '60 s');
SELECT idempotency.idem_sweep();
SET SESSION AUTHORIZATION shop_web;
SELECT outcome FROM shop.buy('ada', 'k6', '{"sku": "sofa", "quantity": 1}');
RESET SESSION AUTHORIZATION;
SELECT key, purge_at >= expires_at + interval '24 hours' AS remembered
	FROM idempotency.idempotency_keys WHERE key = 'k6';

-- nothing was lost: every sofa is in stock or sold
SELECT quantity + sold AS constant, sold = (SELECT sum(quantity) FROM shop.sales) AS accounted
	FROM shop.stock WHERE sku = 'sofa';
SELECT state, count(*) FROM idempotency.idempotency_keys GROUP BY state;
SELECT check_name, ok FROM idempotency.idem_health()
	WHERE check_name IN ('schema_safe', 'pgcrypto', 'primary_key', 'triggers') ORDER BY 1;

\c :regress_database
DROP DATABASE regress_idempotency_shop;
DROP ROLE shop_web, shop_backend, shop_owner, shop_keys, idempotency_owner;
