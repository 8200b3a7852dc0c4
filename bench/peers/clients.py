#!/usr/bin/env python3
"""Peers that are no SQL script, and two that are, by clients in Python.

clients.py [OPTION...] NAME DATABASE, with options of pgbench: -c CLIENTS,
-T SECONDS, -U USER, --log, --log-prefix PREFIX, -D skus=N; and --redis SOCKET.  Each
client is a process, like a worker of a prefork server.  NAME is one of

run    idem_run, as ours/run.sql
bare   the work alone, as peers/bare.sql
store  a store beside the work: looked up and written on a second connection
redis  SET NX in Redis before the work, SET of the answer after it

and with contend_ before it all clients ask for one key, a new one ten times a
second.  Prints what pgbench prints, and of contend_ how many keys there were.
"""

import argparse
import hashlib
import json
import multiprocessing
import queue
import random
import time
from array import array

import psycopg
import redis

DAY = 24 * 60 * 60
WORK = "SELECT handler(%s::jsonb)::text"


class Run:
    """All in one statement, whose answer is there after it."""

    SQL = ("SELECT outcome, http_status, body FROM idem_run("
           "'handler(jsonb)', %s, %s, %s, wait => '10 s')")

    def __init__(self, options):
        self.connection = connect(options)

    def request(self, scope, key, body):
        outcome, _, _ = one_row(self.connection, self.SQL, scope, key, body)
        if outcome not in ("completed", "replayed"):
            raise RuntimeError(f"idem_run: {outcome}")
        return outcome == "completed"


class Bare:
    def __init__(self, options):
        self.connection = connect(options)

    def request(self, _scope, _key, body):
        one_row(self.connection, WORK, body)
        return True


class Store:
    """The first writer wins, and what has expired is overwritten.

    Work and answer are two commits: what comes in between, a crash or another
    request with the same key, does the work again.
    """

    GET = ("SELECT encode(fingerprint, 'hex'), response::text FROM peer_requests"
           " WHERE scope = %s AND key = %s AND expires_at > now()")
    PUT = ("INSERT INTO peer_requests AS r"
           " VALUES (%s, %s, decode(%s, 'hex'), %s::jsonb, now() + interval '24 h')"
           " ON CONFLICT (scope, key) DO UPDATE SET (fingerprint, response, expires_at)"
           " = (excluded.fingerprint, excluded.response, excluded.expires_at)"
           " WHERE r.expires_at <= now()")

    def __init__(self, options):
        self.connection = connect(options)
        self.store = connect(options)

    def request(self, scope, key, body):
        canonical = json.dumps(json.loads(body), sort_keys=True, separators=(",", ":"))
        fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
        stored = one_row(self.store, self.GET, scope, key)
        if stored and stored[0] != fingerprint:
            raise RuntimeError("key reused with another request")
        if stored:
            return False
        answer, = one_row(self.connection, WORK, body)
        self.store.execute(self.PUT, (scope, key, fingerprint, answer), prepare=True)
        return True


class Redis:
    """An empty value says that the work is in progress.

    A crash after the work leaves it there: the key is stuck for a day, and
    the work is done again after that.
    """

    def __init__(self, options):
        self.connection = connect(options)
        self.redis = redis.Redis(unix_socket_path=options.redis)

    def request(self, scope, key, body):
        name = f"{scope}:{key}"
        if self.redis.set(name, b"", nx=True, ex=DAY):
            answer, = one_row(self.connection, WORK, body)
            self.redis.set(name, answer, ex=DAY)
            return True
        while not self.redis.get(name):
            time.sleep(0.01)
        return False


CONTENDERS = {"run": Run, "bare": Bare, "store": Store, "redis": Redis}


def connect(options):
    return psycopg.connect(dbname=options.database, user=options.user, autocommit=True)


def one_row(connection, sql, *parameters):
    return connection.execute(sql, parameters, prepare=True).fetchone()


def client(number, options, start, results):
    """Requests one after the other; the first is not measured."""
    name = options.name.removeprefix("contend_")
    contend = name != options.name
    scope = f"contention {name}" if contend else "clients"
    contender = CONTENDERS[name](options)
    dice = random.Random()
    latencies = array("I")
    keys = set()
    executed = 0

    def request():
        if contend:
            key, sku = str(int(time.time() * 10)), 1
            keys.add(key)
        else:
            key, sku = str(dice.randrange(10**18)), dice.randint(1, options.skus)
        return contender.request(scope, key, json.dumps({"sku": sku, "quantity": 1}))

    executed += request()
    start.wait()
    begin = now = time.perf_counter()
    while now < begin + options.seconds:
        executed += request()
        before, now = now, time.perf_counter()
        latencies.append(round((now - before) * 1e6))
    if options.log:
        with open(f"{options.log_prefix}.{number}", "w", encoding="ascii") as file:
            file.writelines(f"{number} {i} {latency}\n" for i, latency in enumerate(latencies))
    results.put((len(latencies), len(latencies) / (now - begin), executed, keys))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("-c", dest="clients", type=int, default=1)
    parser.add_argument("-T", dest="seconds", type=float, default=5)
    parser.add_argument("-U", dest="user", default="app")
    parser.add_argument("-D", dest="defines", action="append", default=[])
    parser.add_argument("--log", action="store_true")
    parser.add_argument("--log-prefix")
    parser.add_argument("--redis")
    parser.add_argument("name")
    parser.add_argument("database")
    options = parser.parse_args()
    options.skus = int(dict(define.split("=") for define in options.defines)["skus"])

    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(options.clients)
    results = fork.Queue()
    clients = [fork.Process(target=client, args=(i, options, start, results), daemon=True)
               for i in range(options.clients)]
    for process in clients:
        process.start()
    # One that fails leaves the others at the barrier, and us without a result.
    done = []
    while len(done) < options.clients:
        try:
            done.append(results.get(timeout=1))
        except queue.Empty:
            if any(process.exitcode for process in clients):
                raise SystemExit("a client failed") from None
    for process in clients:
        process.join()

    measured, tps, executed, keys = zip(*done)
    print(f"number of transactions actually processed: {sum(measured) + options.clients}")
    print(f"number of executions: {sum(executed)}")
    print(f"number of keys: {len(set().union(*keys))}")
    print(f"tps = {sum(tps):f}")


main()
