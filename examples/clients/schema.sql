-- What the recipes of doc/clients.md buy from.
--
-- To be run once, by a superuser, in an empty database.  shop_web is the role
-- that the programs connect as: a trusted server, which has the level "app" and
-- may call the handler, and has no rights on the tables.

CREATE SCHEMA idempotency;
CREATE EXTENSION idempotency SCHEMA idempotency CASCADE;
CREATE ROLE idempotency_owner NOLOGIN;
GRANT USAGE ON SCHEMA idempotency TO idempotency_owner;
ALTER TABLE idempotency.idempotency_keys OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_policies OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_limiters OWNER TO idempotency_owner;

CREATE ROLE shop_owner NOLOGIN;
CREATE ROLE shop_web LOGIN;
SELECT idempotency.idem_grant('shop_web', 'app');

-- A repeat that meets the first try still at work waits a second for its answer.
SELECT idempotency.idem_policy('orders', completed_ttl => '24 h', wait => '1 s',
	require_fingerprint => true);

CREATE SCHEMA shop AUTHORIZATION shop_owner;
GRANT USAGE ON SCHEMA shop TO shop_web;
SET ROLE shop_owner;

CREATE TABLE shop.stock (
	sku text PRIMARY KEY,
	quantity integer NOT NULL CHECK (quantity >= 0)
);

-- Nothing is unique here: a purchase that ran twice would be seen.
CREATE TABLE shop.sales (reference text, sku text NOT NULL);

INSERT INTO shop.stock
	SELECT unnest('{c, python, node, java, go}'::text[]), 1000000;

CREATE FUNCTION shop.buy(request jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = shop, pg_temp
AS $$
DECLARE
	left_over integer;
BEGIN
	UPDATE stock SET quantity = quantity - 1
		WHERE sku = request->>'sku' RETURNING quantity INTO left_over;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'no such article: %', request->>'sku'
			USING ERRCODE = 'P0002';
	END IF;
	INSERT INTO sales VALUES (request->>'reference', request->>'sku');
	RETURN jsonb_build_object('left', left_over, 'for', request->>'reference');
END
$$;

REVOKE ALL ON FUNCTION shop.buy(jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION shop.buy(jsonb) TO shop_web;
RESET ROLE;
