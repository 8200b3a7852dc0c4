#!/usr/bin/env python3
"""The promises of the identity hub, and what becomes of them.

Started by the script "run", which has PostgreSQL running and schema.sql loaded.
The hub's server is asked over HTTP; what it did is looked up with psql."""

import datetime
import hashlib
import hmac
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
import traceback
import uuid

from promises import PATIENCE, Promises, Reply, Server, together

CALLERS = 64                # that send one key at the same moment
IN_FLIGHT = 200             # when the server is killed
POOL = 32                   # connections that the server has, at most
UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
TIMES = {"time", "server_time", "created_at", "expires_at", "rotated_at", "added_at", "signed_at"}
ROTATE, DENY = ("POST", "/channels/token"), ("POST", "/denylist")
SIGN, COUNT = ("POST", "/certificates/sign"), ("POST", "/requests")
MUTATIONS = {               # one of each; they may be done again and again
    ROTATE: {"node_id": "node-1"},
    DENY: {"subnet_id": "subnet-1", "entry": "203.0.113.0/24"},
    SIGN: {},
    COUNT: {"agent": "1.0"},
}

promises = Promises("hub-agent")
STARTED = time.time()
replies = []                # all that was ever answered: (reply, asked at, answered at)


##
## The database
##

def sql(text):
    """Run statements as the superuser; returns what they print."""
    return subprocess.run(
        ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", "hub", "-f", "-"],
        input="SET search_path = hub, idempotency;\n" + text, text=True, check=True,
        stdout=subprocess.PIPE, timeout=PATIENCE).stdout.strip()


def rows(query):
    return json.loads(sql(f"SELECT coalesce(json_agg(q), '[]') FROM ({query}) q"))


def one(query):
    """The only value of the only row."""
    (row,) = rows(query)
    (value,) = row.values()
    return value


def wait_for(query, wanted, hopeless=lambda: False):
    """Look until it is so, not for ever; returns whether it is."""
    deadline = time.monotonic() + PATIENCE
    while one(query) != wanted:
        if time.monotonic() > deadline or hopeless():
            return False
        time.sleep(0.05)
    return True


def events():
    return one("SELECT count(*) FROM events")


def scope(mutation, body, principal="ada"):
    """In SQL."""
    return f"hub.scope('{mutation[0]}', '{mutation[1]}', '{principal}', '{json.dumps(body)}')"


def lookup(mutation, body, key):
    (row,) = rows("SELECT *, extract(epoch FROM expires_at) AS expires"
                  f" FROM idem_lookup({scope(mutation, body)}, '{key}')")
    return row


BUSY = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'hub_web' AND state = 'active'"


class Held:
    """Holds locks meanwhile.  Unless told which: nobody can be counted, so that
    every mutation that has begun stays in the middle, after its work and before
    its answer."""

    def __init__(self, lock="LOCK TABLE hub.principals IN EXCLUSIVE MODE"):
        self.lock = lock

    def __enter__(self):
        self.psql = subprocess.Popen(
            ["psql", "-X", "-q", "-d", "hub"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True)
        self.psql.stdin.write(f"BEGIN; {self.lock};\n\\echo held\n")
        self.psql.stdin.flush()
        if self.psql.stdout.readline() != "held\n":
            sys.exit(f"could not: {self.lock}")

    def __exit__(self, *exception):
        self.psql.communicate("ROLLBACK;\n", timeout=PATIENCE)


##
## The server
##

server = Server([sys.executable, "-B", "app.py"], log=os.path.join(os.environ["WORK"], "app.log"))


def ask(mutation, body, key, principal="ada", agent="hub-test/1", origin="https://hub.example",
        address="127.0.0.1", port=None):
    """One request; a body that is no text is sent as JSON."""
    headers = {"Idempotency-Key": key, "X-Principal": principal, "User-Agent": agent,
               "Origin": origin, "Content-Type": "application/json"}
    connection = http.client.HTTPConnection(
        "127.0.0.1", port or server.port, timeout=PATIENCE, source_address=(address, 0))
    asked = time.time()
    try:
        connection.request(
            *mutation, body=body if isinstance(body, (str, bytes)) else json.dumps(body),
            headers={name: value for name, value in headers.items() if value is not None})
        response = connection.getresponse()
        # As a list: order and repeats count, too.  Date is when it was sent.
        reply = Reply(response.status, [header for header in response.getheaders()
                                        if header[0].lower() != "date"], response.read())
    finally:
        connection.close()
    replies.append((reply, asked, time.time()))
    return reply


def event(reply):
    return json.loads(reply.body)["event_id"]


def code(reply):
    return json.loads(reply.body).get("code")


def new_key():
    return str(uuid.uuid4())


def policy(**settings):
    arguments = ", ".join(f"{name} => '{value}'" for name, value in settings.items())
    sql(f"SELECT idem_policy('hub', {arguments})")


##
## The promises, a function each
##

def set_up():
    """Secrets are left to keep_context(), sweeping to keep_clean_up().  The time
    zone is a trap."""
    sql("ALTER SYSTEM SET idempotency.worker = off")
    sql("SELECT pg_reload_conf()")
    sql("""
        ALTER ROLE hub_web SET timezone = 'Asia/Kolkata';
        SET ROLE hub_owner;
        INSERT INTO hub_subnets VALUES ('subnet-1'), ('subnet-2');
        INSERT INTO hub_channels (node_id, token, subnet_id, expires_at)
            SELECT 'node-' || n, 'first token', 'subnet-1', now() + '1 day'
            FROM generate_series(1, 300) n;
        INSERT INTO hub_channels (node_id, token, subnet_id, expires_at, revoked)
            VALUES ('node-r', 'first token', 'subnet-2', now() + '1 day', true);
        INSERT INTO certificate_requests (node_id, csr)
            SELECT 'node-' || n, 'csr of ' || n FROM generate_series(1, 300) n;
        """)


def made_here(purpose, *components):
    """The context that there should be, made by other means than the extension's."""
    message = b"".join(len(part).to_bytes(4, "big") + part.encode() for part in components)
    context = b"\0ic\1"
    for secret in rows("SELECT key_id, encode(secret, 'hex') AS secret FROM idempotency_secrets"
                       f" WHERE purpose = '{purpose}' AND secret <> '' ORDER BY key_id DESC"):
        derived = hmac.digest(bytes.fromhex(secret["secret"]), b"idempotency 1 context", "sha256")
        context += secret["key_id"].to_bytes(4, "big") + hmac.digest(derived, message, "sha256")
    return context.hex()


def context_of(key):
    return one(f"SELECT encode(context, 'hex') FROM idempotency_keys WHERE key = '{key}'")


def keep_context():
    without = ask(COUNT, {}, new_key())
    nothing = events()

    def bound(purpose):
        key = new_key()
        first = ask(COUNT, {}, key)
        ours = made_here(purpose, "https://hub.example", "127.0.0.1", "hub-test/1")
        return key, first, context_of(key) == ours

    sql("SELECT idem_secret('audit', gen_random_bytes(32))")
    key, first, audit = bound("audit")
    others = [ask(COUNT, {}, key, agent="hub-test/2"), ask(COUNT, {}, key, agent=None),
              ask(COUNT, {}, key, origin="https://evil.example"), ask(COUNT, {}, key, origin=None),
              ask(COUNT, {}, key, address="127.0.0.2")]
    refused = sum(reply.status == 422 and code(reply) == "idempotency_key_reused"
                  for reply in others)
    same = ask(COUNT, {}, key) == first
    promises.keep(
        "context binding: HMAC-SHA256 over origin, client IP and user agent",
        f"{refused} of {len(others)} with another or no origin, IP or user agent refused with 422,"
        f" {events() - nothing} ran; the same context is replayed: {same}; stored is the HMAC"
        f" made here: {audit}",
        refused == len(others) and same and events() - nothing == 1 and audit)

    sql("SELECT idem_secret('context', gen_random_bytes(32))")
    key, first, context = bound("context")
    promises.keep(
        "its key is context_hmac_key, and if that is not set, hmac_audit_key",
        f"none set: {without.status}, {nothing} ran; audit set: HMAC by that is stored: {audit};"
        f" context set, too: by that: {context}",
        without.status == 500 and nothing == 0 and audit and context)

    before = events()
    sql("SELECT idem_secret('context', gen_random_bytes(32))")
    same, (_, _, both) = ask(COUNT, {}, key) == first, bound("context")
    old = one("SELECT min(key_id) FROM idempotency_secrets WHERE purpose = 'context'")
    sql(f"SELECT idem_secret_drop('context', {old})")
    dropped = ask(COUNT, {}, key)
    promises.keep(
        "and can be changed while requests are repeated",
        f"with a new secret the request of before is replayed: {same}; new ones are bound by both:"
        f" {both}; with the old one dropped: {dropped.status}, {events() - before} ran",
        same and both and dropped.status == 422 and events() - before == 1)


def keep_identity():
    key, body, before = new_key(), MUTATIONS[ROTATE], events()
    sends = [(ROTATE, "ada"), (("PUT", "/channels/token"), "ada"), (COUNT, "ada"), (ROTATE, "bob")]
    first = [ask(mutation, body, key, principal) for mutation, principal in sends]
    ran = events() - before
    again = [ask(mutation, body, key, principal) for mutation, principal in sends]
    other = [ask(ROTATE, body, new_key())]
    promises.keep(
        "identity: (key, method, path, principal)",
        f"one key with another method, path, principal: {ran} of {len(sends)} ran;"
        f" {sum(map(Reply.__eq__, first, again))} of {len(sends)} repeats replayed;"
        f" another key ran: {event(other[0]) not in map(event, first)}",
        ran == len(sends) and first == again and {reply.status for reply in first} == {200} and
        event(other[0]) not in map(event, first))

    key, before = new_key(), events()
    body = {"subnet_id": "subnet-1", "entry": "café"}
    first = ask(DENY, body, key)
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    stored = lookup(DENY, body, key)["fingerprint"] == \
        "\\x" + hashlib.sha256(canonical.encode()).hexdigest()
    same = ask(DENY, b'{ "entry":"caf\\u00e9" ,\n"subnet_id": "subnet-1"}', key) == first
    bodies = [{**body, "entry": "192.0.2.1"}, {**body, "more": 1}]
    other = [ask(DENY, another, key) for another in bodies]
    again = [ask(DENY, another, key) for another in bodies]
    ran = events() - before
    promises.keep(
        "and SHA-256 of the body: another body under the same key is another request",
        f"three bodies under one key: {ran} ran, each repeat got its own answer: {again == other};"
        f" SHA-256 of the canonical JSON is stored: {stored}; the same JSON written otherwise is"
        f" replayed: {same}",
        {reply.status for reply in other} == {200} and again == other and stored and same and
        ran == 3 == len({event(reply) for reply in [first, *other]}))


def keep_persisted():
    key = new_key()
    reply = ask(ROTATE, MUTATIONS[ROTATE], key)
    row, body = lookup(ROTATE, MUTATIONS[ROTATE], key), json.loads(reply.body)
    (found,) = rows(f"SELECT idem_http_time(at) AS at FROM events WHERE id = '{event(reply)}'")
    (span,) = rows("SELECT finished_at - created_at >= '0' AS ended,"
                   " expires_at - finished_at = '24 h' AS kept FROM idempotency_keys"
                   f" WHERE key = '{key}'")
    sent = [{name: value} for name, value in reply.headers if name.lower() in
            ("x-event-id", "cache-control")]
    promises.keep(
        "persisted: response JSON, status code, headers JSON",
        f"idem_lookup: body of {row['body_size']} bytes as sent, status_code"
        f" {row['status_code']}, headers {json.dumps(row['headers'])[:40]}…",
        bytes.fromhex(row["body"][2:]) == reply.body and row["status_code"] == reply.status and
        [{name.lower(): value for name, value in pair.items()} for pair in row["headers"]] == sent
        and row["content_type"] == "application/json")
    promises.keep(
        "persisted: event id, server time, created at, expires at",
        f"body: event_id {body['event_id'][:8]}…, server_time {body['server_time']}; columns"
        f" created_at {row['created_at'][:19]}, expires_at {row['expires_at'][:19]}",
        found["at"] == body["server_time"] and UTC.fullmatch(body["server_time"]) is not None and
        row["headers"][0] == {"X-Event-Id": body["event_id"]} and
        span == {"ended": True, "kept": True})


def keep_replay():
    same = 0
    for mutation, body in MUTATIONS.items():
        key, before = new_key(), events()
        first = ask(mutation, body, key)
        again = [ask(mutation, body, key) for _ in range(5)]
        same += again == [first] * 5 and first.status == 200 and events() - before == 1
    promises.keep("replay: byte-identical body, same status, same headers",
                  f"{same} of {len(MUTATIONS)} mutations: 5 repeats equal the first answer,"
                  " 1 effect",
                  same == len(MUTATIONS))

    waited, effects, answers = [], [], []
    for mutation, body in MUTATIONS.items():
        key, before = new_key(), events()
        got = []
        race = threading.Thread(target=together, args=(
            CALLERS, lambda _: got.append(ask(mutation, body, key))))
        with Held():
            race.start()
            waited.append(wait_for(BUSY, POOL, lambda: len(got) >= CALLERS - POOL))
        race.join()
        effects.append(events() - before)
        answers.append(len({(reply.status, tuple(reply.headers), reply.body) for reply in got}))
        waited[-1] &= len(got) == CALLERS and {reply.status for reply in got} == {200}
    promises.keep(
        "replay: also when many callers race",
        f"{CALLERS} callers with one key while it runs, for each mutation: {effects} effects,"
        f" {answers} different answers (status, headers, body)",
        all(waited) and effects == answers == [1] * len(MUTATIONS))


def keep_expiry():
    policy(completed_ttl="1 s")
    keys = [(mutation, body, new_key()) for mutation, body in MUTATIONS.items()]
    first = [ask(*sent) for sent in keys]
    before = events()
    over = all(wait_for(f"SELECT outcome FROM idem_lookup({scope(mutation, body)}, '{key}')",
                        "expired")
               for mutation, body, key in keys)
    late = together(CALLERS, lambda number: ask(*keys[number % len(keys)]))
    sql("CALL idem_sweep_all()")
    policy(completed_ttl="24 hours")
    swept = [ask(*sent) for _ in range(5) for sent in keys]
    refused = [sum((reply.status, code(reply)) == (409, "idempotency_key_expired")
                   for reply in some) for some in (late, swept)]
    promises.keep(
        "expiry: 409 idempotency_key_expired, every time; never executed again while remembered",
        f"{refused[0]} of {len(late)} at once and, after a sweep, {refused[1]} of {len(swept)}"
        f" refused; {events() - before} executed",
        over and {reply.status for reply in first} == {200} and
        refused == [len(late), len(swept)] and events() == before)


def cross(seconds):
    """Callers who send a key while it expires; returns that time, what they saw,
    whether all answers were the first one, and how often it ran."""
    policy(completed_ttl=f"{seconds} s")
    key, before = new_key(), events()
    first = ask(COUNT, {}, key)
    expires = lookup(COUNT, {}, key)["expires"]

    def send(_):
        seen = []
        while not seen or seen[-1][1] < expires + 0.5:
            sent = time.time()
            reply = ask(COUNT, {}, key)
            seen.append((sent, time.time(), reply))
        return seen

    seen = sum(together(16, send), [])
    policy(completed_ttl="24 hours")
    right = all(reply == first or (reply.status, code(reply)) == (409, "idempotency_key_expired")
                for _, _, reply in seen)
    return expires, seen, right, events() - before


def keep_boundary():
    """Server and test have one clock.  A slow machine gets more time."""
    for seconds in 2, 8, 30:
        expires, seen, right, ran = cross(seconds)
        answered = [sent for sent, _, reply in seen if reply.status == 200]
        refused = [received for _, received, reply in seen if reply.status == 409]
        if answered and refused:
            break
    late = sum(sent >= expires for sent in answered)
    early = sum(received < expires for received in refused)
    promises.keep(
        "expiry: at the very boundary",
        f"16 callers across it: {len(answered)} replays, then {len(refused)} refused; {late}"
        f" replays too late, {early} refusals too early, {ran} executed",
        bool(answered and refused) and right and late == early == 0 and ran == 1)


def keep_clean_up():
    swept_scope = scope(COUNT, {}, "sweep")
    due = f"SELECT count(*) FROM idempotency_keys WHERE scope = {swept_scope}"

    def short_lived(callers):
        policy(completed_ttl="1 s", failed_ttl="1 s", tombstone="1 s")
        keys = [new_key() for _ in range(10 * callers)]
        together(callers, lambda number: [
            ask(COUNT, {}, key, "sweep") for key in keys[number::callers]])
        policy(completed_ttl="24 hours", failed_ttl="24 hours", tombstone="30 days")
        return keys

    keys = short_lived(16)
    (index,) = rows("SELECT indexdef FROM pg_indexes"
                    " WHERE indexname = 'idempotency_keys_purge_at'")
    past = wait_for("SELECT count(*) FROM idempotency_keys WHERE purge_at <= now()", len(keys))
    kept = one("SELECT count(*) FROM idempotency_keys WHERE purge_at > now()")
    scans = """
        SELECT pg_stat_force_next_flush();
        SELECT idx_scan, idx_tup_read FROM pg_stat_user_indexes
            WHERE indexrelname = 'idempotency_keys_purge_at';"""
    counted = sql(scans + "SELECT idem_sweep();" + scans).split()
    scanned, read = (int(after) - int(before) for before, after in
                     zip(counted[0].split("|"), counted[-1].split("|")))
    swept = int(counted[1])
    left = one("SELECT count(*) FROM idempotency_keys")
    before = events()
    ask(COUNT, {}, keys[0], "sweep")
    again = events() - before
    sql(f"SELECT idem_forget({swept_scope}, '{keys[0]}')")

    more = short_lived(4)
    there = one(due)
    sql("ALTER SYSTEM SET idempotency.sweep_interval = '1s'")
    sql("ALTER SYSTEM RESET idempotency.worker")
    sql("SELECT pg_reload_conf()")
    worker = wait_for(due, 0)
    promises.keep(
        "clean-up: an index on the expiry time serves the scan",
        f"btree on purge_at: {scanned} scan of it read {read} entries and removed {swept} of"
        f" {len(keys)} keys, {left} of {kept} others stay; of {there} more the worker left"
        f" {one(due)}; a key so forgotten is free: {again} ran",
        index["indexdef"].endswith("USING btree (purge_at)") and past and scanned >= 1 and
        read >= swept == len(keys) and left == kept and again == 1 and worker and
        there == len(more))


def keep_mutations():
    key = new_key()
    reply = ask(ROTATE, {"node_id": "node-2"}, key)
    ask(ROTATE, {"node_id": "node-2"}, key)
    (channel,) = rows("SELECT token, subnet_id, revoked, idem_http_time(expires_at) AS expires_at,"
                      " idem_http_time(created_at) AS created_at, idem_http_time(rotated_at) AS rotated_at"
                      " FROM hub_channels WHERE node_id = 'node-2'")
    data = json.loads(reply.body)["data"]
    revoked = ask(ROTATE, {"node_id": "node-r"}, new_key())
    token = one("SELECT token FROM hub_channels WHERE node_id = 'node-r'")
    promises.keep(
        "mutation: rotate a hub channel token",
        f"sent twice: the token is that of the answer: {channel['token'] == data['token']},"
        f" rotated_at {data['rotated_at']}; a revoked channel: {revoked.status}, its token"
        f" stays: {token == 'first token'}",
        channel == {**{name: data[name] for name in data if name != "node_id"}, "revoked": False}
        and len(data["token"]) == 64 and UTC.fullmatch(str(data["rotated_at"])) is not None and
        revoked.status == 404 and token == "first token")

    entry, key = "198.51.100.7", new_key()
    together(2, lambda _: ask(DENY, {"subnet_id": "subnet-2", "entry": entry}, key))
    unknown = ask(DENY, {"subnet_id": "subnet-9", "entry": entry}, new_key())
    entries = rows(f"SELECT subnet_id, added_by FROM denylist WHERE entry = '{entry}'")
    promises.keep(
        "mutation: add a denylist entry that belongs to a subnet",
        f"sent twice: {len(entries)} entry, of {entries[0]['subnet_id']}; for a subnet that is not"
        f" there: {unknown.status}, none",
        entries == [{"subnet_id": "subnet-2", "added_by": "ada"}] and unknown.status == 404)

    queued = "FROM certificate_requests WHERE certificate IS NULL"
    before = one(f"SELECT count(*) {queued}")
    keys = [new_key() for _ in range(20)]
    got = together(40, lambda number: ask(SIGN, {}, keys[number % 20], "carol"))
    chosen, oldest = one(f"SELECT max(id) {queued}"), one(f"SELECT min(id) {queued}")
    by_id = [ask(SIGN, {"id": chosen}, new_key(), "carol") for _ in range(2)]
    with Held(f"UPDATE hub.certificate_requests SET csr = csr WHERE id = {oldest}"):
        skipped = ask(SIGN, {}, new_key(), "carol")
    signed = [json.loads(reply.body)["data"] for reply in [*got, by_id[0], skipped]]
    ids = [data["id"] for data in signed]
    left = one(f"SELECT count(*) {queued}")
    right = all(data["certificate"] == hmac.new(
        b"a key for tests", f"csr of {data['id']}".encode(), "sha256").hexdigest()
        for data in signed)
    promises.keep(
        "mutation: sign a queued certificate request",
        f"20 keys twice at once: {len(set(ids[:40]))} signed; by id: {by_id[0].status}, with"
        f" another key {by_id[1].status}; one that is locked is not waited for: {ids[-1] > oldest};"
        f" signatures (an HMAC stands for them) right: {right}",
        len(set(ids[:40])) == 20 and before - left == 22 and right and ids[40] == chosen and
        by_id[1].status == 404 and ids[-1] > oldest)

    keys = [new_key() for _ in range(25)]
    together(50, lambda number: ask(COUNT, {"n": number % 25}, keys[number % 25], "dora"))
    refused = [ask(ROTATE, {"node_id": "nowhere"}, new_key(), "dora"),
               ask(COUNT, {"n": 0}, keys[0], "dora", agent="x"),
               ask(COUNT, {"n": 1}, keys[1], "dora", origin=None)]
    counted = one("SELECT requests FROM principals WHERE principal = 'dora'")
    promises.keep(
        "mutation: count requests per principal",
        f"25 requests twice at once, and {len(refused)} that were refused: {counted} counted",
        counted == 25 and {reply.status for reply in refused} == {404, 422})


def keep_killed():
    """The last ones to be asked die in the middle of it; half of those also in
    the database, whose server is told to end them."""
    keys = [new_key() for _ in range(IN_FLIGHT)]

    def send(number):
        body = {"subnet_id": "subnet-2", "entry": f"killed {number}"}
        return ask(DENY, body, keys[number], "eve")

    def lost(number):
        try:
            send(number)
        except (OSError, http.client.HTTPException):
            return 1
        return 0

    unanswered = []
    with Held():
        burst = threading.Thread(target=lambda: unanswered.extend(together(IN_FLIGHT, lost)))
        burst.start()
        under_way = wait_for(BUSY, POOL)
        server.kill()
        burst.join()
        sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE usename = 'hub_web' AND state = 'active' ORDER BY pid LIMIT {POOL // 2}")
    gone = wait_for("SELECT count(*) FROM pg_stat_activity WHERE usename = 'hub_web'", 0)
    effects = "SELECT count(*) FROM denylist WHERE entry LIKE 'killed %'"
    committed = one(effects)
    server.start()
    first = together(IN_FLIGHT, send)
    again = together(IN_FLIGHT, send)
    worst = one("SELECT max(n) FROM (SELECT count(*) AS n FROM denylist"
                " WHERE entry LIKE 'killed %' GROUP BY entry) e")
    promises.keep(
        "the server is killed in the middle of requests",
        f"{sum(unanswered)} of {IN_FLIGHT} got no reply, {committed} had taken effect; after"
        f" retries {one(effects)}, no key more than {worst}; all answers repeat: {first == again}",
        under_way and gone and sum(unanswered) == IN_FLIGHT and 0 < committed < IN_FLIGHT and
        one(effects) == IN_FLIGHT and worst == 1 and first == again and
        {reply.status for reply in first} == {200})


def keep_envelopes():
    nowhere = os.path.join(os.environ["WORK"], "nowhere")
    with Server(server.command, {"PGHOST": nowhere, "POOL_TIMEOUT": "0.5"}, log=server.log) as lost:
        ask(COUNT, {}, new_key(), port=lost.port)
    for mutation, body, key, principal in (
            (COUNT, "{", new_key(), "ada"), (COUNT, "", new_key(), "ada"),
            (COUNT, b"\xff", new_key(), "ada"), (COUNT, {"a": "\0"}, new_key(), "ada"),
            (COUNT, {}, '"no end', "ada"), (COUNT, {}, "k" * 300, "ada"),
            (COUNT, {}, None, "ada"), (COUNT, {}, new_key(), None),
            (DENY, {"subnet_id": "subnet-1"}, new_key(), "ada"),
            (("POST", "/nowhere"), {}, new_key(), "ada"),
            (("DELETE", "/denylist"), {}, new_key(), "ada")):
        ask(mutation, body, key, principal)

    def bad(reply, asked, answered):
        body = json.loads(reply.body)
        # Replays have the time of the first answer.
        made, since = (body["server_time"], STARTED) if reply.status == 200 else \
            (body["time"], asked)
        times = [value for part in (body, body.get("data") or {})
                 for name, value in part.items() if name in TIMES]
        times += [value for name, value in reply.headers if name.lower() == "idempotency-expires"]
        return not all(map(UTC.fullmatch, map(str, times))) or not \
            since - 0.01 <= datetime.datetime.fromisoformat(made).timestamp() <= answered + 0.01

    wrong = sum(bad(*seen) for seen in replies)
    statuses = sorted({reply.status for reply, _, _ in replies})
    promises.keep(
        "envelopes: responses and errors carry RFC 3339 UTC timestamps ending in Z",
        f"{len(replies) - wrong} of {len(replies)} answers, with the statuses"
        f" {', '.join(map(str, statuses))}; sessions are in Asia/Kolkata",
        wrong == 0 and statuses == [200, 400, 401, 404, 405, 409, 422, 500, 503])


def keep_commit_marker():
    """All that ever happened: work and key have one fate."""
    (found,) = rows("""
        SELECT count(*) FILTER (WHERE k.state = 'c' AND e.id IS NOT NULL) AS both,
            count(*) FILTER (WHERE e.id IS NULL) AS only_key,
            count(*) FILTER (WHERE k.key IS NULL AND e.principal <> 'sweep') AS only_event,
            count(*) FILTER (WHERE k.state <> 'c') AS unfinished
        FROM idempotency_keys k FULL JOIN events e
            ON e.id = (convert_from(k.body, 'UTF8')::json ->> 'event_id')::uuid""")
    counted = one("SELECT sum(requests) FROM principals")
    promises.keep(
        "persisted: a commit marker",
        f"state completed, in the transaction of the work: {found['both']} keys with their event,"
        f" {found['only_key']} without, {found['only_event']} events without key,"
        f" {found['unfinished']} unfinished; {counted} counted",
        found["both"] > IN_FLIGHT and counted == events() and
        found["only_key"] == found["only_event"] == found["unfinished"] == 0)


def main():
    set_up()
    with server:
        for keep in (keep_context, keep_identity, keep_persisted, keep_replay, keep_expiry,
                     keep_boundary, keep_mutations, keep_killed, keep_clean_up, keep_envelopes,
                     keep_commit_marker):
            try:
                keep()
            except Exception as error:
                traceback.print_exc()
                promises.keep(keep.__name__, f"it did not come to that: {error!r}", False)
    sys.exit(promises.finish())


if __name__ == "__main__":
    main()
