"""Holds the promises of the API up against the real server; see README.md.

Expects a database "approvals" with schema.sql loaded, in the cluster that the
PG* variables name, and psql in PSQL; ./run makes all of that.
"""

import contextlib
import hashlib
import http.client
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter

from promises import PATIENCE, CuttingProxy, Promises, Server, call, together

ROUTE = "/api/admin/pending/bulk.approve"
BODY = b'{"ids": [1, 2, 3], "by": "admin"}'
FIRST = b'{"approved_count": 3, "ids": [1, 2, 3], "by": "admin"}'
HASH = "653344332109329934645c722b2c77676d1937517ac75eca5d670b1782cc0c53"
SCOPE = f"POST {ROUTE}"
SCOPE_HASH = hashlib.sha256(SCOPE.encode()).hexdigest()[:16]

BURST = 50              # requests at the same moment
CRASHED = 1000          # requests that a crash must have met
ROUNDS = 40             # no loop has more of them

WORK = os.environ["WORK"]


##
## The database
##

PSQL = [os.environ["PSQL"], "-XAtq", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-d", "approvals"]


def sql(text):
    """Rows, as lists of strings."""
    out = subprocess.run(PSQL, input=text, text=True, capture_output=True, timeout=PATIENCE)
    if out.returncode != 0:
        raise RuntimeError(f"{text}\n{out.stderr}")
    return [line.split("\t") for line in out.stdout.splitlines()]


def value(text):
    return sql(text)[0][0]


item_ids = itertools.count(1)


def new_items(count):
    """Pending items; their ids."""
    ids = [next(item_ids) for _ in range(count)]
    sql(f"INSERT INTO admin.items SELECT generate_series({ids[0]}, {ids[-1]})")
    return ids


def body_of(ids, by="admin"):
    return json.dumps({"ids": ids, "by": by}).encode()


def approvals():
    """How many items each key has approved."""
    return Counter({key: int(count) for key, count in
                    sql("SELECT key, count(*) FROM admin.approvals GROUP BY key")})


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

def post(server, key, body=BODY):
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["X-Idempotency-Key"] = key
    return call(server.port, "POST", ROUTE, body, headers)


def is_duplicate(reply, key):
    return reply.status == 409 and reply.body == (
        '{"error": "duplicate_idempotency_key",'
        f' "message": "Request with key \'{key}\' already processed",'
        f' "scope_hash": "{SCOPE_HASH}"}}').encode()


def is_first(reply, ids, by="admin"):
    return reply.status == 200 and reply.body == json.dumps(
        {"approved_count": len(ids), "ids": ids, "by": by}).encode()


def attempt(server, key, ids):
    """The reply, or None."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return post(server, key, body_of(ids))
    return None


def insist(server, key, ids):
    """What a client does: the same request again, until it knows.  None if it
    never does, or if the answer is another than done now, or done before."""
    for _ in range(ROUNDS):
        reply = attempt(server, key, ids)
        if reply and (is_first(reply, ids) or is_duplicate(reply, key)):
            return reply
        if reply and reply.status in (400, 422):
            return None
        time.sleep(0.05)
    return None


##
## One promise each
##

def first_call(promises, server):
    new_items(3)
    reply = post(server, "req-12345")
    promises.keep(
        "the first call gets 200 and its body, byte for byte",
        f"{reply.status}, {reply.body.decode()}",
        reply.status == 200 and reply.body == FIRST
        and reply.headers["content-type"] == "application/json"
        and approvals()["req-12345"] == 3)


def repeat(promises, server):
    replies = [post(server, "req-12345") for _ in range(20)]
    hash_of_scope = value(f"SELECT idempotency.idem_log_id('{SCOPE}')")
    promises.keep(
        "any repeat gets 409 and its body, byte for byte; no replay",
        f"{sum(is_duplicate(reply, 'req-12345') for reply in replies)} of 20:"
        f" {replies[0].status}, {replies[0].body.decode()}",
        all(is_duplicate(reply, "req-12345") for reply in replies)
        and hash_of_scope == SCOPE_HASH and approvals()["req-12345"] == 3)


def other_payload(promises, server):
    ids = new_items(3)
    bodies = [body_of(ids), body_of([1, 2, 3], "eve"), body_of([ids[0]]), body_of([10 ** 9]),
              b'{"ids": [], "by": ""}', b'{"nothing": 1}', b"[]", b"7"]
    replies = [post(server, "req-12345", body) for body in bodies]
    untouched = value(f"SELECT count(*) FROM admin.items WHERE state = 'pending'"
                      f" AND id IN ({', '.join(map(str, ids))})")
    promises.keep(
        "also when the payload differs",
        f"{sum(is_duplicate(reply, 'req-12345') for reply in replies)} of {len(bodies)}"
        f" other payloads got the same 409, {untouched} of 3 items still pending",
        all(is_duplicate(reply, "req-12345") for reply in replies)
        and untouched == "3" and approvals()["req-12345"] == 3)


def payload_hash(promises, server):
    bodies = {"req-12345": BODY,
              "hash-order": b'{"by": "admin", "ids": [1, 2, 3]}',
              "hash-spaces": b'\n{\t"by":"admin","ids":[ 1,2 , 3 ]\r\n} '}
    stored = []
    for key, body in bodies.items():
        if key != "req-12345":      # an approval of its own, of the same items
            sql("UPDATE admin.items SET state = 'pending' WHERE id <= 3")
            post(server, key, body)
        stored += sql("SELECT encode(fingerprint, 'hex') FROM idempotency.idempotency_keys"
                      f" WHERE scope = '{SCOPE}' AND key = '{key}'")
    canonical = value(f"SELECT idempotency.idem_canonical('{BODY.decode()}')")
    promises.keep(
        "payload hash: SHA-256 of canonical JSON, whatever the order of keys",
        f"stored with {stored.count([HASH])} of {len(bodies)} spellings: {HASH[:16]}…;"
        f" canonical: {canonical}",
        stored == [[HASH]] * 3 and canonical == '{"by":"admin","ids":[1,2,3]}')


def key_length(promises, server):
    ids = new_items(1)
    before = value("SELECT count(*) FROM idempotency.idempotency_keys")
    refused = [post(server, key, body_of(ids))
               for key in (None, "", "k" * 81, "k" * 1000, "cl\xe9")]
    after = value("SELECT count(*) FROM idempotency.idempotency_keys")
    longest = post(server, "k" * 80, body_of(ids))
    again = post(server, "k" * 80, body_of(ids))
    codes = [reply.status for reply in refused]
    promises.keep(
        "a key has at most 80 characters, and there must be one",
        f"80: {longest.status}; no key, empty, 81, 1000, no ASCII: {codes}; no key stored by those",
        codes == [400] * 5 and before == after and is_first(longest, ids)
        and is_duplicate(again, "k" * 80))


def never_reusable(promises, server):
    expires = sql("SELECT DISTINCT expires_at FROM idempotency.idempotency_keys")
    before = value("SELECT count(*) FROM idempotency.idempotency_keys")
    sql("CALL idempotency.idem_sweep_all()")
    after = value("SELECT count(*) FROM idempotency.idempotency_keys")
    server.stop()
    server.start()
    sql("UPDATE admin.items SET state = 'pending' WHERE id <= 3")
    reply = post(server, "req-12345")
    promises.keep(
        "a key is never reusable",
        f"expires: {', '.join(row[0] for row in expires)}; {before} keys, after a sweep"
        f" {after}; after a restart, its items pending again: {reply.status}",
        expires == [["infinity"]] and before == after and is_duplicate(reply, "req-12345")
        and approvals()["req-12345"] == 3)


def not_pending(promises, server):
    ids = new_items(2)
    missing = next(item_ids)
    wanted = ids + [missing]
    refused = [post(server, "partly", body) for body in (
        body_of(wanted), body_of(ids + ids), body_of(ids, ""), b'{"ids": "1", "by": "a"}',
        b'{"ids": [' + 5000 * b"9" + b'], "by": "a"}',
        b'{"ids": [1', b"\xff", 100000 * b"[")]
    stored = value("SELECT count(*) FROM idempotency.idempotency_keys WHERE key = 'partly'")
    done = approvals()["partly"]
    sql(f"INSERT INTO admin.items VALUES ({missing})")
    good = post(server, "partly", body_of(wanted))
    codes = [reply.status for reply in refused]
    promises.keep(
        "all items or none; a request that fails leaves its key free",
        f"{len(codes)} refused: {codes}, {done} items approved, {stored} keys stored; when all are"
        f" pending, the same key: {good.status}, {approvals()['partly']} approved",
        codes == [422] * 5 + [400] * 3 and stored == "0" and done == 0 and is_first(good, wanted)
        and approvals()["partly"] == 3)


def burst(promises, server):
    firsts = []
    duplicates = []
    effects = []
    for number in range(5):
        key = f"burst-{number}"
        ids = new_items(3)
        replies = together(BURST, lambda _: post(server, key, body_of(ids)))
        firsts.append(sum(is_first(reply, ids) for reply in replies))
        duplicates.append(sum(is_duplicate(reply, key) for reply in replies))
        effects.append(approvals()[key])
    promises.keep(
        f"{BURST} equal requests at the same moment: one runs",
        f"5 times: {firsts} × 200, {duplicates} × 409 duplicate; items approved: {effects}",
        firsts == [1] * 5 and duplicates == [BURST - 1] * 5 and effects == [3] * 5)


def still_running(promises, server):
    """The first is held up by a lock; the wait for it is made as short as can be."""
    ids = new_items(1)
    sql("SELECT idempotency.idem_policy('bulk-approve', wait => '0')")
    holder = subprocess.Popen(PSQL, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    blocked = ("SELECT count(*) FROM pg_stat_activity"
               " WHERE usename = 'bulk_api' AND wait_event_type = 'Lock'")
    first = []
    thread = threading.Thread(target=lambda: first.append(post(server, "slow", body_of(ids))))
    try:
        holder.stdin.write(f"BEGIN; SELECT FROM admin.items WHERE id = {ids[0]} FOR UPDATE;\n")
        holder.stdin.flush()
        locked = until(lambda: value("SELECT count(*) FROM pg_locks WHERE mode = 'RowShareLock'"
                                     " AND relation = 'admin.items'::regclass") != "0")
        thread.start()
        held = locked and until(lambda: value(blocked) == "1")
        early = post(server, "slow", body_of(ids))
    finally:
        holder.stdin.close()        # ends psql, and with it the lock
        holder.wait(PATIENCE)
        sql("SELECT idempotency.idem_policy('bulk-approve', wait => '10 s')")
    thread.join(PATIENCE)
    late = post(server, "slow", body_of(ids))
    problem = json.loads(early.body)
    promises.keep(
        "nothing is called processed before it is: a repeat that finds the first at work when"
        " its wait is over",
        f"{early.status} {problem.get('code')}, Retry-After:"
        f" {early.headers.get('retry-after')}; then {first[0].status}, then {late.status}",
        held and early.status == 409 and problem.get("code") == "idempotency_key_in_progress"
        and problem.get("status") == 409 and int(early.headers["retry-after"]) > 0
        and early.headers["content-type"] == "application/problem+json"
        and is_first(first[0], ids) and is_duplicate(late, "slow"))


TIMED = f"""
SET ROLE bulk_api;
CREATE FUNCTION pg_temp.repeat() RETURNS numeric LANGUAGE plpgsql AS $$
DECLARE
    begun timestamptz := clock_timestamp();
    found text;
BEGIN
    SELECT outcome INTO found FROM idempotency.idem_claim(
        '{SCOPE}', 'req-12345', '{BODY.decode()}', policy => 'bulk-approve');
    ASSERT found = 'duplicate';
    RETURN extract(epoch FROM clock_timestamp() - begun) * 1000;
END $$;
""" + "SELECT pg_temp.repeat();\n" * 200


def speed(promises, server):
    """A generous bound: what a shared machine measures is no promise."""
    at_server = statistics.median(float(row[0]) for row in sql(TIMED))
    times = []
    for _ in range(200):
        begun = time.monotonic()
        reply = post(server, "req-12345")
        times.append((time.monotonic() - begun) * 1000)
        if not is_duplicate(reply, "req-12345"):
            times.append(float("inf"))
    over_http = statistics.median(times)
    promises.keep(
        "a repeat is detected within 100 ms",
        f"median of 200: {at_server:.3f} ms at the server, {over_http:.1f} ms over HTTP",
        at_server < 100 and over_http < 100 and max(times) < float("inf"))


##
## Crashes
##

# Half of the work is before COMMIT, where a kill undoes it, and half is done by
# COMMIT itself, where it does not.  A sequence counts what was begun: it is not
# rolled back.  Each request has one item with an even number.
SLOW = """
CREATE SEQUENCE begun MINVALUE 0;
SELECT nextval('begun');
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF TG_ARGV[0] = 'work' THEN
        PERFORM nextval('public.begun');
    END IF;
    PERFORM pg_sleep(0.1);
    RETURN NULL;
END $$;
CREATE TRIGGER slow_work AFTER INSERT ON admin.approvals
    FOR EACH ROW WHEN (NEW.item % 2 = 0) EXECUTE FUNCTION slow('work');
CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON admin.approvals
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.item % 2 = 0) EXECUTE FUNCTION slow('commit');
"""
FAST = """
DROP TRIGGER slow_work ON admin.approvals;
DROP TRIGGER slow_commit ON admin.approvals;
DROP FUNCTION slow();
DROP SEQUENCE begun;
"""


def begun():
    return int(value("SELECT last_value FROM begun"))


class Crash:
    """Requests of two items each, what became of them, and of their repeats."""

    def __init__(self, name):
        self.name = name
        self.sent = {}          # key: ids
        self.replies = {}       # key: the first reply, or None
        self.retries = {}       # key: that of the repeats

    def batch(self, count):
        ids = new_items(2 * count)
        batch = [(f"{self.name}-{pair[0]}", list(pair)) for pair in zip(ids[::2], ids[1::2])]
        self.sent.update(batch)
        return batch

    def send(self, server, batch):
        def one(number):
            key, ids = batch[number]
            self.replies[key] = attempt(server, key, ids)
        together(len(batch), one)

    def retry(self, server, batch):
        """Of those that had no real answer."""
        open_ones = [one for one in batch if not self.answered(one[0])]

        def one(number):
            key, ids = open_ones[number]
            self.retries[key] = insist(server, key, ids)
        if open_ones:
            together(len(open_ones), one)

    def answered(self, key):
        reply = self.replies[key]
        return reply is not None and is_first(reply, self.sent[key])

    def retried(self, status):
        return sum(reply is not None and reply.status == status
                   for reply in self.retries.values())

    def once(self):
        """How many keys have their one answer, their row, and their one effect."""
        done = approvals()
        stored = {row[0] for row in sql("SELECT key FROM idempotency.idempotency_keys"
                                        f" WHERE scope = '{SCOPE}' AND state = 'c'")}
        return sum((self.answered(key) or self.retries.get(key) is not None)
                   and key in stored and done[key] == 2 for key in self.sent)

    def effects(self):
        return f"{self.once()} of {len(self.sent)} keys approved exactly once"

    def all_once(self):
        return self.once() == len(self.sent)

    def lost(self):
        """Whether it is broken already."""
        return None in self.retries.values()


def killed(promises, server):
    """SIGKILL for the server, at any moment."""
    crash = Crash("killed")
    dice = random.Random(1)
    kills = 0
    sql(SLOW)
    midway = 0
    while midway < CRASHED and kills < ROUNDS and not crash.lost():
        batch = crash.batch(100)
        sender = threading.Thread(target=crash.send, args=(server, batch))
        already = begun()
        sender.start()
        until(lambda: begun() > already + 60 or not sender.is_alive())
        time.sleep(dice.uniform(0, 0.2))
        server.kill()
        kills += 1
        sender.join(PATIENCE)
        server.start()
        crash.retry(server, batch)
        # What was begun in vain, and what was done without a reply.
        midway = begun() - len(crash.sent) + crash.retried(409)
    undone = begun() - len(crash.sent)
    sql(FAST)
    promises.keep(
        "the server killed in the middle of requests",
        f"{kills} kills, {len(crash.retries)} requests without a reply, {midway} of them in"
        f" the middle of their work: {crash.retried(409)} were committed, their repeat gets"
        f" 409; {undone} were undone, the repeat is a clean first run. {crash.effects()}",
        midway >= CRASHED and len(crash.retries) >= CRASHED and undone > 0
        and crash.retried(409) > 0 and crash.retried(409) + crash.retried(200)
        == len(crash.retries) and crash.all_once())


def cut(promises, server, proxy):
    """The reply to COMMIT lost, between PostgreSQL and the server."""
    crash = Crash("cut")
    armed = rounds = 0
    while proxy.cuts < CRASHED and rounds < ROUNDS and not crash.lost():
        rounds += 1
        batch = crash.batch(BURST)
        proxy.arm(BURST)
        armed += BURST
        crash.send(server, batch)
        proxy.arm(proxy.cuts - armed)       # what was not needed, if anything
        armed = proxy.cuts
        crash.retry(server, batch)
    statuses = Counter(reply and reply.status for reply in crash.replies.values())
    promises.keep(
        "the connection cut between COMMIT and its reply",
        f"{proxy.cuts} cuts; the client saw {statuses[503]} × 503 and repeated:"
        f" {crash.retried(409)} × 409, done before; {crash.retried(200)} × 200;"
        f" {crash.effects()}",
        proxy.cuts >= CRASHED and crash.retried(409) == proxy.cuts
        and statuses[503] == len(crash.retries) and crash.all_once())


def cut_before(promises, server):
    """The connection lost while the work is under way."""
    crash = Crash("lost")
    sql(SLOW)
    batch = crash.batch(BURST)
    sender = threading.Thread(target=crash.send, args=(server, batch))
    sender.start()
    until(lambda: begun() > 10 or not sender.is_alive())
    ended = value("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                  " WHERE usename = 'bulk_api'")
    sender.join(PATIENCE)
    crash.retry(server, batch)
    sql(FAST)
    statuses = Counter(reply and reply.status for reply in crash.replies.values())
    promises.keep(
        "the connections lost before COMMIT",
        f"{ended} ended; the client saw {statuses[503]} × 503 and repeated:"
        f" {crash.retried(200)} × 200, a clean first run; {crash.effects()}",
        crash.retried(200) > 0 and statuses[503] == len(crash.retries) and crash.all_once())


def serve(**environment):
    return Server(["/usr/bin/python3", "-B", "server.py"],
                  {"DATABASE": "dbname=approvals user=bulk_api", **environment},
                  log=f"{WORK}/server.log")


def hold(promises, row, *arguments):
    """A row that fails in itself is a broken promise, too."""
    try:
        row(promises, *arguments)
    except Exception as error:
        promises.keep(row.__name__, f"{type(error).__name__}: {error}", False)


def main():
    promises = Promises("bulk-approve")
    with serve() as server:
        for row in (first_call, repeat, other_payload, payload_hash, key_length, never_reusable,
                    not_pending, burst, still_running, speed):
            hold(promises, row, server)
    with serve(POOL_SIZE="100") as server:
        hold(promises, killed, server)
    directory = f"{WORK}/proxy"
    os.mkdir(directory)
    proxy = CuttingProxy(directory)
    try:
        with serve(PGHOST=directory, PGPORT="5432") as server:
            hold(promises, cut, server, proxy)
            hold(promises, cut_before, server)
    finally:
        proxy.close()
    return promises.finish()


if __name__ == "__main__":
    sys.exit(main())
