#!/usr/bin/env python3
"""Many clients buy in the furniture shop, badly behaved, and then we count.

    demo.py [--seconds S | --waves N] [--seed N] [--processes P] [--threads T]

Expects a database with schema.sql loaded, named by the usual PG* variables,
whose superuser is PGUSER; scripts/demo makes one.

Every request is sent one to five times, some at the same moment from several
clients.  Both ways of use are mixed: the edge nodes call shop.buy(), a trusted
server writes BEGIN, idem_claim, the work, idem_complete, COMMIT.  On purpose
things go wrong:

  - a client closes its socket in the middle of a transaction,
  - a client sends its statement, or its COMMIT, and is gone before the reply,
  - a backend is terminated, between statements or in the middle of one,
  - a transaction is rolled back after the work,
  - a key is used again with another payload,
  - an article is sold out or does not exist.

At last every key is sent once more, in peace.  Then all that was answered is
held against what the tables say; exit status 1 if anything does not fit.  One
address buys more than 20 times in a minute, and is held up.

What is sent depends on --seed alone, how the clients interleave does not.
"""

import argparse
import collections
import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import random
import socket
import sys
import threading
import time
import traceback

import psycopg

SETTLE_SECONDS = 30         # for backends to go away, and for keys to expire
BARRIER_SECONDS = 120       # a client that takes longer than this is stuck
STATEMENT_TIMEOUT = "60s"   # nothing here waits for ever

PLENTIFUL = [f"chair-{n}" for n in range(40)]
SCARCE = [f"sofa-{n}" for n in range(6)]
MISSING = "unicorn"
STOCK = {**{sku: 1_000_000 for sku in PLENTIFUL}, **{sku: 12 for sku in SCARCE}}

ORDERS_PER_CLIENT = 5       # new orders of a wave, for each client

# How a request is sent, and how often of a thousand.  "web" is one statement,
# "tx" a transaction of several; where a "tx" breaks is drawn at random.
MANNERS = {
    "web": 480,
    "web rolled back": 40,
    "web cut off": 40,
    "web reply lost": 50,
    "web terminated": 30,
    "tx": 200,
    "tx rolled back": 30,
    "tx cut off": 60,
    "tx reply lost": 40,
    "tx terminated": 30,
}
OTHER_PAYLOAD = 0.08        # share of sends with the key of another request
TX_STEPS = ("claim", "work", "complete")

ANSWER = "outcome::text, http_status, headers::text, content_type, body"
BUY = f"SELECT {ANSWER} FROM shop.buy(%s, %s, %s, %s)"
SCOPE = "idempotency.idem_scope('furnitureops', 'buy', %s)"
CLAIM = (f"SELECT {ANSWER} FROM idempotency.idem_claim({SCOPE}, %s, %s,"
         " policy => 'furnitureops', wait => %s)")
WORK = ("SELECT status_code, headers::text, content_type, body"
        " FROM shop.decrement_stock_atomic(%s)")
COMPLETE = (f"SELECT idempotency.idem_complete({SCOPE}, %s, status_code => %s,"
            " headers => %s, content_type => %s, response => %s::bytea)")
RUN_BRIEF = (f"SELECT {ANSWER} FROM idempotency.idem_run("
             f"'shop.decrement_stock_atomic(jsonb)', {SCOPE}, %s, %s,"
             " 'furnitureops_brief')")

# A request and its variants: payloads[0] is what the customer meant,
# payloads[1] what a confused client sends under the same key.
Order = collections.namedtuple("Order", "customer key sku quantities payloads")
Send = collections.namedtuple("Send", "order variant manner step pause wait")

# What a client saw.  mishap is what really went wrong, since a send that was
# to be cut off may have met a replay first.  outcome is one of idem_outcome, a
# SQLSTATE, or "unknown"; "completed" only when the commit was acknowledged,
# too.  answer is (status, headers, content type, body) where there was one.
Seen = collections.namedtuple("Seen", "key variant manner mishap outcome answer seconds")


def connect(user, **kwargs):
    return psycopg.connect(
        dbname="shop", user=user, autocommit=True,
        options=f"-c statement_timeout={STATEMENT_TIMEOUT}", **kwargs)


##
## The plan
##

def address_of(order):
    """Each order comes from an address of its own, by whatever edge node."""
    return "10." + ".".join(str(byte) for byte in hashlib.sha256(order.key.encode()).digest()[:3])


def make_order(rng, key):
    kind = rng.random()
    if kind < 0.12:
        sku = rng.choice(SCARCE)
    elif kind < 0.13:
        sku = MISSING
    else:
        sku = rng.choice(PLENTIFUL)
    first = rng.randint(1, 3)
    quantities = (first, first + 1)
    payloads = tuple(
        json.dumps({"sku": sku, "quantity": quantity, "reference": key})
        for quantity in quantities)
    return Order(f"customer-{rng.randrange(50)}", key, sku, quantities, payloads)


def make_send(rng, order):
    manner = rng.choices(list(MANNERS), list(MANNERS.values()))[0]
    return Send(order=order,
                variant=int(rng.random() < OTHER_PAYLOAD),
                manner=manner,
                step=rng.choice(TX_STEPS),
                pause=rng.choice((0, 0, 0.001, 0.005, 0.02)),
                wait=rng.choice(("0", "0", "50 ms", "1 s")))


def make_wave(seed, wave, clients):
    """The orders of a wave and, for each client, its sends in ticks.

    Sends of the same tick go out at about the same moment.  Some repeats of
    an order are put into one tick, the others into later ones.
    """
    rng = random.Random(f"{seed}/{wave}")
    orders = []
    ticks = []
    later = []

    def place(sends, tick):
        while True:
            if tick == len(ticks):
                ticks.append([None] * clients)
            free = [c for c in range(clients) if ticks[tick][c] is None]
            if len(free) >= len(sends):
                break
            tick += 1
        for client, send in zip(rng.sample(free, len(sends)), sends):
            ticks[tick][client] = send

    for number in range(ORDERS_PER_CLIENT * clients):
        order = make_order(rng, f"{seed}-{wave}-{number}")
        orders.append(order)
        sends = [make_send(rng, order) for _ in range(rng.randint(1, 5))]
        together = rng.randint(1, len(sends))
        place(sends[:together], max(0, len(ticks) - 1))
        later += sends[together:]
    start = len(ticks) - 1
    rng.shuffle(later)
    for send in later:
        place([send], start)
    return orders, ticks


##
## A client
##

class Gone(Exception):
    """We have closed the connection on purpose."""


class Client:
    """One customer's device: two connections and what it has seen."""

    def __init__(self, admin, admin_lock):
        self.connections = {}
        self.admin = admin
        self.admin_lock = admin_lock
        self.seen = []

    def connection(self, user):
        conn = self.connections.get(user)
        if conn is None or conn.closed:
            conn = self.connections[user] = connect(user)
        return conn

    def close(self):
        for conn in self.connections.values():
            conn.close()

    def terminate(self, pid):
        with self.admin_lock:
            self.admin.execute("SELECT pg_terminate_backend(%s)", (pid,))

    def send(self, send):
        """Send one request; remember what came of it."""
        user = "shop_web" if send.manner.startswith("web") else "shop_backend"
        conn = self.connection(user)
        started = time.monotonic()
        self.reply = ("unknown", None)
        self.mishap = None
        try:
            if user == "shop_web":
                self.send_web(conn, send)
            else:
                self.send_tx(conn, send)
        except Gone:
            pass
        except psycopg.Error as error:
            # Without a SQLSTATE it is the connection that broke.  An error of
            # a terminated session says nothing about what became of it.
            if error.sqlstate and not error.sqlstate.startswith("57P"):
                self.reply = (error.sqlstate, None)
            elif "terminated" not in send.manner:
                raise
            if not conn.closed:
                conn.rollback()
        outcome, answer = self.reply
        self.seen.append(Seen(send.order.key, send.variant, send.manner, self.mishap,
                              outcome, answer, time.monotonic() - started))

    def take(self, row, final):
        """Remember a reply.  Work that may yet be undone is no reply."""
        if row[0] != "completed" or final:
            self.reply = (row[0], row[1:] if row[0] in ("completed", "replayed") else None)

    def send_web(self, conn, send):
        order = send.order
        args = (order.customer, order.key, order.payloads[send.variant], address_of(order))
        if send.manner == "web":
            self.take(conn.execute(BUY, args).fetchone(), final=True)
        elif send.manner == "web reply lost":
            send_only(conn, BUY, args)
            time.sleep(send.pause)
            self.cut(conn, "reply lost")
        elif send.manner == "web terminated":
            with self.terminated_after(conn, send.pause):
                self.take(conn.execute(BUY, args).fetchone(), final=True)
        else:
            conn.execute("BEGIN")
            self.take(conn.execute(BUY, args).fetchone(), final=False)
            time.sleep(send.pause)
            if send.manner == "web cut off":
                self.cut(conn, "cut off")
            self.mishap = "rolled back"
            conn.execute("ROLLBACK")

    def send_tx(self, conn, send):
        order = send.order
        payload = order.payloads[send.variant]
        conn.execute("BEGIN")
        claim = conn.execute(
            CLAIM, (order.customer, order.key, payload, send.wait)).fetchone()
        if claim[0] != "claimed":
            self.take(claim, final=True)
            conn.execute("ROLLBACK")
            return
        self.maybe_break(conn, send, "claim")
        answer = conn.execute(WORK, (payload,)).fetchone()
        self.maybe_break(conn, send, "work")
        conn.execute(COMPLETE, (order.customer, order.key, *answer))
        self.maybe_break(conn, send, "complete")
        if send.manner == "tx rolled back":
            self.mishap = "rolled back"
            conn.execute("ROLLBACK")
            return
        if send.manner == "tx reply lost":
            send_only(conn, "COMMIT", ())
            self.cut(conn, "reply lost")
        conn.execute("COMMIT")
        self.take(("completed", *answer), final=True)

    def maybe_break(self, conn, send, step):
        if send.step != step:
            return
        time.sleep(send.pause)
        if send.manner == "tx cut off":
            self.cut(conn, "cut off")
        if send.manner == "tx terminated":
            # We go on as if nothing had happened; if the signal is slow, even
            # the COMMIT may get through.
            self.mishap = "terminated"
            self.terminate(conn.info.backend_pid)

    @contextlib.contextmanager
    def terminated_after(self, conn, seconds):
        timer = threading.Timer(seconds, self.terminate, (conn.info.backend_pid,))
        timer.start()
        self.mishap = "terminated"
        try:
            yield
        finally:
            timer.join()
            conn.close()

    def cut(self, conn, mishap):
        """Close the socket without the message that says good-bye."""
        self.mishap = mishap
        with socket.socket(fileno=os.dup(conn.fileno())) as sock:
            sock.shutdown(socket.SHUT_RDWR)
        conn.close()
        raise Gone


def send_only(conn, query, args):
    """Put a statement on the wire and do not wait for its reply."""
    pgconn = conn.pgconn
    for number in range(len(args)):
        query = query.replace("%s", f"${number + 1}", 1)
    pgconn.send_query_params(query.encode(), [arg.encode() for arg in args])
    while pgconn.flush():
        pass


##
## The load: processes of threads, which start every wave together
##

class Load:
    def __init__(self, options):
        context = multiprocessing.get_context("fork")
        self.context = context
        self.options = options
        self.clients = options.processes * options.threads
        self.barrier = context.Barrier(self.clients, self.start_wave, BARRIER_SECONDS)
        self.waves = context.Value("i", 0)
        self.stop = context.Value("b", 0)
        self.sent = context.RawArray("l", self.clients)
        self.plan_lock = threading.Lock()
        self.started = time.monotonic()

    def start_wave(self):
        """Called by one client while the others wait at the barrier."""
        if self.options.waves is not None:
            self.stop.value = self.waves.value >= self.options.waves
        else:
            self.stop.value = self.elapsed() >= self.options.seconds
        if not self.stop.value:
            self.waves.value += 1

    def elapsed(self):
        return time.monotonic() - self.started

    @functools.lru_cache(maxsize=2)
    def wave(self, number):
        """The same plan for all threads of a process, which make it once."""
        return make_wave(self.options.seed, number, self.clients)

    def orders(self):
        """All orders of the waves so far."""
        return [order for number in range(1, self.waves.value + 1)
                for order in make_wave(self.options.seed, number, self.clients)[0]]

    def misbehave(self, client, number):
        """Send this client's part of all waves."""
        while True:
            self.barrier.wait()
            if self.stop.value:
                return
            with self.plan_lock:
                _, ticks = self.wave(self.waves.value)
            for tick in ticks:
                if tick[number] is not None:
                    client.send(tick[number])
                    self.sent[number] += 1

    def retry(self, client, number):
        """Send every key once more, until it has an answer for good."""
        for order in self.orders()[number::self.clients]:
            for variant in (0, 1):
                client.send(Send(order, variant, "web", None, 0, "0"))
                if client.seen[-1].outcome == "completed":
                    client.send(Send(order, variant, "web", None, 0, "0"))
                if client.seen[-1].outcome != "mismatch":
                    break

    def run_process(self, first, work, pipe):
        """Run our threads, and hand back what they saw, or what went wrong."""
        admin = connect(None)
        lock = threading.Lock()
        clients = [Client(admin, lock) for _ in range(self.options.threads)]
        errors = []

        def run_thread(client, number):
            try:
                work(client, number)
            except Exception:
                errors.append(traceback.format_exc())
                self.barrier.abort()
            finally:
                client.close()

        threads = [threading.Thread(target=run_thread, args=(client, first + offset))
                   for offset, client in enumerate(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        admin.close()
        pipe.send(([seen for client in clients for seen in client.seen], errors))

    def run(self, work, progress):
        """Run a phase in all clients; returns what they saw."""
        processes = []
        for number in range(self.options.processes):
            ours, theirs = self.context.Pipe(duplex=False)
            process = self.context.Process(
                target=self.run_process, daemon=True,
                args=(number * self.options.threads, work, theirs))
            process.start()
            theirs.close()
            processes.append((process, ours))
        seen = []
        for process, pipe in processes:
            while not pipe.poll(2):
                progress()
            part, errors = pipe.recv()
            process.join()
            for error in errors:
                print(error, file=sys.stderr)
            if errors:
                sys.exit("a client failed")
            seen += part
        return seen


def settle(admin):
    """Wait until the backends of clients that are gone have noticed it."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        left, = admin.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE usename IN ('shop_web', 'shop_backend')").fetchone()
        if left == 0:
            return
        time.sleep(0.02)
    sys.exit(f"{left} sessions of clients that are gone are still there")


##
## A late repeat
##

class Attacker:
    """Repeats recorded requests when their keys have expired.

    60 seconds would be long to watch, so these keys have a policy of one.
    """

    KEYS = 10
    REPEATS = 3

    def __init__(self, admin):
        admin.execute(
            "SELECT idempotency.idem_policy('furnitureops_brief',"
            " completed_ttl => '1 s', on_expiry => 'reject', tombstone => '24 h',"
            " mismatch_status => 409, owner_role => 'shop_keys', audit => true)")
        self.orders = []
        for number in range(self.KEYS):
            key = f"recorded-{number}"
            payload = json.dumps({"sku": PLENTIFUL[number], "quantity": 1, "reference": key})
            self.orders.append(Order("victim", key, PLENTIFUL[number], (1, 1),
                                     (payload, payload)))
        self.seen = []

    def run(self, conn, order):
        row = conn.execute(
            RUN_BRIEF, (order.customer, order.key, order.payloads[0])).fetchone()
        self.note(order, row)

    def note(self, order, row):
        answer = row[1:] if row[0] in ("completed", "replayed") else None
        self.seen.append(Seen(order.key, 0, "late", None, row[0], answer, 0))

    def record(self):
        with connect("shop_backend") as conn:
            for order in self.orders:
                self.run(conn, order)

    def repeat(self):
        """Both ways, again and again, once the last key has expired."""
        with connect("shop_backend") as backend, connect("shop_web") as web:
            deadline = time.monotonic() + SETTLE_SECONDS
            self.run(backend, self.orders[-1])
            while self.seen[-1].outcome == "replayed" and time.monotonic() < deadline:
                time.sleep(0.1)
                self.run(backend, self.orders[-1])
            for _ in range(self.REPEATS):
                for order in self.orders:
                    self.run(backend, order)
                    self.note(order, web.execute(
                        BUY, (order.customer, order.key, order.payloads[0],
                              address_of(order))).fetchone())

    def late(self):
        return self.seen[-2 * self.REPEATS * self.KEYS:]


##
## One in a hurry
##

class Hurried:
    """Buys from one address as fast as it can; another one does not."""

    ADDRESS = "203.0.113.7"
    OTHER = "203.0.113.8"
    LIMIT = 20              # of schema.sql, a minute
    LONGEST = 15 * 60       # seconds, likewise
    TRIES = 60

    def __init__(self):
        self.orders = []        # that were bought
        self.seen = []
        self.waits = []         # seconds that a refusal told it to wait
        self.problems = []

    def buy(self, conn, number, address):
        key = f"hurried-{number}"
        sku = PLENTIFUL[number % len(PLENTIFUL)]
        payload = json.dumps({"sku": sku, "quantity": 1, "reference": key})
        order = Order("hurried", key, sku, (1, 1), (payload, payload))
        row = conn.execute(BUY, (order.customer, key, payload, address)).fetchone()
        self.seen.append(Seen(key, 0, "hurried", None, row[0], row[1:], 0))
        if row[0] == "completed":
            self.orders.append(order)
        return row[0]

    def run(self):
        started = time.monotonic()
        with connect("shop_web") as conn:
            for number in range(self.TRIES):
                try:
                    self.buy(conn, number, self.ADDRESS)
                except psycopg.Error as error:
                    if error.sqlstate != "SHP04":
                        raise
                    self.waits.append(int(error.diag.message_detail))
            allowed = self.LIMIT + int((time.monotonic() - started) * self.LIMIT / 60)
            if not self.LIMIT <= len(self.orders) <= allowed:
                self.problems.append(f"{len(self.orders)} bought")
            if self.waits != sorted(self.waits) or self.waits[-1] != self.LONGEST:
                self.problems.append(f"told to wait {self.waits} seconds")
            for number in range(len(self.orders)):
                outcome = self.buy(conn, number, self.ADDRESS)
                if outcome != "replayed":
                    self.problems.append(f"hurried-{number}: repeated, {outcome}")
            if self.buy(conn, self.TRIES, self.OTHER) != "completed":
                self.problems.append("another address could not buy")


##
## The reckoning
##

class Checks:
    def __init__(self):
        self.failed = 0

    def check(self, what, problems):
        """A check and the problems that it found, one line each."""
        problems = list(problems)
        print(f"  {'FAILED' if problems else 'ok    '}  {what}")
        for problem in problems[:5]:
            print(f"            {problem}")
        if len(problems) > 5:
            print(f"            and {len(problems) - 5} more")
        self.failed += bool(problems)


def log_id(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Reckoning:
    """What was answered, by key, beside what the tables say."""

    def __init__(self, admin, orders, seen):
        self.orders = {order.key: order for order in orders}
        self.seen = collections.defaultdict(list)
        for one in seen:
            self.seen[one.key].append(one)
        self.stock = {
            sku: (quantity, sold) for sku, quantity, sold in admin.execute(
                "SELECT sku, quantity, sold FROM shop.stock")}
        self.sales = collections.defaultdict(list)
        for sale, sku, quantity, reference in admin.execute(
                "SELECT id, sku, quantity, reference FROM shop.sales"):
            self.sales[reference].append((sale, sku, quantity))
        self.rows = {
            (scope, key): (state, answer) for scope, key, state, *answer in admin.execute(
                "SELECT scope, key, state::text, coalesce(status_code, 200), headers::text,"
                " coalesce(content_type, 'application/json'), body FROM idempotency.idempotency_keys")}
        self.audit = admin.execute(
            "SELECT action, entity_id, (detail ->> 'sale')::bigint,"
            " (detail ->> 'quantity')::integer"
            " FROM idempotency.idempotency_audit_log"
            " WHERE action IN ('sale', 'claimed', 'taken_over', 'completed', 'failed',"
            " 'released', 'forgotten')").fetchall()

    def stored(self, order):
        """State and answer of the key's row, if there is one."""
        scope = "\x1e".join(("furnitureops", "buy", order.customer))
        return self.rows.get((scope, order.key), (None, None))

    def effective(self):
        return [order for key, order in self.orders.items() if self.sales[key]]

    def at_most_once(self):
        for key in self.orders:
            if len(self.sales[key]) > 1:
                yield f"{key}: sold {len(self.sales[key])} times"
        for key in self.sales.keys() - self.orders.keys():
            yield f"{key}: sold, but never ordered"

    def acknowledged(self):
        for key, seen in self.seen.items():
            said = sum(one.outcome == "completed" for one in seen)
            if said > 1:
                yield f"{key}: {said} clients were told that they had bought"
            if said and len(self.sales[key]) != 1:
                yield f"{key}: acknowledged, sold {len(self.sales[key])} times"

    def last_word(self):
        """After the clean retry a key is bought, or for good cannot be."""
        for key, order in self.orders.items():
            last = self.seen[key][-1].outcome
            sold = len(self.sales[key])
            left = self.stock.get(order.sku, (0, 0))[0]
            if last in ("completed", "replayed", "expired"):
                if sold != 1:
                    yield f"{key}: {last}, sold {sold} times"
            elif last == "SHP01":
                if sold or left >= order.quantities[0]:
                    yield f"{key}: sold out, but sold {sold} times and {left} left"
            elif last == "SHP02":
                if sold or order.sku in self.stock:
                    yield f"{key}: no such article, but there is"
            else:
                yield f"{key}: the clean retry was answered {last}"

    def identical(self):
        for key, seen in self.seen.items():
            answers = {one.answer for one in seen if one.answer is not None}
            state, answer = self.stored(self.orders[key])
            if state is not None:
                answers.add(tuple(answer))
            if len(answers) > 1:
                yield f"{key}: {len(answers)} different answers"
            for status, _, _, body in answers:
                sales = self.sales[key]
                if status != 201 or not sales or json.loads(body)["sale"] != sales[0][0]:
                    yield f"{key}: the answer is about another sale"

    def payloads(self):
        """The payload that was executed is answered, any other is refused."""
        for order in self.effective():
            sku, quantity = self.sales[order.key][0][1:]
            if sku != order.sku or quantity not in order.quantities:
                yield f"{order.key}: what was sold was never ordered"
                continue
            variant = order.quantities.index(quantity)
            for one in self.seen[order.key]:
                if one.outcome in ("completed", "replayed") and one.variant != variant:
                    yield f"{order.key}: another payload was answered {one.outcome}"
                if one.outcome == "mismatch" and one.variant == variant:
                    yield f"{order.key}: its own payload was refused"

    def constant(self):
        sold = collections.Counter()
        for sales in self.sales.values():
            for _, sku, quantity in sales:
                sold[sku] += quantity
        for sku, total in STOCK.items():
            left, counted = self.stock[sku]
            if left < 0 or left + counted != total:
                yield f"{sku}: {left} in stock and {counted} sold of {total}"
            if counted != sold[sku]:
                yield f"{sku}: {counted} sold, but the sales say {sold[sku]}"

    def audited(self):
        expected = collections.Counter()
        for sales in self.sales.values():
            for sale, sku, quantity in sales:
                expected["sale", sku, sale, quantity] += 1
        for scope, key in self.rows:
            entity_id = f"{log_id(scope)}/{log_id(key)}"
            expected["claimed", entity_id, None, None] += 1
            expected["completed", entity_id, None, None] += 1
        found = collections.Counter(self.audit)
        for row in found - expected:
            yield f"too many: {row}"
        for row in expected - found:
            yield f"missing: {row}"

    def stuck(self):
        for (_, key), (state, _) in self.rows.items():
            if state != "c":
                yield f"{key}: its row is in state {state}"
        if len(self.rows) != len(self.effective()):
            yield f"{len(self.rows)} keys remembered, {len(self.effective())} bought"

    def errors(self):
        allowed = {"claimed", "completed", "replayed", "in_progress", "mismatch",
                   "expired", "unknown", "SHP01", "SHP02"}
        for key, seen in self.seen.items():
            for one in seen:
                if one.outcome not in allowed:
                    yield f"{key}, {one.manner}: {one.outcome}"


def report(reckoning, load_seen, seen, elapsed, late, hurried):
    outcomes = collections.Counter(one.outcome for one in seen)
    mishaps = collections.Counter(one.mishap for one in seen)
    units = sum(sold for _, sold in reckoning.stock.values())
    replays = sorted(one.seconds * 1000 for one in load_seen
                     if one.outcome == "replayed" and one.manner == "web")

    def percentile(share):
        if not replays:
            return "none"
        return f"{replays[min(len(replays) - 1, int(share * len(replays)))]:.1f} ms"

    lines = [
        ("requests sent", len(seen)),
        ("distinct keys", len(reckoning.orders)),
        ("purchases", sum(map(len, reckoning.sales.values()))),
        ("stock decremented", units),
        ("replays", outcomes["replayed"]),
        ("in-progress answers", outcomes["in_progress"]),
        ("mismatches (409)", outcomes["mismatch"]),
        ("sold out (SHP01)", outcomes["SHP01"]),
        ("no such article (SHP02)", outcomes["SHP02"]),
        ("cut off in a transaction", mishaps["cut off"]),
        ("gone before the reply", mishaps["reply lost"]),
        ("backends terminated", mishaps["terminated"]),
        ("rolled back", mishaps["rolled back"]),
        ("expired, refused", f"{sum(one.outcome == 'expired' for one in late)} of {len(late)}"),
        ("over the limit, refused (SHP04)", len(hurried.waits)),
        ("audit rows", len(reckoning.audit)),
        ("requests a second", int(len(load_seen) / elapsed)),
        ("replay p50", percentile(0.5)),
        ("replay p99", percentile(0.99)),
    ]
    print()
    for name, value in lines:
        text = f"{value:,}" if isinstance(value, int) else value
        print(f"  {name:<32}{text:>14}")
    print()


def judge(reckoning, late, hurried):
    checks = Checks()
    checks.check("no key took effect twice", reckoning.at_most_once())
    checks.check("what was acknowledged took effect exactly once",
                 reckoning.acknowledged())
    checks.check("after a clean retry every key took effect once, or is sold out",
                 reckoning.last_word())
    checks.check("every replay is the first answer, byte for byte",
                 reckoning.identical())
    checks.check("another payload under the same key is refused",
                 reckoning.payloads())
    checks.check("stock + sold is constant, and sold is the sum of the sales",
                 reckoning.constant())
    checks.check("every purchase has its audit rows, and nothing else has",
                 reckoning.audited())
    checks.check("no key is stuck in progress", reckoning.stuck())
    checks.check("a late repeat is refused every time",
                 (f"{one.key}: {one.outcome}" for one in late
                  if one.outcome != "expired"))
    checks.check("one address buys 20 times a minute, is held up longer and longer,"
                 " and its repeats are answered", hurried.problems)
    checks.check("nobody saw any other error", reckoning.errors())
    return checks.failed


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="of load (default: 20)")
    parser.add_argument("--waves", type=int, help="of load, in place of a time")
    parser.add_argument("--seed", default="1", help="of all that is sent (default: 1)")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=6, help="in each process")
    options = parser.parse_args()
    if options.processes * options.threads < 5:
        parser.error("five repeats at the same moment need five clients")
    return options


def main():
    options = parse()
    admin = connect(None)
    with admin.cursor() as cursor:
        cursor.executemany("INSERT INTO shop.stock (sku, quantity) VALUES (%s, %s)",
                           STOCK.items())
    attacker = Attacker(admin)
    attacker.record()

    load = Load(options)
    print(f"{load.clients} clients buy, seed {options.seed}", flush=True)

    def progress():
        print(f"  {load.elapsed():3.0f} s  {sum(load.sent):7,} requests", flush=True)

    load_seen = load.run(load.misbehave, progress)
    elapsed = load.elapsed()
    settle(admin)
    print("every key is sent once more", flush=True)
    seen = load_seen + load.run(load.retry, lambda: None)
    print("recorded requests are sent again, too late", flush=True)
    attacker.repeat()
    hurried = Hurried()
    print("one address buys more than 20 times in a minute", flush=True)
    hurried.run()
    settle(admin)

    seen += attacker.seen + hurried.seen
    reckoning = Reckoning(admin, load.orders() + attacker.orders + hurried.orders, seen)
    report(reckoning, load_seen, seen, elapsed, attacker.late(), hurried)
    failed = judge(reckoning, attacker.late(), hurried)
    admin.close()
    print()
    if failed:
        sys.exit(f"{failed} checks failed")
    print("All is well: nothing was lost and nothing was sold twice.")


if __name__ == "__main__":
    main()
