#!/usr/bin/env python3
"""Which promises the events API keeps, seen through HTTP.  run starts it."""

import collections
import concurrent.futures
import http.client
import json
import os
import random
import subprocess
import time
import uuid

from promises import PATIENCE, CuttingProxy, Promises, Reply, Server, call, together

EVENTS, DRAFTS = "/api/events", "/api/drafts"
WORK = os.environ["WORK"]
CROWD = 32                  # clients at the same moment
IN_FLIGHT = 1000            # requests without a reply, over all kills
CUTS = 1000                 # replies to COMMIT that get lost
CLIENTS = 50                # that are under way when the server is killed

KEYS = "idempotency.idempotency_keys"
PSQL = ["psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align",
        "--set=ON_ERROR_STOP=1", "--dbname=events"]

promises = Promises("events-api")


##
## The two sides: the database, and the clients
##

def sql(statement, user="postgres"):
    """The answer as text, a line a row; an error is an error."""
    done = subprocess.run([*PSQL, "--username", user, "--command", statement], text=True,
                          capture_output=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.strip()


class Session:
    """A session of its own, to hold a lock with, or to ask often."""

    def __init__(self):
        self.psql = subprocess.Popen(PSQL, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                     text=True)

    def run(self, statement):
        self.psql.stdin.write(f"{statement};\n\\echo .\n")
        self.psql.stdin.flush()
        lines = []
        while (line := self.psql.stdout.readline()) not in (".\n", ""):
            lines.append(line.strip())
        return "\n".join(lines)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.psql.stdin.close()
        self.psql.wait(PATIENCE)
        self.psql.stdout.close()


def holding(user):
    """A session that holds the account: the work of this user stands still."""
    session = Session()
    session.run(f"BEGIN; SELECT FROM app.accounts WHERE user_id = '{user}' FOR UPDATE")
    return session


def new_user(free_left=1_000_000, credits=0):
    user = f"user-{uuid.uuid4().hex[:12]}"
    sql(f"INSERT INTO app.accounts VALUES ('{user}', {free_left}, {credits})")
    return user


def new_key():
    return str(uuid.uuid4())


def form(user, key, title):
    """Body and headers of a request."""
    headers = {"X-User-Id": user, "Content-Type": "application/json"}
    if key is not None:
        headers["Idempotency-Key"] = key
    return json.dumps({"title": title, "starts_at": "2030-05-01T20:00:00+02:00"}), headers


def post(port, user, key, path=EVENTS, title="Concert"):
    return call(port, "POST", path, *form(user, key, title))


def created(user, title=None, table="events"):
    """How many there are."""
    return int(sql(f"SELECT count(*) FROM app.{table} WHERE user_id = '{user}'"
                   + (f" AND title = '{title}'" if title else "")))


def account(user):
    return sql(f"SELECT free_left, credits FROM app.accounts WHERE user_id = '{user}'")


def record(user, key, columns, route=f"POST {EVENTS}"):
    """Columns of idem_lookup; empty where there is no such key."""
    return sql(f"SELECT {columns} FROM idempotency.idem_lookup("
               f"idempotency.idem_scope('{user}', '{route}'), '{key}') r"
               " WHERE outcome IS NOT NULL")


def stored(reply):
    """Executed now, and remembered."""
    return (reply.status == 201 and reply.headers.get("x-idempotency-stored") == "true"
            and "x-idempotency-replay" not in reply.headers)


def replayed(reply, first=None):
    return (reply.status == 201 and reply.headers.get("x-idempotency-replay") == "true"
            and "x-idempotency-stored" not in reply.headers
            and (first is None or (reply.body == first.body
                 and reply.headers.get("location") == first.headers.get("location"))))


def answered(reply):
    return stored(reply) or replayed(reply)


def code(reply):
    """Of a refusal of the exact form, else None."""
    data = json.loads(reply.body)
    if (set(data) == {"success", "error"} and data["success"] is False
            and set(data["error"]) == {"code", "message"} and data["error"]["message"]):
        return data["error"]["code"]
    return None


def refused_as(reply, status, name):
    return (reply.status == status and code(reply) == name
            and not {"x-idempotency-stored", "x-idempotency-replay"} & set(reply.headers))


def tally(replies):
    """A short text: what came how often."""
    count = collections.Counter(
        "executed" if stored(reply) else "replayed" if replayed(reply)
        else f"{reply.status} {code(reply)}" for reply in replies)
    return ", ".join(f"{count[name]} {name}" for name in sorted(count))


def while_held(user, send):
    """A crowd sends while the work of this user stands still, until all have a
    reply but one, or patience is over.  The replies till then, and all of them."""
    with concurrent.futures.ThreadPoolExecutor(CROWD) as pool:
        with holding(user):
            futures = [pool.submit(send) for _ in range(CROWD)]
            deadline = time.monotonic() + PATIENCE / 3
            while sum(f.done() for f in futures) < CROWD - 1 and time.monotonic() < deadline:
                time.sleep(0.01)
            early = [f.result() for f in futures if f.done()]
        return early, [f.result() for f in futures]


##
## The promises, in the order of the table
##

def identity(port):
    ada, bob, key = new_user(), new_user(), new_key()
    first = post(port, ada, key)
    others = [post(port, bob, key), post(port, ada, key, DRAFTS), post(port, ada, new_key())]
    again = post(port, ada, key)
    work = created(ada), created(bob), created(ada, table="drafts")
    other_form = post(port, ada, key, title="Other")
    promises.keep(
        "identity: user id, route and key",
        f"another user, route or key: {sum(map(stored, others))} of 3 executed;"
        f" all the same: {tally([again])}; the same with another form: {tally([other_form])}",
        stored(first) and all(map(stored, others)) and replayed(again, first)
        and work == (2, 1, 1) and created(ada) == 2
        and refused_as(other_form, 422, "IDEMPOTENCY_KEY_REUSED"))


def key_format(port):
    user = new_user()
    bad = [None, "", "req-12345", str(uuid.uuid1()), str(uuid.uuid5(uuid.NAMESPACE_DNS, "a")),
           "00000000-0000-0000-0000-000000000000", "8e03978e-40d5-43dd-7c93-6894a57f9324",
           new_key()[:-1], new_key() + "0", f"{new_key()}, {new_key()}", f"'{new_key()}'"]
    replies = [post(port, user, key) for key in bad]
    refused = sum(refused_as(reply, 400, "INVALID_IDEMPOTENCY_KEY") for reply in replies)
    none = created(user) == 0
    key = new_key()
    first = post(port, user, key)
    forms = [post(port, user, key.upper()), post(port, user, f'"{key}"')]
    promises.keep(
        "the key is a UUID v4 in the header Idempotency-Key; another format is refused",
        f"{refused} of {len(bad)} others refused with 400, {created(user) - 1} events;"
        f" upper case and quoted: {tally(forms)}",
        refused == len(bad) and none and stored(first) and created(user) == 1
        and all(replayed(reply, first) for reply in forms))


def states(port):
    """Nobody sees the row of a claim before its transaction ends; that it is
    in progress is what others are told."""
    user, key = new_user(), new_key()
    before = record(user, key, "outcome")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with holding(user), Session() as watch:
            future = pool.submit(post, port, user, key)
            deadline = time.monotonic() + PATIENCE / 3
            while time.monotonic() < deadline and not int(watch.run(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE usename = 'events_web' AND wait_event_type = 'Lock'")):
                time.sleep(0.01)
            during = watch.run(
                "BEGIN; SELECT outcome FROM idempotency.idem_claim("
                f"idempotency.idem_scope('{user}', 'POST {EVENTS}'), '{key}', '[]',"
                " policy => 'events-api'); ROLLBACK")
        first = future.result()
    done = record(user, key, "outcome, status_code")
    poor, poor_key = new_user(free_left=0), new_key()
    failed = post(port, poor, poor_key, f"{EVENTS}?confirm_credit=1")
    failure = record(poor, poor_key, "outcome, status_code")
    promises.keep(
        "states: in_progress, then completed or failed",
        f"{before or 'none'}, {during}, {done}; and {failure}",
        (before, during, done, failure) == ("", "in_progress", "completed|201", "failed|402")
        and stored(first) and refused_as(failed, 402, "NO_CREDIT"))


def first_and_repeat(port):
    user, key = new_user(), new_key()
    first = post(port, user, key)
    data = json.loads(first.body)
    event = data.get("data", {}).get("event", {})
    in_table = sql("SELECT id, title FROM app.events WHERE user_id = '%s'" % user)
    promises.keep(
        'first call: 201, X-Idempotency-Stored: true, {"success": true, "data": {"event": …}}',
        f"{first.status}, {first.headers.get('x-idempotency-stored')},"
        f" {first.body.decode()[:52]}…",
        stored(first) and set(data) == {"success", "data"} and data["success"] is True
        and set(data["data"]) == {"event"}
        and in_table == f"{event.get('id')}|{event.get('title')}")

    left = account(user)
    early, replies = while_held(user, lambda: post(port, user, key))
    promises.keep(
        "repeat after success: the stored answer at once, X-Idempotency-Replay: true,"
        " the work not run again",
        f"{CROWD} repeats while the work would have to wait: {tally(replies)},"
        f" {len({first.body, *(reply.body for reply in replies)})} body, {created(user)} event",
        len(early) >= CROWD - 1 and all(replayed(reply, first) for reply in replies)
        and created(user) == 1 and account(user) == left)


def at_the_same_time(port):
    user, key = new_user(), new_key()
    early, late = while_held(user, lambda: post(port, user, key))
    one = sum(map(stored, late))
    refused = sum(refused_as(r, 409, "REQUEST_IN_PROGRESS") and "retry-after" in r.headers
                  for r in early)

    # Two at a time, and nobody holds them up.
    user, winners, other, rounds = new_user(), 0, 0, 100
    for _ in range(rounds):
        key = new_key()
        pair = together(2, lambda _, key=key: post(port, user, key))
        winners += sum(map(stored, pair)) == 1
        other += sum(refused_as(r, 409, "REQUEST_IN_PROGRESS") or replayed(r) for r in pair) == 1
    promises.keep(
        "two at the same time: one 201, the other 409 REQUEST_IN_PROGRESS",
        f"{CROWD} while the work takes its time: {tally(late)}; {rounds} times two:"
        f" {winners} times one 201, {created(user)} events",
        one == 1 and refused == len(early) == CROWD - 1
        and winners == other == rounds == created(user))


def after_failure(port):
    user, key = new_user(free_left=0), new_key()
    confirmed = f"{EVENTS}?confirm_credit=1"
    failures = [post(port, user, key, confirmed) for _ in range(2)]
    none = created(user) == 0
    sql(f"UPDATE app.accounts SET credits = 5 WHERE user_id = '{user}'")
    first = post(port, user, key, confirmed)
    again = post(port, user, key, confirmed)
    attempts = sql(f"SELECT attempt FROM {KEYS} WHERE key = '{key}'")

    # An error that nobody has thought of leaves no key behind.
    other, other_key = new_user(), new_key()
    sql("CREATE FUNCTION app.broken() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN RAISE EXCEPTION $$broken$$; END';"
        "CREATE TRIGGER broken AFTER INSERT ON app.events"
        " FOR EACH ROW EXECUTE FUNCTION app.broken()")
    error = post(port, other, other_key)
    key_left = record(other, other_key, "outcome")
    sql("DROP FUNCTION app.broken CASCADE")
    mended = post(port, other, other_key)
    promises.keep(
        "repeat after failure: the key is claimed again",
        f"twice {failures[0].status} {code(failures[0])}, then {tally([first, again])}"
        f" (attempt {attempts}); after a {error.status}: {tally([mended])}",
        all(refused_as(r, 402, "NO_CREDIT") for r in failures) and none and stored(first)
        and replayed(again, first) and attempts == "3" and created(user) == 1
        and account(user) == "0|4"
        and refused_as(error, 500, "INTERNAL_ERROR") and key_left == "" and stored(mended)
        and created(other) == 1)


def confirm(port):
    user, key = new_user(free_left=0, credits=50), new_key()
    confirmed = f"{EVENTS}?confirm_credit=1"
    asked = [post(port, user, key) for _ in range(2)]
    nothing = record(user, key, "outcome") == "" and account(user) == "0|50"
    first = post(port, user, key, confirmed)
    repeats = [post(port, user, key, confirmed), post(port, user, key)]
    once = account(user) == "0|49"
    other_form = post(port, user, new_key(), confirmed, title="Other form")

    # A nervous user: question and confirmation, many times at the same moment.
    nervous, rounds = 0, 10
    for _ in range(rounds):
        key = new_key()
        replies = together(8, lambda n, key=key: post(port, user, key, (EVENTS, confirmed)[n % 2]))
        last = post(port, user, key, confirmed)
        nervous += (sum(map(stored, [*replies, last])) == 1
                    and not any(stored(reply) for reply in replies[::2])
                    and answered(last))
    promises.keep(
        "confirm step: the same attempt asks twice (?confirm_credit=1) with the same key",
        f"first {asked[0].status} {code(asked[0])}, nothing stored; confirmed:"
        f" {tally([first])}; repeats: {tally(repeats)}; another form, another key:"
        f" {tally([other_form])}; both at once: {nervous} of {rounds} times one event",
        all(refused_as(reply, 402, "CONFIRM_CREDIT") for reply in asked) and nothing
        and stored(first) and all(replayed(reply, first) for reply in repeats) and once
        and stored(other_form) and nervous == rounds
        and created(user) == rounds + 2 and account(user) == f"0|{50 - rounds - 2}")


def retention(port):
    user, key = new_user(), new_key()
    first = post(port, user, key)
    poor, poor_key = new_user(free_left=0), new_key()
    failed = post(port, poor, poor_key, f"{EVENTS}?confirm_credit=1")
    days = "extract(epoch FROM expires_at - finished_at) / 86400"
    kept = [float(record(*name, days) or "nan") for name in ((user, key), (poor, poor_key))]
    promises.keep("retention: completed 7 days, failed 1 day",
                  "{:g} and {:g}".format(*kept),
                  stored(first) and failed.status == 402 and kept == [7, 1])


class CleanUp:
    """By pg_cron, which takes its time: begun first, looked at last."""

    def __init__(self, port):
        self.job = sql("SELECT jobname, schedule, command, username, active FROM cron.job")
        version = tuple(map(int, sql("SELECT extversion FROM pg_extension"
                                     " WHERE extname = 'pg_cron'").replace("-", ".").split(".")))
        soon = "2 seconds" if version >= (1, 5) else "* * * * *"
        self.user, self.old, self.new = new_user(), new_key(), new_key()
        self.first = [post(port, self.user, key) for key in (self.old, self.new)]
        sql(f"UPDATE {KEYS} SET created_at = created_at - interval '8 days',"
            " finished_at = finished_at - interval '8 days',"
            " lease_until = lease_until - interval '8 days',"
            " expires_at = expires_at - interval '8 days',"
            f" purge_at = purge_at - interval '8 days' WHERE key = '{self.old}'")
        self.before = self.remaining()
        self.runs = self.succeeded()
        sql(f"SELECT idempotency.idem_schedule('{soon}')", user="events_cron")

    def remaining(self):
        return sql(f"SELECT count(*) FILTER (WHERE key = '{self.old}'),"
                   f" count(*) FILTER (WHERE key = '{self.new}') FROM {KEYS}")

    @staticmethod
    def succeeded():
        return int(sql("SELECT count(*) FROM cron.job_run_details"
                       " WHERE status = 'succeeded' AND username = 'events_cron'"))

    def look(self):
        deadline = time.monotonic() + 130
        while time.monotonic() < deadline:
            if self.remaining() != self.before and self.succeeded() > self.runs:
                break
            time.sleep(0.5)
        runs = self.succeeded() - self.runs
        promises.keep(
            "clean-up as a pg_cron job",
            f"{self.job}; a key past its 7 days and one of today: {self.before} before,"
            f" {self.remaining()} after {runs} run(s)",
            all(map(stored, self.first)) and self.before == "1|1" and self.remaining() == "0|1"
            and runs > 0 and self.job == "idempotency-sweep|*/10 * * * *"
            "|CALL idempotency.idem_sweep_all()|events_cron|t")


def never_two():
    """After everything else, the crashes included."""
    total = int(sql(f"SELECT count(*) FROM {KEYS} WHERE state = 'c'"))
    twice = int(sql(f"SELECT count(*) FROM (SELECT FROM {KEYS} WHERE state = 'c'"
                    " GROUP BY scope, key HAVING count(*) > 1) twice"))
    events = int(sql("SELECT (SELECT count(*) FROM app.events)"
                     " + (SELECT count(*) FROM app.drafts)"))
    try:
        sql(f"INSERT INTO {KEYS} SELECT * FROM {KEYS} WHERE state = 'c' LIMIT 1")
        by_hand = "was possible"
    except RuntimeError as error:
        by_hand = "is refused" if "duplicate key value" in str(error) else str(error)
    promises.keep(
        "never two completed records for one key and route",
        f"{total} completed records, {twice} keys with two, {events} events and drafts;"
        f" a second one by hand {by_hand}",
        twice == 0 and total + 1 == events and by_hand == "is refused")


##
## Crashes
##

class Request:
    """One event of a user, with a key of its own."""

    def __init__(self, port, user):
        self.port, self.user, self.key = port, user, new_key()

    def connect(self):
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        self.connection.connect()

    def send(self):
        """Over the connection that is there; None if the server died meanwhile."""
        try:
            self.connection.request("POST", EVENTS, *form(self.user, self.key, self.key))
            response = self.connection.getresponse()
            return Reply(response.status, {name.lower(): value for name, value
                                           in response.getheaders()}, response.read())
        except (OSError, http.client.HTTPException):
            return None
        finally:
            self.connection.close()

    def post(self):
        return post(self.port, self.user, self.key, title=self.key)

    def retry(self):
        """The client's part: again with the same key, until there is an answer."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            reply = self.post()
            if not refused_as(reply, 409, "REQUEST_IN_PROGRESS"):
                break
            time.sleep(0.05)
        return reply


def one_effect_each(users, keys):
    """Each key has exactly one event, and each event was paid once."""
    wanted = ", ".join(f"'{user}'" for user in users)
    events = collections.Counter(
        sql(f"SELECT title FROM app.events WHERE user_id IN ({wanted})").split())
    used = int(sql(f"SELECT sum(1000000 - free_left) FROM app.accounts"
                   f" WHERE user_id IN ({wanted})"))
    return (set(events) == set(keys) and set(events.values()) <= {1}
            and used == len(events) == len(keys))


def killed(server):
    """Work that takes from 0 to 100 ms, and tells how often it was begun: a
    sequence does not roll back.  The server is killed when some have begun."""
    sql("CREATE SEQUENCE app.begun;"
        "CREATE FUNCTION app.take_time() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS"
        " 'BEGIN PERFORM nextval($$app.begun$$), pg_sleep(random() / 10); RETURN new; END';"
        "CREATE TRIGGER take_time BEFORE INSERT ON app.events"
        " FOR EACH ROW EXECUTE FUNCTION app.take_time()")
    users = [new_user() for _ in range(CLIENTS)]
    keys, first, answers, kills = [], [], [], 0
    with Session() as watch:
        while (first.count(None) < IN_FLIGHT and all(map(answered, answers))
               and kills < 4 * IN_FLIGHT / CLIENTS):
            requests = [Request(server.port, user) for user in users]
            keys += [request.key for request in requests]
            for request in requests:
                request.connect()
            before = int(watch.run("SELECT last_value FROM app.begun"))
            enough = before + random.randint(1, CLIENTS - 10)
            with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
                futures = [pool.submit(request.send) for request in requests]
                deadline = time.monotonic() + PATIENCE / 6
                while (time.monotonic() < deadline
                       and int(watch.run("SELECT last_value FROM app.begun")) < enough):
                    pass
                server.kill()
                replies = [future.result() for future in futures]
            kills += 1
            first += replies
            server.start()
            with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
                answers += pool.map(Request.retry, [
                    request for request, reply in zip(requests, replies) if reply is None])
    begun = int(sql("SELECT last_value FROM app.begun"))
    sql("DROP FUNCTION app.take_time CASCADE; DROP SEQUENCE app.begun")
    lost = first.count(None)
    fine = (all(reply is None or stored(reply) for reply in first)
            and all(map(answered, answers)))
    exact = one_effect_each(users, keys)
    promises.keep(
        "a crash of the server: every retry gets the answer, or a clean first run",
        f"{kills} times SIGKILL, {lost} requests in flight, {begun - len(keys)} of them undone"
        f" in mid-work; retries: {tally(answers)};"
        f" {len(keys)} keys, {'one event each' if exact else 'NOT one event each'}",
        lost >= IN_FLIGHT and len(answers) == lost and fine and exact
        and len({stored(reply) for reply in answers}) == 2)


def cut(environment):
    """Every first COMMIT succeeds and its reply is lost; the server asks again."""
    directory = f"{WORK}/cut.socket"
    os.mkdir(directory)
    proxy = CuttingProxy(directory)
    clients = 10
    users = [new_user() for _ in range(clients)]
    with api({**environment, "PGHOST": directory}, "cut") as server:
        proxy.arm(CUTS)

        def work(number):
            requests = [Request(server.port, users[number]) for _ in range(CUTS // clients)]
            return [(request.key, request.post()) for request in requests]

        done = [pair for part in together(clients, work) for pair in part]
    proxy.close()
    replies = [reply for _, reply in done]
    exact = one_effect_each(users, [key for key, _ in done])
    promises.keep(
        "a connection cut between COMMIT and its reply: the server repeats the request itself"
        " and gets the replay",
        f"{proxy.cuts} cuts; the clients got: {tally(replies)};"
        f" {len(done)} keys, {'one event each' if exact else 'NOT one event each'}",
        proxy.cuts >= CUTS and all(map(replayed, replies)) and exact)


def api(environment, name):
    return Server(["node", "server.js"], environment, log=f"{WORK}/{name}.log")


def main():
    environment = {"PGUSER": "events_web", "PGDATABASE": "events", "POOL_SIZE": str(CLIENTS)}
    with api(environment, "server") as server:
        clean_up = CleanUp(server.port)
        for check in (identity, key_format, states, first_and_repeat, at_the_same_time,
                      after_failure, confirm, retention):
            check(server.port)
        killed(server)
    cut(environment)
    clean_up.look()
    never_two()
    return promises.finish()


raise SystemExit(main())
