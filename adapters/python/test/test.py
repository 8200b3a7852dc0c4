"""Holds the promises of the adapters up against four frameworks; see README.md.

Expects a database "shop" with schema.sql loaded, in the cluster that the PG*
variables name, and psql in PSQL; ../run makes all of that.
"""

import contextlib
import http.client
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, namedtuple

from promises import PATIENCE, CuttingProxy, Promises, Server, together

FAMILIES = {"asgi": ("fastapi", "starlette"), "wsgi": ("flask", "django")}
KILLS = 100             # of a server in mid-request, for each family
CUTS = 200              # of a connection after COMMIT, at each of its two ends
CLIENTS = 4             # at once; of a server that is killed, one does it

WORK = os.environ["WORK"]

Reply = namedtuple("Reply", "status headers body")
numbers = itertools.count(1)


##
## The database
##

def sql(text):
    """Rows, as lists of strings."""
    out = subprocess.run([os.environ["PSQL"], "-XAtq", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-d", "shop"],
                         input=text, text=True, capture_output=True, timeout=PATIENCE)
    if out.returncode != 0:
        raise RuntimeError(f"{text}\n{out.stderr}")
    return [line.split("\t") for line in out.stdout.splitlines()]


def effects(name):
    return int(sql(f"SELECT count(*) FROM orders WHERE name = '{name}'")[0][0])


def restart_runs():
    sql("ALTER SEQUENCE runs RESTART")


def runs():
    return int(sql("SELECT last_value FROM runs")[0][0])


def open_transactions():
    return int(sql("SELECT count(*) FROM pg_stat_activity"
                   " WHERE usename = 'web_app' AND state <> 'idle'")[0][0])


def until(condition):
    """Whether it came true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


##
## Requests
##

def new_name():
    return f"order-{next(numbers)}"


def send(port, path, name, *, key="", user="ada", body=None, content_type="application/json", headers=None):
    """One request; key: the order's name unless told, None for no header."""
    fields = {"Content-Type": content_type, **(headers or {})}
    if key is not None:
        fields["Idempotency-Key"] = key or f'"{name}"'
    if user is not None:
        fields["X-User"] = user
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("POST", path, json.dumps({"name": name}) if body is None else body, fields)
        response = connection.getresponse()
        return Reply(response.status, [(field.lower(), value) for field, value in response.getheaders()
                                       if field.lower() not in ("date", "server", "connection")],
                     response.read())
    finally:
        connection.close()


def insist(port, path, name, headers=None):
    """What a client does: the same again, until it is answered."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            reply = send(port, path, name, headers=headers)
            # Without a length it may have been cut among its headers.
            if reply.status != 409 and header(reply, "content-length"):
                return reply
        headers = None
        time.sleep(0.02)
    return None


def header(reply, name):
    return next((value for field, value in reply.headers if field == name), None)


def is_replay(reply, first):
    """The same status, headers and bytes, and one header more."""
    headers = [field for field in reply.headers if field[0] != "idempotency-replayed"]
    return header(reply, "idempotency-replayed") == "true" and reply._replace(headers=headers) == first


def is_problem(reply, status, code=None):
    return (reply.status == status and header(reply, "content-type") == "application/problem+json"
            and json.loads(reply.body).get("code") == code and json.loads(reply.body)["status"] == status)


class Framework:
    """One of the four, behind a port."""

    def __init__(self, promises, name, port):
        self.promises, self.name, self.port = promises, name, port

    def send(self, task="order", name=None, **more):
        return send(self.port, f"/{self.name}/{task}{more.pop('query', '')}", name or new_name(), **more)

    def twice(self, task, **more):
        """The name, the reply, that to its repeat."""
        name = new_name()
        return name, self.send(task, name, **more), self.send(task, name, **more)

    def keep(self, promise, seen, kept):
        self.promises.keep(f"{self.name}: {promise}", seen, kept)

    ##
    ## Promises
    ##

    def first_and_replays(self):
        name = new_name()
        first, *others = [self.send(name=name) for _ in range(6)]
        number = sql(f"SELECT id FROM orders WHERE name = '{name}'")
        whole = first.status == 201 and json.loads(first.body) == {"order": int(number[0][0])} and (
            header(first, "location") == "/orders/7" and header(first, "idempotency-expires"))
        same = sum(is_replay(other, first) for other in others)
        self.keep("the handler's answer goes out, and every repeat gets it byte for byte, headers included",
                  f"{first.status}, {same} of {len(others)} the same, {len(number)} order",
                  whole and same == len(others) and len(number) == 1)
        answers = {task: self.twice(task, **more) for task, more in {
            "refuse": {}, "nothing": {}, "digest": {},
            "picture": {"body": b"\xffpicture", "content_type": "image/png"}}.items()}
        same = [task for task, (_, one, two) in answers.items() if is_replay(two, one)]
        right = [answers[task][1].status for task in answers] == [409, 204, 200, 200] and (
            answers["picture"][1].body == b"\x89PNG\r\n\0\xff" and answers["digest"][1].body == b"")
        self.keep("so do a refusal, an answer without a body, one whose body is not kept, and one of bytes",
                  ", ".join(same), right and len(same) == len(answers))
        if self.name != "django":
            parts = [value for field, value in first.headers if field == "x-part"]
            self.keep("a header that occurs twice does so in the replay", f"{parts}", len(parts) == 2)

    def refusals(self):
        before = sql("SELECT count(*) FROM orders")
        seen = {
            "no key": is_problem(self.send(key=None), 400, "idempotency_key_missing"),
            "malformed key": is_problem(self.send(key='"a", "b"'), 400, "idempotency_key_invalid"),
            "long key": is_problem(self.send(key="k" * 300), 400, "idempotency_key_invalid"),
            "nobody": is_problem(self.send(user=None), 401, "principal_missing"),
            "bad JSON": is_problem(self.send(body=b'{"name": '), 400),
            "bad UTF-8": is_problem(self.send(body=b'{"name": "\xff"}'), 400),
            "deep JSON": is_problem(self.send(body=b"[" * 50000), 400),
            "too large": is_problem(self.send(body=b"x" * (1 << 20) + b"x"), 413),
        }
        fine = [what for what, right in seen.items() if right]
        self.keep("what cannot be a request is refused as a problem", ", ".join(fine),
                  len(fine) == len(seen) and before == sql("SELECT count(*) FROM orders"))

    def reuse(self):
        name, first, _ = self.twice("order")
        spaced = self.send(name=name, body=b'{ "name" :  "%s" }' % name.encode())
        others = [self.send(name=name, body=b'{"name": "other"}'), self.send(name=name, query="?other=1"),
                  self.send(name=name, body=b"bytes", content_type="text/plain")]
        refused = sum(is_problem(other, 422, "idempotency_key_reused") for other in others)
        self.keep("the same JSON in other bytes is the same request; another body or query is 422",
                  f"{spaced.status}, {refused} of {len(others)} refused",
                  is_replay(spaced, first) and refused == len(others) and effects(name) == 1)
        stranger = self.send(name=name, user="bob")
        self.keep("a key belongs to its principal", f"{stranger.status} for another",
                  stranger.status == 201 and effects(name) == 2)

    def at_once(self):
        name = new_name()
        replies = together(6, lambda _: self.send("slow", name))
        ran = [reply for reply in replies if reply.status == 201]
        busy = sum(is_problem(reply, 409, "idempotency_key_in_progress")
                   and header(reply, "retry-after") is not None for reply in replies)
        self.keep("of equal requests at once one runs, the others get 409 with Retry-After or its answer",
                  f"{len(ran)} answered, {busy} refused, {effects(name)} effect",
                  effects(name) == 1 and busy and len(ran) + busy == len(replies)
                  and len({reply.body for reply in ran}) == 1)

    def limits(self):
        user = f"user of {self.name}"
        names = [new_name() for _ in range(4)]
        pairs = [[self.send("limited", name, user=user) for _ in range(2)] for name in names[:3]]
        replies, replayed = zip(*pairs)
        limited = self.send("limited", names[3], user=user)
        kept = (all(map(is_replay, replayed, replies)) and is_problem(limited, 429, "rate_limited")
                and int(header(limited, "retry-after")) > 0 and effects(names[3]) == 0)
        self.keep("a limiter is charged for new work only; 429 with Retry-After leaves nothing",
                  f"{Counter(reply.status for reply in (*replies, *replayed, limited))}", kept)

    def undone(self):
        seen = {}
        for task, status in {"busy": 503, "raise": 500, "handled": 409, "swallow": 500, "unknown": 500,
                             "commit": 500, "stream": 500, "large": 500, "type": 500}.items():
            name, first, second = self.twice(task)
            seen[task] = first.status == second.status == status and effects(name) == 0 and (
                header(second, "idempotency-replayed") is None)
        fine = [task for task, right in seen.items() if right]
        self.keep("rolled back: a released status, an exception, an error that was caught or swallowed or"
                  " is found by COMMIT, a commit of the handler's, a stream, an answer that is too large"
                  " or cannot be stored", ", ".join(fine), len(fine) == len(seen))
        replies = {task: self.send(task) for task in ("busy", "stream", "large")}
        details = [json.loads(replies[task].body)["detail"] for task in ("stream", "large")]
        self.keep("the handler's answer goes out then, or a problem that says what was wrong",
                  " ".join(details), replies["busy"].body == b"later" and "stream" in details[0]
                  and "large" in details[1] and is_problem(replies["stream"], 500)
                  and is_problem(replies["large"], 500))
        restart_runs()
        name, first, second = self.twice("mended")
        self.keep("the key is free then", f"{first.status}, then {second.status}",
                  (first.status, second.status, effects(name)) == (500, 201, 1))

    def again(self):
        seen = {}
        for task in ("serialize", "deadlock", "terminate"):
            restart_runs()
            name, first, second = self.twice(task)
            seen[task] = first.status == 201 and runs() == 3 and is_replay(second, first) and effects(name) == 1
        fine = [task for task, right in seen.items() if right]
        self.keep("after 40001, 40P01 or 57P01 in the handler the transaction is repeated",
                  ", ".join(fine), len(fine) == len(seen))
        sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'web_app'")
        replies = together(4, lambda _: self.send())
        self.keep("connections of the pool that are lost, as after a restart, are not noticed outside",
                  f"{[reply.status for reply in replies]}", all(reply.status == 201 for reply in replies))

    def cancelled(self):
        """Clients that go, and for ASGI time-outs that cancel the request."""
        names = [new_name() for _ in range(24)]

        def leave(number):
            with socket.create_connection(("127.0.0.1", self.port)) as client:
                body = json.dumps({"name": names[number]})
                client.sendall((
                    f"POST /{self.name}/slow HTTP/1.1\r\nHost: x\r\nX-User: ada\r\n"
                    f"Idempotency-Key: {names[number]}\r\nContent-Type: application/json\r\n"
                    f"X-Cancel: {0.02 * number}\r\nContent-Length: {len(body)}\r\n\r\n{body}").encode())
                time.sleep(0.03 * number)

        together(len(names), leave)
        quiet = until(lambda: open_transactions() == 0)
        replies = together(8, lambda number: insist(self.port, f"/{self.name}/slow", names[number]))
        once = sum(effects(name) == 1 for name in names[:8])
        self.keep("of a client that goes or a request that is cancelled no connection stays in a"
                  " transaction; the repeat is answered", f"{once} of 8 done once, no transaction open",
                  quiet and once == 8 and all(reply and reply.status == 201 for reply in replies))


def hopeless(promises, frameworks):
    restart_runs()
    names = [new_name() for _ in frameworks]
    replies = together(len(frameworks), lambda number: frameworks[number].send("hopeless", names[number]))
    tries = runs() / len(frameworks)            # one of them may have met a lost connection
    promises.keep("all four: a transaction is tried ten times at most; then 503 with Retry-After, and"
                  " nothing was done", f"{[reply.status for reply in replies]} after {tries} runs each",
                  all(is_problem(reply, 503) and header(reply, "retry-after") for reply in replies)
                  and 9 <= tries <= 10 and not any(map(effects, names)))


##
## Under load
##

def load(port, family, count, first_port=None, headers=lambda index: None):
    """Orders of several clients at once, who repeat each until it is answered, and three
    times more.  How many had one effect, and one answer."""
    names = [new_name() for _ in range(count)]
    answered = {}

    def client(number):
        for index in range(number, count, CLIENTS):
            path = f"/{FAMILIES[family][index // CLIENTS % 2]}/order"
            answered[names[index]] = [insist(first_port or port, path, names[index], headers(index)),
                                      *[insist(port, path, names[index]) for _ in range(3)]]

    together(CLIENTS, client)
    odd = [replies for replies in answered.values() if not is_one_answer(*replies)]
    if odd:
        print(f"{family}, {len(odd)} such: {odd[0]}", file=sys.stderr)
    done = Counter(name for name, in sql("SELECT name FROM orders"))
    return sum(done[name] == 1 for name in names), count - len(odd)


def is_one_answer(first, *repeats):
    return (None not in (first, *repeats) and first.status == 201 and first.body == repeats[0].body
            and header(repeats[0], "idempotency-replayed") == "true"
            and all(repeat == repeats[0] for repeat in repeats))


def kept(promises, promise, count, effect_and_answer, extra, enough):
    promises.keep(promise, "{1} of {0} keys had one effect, {2} one answer; {3}".format(
        count, *effect_and_answer, extra), enough and effect_and_answer == (count, count))


def killed(promises, family):
    steps = ("claim", "work", "commit", "send")         # before it; work: in the handler
    log = f"{WORK}/{family}-killed.log"
    count = KILLS * CLIENTS
    with server_of(family, log=log) as server:
        seen = load(server.port, family, count, headers=lambda index: (
            {"X-Kill": steps[index // CLIENTS % len(steps)]} if index % CLIENTS == 0 else None))
    with open(log, encoding="utf-8") as lines:
        kills = sum(line == "killed\n" for line in lines)
    kept(promises, f"{family}: a server killed in mid-request, before the claim, in the handler, before"
         " COMMIT and after it", count, seen, f"{kills} kills", kills >= KILLS)


def cut_at_commit(promises, family):
    proxy = CuttingProxy(directory=f"{WORK}/{family}-cut")
    count = CUTS + CUTS // 10
    with server_of(family, host=f"{WORK}/{family}-cut") as server:
        proxy.arm(CUTS)
        seen = load(server.port, family, count)
    proxy.close()
    kept(promises, f"{family}: the connection to PostgreSQL is cut after COMMIT", count, seen,
         f"{proxy.cuts} cuts", proxy.cuts == CUTS)


class Cutter:
    """Stands between client and server, and loses so many replies."""

    def __init__(self, port, cuts):
        self.port_of_server, self.left, self.cuts = port, cuts, 0
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self.pass_on, args=(client,), daemon=True).start()

    def pass_on(self, client):
        with client, socket.create_connection(("127.0.0.1", self.port_of_server)) as server:
            threading.Thread(target=self.copy, args=(client, server), daemon=True).start()
            with contextlib.suppress(OSError):
                reply = server.recv(65536)
                with self.lock:
                    cut = self.left > 0
                    self.left -= cut
                    self.cuts += cut
                while reply and not cut:
                    client.sendall(reply)
                    reply = server.recv(65536)
                client.shutdown(socket.SHUT_RDWR)   # for copy() to end, too

    @staticmethod
    def copy(client, server):
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)


def cut_at_client(promises, family):
    count = CUTS + CUTS // 10
    with server_of(family) as server:
        cutter = Cutter(server.port, CUTS)
        seen = load(server.port, family, count, cutter.port)
        cutter.listener.close()
    kept(promises, f"{family}: the connection to the client is cut after COMMIT", count, seen,
         f"{cutter.cuts} cuts", cutter.cuts == CUTS)


@contextlib.contextmanager
def pgbouncer():
    """The folder of its socket; three connections for all."""
    folder = f"{WORK}/pgbouncer"
    os.mkdir(folder)
    with open(f"{folder}/pgbouncer.ini", "w", encoding="utf-8") as settings:
        settings.write(f"""
[databases]
shop = host={os.environ["PGHOST"]} port={os.environ["PGPORT"]} user=web_app
[pgbouncer]
pool_mode = transaction
default_pool_size = 3
listen_port = 5432
unix_socket_dir = {folder}
auth_type = any
logfile = {folder}/pgbouncer.log
""")
    process = subprocess.Popen(["pgbouncer", "-q", f"{folder}/pgbouncer.ini"])
    try:
        until(lambda: os.path.exists(f"{folder}/.s.PGSQL.5432"))
        yield folder
    finally:
        process.terminate()
        process.wait(PATIENCE)


def pooled(promises, family, folder):
    with server_of(family, host=folder) as server:
        seen = load(server.port, family, 200)
        more = [insist(server.port, f"/{name}/{task}", new_name()) for name in FAMILIES[family]
                for task in ("serialize", "terminate") if not restart_runs()]
    kept(promises, f"{family}: behind a pooler of transactions, with fewer connections", 200, seen,
         f"{[reply and reply.status for reply in more]}", all(more))


def server_of(family, host=None, log=None):
    database = "dbname=shop user=web_app" + (f" host={host} port=5432" if host else "")
    return Server(["/usr/bin/python3", "-B", "server.py", family], {"DATABASE": database},
                  log=log or f"{WORK}/{family}.log")


def main():
    promises = Promises("Adapters for Python")
    with server_of("asgi") as over_asgi, server_of("wsgi") as over_wsgi:
        frameworks = [Framework(promises, name, server.port)
                      for family, server in (("asgi", over_asgi), ("wsgi", over_wsgi))
                      for name in FAMILIES[family]]
        for framework in frameworks:
            for promise in (framework.first_and_replays, framework.refusals, framework.reuse,
                            framework.at_once, framework.limits, framework.undone, framework.again,
                            framework.cancelled):
                try:
                    promise()
                except Exception as error:      # one that fails in itself is broken, too
                    framework.keep(promise.__name__, repr(error), False)
        hopeless(promises, frameworks)
    with pgbouncer() as folder:
        for family in FAMILIES:
            pooled(promises, family, folder)
    for family in FAMILIES:
        killed(promises, family)
        os.mkdir(f"{WORK}/{family}-cut")
        cut_at_commit(promises, family)
        cut_at_client(promises, family)
    return promises.finish()


sys.exit(main())
