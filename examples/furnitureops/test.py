#!/usr/bin/python3
"""The furniture shop's promises, seen through the HTTP of two edge nodes."""

import collections
import hashlib
import http.client
import json
import os
import sys
import time

import psycopg

from promises import CuttingProxy, Promises, Server, call, together

EDGE = [sys.executable, "-B", "edge.py"]
KILLS = 20              # of an edge node,
IN_FLIGHT = 50          # with so many requests under way
CUTS = 200


class Shop:
    """What the tables say, as the superuser sees them."""

    def __init__(self):
        self.connection = psycopg.connect(dbname="shop", autocommit=True)

    def value(self, sql, *args):
        return self.connection.execute(sql, args).fetchone()[0]

    def run(self, sql, *args):
        self.connection.execute(sql, args)

    def state(self):
        """All that a purchase changes."""
        return self.connection.execute(
            "SELECT (SELECT sum(quantity) FROM shop.stock), (SELECT sum(sold) FROM shop.stock),"
            " (SELECT count(*) FROM shop.sales),"
            " (SELECT count(*) FROM idempotency.idempotency_keys),"
            " (SELECT count(*) FROM idempotency.idempotency_audit_log WHERE NOT detail ? 'count'"
            "  OR detail IS NULL)").fetchone()

    def sales(self, key):
        return self.value("SELECT count(*) FROM shop.sales WHERE reference = %s", key)


def buy(edge, key, quantity=1, sku="chair", customer="ada", address="198.51.100.1", reference=None):
    body = json.dumps({"sku": sku, "quantity": quantity, "reference": reference or key})
    return call(edge.port, "POST", "/purchases", body,
                {"Idempotency-Key": f'"{key}"', "X-Customer": customer,
                 "X-Forwarded-For": address})


def address_of(number):
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def code(reply):
    return json.loads(reply.body).get("code")


def at_most_once(promises, shop, edges):
    replies = together(64, lambda n: buy(edges[n % 2], "once", address="198.51.100.64"))
    done = [reply for reply in replies if reply.status == 201]
    promises.keep(
        "at most once: 64 requests with one key at two edge nodes",
        f"{shop.sales('once')} sale; {len(done)} times 201 with {len({r.body for r in done})} body,"
        f" {sum(r.status == 409 for r in replies)} times 409 in progress",
        shop.sales("once") == 1 and len({reply.body for reply in done}) == 1
        and all(reply.status == 201 or code(reply) == "idempotency_key_in_progress"
                for reply in replies))


def payload(promises, shop, edges):
    first = buy(edges[0], "payload", 1)
    before = shop.state()
    other = buy(edges[1], "payload", 2, reference="payload")
    digest = shop.value("SELECT encode(fingerprint, 'hex') FROM idempotency.idempotency_keys"
                        " WHERE key = 'payload'")
    canonical = '{"quantity":1,"reference":"payload","sku":"chair"}'
    promises.keep(
        "a key with another payload gets 409; the payload's SHA-256 is kept",
        f"{first.status}, then {other.status} {code(other)}; {digest[:12]}…",
        first.status == 201 and other.status == 409 and shop.state() == before
        and digest == hashlib.sha256(canonical.encode()).hexdigest())


def attacker(promises, shop, edges):
    first = buy(edges[0], "recorded")
    before = shop.state()
    repeats = together(50, lambda n: buy(edges[n % 2], "recorded", address=address_of(n)))
    promises.keep(
        "an attacker's replay changes nothing",
        f"50 repeats: {collections.Counter(r.status for r in repeats)[201]} times the first"
        f" answer, {shop.sales('recorded')} sale",
        shop.state() == before and {r.body for r in repeats} == {first.body}
        and all(r.headers.get("idempotency-replayed") == "true" for r in repeats))


def expiry(promises, shop, edges):
    kept = shop.value("SELECT completed_ttl FROM idempotency.idem_policy_list"
                      " WHERE name = 'furnitureops'").total_seconds()
    shop.run("SELECT idempotency.idem_policy('furnitureops', completed_ttl => '1 s')")
    buy(edges[0], "expired")
    before = shop.state()
    deadline = time.monotonic() + 30
    reply = buy(edges[1], "expired")
    while reply.status == 201 and time.monotonic() < deadline:
        time.sleep(0.1)
        reply = buy(edges[1], "expired")
    late = [buy(edges[n % 2], "expired") for n in range(10)]
    # however slow the machine, no other key is to expire here
    shop.run("SELECT idempotency.idem_policy('furnitureops', completed_ttl => '1 h')")
    promises.keep(
        "keys are valid for 60 seconds, later repeats are refused (tried with 1 second)",
        f"{kept:.0f} s; then {len(late)} times {late[0].status} {code(late[0])}",
        kept == 60 and shop.state() == before
        and all(r.status == 409 and code(r) == "idempotency_key_expired" for r in late))


def fails_as_a_whole(shop, edges, key, table):
    """A purchase whose row in a table is refused."""
    shop.run("CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS"
             " $$BEGIN RAISE EXCEPTION 'no'; END$$")
    shop.run(f"CREATE TRIGGER a_refuse BEFORE INSERT ON {table}"
             " FOR EACH ROW EXECUTE FUNCTION public.refuse()")
    before = shop.state()
    reply = buy(edges[0], key)
    unchanged = shop.state() == before
    shop.run("DROP FUNCTION public.refuse() CASCADE")
    again = buy(edges[0], key)
    return unchanged, reply.status, again.status


def atomicity(promises, shop, edges):
    unchanged, refused, again = fails_as_a_whole(shop, edges, "atomic", "shop.sales")
    locks = "FOR UPDATE" in shop.value(
        "SELECT pg_get_functiondef('shop.decrement_stock_atomic(jsonb)'::regprocedure)")
    last = together(8, lambda n: buy(edges[n % 2], f"last-{n}", sku="last sofa"))
    statuses = sorted(reply.status for reply in last)
    promises.keep(
        "stock and sales in one transaction, FOR UPDATE on the stock row",
        f"sale refused: {refused}, stock unchanged, repeat {again};"
        f" 8 buyers of the last 3: {statuses.count(201)} times 201, {statuses.count(409)} 409",
        unchanged and locks and (refused, again) == (500, 201)
        and statuses == [201] * 3 + [409] * 5)


def audit(promises, shop, edges):
    unchanged, refused, again = fails_as_a_whole(
        shop, edges, "audited", "idempotency.idempotency_audit_log")
    actions = [row[0] for row in shop.connection.execute(
        "SELECT action FROM idempotency.idempotency_audit_log WHERE xid ="
        " (SELECT claim_xid FROM idempotency.idempotency_keys WHERE key = 'audited')"
        " ORDER BY id")]
    promises.keep(
        "the audit row is of the same transaction; if it cannot be written, nothing is",
        f"log refused: {refused}, nothing changed; repeat {again}: {', '.join(actions)}",
        unchanged and (refused, again) == (500, 201)
        and sorted(actions) == ["claimed", "completed", "sale"])


def immutability(promises, shop):
    roles = ["shop_web", "shop_backend", "shop_owner", "shop_keys", "idempotency_owner"]
    actions = ["INSERT INTO {} (at) VALUES (now())", "UPDATE {} SET action = ''",
               "DELETE FROM {}", "TRUNCATE {}", "ALTER TABLE {} DISABLE TRIGGER ALL"]
    refused = 0
    for role in roles:
        for action in actions:
            shop.run(f"SET ROLE {role}")
            try:
                shop.run(action.format("idempotency.idempotency_audit_log"))
            except psycopg.errors.InsufficientPrivilege:
                refused += 1
            shop.run("RESET ROLE")
    security = shop.value("SELECT relrowsecurity FROM pg_class"
                          " WHERE oid = 'idempotency.idempotency_audit_log'::regclass")
    writers = shop.value("SELECT count(*) FROM idempotency.idempotency_audit_log")
    shop.run("SELECT idempotency.idem_audit_seal()")
    problems = shop.value("SELECT count(*) FROM idempotency.idem_audit_verify()")
    promises.keep(
        "nobody but a superuser changes the audit log; row level security is on",
        f"{refused} of {len(roles) * len(actions)} tries refused, {writers} rows written by"
        f" functions, {problems} problems found by the seals",
        refused == len(roles) * len(actions) and security and problems == 0)


def rate(promises, shop, edges):
    replies = [buy(edges[n % 2], f"hurried-{n}", address="203.0.113.7") for n in range(40)]
    bought = [n for n, reply in enumerate(replies) if reply.status == 201]
    waits = [int(r.headers["retry-after"]) for r in replies if r.status == 429] or [0]
    repeats = [buy(edges[0], f"hurried-{n}", address="203.0.113.7").status for n in bought]
    other = buy(edges[0], "patient", address="203.0.113.8").status
    promises.keep(
        "20 requests a minute per client IP, exponential back-off",
        f"{len(bought)} of 40 bought; then 429, Retry-After {waits[0]}, … {waits[-1]} s;"
        f" repeats answered, another address {other}",
        20 <= len(bought) <= 21 and len(bought) + len(waits) == 40
        and waits == sorted(waits) and waits[-1] == 900
        and set(repeats) == {201} and other == 201)


def attempt(edge, number, prefix):
    try:
        return buy(edge, f"{prefix}-{number}", address=address_of(number)).status
    except (OSError, http.client.HTTPException):
        return None


def crash(promises, shop, edges):
    """Edge nodes die with requests under way; each is repeated elsewhere."""
    shop.run("CREATE FUNCTION public.dawdle() RETURNS trigger LANGUAGE plpgsql AS"
             " $$BEGIN PERFORM pg_sleep(random() * 0.05); RETURN NEW; END$$")
    shop.run("CREATE TRIGGER dawdle BEFORE INSERT ON shop.sales"
             " FOR EACH ROW EXECUTE FUNCTION public.dawdle()")
    doomed = Server(EDGE)
    lost = []
    for kill in range(KILLS):
        doomed.start()
        numbers = range(kill * IN_FLIGHT, (kill + 1) * IN_FLIGHT)

        def send(index, numbers=numbers, kill=kill):
            if index == IN_FLIGHT:
                time.sleep(0.02 + kill % 5 * 0.02)
                doomed.kill()
                return 0
            return attempt(doomed, numbers[index], "crash")
        statuses = together(IN_FLIGHT + 1, send)
        lost += [number for number, status in zip(numbers, statuses) if status is None]
    shop.run("DROP FUNCTION public.dawdle() CASCADE")
    before = shop.value("SELECT count(*) FROM shop.sales WHERE reference LIKE 'crash-%%'")
    again = [attempt(edges[0], number, "crash") for number in lost]
    for _ in range(100):        # a transaction of a dead node may still be under way
        late = [number for number, status in zip(lost, again) if status != 201]
        if not late:
            break
        time.sleep(0.1)
        again = [201 if status == 201 else attempt(edges[0], number, "crash")
                 for number, status in zip(lost, again)]
    once = shop.value("SELECT count(*) FROM (SELECT reference FROM shop.sales"
                      " WHERE reference LIKE 'crash-%%' GROUP BY 1 HAVING count(*) = 1) s")
    total = shop.value("SELECT count(*) FROM shop.sales WHERE reference LIKE 'crash-%%'")
    promises.keep(
        "an edge node dies: the retry is not executed again",
        f"{KILLS} kills, {len(lost)} requests without a reply, all answered by another node;"
        f" {once} keys sold once, {before} of them before the retries, {total - once} twice",
        len(lost) > 0 and set(again) == {201} and once == total == KILLS * IN_FLIGHT)


def cut(promises, shop, edges):
    """The reply of the database is lost after the commit."""
    directory = os.path.join(os.environ["WORK"], "cut")
    os.mkdir(directory)
    proxy = CuttingProxy(directory, tag="SELECT 1")
    with Server(EDGE, {"PGHOST": directory, "PGPORT": "5432"}) as edge:
        proxy.arm(CUTS)
        first = [attempt(edge, n, "cut") for n in range(CUTS)]
        again = [attempt(edges[1], n, "cut") for n in range(CUTS)]
    sold = shop.value("SELECT count(*) FROM shop.sales WHERE reference LIKE 'cut-%%'")
    proxy.close()
    promises.keep(
        "a reply lost after the commit: the retry gets the answer",
        f"{proxy.cuts} cuts: {first.count(500)} times 500, then {again.count(201)} times 201;"
        f" {sold} sales",
        proxy.cuts == CUTS and set(first) == {500} and set(again) == {201} and sold == CUTS)


def unreachable(promises, shop, edges):
    with psycopg.connect(dbname="postgres", autocommit=True) as admin:
        admin.execute("ALTER DATABASE shop ALLOW_CONNECTIONS false")
        down = [buy(edges[n % 2], f"down-{n}", address=address_of(n)).status for n in range(20)]
        admin.execute("ALTER DATABASE shop ALLOW_CONNECTIONS true")
    up = [buy(edges[n % 2], f"down-{n}", address=address_of(n)).status for n in range(20)]
    sold = shop.value("SELECT count(*) FROM shop.sales WHERE reference LIKE 'down-%%'")
    promises.keep(
        "database unreachable: 500, the client retries with the same key",
        f"{down.count(500)} times 500, then {up.count(201)} times 201, {sold} sales",
        set(down) == {500} and set(up) == {201} and sold == 20)


def main():
    shop = Shop()
    shop.run("INSERT INTO shop.stock (sku, quantity) VALUES ('chair', 100000), ('last sofa', 3)")
    promises = Promises("furnitureops")
    with Server(EDGE) as one, Server(EDGE) as two:
        edges = (one, two)
        at_most_once(promises, shop, edges)
        payload(promises, shop, edges)
        expiry(promises, shop, edges)
        atomicity(promises, shop, edges)
        audit(promises, shop, edges)
        immutability(promises, shop)
        rate(promises, shop, edges)
        crash(promises, shop, edges)
        cut(promises, shop, edges)
        unreachable(promises, shop, edges)
        attacker(promises, shop, edges)
    return promises.finish()


if __name__ == "__main__":
    sys.exit(main())
