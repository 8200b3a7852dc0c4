"""The promises of the store, tried on a throwaway cluster that `run` has made:
four processes of 20 connections each put the same keys, 64 at a time; workers are
killed in the middle of put(); then the effects are counted in the database.

With the argument "worker" this is one of those processes."""

import asyncio
import collections
import contextlib
import hashlib
import json
import logging
import os
import random
import subprocess
import sys
import traceback
from datetime import datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import psycopg
from psycopg_pool import AsyncConnectionPool

from handler import payload_hash, place_order, place_order_then_put
from pg_backend import (AlreadyStored, Full, IdempotencyError, PayloadMismatch, PgBackend,
                        SchemaError, Scope)
from promises import PATIENCE, Promises

PROCESSES = 4
CONNECTIONS = 20        # of the pool of each
TOGETHER = 64           # puts at the same moment in each
KILLS = 26
BUDGET = 10**9
SECRET = "principal-7c1f"       # in every principal: no log may have it
HASH = [hashlib.sha256(text).hexdigest() for text in (b"one payload", b"another")]


def scope(name, principal="p"):
    return Scope(name, f"{SECRET}-{principal}")


def make_backend(pool):
    """Nothing here depends on how long a put waits for another one."""
    return PgBackend(pool=pool, wait=timedelta(seconds=PATIENCE))


def make_pool(size=CONNECTIONS, database="adcp", user="adcp_app", **kwargs):
    return AsyncConnectionPool(kwargs=dict(dbname=database, user=user, **kwargs),
                               min_size=size, max_size=size, timeout=PATIENCE, open=False)


async def superuser(query, values=None, database="adcp"):
    """All rows, as a superuser."""
    async with await psycopg.AsyncConnection.connect(
            dbname=database, user="postgres", autocommit=True) as conn:
        cursor = await conn.execute(query, values)
        return await cursor.fetchall() if cursor.description else []


async def value(query, values=None, database="adcp"):
    return (await superuser(query, values, database))[0][0]


async def count_records(name, state="c"):
    """Records of all principals of a tenant."""
    return await value("SELECT count(*) FROM idempotency.idempotency_keys"
                       " WHERE split_part(scope, U&'\\001E', 1) = %s AND state = %s",
                       (name, state))


async def expired(backend, where, key):
    """Wait until the record is gone."""
    for _ in range(PATIENCE * 20):
        if await backend.get(where, key) is None:
            return
        await asyncio.sleep(0.05)
    raise TimeoutError("a record does not expire")


async def put_briefly(backend, where, key):
    """A record that expires soon.  On a slow machine it may be too late for that."""
    for delay in (0.5, 1, 2, 4, 8, 16, 32):
        with contextlib.suppress(ValueError):
            when = datetime.now(timezone.utc) + timedelta(seconds=delay)
            return await backend.put(where, key, HASH[0], {"old": True}, expires_at=when)
    raise TimeoutError("a put takes too long")


async def raises(error, awaitable):
    """Whether it raises exactly this."""
    try:
        await awaitable
    except Exception as seen:                                   # pylint: disable=broad-except
        return type(seen) is error
    return False


##
## The other processes
##

async def task_put(backend, tenant, keys, hashes):
    """For each key TOGETHER puts, all with an answer of their own."""
    async def one(key, number):
        given = hashes[number % len(hashes)]
        try:
            record = await backend.put(scope(tenant), key, given, {"by": [os.getpid(), number]})
        except PayloadMismatch:
            return "mismatch"
        if record.payload_hash != given:
            return "another payload"
        return "first" if record.first else "found", record.response.hex()

    seen = {}
    for key in keys:
        seen[key] = await asyncio.gather(*(one(key, n) for n in range(TOGETHER)))
    return seen


async def task_order(backend, tenant, keys):
    """For each key TOGETHER orders, half by the one handler, half by the other."""
    async def one(key, number):
        handler = place_order_then_put if number % 2 else place_order
        record = await handler(backend, scope(tenant), key, {"item": key, "cents": 5})
        return record.response.hex()

    return {key: await asyncio.gather(*(one(key, n) for n in range(TOGETHER))) for key in keys}


async def task_create(backend, database):
    """create_schema() where there is nothing yet, as a superuser."""
    async with make_pool(2, database, "postgres") as pool:
        for _ in range(5):
            await PgBackend(pool, max_live_keys=77).create_schema()


async def task_crash(backend, tenant, keys):
    """Orders, until somebody kills us.  Says which ones are in the middle of put()
    and which are answered."""
    def say(*words):
        os.write(1, (" ".join(words) + "\n").encode())

    class Slow(PgBackend):
        """Takes its time after the claim, and between put and COMMIT."""

        async def _complete(self, conn, names, *answer):
            say("put", names["key"])
            await asyncio.sleep(random.uniform(0, 0.02))
            record = await super()._complete(conn, names, *answer)
            await asyncio.sleep(random.uniform(0, 0.02))
            return record

    async def one(number, key):
        handler = place_order_then_put if number % 2 else place_order
        async with room:
            record = await handler(backend, scope(tenant), key, {"item": key, "cents": 5})
        await asyncio.sleep(random.uniform(0, 0.02))        # the answer is on its way
        say("answered", key, record.response.hex())

    room = asyncio.Semaphore(CONNECTIONS)
    backend = Slow(backend.pool)
    await asyncio.gather(*(one(n, key) for n, key in enumerate(keys)))


async def work():
    """Tasks by name, a line of JSON each, and a line of JSON as the answer."""
    loop = asyncio.get_running_loop()
    async with make_pool() as pool:
        backend = make_backend(pool)
        await backend.create_schema()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            name, arguments = json.loads(line)
            try:
                answer = await globals()["task_" + name](backend, **arguments)
            except Exception as error:                          # pylint: disable=broad-except
                answer = f"{type(error).__name__}: {error}"
            print(json.dumps(answer), flush=True)


class Workers:
    """Processes that do the same task at the same time."""

    def __init__(self, count):
        self.processes = [subprocess.Popen(
            [sys.executable, "-B", __file__, "worker"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True) for _ in range(count)]

    def send(self, name, **arguments):
        for process in self.processes:
            process.stdin.write(json.dumps([name, arguments]) + "\n")
            process.stdin.flush()

    async def do(self, name, **arguments):
        """What each of them answers."""
        self.send(name, **arguments)
        loop = asyncio.get_running_loop()
        lines = await asyncio.gather(*(loop.run_in_executor(None, process.stdout.readline)
                                       for process in self.processes))
        answers = [json.loads(line) for line in lines]
        for answer in answers:
            if isinstance(answer, str):
                raise RuntimeError(answer)
        return answers

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


##
## The promises
##

async def a_connection_per_call(backend, workers):
    calls = {"get": lambda b: b.get(scope("pool"), "k"),
             "put": lambda b: b.put(scope("pool"), "k", HASH[0], {}),
             "delete_expired": lambda b: b.delete_expired()}
    taken = {}
    async with make_pool(1, application_name="small pool") as pool:
        small = PgBackend(pool=pool)
        for name, method in calls.items():
            before = pool.get_stats().get("requests_num", 0)
            await method(small)
            taken[name] = pool.get_stats()["requests_num"] - before
        async with pool.connection() as conn:       # the only one: put must do with it
            before = pool.get_stats()["requests_num"]
            await asyncio.wait_for(
                small.put(scope("pool"), "k2", HASH[0], {}, conn=conn), PATIENCE)
            taken["put with conn"] = pool.get_stats()["requests_num"] - before
        idle = not await value(         # of our connections, not the other processes'
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'small pool'"
            " AND state LIKE 'idle in transaction%'")
    return (", ".join(f"{name} {n}" for name, n in taken.items()) + " connections; none left in"
            " a transaction",
            idle and taken == {"get": 1, "put": 1, "delete_expired": 1, "put with conn": 0})


async def create_schema_again(backend, workers):
    await superuser("CREATE DATABASE fresh", database="postgres")
    await workers.do("create", database="fresh")
    for _ in range(3):
        await backend.create_schema()
    extensions = await value("SELECT count(*) FROM pg_extension WHERE extname = 'idempotency'",
                             database="fresh")
    cap, = await superuser("SELECT max_live_keys, completed_ttl FROM idempotency.idem_policy_list"
                           " WHERE name = 'adcp'", database="fresh")
    return (f"{PROCESSES} processes × 5 at once in an empty database, workers × 3 in ours:"
            f" no error, {extensions} extension, its policy is set",
            extensions == 1 and cap == (77, timedelta(hours=24)))


KEYS = "idempotency.idempotency_keys"
SHAPES = {
    "as it should be": "SELECT",
    "a home-made table":
        "DROP EXTENSION idempotency; CREATE TABLE idempotency.idempotency_keys"
        " (scope text, key text, payload jsonb, PRIMARY KEY (scope, key))",
    "another schema": "DROP EXTENSION idempotency; CREATE SCHEMA other;"
        " CREATE EXTENSION idempotency SCHEMA other CASCADE",
    "a missing column": f"ALTER TABLE {KEYS} DROP COLUMN content_type",
    "another type": f"ALTER TABLE {KEYS} ALTER body TYPE text USING NULL",
    "another collation": f"ALTER TABLE {KEYS} ALTER key TYPE text COLLATE \"POSIX\"",
    "keys without case": "CREATE COLLATION anycase (provider = icu, locale = 'und-u-ks-level2',"
        f" deterministic = false); ALTER TABLE {KEYS} ALTER key TYPE text COLLATE anycase",
    "no primary key": f"ALTER TABLE {KEYS} DROP CONSTRAINT idempotency_keys_pkey",
    "not logged": f"ALTER TABLE {KEYS} SET UNLOGGED",
    "a rule": f"CREATE RULE gone AS ON INSERT TO {KEYS} DO INSTEAD NOTHING",
    "a trigger": f"CREATE TRIGGER same BEFORE UPDATE ON {KEYS} FOR EACH ROW EXECUTE FUNCTION"
        " suppress_redundant_updates_trigger()",
    "a table put in its place": f"ALTER TABLE {KEYS} RENAME TO old;"
        f" CREATE TABLE {KEYS} (scope text, key text, PRIMARY KEY (scope, key))",
}


async def wrong_shape_is_noticed(backend, workers):
    wrong = []
    for number, (name, change) in enumerate(SHAPES.items()):
        database = f"shape{number}"
        await superuser(f"CREATE DATABASE {database}", database="postgres")
        await superuser("CREATE SCHEMA idempotency", database=database)
        await superuser("CREATE EXTENSION idempotency SCHEMA idempotency CASCADE",
                        database=database)
        async with await psycopg.AsyncConnection.connect(dbname=database, user="postgres") as conn:
            await conn.execute(change)
        async with make_pool(1, database, "postgres") as pool:
            try:
                await PgBackend(pool).create_schema()
                noticed = False
            except SchemaError:
                noticed = True
        if noticed == (number == 0):
            wrong.append(name)
    return (f"{len(SHAPES) - 1} wrong shapes and the right one: not noticed as such:"
            f" {', '.join(wrong) or 'none'}", not wrong)


def merge(answers, key):
    """Of all processes, counted by what they saw; and the answers that were given."""
    seen = [one for answer in answers for one in answer[key]]
    kinds = collections.Counter(one if isinstance(one, str) else one[0] for one in seen)
    return kinds, {one[1] for one in seen if not isinstance(one, str)}


async def first_writer_wins(backend, workers):
    keys = [f"race-{n}" for n in range(8)]
    answers = await workers.do("put", tenant="race", keys=keys, hashes=HASH[:1])
    total, good = collections.Counter(), 0
    for key in keys:
        kinds, given = merge(answers, key)
        total += kinds
        stays = await backend.get(scope("race"), key)
        good += kinds == {"first": 1, "found": PROCESSES * TOGETHER - 1} and given == {
            stays.response.hex()}
    return (f"{PROCESSES * TOGETHER} puts on each of {len(keys)} keys: {total['first']} stored,"
            f" {total['found']} got the first one, byte for byte ({good} of {len(keys)} keys)",
            good == len(keys) and await count_records("race") == len(keys))


async def one_payload_hash(backend, workers):
    keys = [f"hash-{n}" for n in range(6)]
    answers = await workers.do("put", tenant="hash", keys=keys, hashes=HASH)
    total, good = collections.Counter(), 0
    half = PROCESSES * TOGETHER // 2
    for key in keys:
        kinds, given = merge(answers, key)
        total += kinds
        stays = await backend.get(scope("hash"), key)
        other = HASH[1 - HASH.index(stays.payload_hash)]
        good += (kinds == {"first": 1, "found": half - 1, "mismatch": half} and len(given) == 1
                 and await raises(PayloadMismatch, backend.put(scope("hash"), key, other, {})))
    return (f"two payloads race for each of {len(keys)} keys: {total['first']} stored,"
            f" {total['found']} got it, {total['mismatch']} with the other payload refused",
            good == len(keys))


async def expired_is_overwritten(backend, workers):
    where, keys = scope("expired"), [f"old-{n}" for n in range(3)]
    for key in keys:
        await put_briefly(backend, where, key)
    for key in keys:
        await expired(backend, where, key)
    there = await count_records("expired")
    answers = await workers.do("put", tenant="expired", keys=keys, hashes=HASH[1:])
    good = 0
    for key in keys:
        kinds, given = merge(answers, key)
        stays = await backend.get(where, key)
        good += (kinds["first"] == 1 and given == {stays.response.hex()}
                 and stays.payload_hash == HASH[1] and "old" not in stays.json())
    return (f"{there} expired rows, not swept: get finds none, and of {PROCESSES * TOGETHER} puts"
            f" with another payload one overwrites it ({good} of {len(keys)} keys)",
            there == good == len(keys))


async def scope_is_unambiguous(backend, workers):
    refused = 0
    bad = [Scope("A\x1eB", "X"), Scope("A", "B\x1eX"), Scope("A\x1e", "X"), Scope("A", "\x1eX")]
    for where in bad:
        refused += await raises(ValueError, backend.put(where, "k", HASH[0], {}))
        refused += await raises(ValueError, backend.get(where, "k"))
    await backend.put(Scope("ab", "c"), "k", HASH[0], {"whose": "ab c"})
    other = await backend.put(Scope("a", "bc"), "k", HASH[1], {"whose": "a bc"})
    kept = await value(f"SELECT count(*) FROM {KEYS} WHERE scope IN"
                       " (U&'ab\\001Ec', U&'a\\001Ebc')")
    return (f"{refused} of {2 * len(bad)} calls with U+001E in a component refused; ab+c and a+bc"
            f" are {kept} records, joined by U+001E",
            refused == 2 * len(bad) and other.first and kept == 2
            and await value(f"SELECT count(*) FROM {KEYS} WHERE scope LIKE 'A%'") == 0)


async def text_is_compared_by_bytes(backend, workers):
    columns = await superuser(
        "SELECT attname, collname FROM pg_attribute a JOIN pg_collation c ON c.oid = attcollation"
        f" WHERE attrelid = '{KEYS}'::regclass AND attname IN ('scope', 'key') ORDER BY 1")
    names = ["a", "A", "é", "e\u0301", "ß", "ss", "ﬁ", "fi", "a ", "a\u00ad"]
    firsts = [(await backend.put(scope("text"), name, HASH[0], {"name": name})).first
              for name in names]
    firsts += [(await backend.put(scope("text", name), "k", HASH[0], {"name": name})).first
               for name in names]
    read = [(await backend.get(scope("text"), name)).json()["name"] for name in names]
    return (f"scope and key have COLLATE \"{columns[0][1]}\"; {sum(firsts)} of {len(firsts)} keys"
            " and principals that look alike are different",
            columns == [("key", "C"), ("scope", "C")] and all(firsts) and read == names)


async def times_have_a_zone(backend, workers):
    class Nowhere(tzinfo):
        """A time zone which does not know its offset: still naive."""

        def utcoffset(self, dt):
            return None

    tomorrow = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(hours=20)
    bad = [tomorrow.replace(tzinfo=None), tomorrow.replace(tzinfo=Nowhere())]
    refused = 0
    for when in bad:
        refused += await raises(ValueError, backend.put(scope("times"), "k", HASH[0], {},
                                                        expires_at=when))
        async with backend.pool.connection() as conn:
            refused += await raises(ValueError, backend.put(
                scope("times"), "k", HASH[0], {}, expires_at=when, conn=conn))
    written = await count_records("times") + await count_records("times", "p")
    same = 0
    zones = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Apia"]
    for name in zones:      # the client's zone, and the session's
        await backend.put(scope("times"), name, HASH[0], {},
                          expires_at=tomorrow.astimezone(ZoneInfo(name)))
        async with make_pool(1, options=f"-c TimeZone={name}") as pool:
            record = await PgBackend(pool).get(scope("times"), name)
        same += (abs(record.expires_at - tomorrow) < timedelta(seconds=PATIENCE)
                 and record.expires_at.utcoffset() == timedelta(0))
    return (f"{refused} of {2 * len(bad)} naive ones refused, {written} rows written; the same"
            f" instant, and in UTC, comes back for {same} of {len(zones)} zones",
            refused == 2 * len(bad) and written == 0 and same == len(zones))


async def names_are_ascii(backend, workers):
    bad = ["", "1a", "a-b", "a b", "a.b", 'a"b', "a;b", "a\n", "a\x00", "ä", "ſchema",
           "\uff41", "\u0430", "x" * 64, "idempotency; DROP TABLE orders"]
    refused = 0
    for name in bad:
        with contextlib.suppress(ValueError):
            PgBackend(backend.pool, schema=name)
            continue
        refused += 1
    async with make_pool(2, user="postgres", database="fresh2") as pool:
        await superuser("CREATE DATABASE fresh2", database="postgres")
        odd = PgBackend(pool, schema="Select_1")
        await odd.create_schema()
        await odd.put(scope("names"), "k", HASH[0], {"odd": 1})
        stored = (await odd.get(scope("names"), "k")).json() == {"odd": 1}
    return (f"the schema's name: {refused} of {len(bad)} bad ones refused; Select_1 works",
            refused == len(bad) and stored)


async def logs_have_no_principal(backend, workers):
    """What this process has logged, at DEBUG; a traceback of each error; what the
    server has logged up to now."""
    where, texts = scope("logs", "seen by nobody"), []
    calls = [lambda: backend.put(where, "k", HASH[0], {"a": 1}),
             lambda: backend.get(where, "k"),
             lambda: backend.put(where, "k", HASH[1], {"a": 1}),
             lambda: backend.put(where, "k" * 300, HASH[0], {}),
             lambda: backend.put(where, "k3", HASH[0], b"x" * 2_000_000),
             lambda: backend.put(Scope("logs", where.principal + "\x1e"), "k", HASH[0], {})]
    errors = 0
    for call in calls:
        try:
            texts.append(repr(await call()))
        except Exception:                                       # pylint: disable=broad-except
            errors += 1
            texts.append(traceback.format_exc())
    async with backend.pool.connection() as conn:       # an error in the server's log, too
        errors += await raises(AlreadyStored, backend.put(where, "k", HASH[0], {}, conn=conn))
    texts += [repr(where), *LOGGED]
    with open(os.path.join(os.environ["WORK"], "adcp-backend.log"), encoding="utf-8") as file:
        server = file.read()
    joined = f"{where.tenant}\x1e{where.principal}"
    scope_id = hashlib.sha256(joined.encode()).hexdigest()[:16]
    shown = sum(scope_id in text for text in texts)
    leaks = sum(SECRET in text for text in [*texts, *server.splitlines()])
    return (f"{len(texts)} records and tracebacks, {errors} errors, {server.count(chr(10))} lines"
            f" of the server: {leaks} with the principal, {shown} with the truncated SHA-256",
            leaks == 0 and shown >= 3 and errors == 5 and "ERROR" in server)


async def work_and_record_are_one(backend, workers):
    """Each way: the budget does not suffice, after put(); then it does."""
    good = neither = 0
    where = scope("poor")
    await superuser("INSERT INTO budgets VALUES ('poor', 99)")
    for handler in place_order, place_order_then_put:
        request = {"item": handler.__name__, "cents": 100}
        failed = await raises(psycopg.errors.CheckViolation,
                              handler(backend, where, handler.__name__, request))
        neither += (failed and await count_records("poor") == good
                    and await value("SELECT count(*) FROM orders WHERE tenant = 'poor'") == good
                    and await backend.get(where, handler.__name__) is None)
        await superuser("UPDATE budgets SET cents = 199 - 100 + 1 WHERE tenant = 'poor'")
        first = await handler(backend, where, handler.__name__, request)
        again = await handler(backend, where, handler.__name__, request)
        good += first.first and not again.first and again.response == first.response
        await superuser("UPDATE budgets SET cents = 99 WHERE tenant = 'poor'")
    orders = await value("SELECT count(*) FROM orders WHERE tenant = 'poor'")
    return (f"the handler raises after put, {neither} of 2 ways: neither is there; the retry:"
            f" {orders} orders, {await count_records('poor')} records",
            neither == good == orders == await count_records("poor") == 2)


async def undone_is_not_reported(backend, workers):
    """put() within a savepoint that is rolled back, and psycopg.Rollback."""
    where = scope("undone")
    orders = "SELECT count(*) FROM orders WHERE tenant = 'undone'"
    await superuser("INSERT INTO budgets VALUES ('undone', 99)")

    async def place(key, inner):
        async with backend.transaction(where, key, HASH[0]) as turn:
            await turn.conn.execute("INSERT INTO orders (tenant, item, cents) VALUES"
                                    " ('undone', %s, 1)", (key,))
            async with turn.conn.transaction() if inner else contextlib.nullcontext():
                await turn.put({"order": key})
                raise psycopg.Rollback
        return turn.record

    refused = await raises(IdempotencyError, place("savepoint", True))
    answer = await place("rollback", False)
    left = [await value(orders), await count_records("undone"), await count_records("undone", "p")]
    again = [await put_briefly(backend, where, key) for key in ("savepoint", "rollback")]
    return (f"put() undone by a savepoint: {'an error' if refused else 'no error'}; by Rollback:"
            f" {answer}; left: {left} orders, records and claims",
            refused and answer is None and left == [0, 0, 0] and len(again) == 2)


async def many_handlers_one_order(backend, workers):
    """Also: who was not first cannot commit, even if it takes no notice."""
    keys = [f"order-{n}" for n in range(6)]
    answers = await workers.do("order", tenant="shop", keys=keys)
    one = sum(len({body for answer in answers for body in answer[key]}) == 1 for key in keys)
    async with backend.pool.connection() as conn:
        await conn.execute("INSERT INTO orders (tenant, item, cents) VALUES ('shop', 'late', 1)")
        with contextlib.suppress(AlreadyStored):
            await backend.put(scope("shop"), keys[0], payload_hash({"item": keys[0], "cents": 5}),
                              {"late": True}, conn=conn)
        await conn.commit()
    orders = await value("SELECT count(*) FROM orders WHERE tenant = 'shop'")
    late = await value("SELECT count(*) FROM orders WHERE item = 'late'")
    calls = PROCESSES * TOGETHER
    return (f"{calls} handlers on each of {len(keys)} keys: {orders} orders, the same answer to"
            f" all for {one} keys; of a late one that ignores the error {late} orders are left",
            orders == one == len(keys) and late == 0)


async def rows_have_a_cap(backend, workers):
    capped = PgBackend(backend.pool, policy="adcp_capped", max_live_keys=10)
    await capped.create_schema()

    async def fill(where):
        seen = collections.Counter()
        for number in range(30):
            try:
                record = await capped.put(where, f"k{number}", HASH[0], {"n": number})
                seen["stored"] += record.first
            except Full:
                seen["refused"] += 1
        return seen

    seen = await fill(scope("cap"))
    rows = await count_records("cap")
    again = not (await capped.put(scope("cap"), "k5", HASH[0], {})).first
    await put_briefly(capped, scope("cap", "other"), "old")
    await expired(capped, scope("cap", "other"), "old")
    other = await fill(scope("cap", "other"))
    return (f"cap 10, 30 puts: {seen['stored']} stored, {seen['refused']} refused, {rows} rows; a"
            f" repeat passes; another principal, who has an expired one, stores {other['stored']}",
            seen == other == {"stored": 10, "refused": 20} and rows == 10 and again)


async def bodies_of_any_kind(backend, workers):
    bodies = {"image/png": b"\x89PNG\r\n\x1a\n\x00\xff" + bytes(range(256)) * 100,
              "text/plain; charset=latin1": "é".encode("latin1"),
              "text/plain": b"\n \xef\xbb\xbf a line\x00\r\n\n ",
              "application/x-empty": b"",
              "application/json": b'{ "a" :1,\n"a":2.00, "b": "\\u00e9" }',
              "application/pdf": os.urandom(500_000)}
    same = 0
    for content_type, body in bodies.items():
        await backend.put(scope("bodies"), content_type, HASH[0], body, content_type=content_type)
        again = await backend.put(scope("bodies"), content_type, HASH[0], b"other")
        read = await backend.get(scope("bodies"), content_type)
        same += read.response == again.response == body and read.content_type == content_type
    plain = {"é": [1, 2.5, None, "ü\u2028"], "deep": {"x": [[]]}}
    await backend.put(scope("bodies"), "value", HASH[0], plain)
    read = await backend.get(scope("bodies"), "value")
    missing = await backend.get(scope("bodies"), "nobody's")
    return (f"{same} of {len(bodies)} bodies of bytes come back byte for byte with their content"
            f" type; a value comes back as {read.content_type}",
            same == len(bodies) and read.json() == plain and missing is None
            and read.content_type == "application/json" and read.payload_hash == HASH[0])


async def expired_are_deleted(backend, workers):
    where = scope("sweep")
    await asyncio.gather(*(backend.put(where, f"live-{n}", HASH[0], {}) for n in range(20)))
    for number in range(200):
        await put_briefly(backend, where, f"dead-{number}")
    await expired(backend, where, "dead-199")
    before = await value(f"SELECT count(*) FROM {KEYS}")
    dead, deleted = await count_records("sweep") - 20, 0
    for _ in range(PATIENCE * 5):           # a row stays for a second after it has expired
        deleted += await backend.delete_expired()
        left = await count_records("sweep")
        if left <= 20:
            break
        await asyncio.sleep(0.2)
    gone = before - await value(f"SELECT count(*) FROM {KEYS}")
    live = sum([await backend.get(where, f"live-{n}") is not None for n in range(20)])
    return (f"{dead} expired and 20 live: {deleted} deleted, with older ones of the rows above,"
            f" {left} left, {live} of them live",
            dead == 200 and deleted == gone >= 200 and left == live == 20)


def crash(workers, tenant, keys, after):
    """Kill a worker when it has answered so many; what it had begun and answered."""
    begun, answered = set(), {}
    process, = workers.processes
    workers.send("crash", tenant=tenant, keys=keys)
    for line in process.stdout:                 # its end is the end of the process
        word, key, *body = line.split()
        if word == "put":
            begun.add(key)
        else:
            answered[key] = body[0]
        if len(answered) == after:
            process.kill()
    return begun, answered


async def killed_in_put(backend, workers):
    await superuser("INSERT INTO budgets VALUES ('crash', %s)", (BUDGET,))
    loop = asyncio.get_running_loop()
    seen = collections.Counter()
    wrong = []

    async def retry(number, key, begun, answered):
        # By the other handler than before.
        handler = place_order if number % 2 else place_order_then_put
        record = await handler(backend, scope("crash"), key, {"item": key, "cents": 5})
        if key in answered:
            seen["answered"] += 1
            if record.first or record.response.hex() != answered[key]:
                wrong.append(key)
        elif key in begun:
            seen["in put"] += 1
            seen["done again" if record.first else "had committed"] += 1
        elif not record.first:
            wrong.append(key)

    keys = [[f"crash-{n}-{m}" for m in range(60)] for n in range(KILLS)]
    for first in range(0, KILLS, 2):            # two at a time
        pair = range(first, first + 2)
        with Workers(1) as one, Workers(1) as two:
            ends = await asyncio.gather(*(
                loop.run_in_executor(None, crash, worker, "crash", keys[n], random.randint(1, 35))
                for n, worker in zip(pair, (one, two))))
            # At once: the sessions of the dead may not be gone yet.
            for n, (begun, answered) in zip(pair, ends):
                await asyncio.gather(*(retry(number, key, begun, answered)
                                       for number, key in enumerate(keys[n])))
    total = sum(map(len, keys))
    effects = await superuser("SELECT item, count(*) FROM orders WHERE tenant = 'crash'"
                              " GROUP BY item")
    once = sum(count == 1 for _, count in effects)
    spent = BUDGET - await value("SELECT cents FROM budgets WHERE tenant = 'crash'")
    records = await count_records("crash")
    return (f"{KILLS} kills, {seen['in put']} puts under way ({seen['had committed']} had"
            f" committed), {seen['answered']} answered; all {total} keys retried: {once} with"
            f" exactly one order, {records} records, {len(wrong)} wrong answers",
            seen["in put"] >= 200 and seen["answered"] >= 100 and not wrong
            and once == len(effects) == total == records and spent == 5 * total)


PROMISES = [
    ("a pool; each get, put, delete_expired takes one connection", a_connection_per_call),
    ("create_schema() again and again", create_schema_again),
    ("a wrong-shaped table or extension is noticed", wrong_shape_is_noticed),
    ("concurrent put: the first writer wins", first_writer_wins),
    ("one (scope, key) has one payload hash", one_payload_hash),
    ("an expired record is overwritten by the next put", expired_is_overwritten),
    ("scope: tenant and principal cannot be mixed up", scope_is_unambiguous),
    ("text comparison: COLLATE \"C\"", text_is_compared_by_bytes),
    ("a naive datetime is refused", times_have_a_zone),
    ("only an ASCII identifier in the SQL", names_are_ascii),
    ("the record commits with the handler's work", work_and_record_are_one),
    ("what was undone is not reported as stored", undone_is_not_reported),
    ("many handlers, one effect", many_handlers_one_order),
    ("a cap on rows", rows_have_a_cap),
    ("bodies other than JSON", bodies_of_any_kind),
    ("delete_expired removes what is expired, no more", expired_are_deleted),
    ("a worker killed in the middle of put", killed_in_put),
    ("logs: a truncated SHA-256 of the scope only", logs_have_no_principal),
]

LOGGED = []


class Remember(logging.Handler):
    def emit(self, record):
        LOGGED.append(self.format(record))


async def main():
    promises = Promises("adcp-backend")
    logging.basicConfig(level=logging.DEBUG, handlers=[Remember()])
    # The background worker would sweep before delete_expired() can.
    await superuser("ALTER SYSTEM SET idempotency.worker = off")
    await superuser("SELECT pg_reload_conf()")
    await superuser("INSERT INTO budgets VALUES ('shop', %s)", (BUDGET,))
    with Workers(PROCESSES) as workers:
        async with make_pool() as pool:
            backend = make_backend(pool)
            await backend.create_schema()
            for promise, check in PROMISES:
                try:
                    seen, kept = await asyncio.wait_for(check(backend, workers), 3 * PATIENCE)
                except Exception as error:                      # pylint: disable=broad-except
                    traceback.print_exc()
                    seen, kept = f"{type(error).__name__}: {error}", False
                promises.keep(promise, seen, kept)
    return promises.finish()


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        asyncio.run(work())
    elif sys.argv[1:]:
        sys.exit("no arguments")
    else:
        sys.exit(asyncio.run(main()))
