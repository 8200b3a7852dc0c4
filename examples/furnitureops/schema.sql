-- A furniture shop on distributed edge nodes: no purchase runs twice, however
-- often and wherever it is repeated.
--
-- To be run once, by a superuser, in an empty database:
--
--     psql --set ON_ERROR_STOP=1 --single-transaction --file schema.sql shop
--
-- Roles, none of which has rights that it does not need:
--
--     idempotency_owner  owns the keys; the extension's functions run as this role
--     shop_owner         owns the shop; its functions run as this role
--     shop_keys          owns the keys of both ways to buy, and nothing else
--     shop_web           the edge nodes: may call shop.buy(), no more
--     shop_backend       a trusted server, which writes its own transactions

CREATE ROLE idempotency_owner NOLOGIN;
CREATE ROLE shop_owner NOLOGIN;
CREATE ROLE shop_keys NOLOGIN;
CREATE ROLE shop_web LOGIN;
CREATE ROLE shop_backend LOGIN;
GRANT shop_keys TO shop_owner, shop_backend;

-- Schema, extension and audit log stay with the superuser who creates them: so
-- nobody else can change the log, or drop what is in it.
CREATE SCHEMA idempotency;
CREATE EXTENSION idempotency SCHEMA idempotency CASCADE;
GRANT USAGE ON SCHEMA idempotency TO idempotency_owner;
ALTER TABLE idempotency.idempotency_keys OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_policies OWNER TO idempotency_owner;
ALTER TABLE idempotency.idempotency_limiters OWNER TO idempotency_owner;

-- A key is valid for 60 seconds.  For a day after that a repeat is refused, an
-- attacker's late one too; only then could the key be used again.
SELECT idempotency.idem_policy('furnitureops',
	completed_ttl => '60 s',
	on_expiry => 'reject',
	tombstone => '24 h',
	require_fingerprint => true,
	mismatch_status => 409,
	owner_role => 'shop_keys',
	audit => true);

-- 20 purchases a minute from one address; who goes on nevertheless is refused
-- for 1 second, for 2, for 4, up to 15 minutes.
SELECT idempotency.idem_limiter('furnitureops', 20, '1 min',
	backoff_base => '1 s', backoff_max => '15 min');

CREATE SCHEMA shop AUTHORIZATION shop_owner;
SELECT idempotency.idem_grant('shop_owner', 'app');
SET ROLE shop_owner;

CREATE TABLE shop.stock (
	sku text PRIMARY KEY,
	quantity integer NOT NULL CHECK (quantity >= 0),
	sold integer NOT NULL DEFAULT 0 CHECK (sold >= 0)
);

-- Nothing is unique here but the id: what keeps a purchase from being sold
-- twice is its idempotency key alone.
CREATE TABLE shop.sales (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	sku text NOT NULL REFERENCES shop.stock,
	quantity integer NOT NULL CHECK (quantity > 0),
	reference text,
	sold_at timestamptz NOT NULL DEFAULT current_timestamp
);

INSERT INTO shop.stock (sku, quantity) VALUES
	('armchair', 40), ('bookcase', 25), ('sofa', 3);

-- The work of a purchase; request is {"sku": …, "quantity": …, "reference": …}.
-- A handler of idem_run.  Stock, sale and audit row change together or not at
-- all; an error frees the key.
--
--     SHP01  not enough in stock
--     SHP02  no such article
--     SHP03  the request is no purchase
CREATE FUNCTION shop.decrement_stock_atomic(request jsonb)
RETURNS idempotency.idem_response
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = shop, idempotency, pg_temp
AS $$
DECLARE
	wanted_sku text := request ->> 'sku';
	wanted integer;
	available integer;
	sale bigint;
BEGIN
	IF wanted_sku IS NULL OR
		coalesce(request ->> 'quantity', '') !~ '^[1-9][0-9]{0,4}$'
	THEN
		RAISE EXCEPTION USING
			ERRCODE = 'SHP03',
			MESSAGE = 'this is no purchase',
			HINT = 'Send {"sku": "…", "quantity": n} with n from 1 to 99999.';
	END IF;
	wanted := request ->> 'quantity';

	-- The lock comes before the decision: of two buyers of the last sofa, the
	-- second sees what the first has left.
	SELECT quantity INTO available
		FROM stock WHERE sku = wanted_sku FOR UPDATE;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING
			ERRCODE = 'SHP02',
			MESSAGE = format('there is no article "%s"', wanted_sku);
	END IF;
	IF available < wanted THEN
		RAISE EXCEPTION USING
			ERRCODE = 'SHP01',
			MESSAGE = format('article "%s" is sold out', wanted_sku),
			DETAIL = format('%s wanted, %s in stock.', wanted, available);
	END IF;

	UPDATE stock
		SET quantity = quantity - wanted, sold = sold + wanted
		WHERE sku = wanted_sku;
	INSERT INTO sales (sku, quantity, reference)
		VALUES (wanted_sku, wanted, request ->> 'reference')
		RETURNING id INTO sale;
	PERFORM idem_audit('sale', 'stock', wanted_sku,
		jsonb_build_object('sale', sale, 'quantity', wanted));

	RETURN idem_respond(201,
		json_build_object('sale', sale, 'sku', wanted_sku,
			'quantity', wanted, 'left', available - wanted),
		json_build_array(json_build_object('Location', '/sales/' || sale)));
END
$$;

-- The same within the limit for an address, which shop.buy() leaves in the
-- setting shop.address.  As a handler it runs only for a key that is claimed:
-- a repeat costs nothing, and is answered even when the limit is reached.  A
-- network of IPv6 is one subject, since each customer has a whole one.
--
--     SHP04  too many purchases from this address; detail: seconds to wait
CREATE FUNCTION shop.decrement_stock_limited(request jsonb)
RETURNS idempotency.idem_response
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = shop, idempotency, pg_temp
AS $$
DECLARE
	address inet := nullif(current_setting('shop.address', true), '');
	subject cidr := network(set_masklen(address,
		CASE family(address) WHEN 4 THEN 32 ELSE 64 END));
	limited record;
BEGIN
	IF address IS NOT NULL THEN
		SELECT * INTO limited FROM idem_throttle('furnitureops', subject::text);
		IF NOT limited.allowed THEN
			RAISE EXCEPTION USING
				ERRCODE = 'SHP04',
				MESSAGE = 'too many purchases from this address',
				DETAIL = ceil(limited.retry_after_ms / 1000.0);
		END IF;
	END IF;
	RETURN decrement_stock_atomic(request);
END
$$;

-- What the edge nodes call.  The scope is made here: EXECUTE on idem_run is
-- power over every scope, and edge nodes are to have no power over the keys of
-- anything else.  The node is not part of it, since a customer whose node has
-- died repeats the request at another one; nor is the address, which may be
-- another one, too.  Without an address, for our own shops, there is no limit.
CREATE FUNCTION shop.buy(customer text, key text, request jsonb,
	address inet DEFAULT NULL)
RETURNS idempotency.idem_result
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = shop, idempotency, pg_temp
BEGIN ATOMIC
	SELECT set_config('shop.address', coalesce(host(address), ''), true);
	SELECT idempotency.idem_run('shop.decrement_stock_limited(jsonb)',
		idempotency.idem_scope('furnitureops', 'buy', customer), key, request,
		'furnitureops');
END;

REVOKE ALL ON FUNCTION shop.decrement_stock_atomic(jsonb),
	shop.decrement_stock_limited(jsonb),
	shop.buy(text, text, jsonb, inet) FROM PUBLIC;
GRANT USAGE ON SCHEMA shop TO shop_web, shop_backend;
GRANT EXECUTE ON FUNCTION shop.buy(text, text, jsonb, inet) TO shop_web;
GRANT EXECUTE ON FUNCTION shop.decrement_stock_atomic(jsonb) TO shop_backend;
RESET ROLE;

-- Of the extension, the edge nodes get only what touches no table: what PUBLIC
-- may call, such as idem_key() for the Idempotency-Key header, and how an
-- answer looks in HTTP.
GRANT USAGE ON SCHEMA idempotency TO shop_web;
GRANT EXECUTE ON FUNCTION idempotency.idem_http_problem(idempotency.idem_result),
	idempotency.idem_http_headers(idempotency.idem_result) TO shop_web;
SELECT idempotency.idem_grant('shop_backend', 'app');
