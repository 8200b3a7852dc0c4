"""The adapters for Node.js, each in a server of its framework: which of their promises
they keep.

    test.py [express] [fastify] [hono]

The sentences are tried directly and behind a transaction-pooling pgbouncer, and a row
holds when it holds both ways.
"""

import contextlib
import http.client
import itertools
import json
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid

import psycopg
from promises import PATIENCE, CuttingProxy, Promises, Server, call, together

HERE = pathlib.Path(__file__).parent
WORK = os.environ["WORK"]
FRAMEWORKS = sys.argv[1:] or ["express", "fastify", "hono"]
STEPS = ["claim", "work", "completed", "committed"]     # where a server is killed
KILLS = 100
CUTS = 200
HANG_UPS = 100
TRIES = 10          # of an adapter

NOT_KEPT = {"date", "connection", "keep-alive", "x-request", "idempotency-replayed",
            "transfer-encoding", "content-length"}


class Shop:
    """A server of one framework."""

    def __init__(self, framework, host=None, **environment):
        self.framework = framework
        self.server = Server(
            ["node", str(HERE / f"{framework}.js")],
            {"PGHOST": host or os.environ["PGHOST"], "PGUSER": "web_app", "PGDATABASE": "shop",
             "PGAPPNAME": framework, **environment}, log=f"{WORK}/{framework}.errors")

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *exception):
        self.server.stop()

    def order(self, key, do=None, body='{"sku": "chair"}', path="/orders", user="ada", **headers):
        """The reply to a request; keywords are further headers."""
        named = {"X-User": user, "X-Do": do, "Idempotency-Key": key,
                 "Content-Type": "application/json",
                 **{name.replace("_", "-"): value for name, value in headers.items()}}
        return call(self.server.port, "POST", path, body,
                    {name: value for name, value in named.items() if value is not None})

    def state(self):
        """How the server is, for a sentence that has no reply to tell of."""
        ended = self.server.process.poll()
        said_last = pathlib.Path(self.server.log).read_text(encoding="utf-8")[-500:]
        return f"the server {'runs' if ended is None else f'ended with {ended}'}, and said last: {said_last}"

    def until_answered(self, key):
        """The reply at last: repeats after lost connections, and while it is in progress."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                reply = self.order(key)
                if reply.status not in (409, 500):
                    return reply
            time.sleep(0.05)
        raise RuntimeError("no answer")


def said(function):
    """Its docstring, which is the promise."""
    return " ".join(function.__doc__.split())


def key():
    return str(uuid.uuid4())


def effects(*keys):
    """How often the handler's work is in the database."""
    with psycopg.connect(dbname="shop") as db:
        return db.execute("SELECT count(*) FROM effects WHERE key = ANY(%s)",
                          [list(keys)]).fetchone()[0]


class Gate:
    """Handlers that are told to wait do so while it is closed: with Gate(framework)."""

    def __init__(self, framework):
        self.framework = framework

    def __enter__(self):
        self.db = psycopg.connect(dbname="shop", autocommit=True)
        self.db.execute("SELECT pg_advisory_lock(hashtext(%s))", [self.framework])
        return self

    def __exit__(self, *exception):
        self.db.close()

    def wait_for(self, count, what="wait_event = 'advisory'"):
        """Until so many sessions of the server wait here, or are in another state."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self.db.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
                               f" AND {what}", [self.framework]).fetchone()[0] == count:
                return True
            time.sleep(0.02)
        return False

    def open(self):
        self.db.execute("SELECT pg_advisory_unlock_all()")


def kept(reply):
    """What of a reply has to be the same in all repeats."""
    return (reply.status, reply.body,
            sorted((name, value) for name, value in reply.headers.items() if name not in NOT_KEPT))


def is_problem(reply, status, code):
    return (reply.status == status and reply.headers["content-type"] == "application/problem+json"
            and json.loads(reply.body)["code"] == code
            and json.loads(reply.body)["status"] == status)


def replayed(reply):
    return reply.headers.get("idempotency-replayed") == "true"


# The sentences: each a function of a shop that returns (seen, kept).

def first_and_repeat(shop):
    """A repeat gets the first answer, byte for byte, with status and headers; what a middleware
    makes is made anew"""
    name = key()
    first, second = shop.order(name), shop.order(name)
    raw = raw_headers(shop, name)
    return (f"{first.status}, {len(first.body)} bytes twice, {effects(name)} effect",
            first.status == 201 and kept(first) == kept(second) and effects(name) == 1
            and not replayed(first) and replayed(second) and "location" in first.headers
            and sum(line.lower().startswith(b"set-cookie:") for line in raw) == 2
            and first.headers["x-request"] != second.headers["x-request"])


def raw_headers(shop, name):
    with socket.create_connection(("127.0.0.1", shop.server.port), PATIENCE) as client:
        client.sendall(request_bytes(name))
        return client.makefile("rb").read().split(b"\r\n\r\n")[0].split(b"\r\n")


def request_bytes(name, do="order"):
    body = b'{"sku": "chair"}'
    return (f"POST /orders HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n"
            f"X-User: ada\r\nX-Do: {do}\r\n"
            f"Idempotency-Key: {name}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n").encode() + body


def answers_of_all_kinds(shop):
    """Text, bytes, no body and a refusal of the handler's own are stored, too"""
    seen = []
    for do, status in ("text", 201), ("bytes", 201), ("empty", 204), ("refuse", 409):
        name = key()
        first, second = shop.order(name, do), shop.order(name, do)
        seen.append(first.status == status and kept(first) == kept(second) and replayed(second)
                    and effects(name) == 1)
    octets = shop.order(key(), "bytes").body
    return f"{sum(seen)} of 4 the same", all(seen) and octets == bytes(range(256))


def keys_that_are_refused(shop):
    """No key or a bad one is 400, nobody is 401"""
    missing, bad, twice = shop.order(None), shop.order('"open'), shop.order("a, b")
    nobody = shop.order(key(), user=None)
    return (f"{missing.status}, {bad.status}, {twice.status}, {nobody.status}",
            is_problem(missing, 400, "idempotency_key_missing")
            and is_problem(bad, 400, "idempotency_key_invalid")
            and is_problem(twice, 400, "idempotency_key_invalid")
            and is_problem(nobody, 401, "principal_missing")
            and nobody.headers["www-authenticate"] == "Bearer")


def bodies_that_are_refused(shop):
    """Bad JSON is 400, too large a body is 413, also without a Content-Length"""
    large = json.dumps("x" * 70000)
    names = [key() for _ in range(5)]
    bad = [shop.order(name, body=body) for name, body in zip(
        names, ['{"sku": ', '"\\u0000"', b'"\xff"'])]
    sized = shop.order(names[3], body=large)
    chunked = shop.order(names[4], body=itertools.repeat(b"x" * 7000, 10))
    return (f"{[reply.status for reply in bad]}, {sized.status}, {chunked.status}",
            all(is_problem(reply, 400, "request_body_invalid") for reply in bad)
            and all(is_problem(reply, 413, "request_body_too_large") for reply in (sized, chunked))
            and effects(*names) == 0)


def what_a_repeat_is(shop):
    """JSON is compared by its meaning, and with the query; another is 422; another user's key
    is another"""
    name = key()
    shop.order(name, body='{"a": 1, "b": [2.0]}')
    same = shop.order(name, body='{"b":[2],"a":1}')
    big = [shop.order(name + "n", body=body) for body in ("9007199254740993", "9007199254740992")]
    others = [shop.order(name, body='{"a": 1, "b": [3]}'),
              shop.order(name, body='{"a": 1, "b": [2]}', path="/orders?a=1"), big[1]]
    hers = shop.order(name, user="eve")
    queries = [shop.order(name + "q", path=f"/orders?a={a}") for a in (1, 1, 2)]
    return (f"{same.status}, {[reply.status for reply in others]}, {hers.status}",
            replayed(same) and all(is_problem(reply, 422, "idempotency_key_reused")
                                   for reply in (*others, queries[2]))
            and hers.status == 201 and not replayed(hers) and replayed(queries[1])
            and effects(name) == 2)


def bodies_that_are_not_json(shop):
    """Other bodies are compared by their bytes and content type, and reach the handler as they
    are"""
    name, body = key(), bytes(range(256))
    plain = {"Content_Type": "application/octet-stream"}
    first, same = (shop.order(name, "echo", body, **plain) for _ in range(2))
    other = shop.order(name, "echo", body + b"x", **plain)
    typed = shop.order(name, "echo", body, Content_Type="application/x-other")
    none = [shop.order(name + "e", body=None, Content_Type=None) for _ in range(2)]
    return (f"{first.status}, {same.status}, {other.status}, {typed.status}",
            json.loads(first.body)["got"] == body.decode("latin1") and replayed(same)
            and is_problem(other, 422, "idempotency_key_reused")
            and is_problem(typed, 422, "idempotency_key_reused")
            and none[0].status == 201 and replayed(none[1]))


def at_the_same_time(shop):
    """Of many at the same time one runs, the others get 409 with Retry-After"""
    name, first = key(), []
    with Gate(shop.framework) as gate:
        runs = threading.Thread(target=lambda: first.append(shop.order(name, "wait")))
        runs.start()
        gate.wait_for(1)
        replies = together(7, lambda _: shop.order(name, "wait"))
        gate.open()
        runs.join()
    return (f"{first[0].status}, {[reply.status for reply in replies]}, {effects(name)} effect",
            first[0].status == 201 and effects(name) == 1
            and all(is_problem(reply, 409, "idempotency_key_in_progress")
                    and int(reply.headers["retry-after"]) >= 1 for reply in replies))


def not_to_be_kept(shop):
    """What the policy releases goes out and is not stored; the work is undone, the key free"""
    name = key()
    first, second = shop.order(name, "release"), shop.order(name, "release")
    undone = effects(name)
    third = shop.order(name)
    return (f"{first.status}, {second.status}, then {third.status}",
            first.status == second.status == 503 and first.body != second.body and undone == 0
            and "location" in first.headers and not replayed(third) and third.status == 201
            and effects(name) == 1)


def errors_of_the_handler(shop):
    """An error of the handler goes to the framework, with nothing of it stored; the key is free"""
    name = key()
    first = shop.order(name, "throw")
    undone = effects(name)
    second = shop.order(name)
    return (f"{first.status}, then {second.status}",
            first.status == 500 and json.loads(first.body) == {"error": "the handler throws"}
            and undone == 0 and second.status == 201 and effects(name) == 1)


def swallowed_errors(shop):
    """A handler that swallows an error of SQL, or commits by itself, is 500, with nothing
    stored"""
    names = key(), key()
    replies = shop.order(names[0], "swallow"), shop.order(names[1], "commit")
    undone = effects(*names)
    again = [shop.order(name) for name in names]
    return (f"{[reply.status for reply in replies]}, then {[reply.status for reply in again]}",
            all(reply.status == 500 for reply in replies) and undone == 0
            and all(reply.status == 201 for reply in again))


def tried_again(shop):
    """40001 and 40P01 are tried again, the whole transaction, and nothing of a failed try is in
    the answer"""
    names = key(), key()
    first, second = shop.order(names[0], "again"), shop.order(names[1], "deadlock")
    of_tries = [name for name in first.headers if name.startswith("x-of-")]
    return (f"{first.status} in try {first.headers['x-try']},"
            f" {second.status} in try {second.headers['x-try']}",
            first.headers["x-try"] == "4" and second.headers["x-try"] == "3" and of_tries == ["x-of-4"]
            and effects(*names) == 2 and not replayed(first) and not replayed(second))


def not_for_ever(shop):
    """Tries are bounded"""
    name = key()
    reply = shop.order(name, "for-ever")
    then = shop.order(name)
    return (f"{reply.status} after {int(then.headers['x-try']) - 1} tries",
            reply.status == 500 and then.headers["x-try"] == str(TRIES + 1) and effects(name) == 1)


def connections_that_vanish(shop):
    """A connection that is lost in the handler is 201 by another one"""
    name = key()
    reply = shop.order(name, "vanish")
    return (f"{reply.status} in try {reply.headers.get('x-try')}",
            reply.status == 201 and effects(name) == 1)


def streams(shop):
    """What is streamed, sent in parts, sent twice or not at all is 500, with nothing stored"""
    names = [key() for _ in range(4)]
    replies = [shop.order(name, do)
               for name, do in zip(names, ["stream", "parts", "twice", "nothing"])]
    undone = effects(*names)
    again = [shop.order(name) for name in names]
    return (f"{[reply.status for reply in replies]}",
            all(reply.status == 500 for reply in replies) and undone == 0
            and all(reply.status == 201 for reply in again))


def too_large_answers(shop):
    """An answer that is too large for the policy is 500 and says so, with nothing stored"""
    name = key()
    reply = shop.order(name, "large")
    return (f"{reply.status}: {json.loads(reply.body)['error'][-12:]}",
            reply.status == 500 and b"too large" in reply.body and effects(name) == 0
            and shop.order(name).status == 201)


def clients_that_leave(shop):
    """A client that leaves in the middle finds its answer later; no connection stays in a
    transaction"""
    names = [key() for _ in range(8)]
    with Gate(shop.framework) as gate, contextlib.ExitStack() as clients:
        for name in names:
            client = clients.enter_context(
                socket.create_connection(("127.0.0.1", shop.server.port), PATIENCE))
            client.sendall(request_bytes(name, "wait"))
        waited = gate.wait_for(8)
        clients.close()
        gate.open()
        ended = gate.wait_for(0, "state <> 'idle'")
        replies = [shop.order(name, "wait") for name in names]
    return (f"{sum(map(replayed, replies))} of 8 found",
            waited and ended and all(map(replayed, replies)) and effects(*names) == 8)


SENTENCES = [
    first_and_repeat, answers_of_all_kinds, keys_that_are_refused, bodies_that_are_refused,
    what_a_repeat_is, bodies_that_are_not_json, at_the_same_time, not_to_be_kept,
    errors_of_the_handler, swallowed_errors, tried_again, not_for_ever, connections_that_vanish,
    streams, too_large_answers, clients_that_leave]


def limits(shop):
    """429 with Retry-After for new work alone, undone, once for all tries; another context is
    422"""
    user = key()
    names = [key() for _ in range(4)]
    device = {"user": user, "X_Device": "phone"}
    paid = [shop.order(names[0], "again", **device), shop.order(names[1], **device)]
    refused = shop.order(names[2], **device)
    repeat = shop.order(names[0], "again", **device)
    other = shop.order(names[0], "again", user=user, X_Device="desk")
    return (f"{[reply.status for reply in (*paid, refused, repeat, other)]}",
            all(reply.status == 201 for reply in paid) and is_problem(refused, 429, "rate_limited")
            and int(refused.headers["retry-after"]) >= 1 and effects(names[2]) == 0
            and replayed(repeat) and is_problem(other, 422, "idempotency_key_reused"))


def strict(shop):
    """A policy that refuses repeats, and keys that are no UUID, is obeyed"""
    name = key()
    first, second, odd = shop.order(name), shop.order(name), shop.order("order-1")
    return (f"{first.status}, {second.status}, {odd.status}",
            first.status == 201 and is_problem(second, 409, "idempotency_key_duplicate")
            and is_problem(odd, 400, "idempotency_key_invalid") and effects(name) == 1)


def digests(shop):
    """An answer of which only a digest is kept has no body, from the first on"""
    name = key()
    first, second = shop.order(name, "large"), shop.order(name, "large")
    return (f"{first.status} twice, {len(first.body)} bytes",
            first.status == 201 and first.body == b"" and kept(first) == kept(second)
            and replayed(second) and effects(name) == 1)


def serializable(shop):
    """At SERIALIZABLE many at the same time have one effect and one answer"""
    name = key()
    replies = together(12, lambda _: shop.order(name))
    answers = {reply.body for reply in replies if reply.status == 201}
    return (f"{len(answers)} answer, {effects(name)} effect",
            len(answers) == 1 and effects(name) == 1
            and all(reply.status in (201, 409) for reply in replies))


def parsed_before(shop):
    """In Express behind express.json(), too: 201, a replay, 422"""
    name = key()
    replies = [shop.order(name, path="/parsed", body=body) for body in ("{}", "{}", "[]")]
    other = shop.order(key(), path="/parsed", body='{"sku": ')
    return (f"{[reply.status for reply in replies]}",
            replayed(replies[1]) and is_problem(replies[2], 422, "idempotency_key_reused")
            and other.status == 500)


def awaited(shop):
    """In Express a handler that waits for what it has sent is not waited for: a stream is 500,
    res.end() is stored"""
    names = [key() for _ in range(3)]
    replies = [shop.order(name, do) for name, do in zip(names, ["pipeline", "file", "callback"])]
    return (f"{[reply.status for reply in replies]}",
            [reply.status for reply in replies] == [500, 500, 200] and replies[2].body == b"sent"
            and effects(*names) == 1)


def same_and_once(shop, answers):
    """(seen, kept) of key -> first answer, after two more repeats of each."""
    different = sum(kept(shop.order(name)) != kept(reply)
                    for name, reply in answers.items() for _ in range(2))
    with psycopg.connect(dbname="shop") as db:
        counts = db.execute("SELECT count(*) FROM effects WHERE key = ANY(%s) GROUP BY key",
                            [list(answers)]).fetchall()
    once = sum(count == 1 for count, in counts)
    return (f"{once} of {len(answers)} keys once, {different} answers differ",
            once == len(counts) == len(answers) and different == 0
            and all(reply.status == 201 for reply in answers.values()))


def killed(framework):
    """One effect and one answer a key, SIGKILL after SIGKILL"""
    answers, died = {}, 0
    with Shop(framework) as shop:
        for number in range(KILLS):
            victim, bystander = key(), key()
            other = threading.Thread(
                target=lambda name: answers.update({name: shop.until_answered(name)}),
                args=[bystander])
            other.start()
            with contextlib.suppress(OSError, http.client.HTTPException):
                answers[victim] = shop.order(victim, X_Die=STEPS[number % len(STEPS)])
            with contextlib.suppress(subprocess.TimeoutExpired):
                died += shop.server.process.wait(PATIENCE) == -9
            shop.server.start()
            answers.setdefault(victim, shop.until_answered(victim))
            other.join()
        seen, good = same_and_once(shop, answers)
    return f"killed {died} times: {seen}", good and died == KILLS and len(answers) == 2 * KILLS


def cut(framework):
    """A connection that is lost after COMMIT: the first answer goes out all the same, unmarked"""
    answers = {}
    directory = f"{WORK}/{framework}.cut"
    os.mkdir(directory)
    proxy = CuttingProxy(directory)
    with Shop(framework, directory) as shop:
        for number in range(CUTS):
            proxy.whole = number % 2 == 1
            proxy.arm()
            name = key()
            answers[name] = shop.order(name)
        marked = sum(map(replayed, answers.values()))
        seen, good = same_and_once(shop, answers)
    proxy.close()
    return (f"cut {proxy.cuts} times: {seen}, {marked} marked",
            good and proxy.cuts == CUTS and marked == 0)


def hung_up(framework):
    """A client that loses its connection as the answer comes gets the same one later"""
    answers = {}
    with Shop(framework) as shop:
        for _ in range(HANG_UPS):
            name = key()
            client = socket.create_connection(("127.0.0.1", shop.server.port), PATIENCE)
            client.sendall(request_bytes(name))
            client.recv(1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            answers[name] = shop.until_answered(name)
        late = sum(map(replayed, answers.values()))
        seen, good = same_and_once(shop, answers)
    return f"{late} of {HANG_UPS} found it: {seen}", good and late == HANG_UPS


@contextlib.contextmanager
def pgbouncer():
    """In transaction mode: the folder of its socket."""
    directory = pathlib.Path(WORK, "pgbouncer")
    directory.mkdir()
    (directory / "users").write_text('"web_app" ""\n')
    (directory / "ini").write_text(
        f"[databases]\nshop = host={os.environ['PGHOST']} port=5432 dbname=shop\n"
        f"[pgbouncer]\nlisten_addr =\nlisten_port = 5432\nunix_socket_dir = {directory}\n"
        f"auth_type = trust\nauth_file = {directory}/users\npool_mode = transaction\n"
        f"default_pool_size = 60\nmax_client_conn = 200\nlogfile = {directory}/log\n")
    program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
    process = subprocess.Popen([program, "-q", directory / "ini"])
    try:
        deadline = time.monotonic() + PATIENCE
        while not (directory / ".s.PGSQL.5432").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        yield str(directory)
    finally:
        process.terminate()
        process.wait()


def in_log():
    """What was never to be in the log of the server: (seen, kept).  Every key has a UUID in it,
    and so has a hint."""
    log = "\n".join(line for line in pathlib.Path(WORK, "node.log").read_text().splitlines()
                    if "HINT:" not in line)
    found = re.findall(r"\w{8}-\w{4}-\w{4}-\w{4}-\w{12}|\bchair\b|\bada\b", log)
    errors = log.count("STATEMENT:")
    return f"{len(found)}, with {errors} statements that failed", not found and errors > 0


def try_sentences(framework, hosts):
    """[(promise, seen, kept)], each sentence tried over all hosts."""
    results = {}

    def note(sentence, shop):
        try:
            seen, good = sentence(shop)
        except Exception as error:      # a reply that is not what the sentence takes apart
            seen, good = f"{type(error).__name__}: {error}; {shop.state()}", False
        before, all_good = results.get(said(sentence), ("", True))
        results[said(sentence)] = (seen if all_good else before, all_good and good)

    for host in hosts:
        with Shop(framework, host) as shop:
            for sentence in SENTENCES:
                note(sentence, shop)
            if framework == "express":
                note(parsed_before, shop)
                note(awaited, shop)
        for sentence, environment in (
                (limits, {"LIMITER": "orders", "CONTEXT": "device"}),
                (strict, {"POLICY": "strict"}), (digests, {"POLICY": "digest"}),
                (serializable, {"ISOLATION": "SERIALIZABLE"})):
            with Shop(framework, host, **environment) as shop:
                note(sentence, shop)
    return [(f"{framework}: {promise}", *result) for promise, result in results.items()]


def in_each(function, *arguments):
    """The results of function(framework, …), of all frameworks at the same time."""
    return together(len(FRAMEWORKS), lambda number: function(FRAMEWORKS[number], *arguments))


def main():
    promises = Promises("Adapters for Node.js")
    with pgbouncer() as pooler:
        for rows in in_each(try_sentences, [os.environ["PGHOST"], pooler]):
            for row in rows:
                promises.keep(*row)
    for test in killed, cut, hung_up:
        for framework, (seen, good) in zip(FRAMEWORKS, in_each(test)):
            promises.keep(f"{framework}: {said(test)}", seen, good)
    promises.keep("No key, body or user is in the log of the server", *in_log())
    stores = subprocess.run(
        ["node", str(HERE / "stores.js")], capture_output=True, text=True, timeout=PATIENCE,
        env={**os.environ, "PGUSER": "web_app", "PGDATABASE": "shop"})
    for line in stores.stdout.splitlines():
        promises.keep(*json.loads(line))
    promises.keep("The stores were tried to the end", stores.stderr.strip() or "yes",
                  stores.returncode == 0)
    return promises.finish()


if __name__ == "__main__":
    sys.exit(main())
