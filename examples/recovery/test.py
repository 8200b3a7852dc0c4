#!/usr/bin/python3
"""Workers, and completers of what they leave, are killed a thousand times.

Started by the script "run", which has PostgreSQL running and schema.sql loaded.
Each request, and each completer, is a process of its own; it kills itself by SIGKILL
when it reaches the step that it is told to die at, or is killed at any moment."""

import collections
import datetime
import itertools
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import time
import traceback

import psycopg

import worker
from promises import PATIENCE, Promises, Server, call

CRASHES = 1000
SERVER_CRASHES = 5
WORKERS, COMPLETERS = 3, 4          # at the same time
MOST_STEPS = 30                     # of a completer that does not come to its own
ANY = "at any moment"
STEPS = ("provider asked", "provider has answered",
         *(name + when for name in ("claimed", "recovered", "charging", "charged", "completed")
           for when in (", before COMMIT", "")))
DIES_AT = {"worker": [step for step in STEPS if "recovered" not in step],
           "completer": [step for step in STEPS if "claimed" not in step]}
LOST, UNANSWERED, NO_DATABASE = 3, 4, 5     # how a child ends that was not killed

worker.LEASE = datetime.timedelta(seconds=0.5)
worker.LOOK_EVERY = 0.05
worker.PAUSES = (0.02, 0.1)

chance = random.Random(1)
provider = Server([sys.executable, "-B", "provider.py"],
                  log=os.path.join(os.environ["WORK"], "provider.log"))
worker.PROVIDER_PORT = provider.port


##
## The database and the provider
##

def rows(query, *arguments):
    """As the superuser.  No connection stays open: children would inherit it."""
    with psycopg.connect(dbname="payments", autocommit=True,
                         options="-c search_path=payments,idempotency") as connection:
        return connection.execute(query, arguments).fetchall()


def one(query, *arguments):
    ((value,),) = rows(query, *arguments)
    return value


def until(query, wanted, *arguments):
    deadline = time.monotonic() + PATIENCE
    while one(query, *arguments) != wanted:
        if time.monotonic() > deadline:
            raise RuntimeError(f"has not become {wanted}: {query}")
        time.sleep(0.02)


def crash_server():
    work = os.environ["WORK"]
    control = ["pg_ctl", "-D", f"{work}/recovery", "-w", "-t", str(PATIENCE)]
    for command in ["-m", "immediate", "stop"], ["-l", f"{work}/recovery.log", "start"]:
        subprocess.run(control + command, check=True, stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL)


def ask(method, path, body=None):
    return json.loads(call(provider.port, method, path, body and json.dumps(body)).body)


def be(**mood):
    ask("PUT", "/mood", {"busy": 0, "lose": 0, "slow": 0, "seconds": 0, **mood})


def charges():
    """By order: what the provider has charged."""
    found = collections.defaultdict(list)
    for charge in ask("GET", "/charges")["charges"]:
        found[charge["order"]].append((charge["charge"], charge["amount"]))
    return found


def ledger():
    found = collections.defaultdict(list)
    for order, charge, amount in rows("SELECT order_id, charge, amount FROM ledger"):
        found[order].append((charge, amount))
    return found


def audited(action):
    """(name of the program, attempt) for each row of the audit log, by order."""
    found = collections.defaultdict(list)
    for order, program, attempt in rows(
            "SELECT order_id, application_name, attempt FROM orders JOIN idempotency_audit_log"
            " ON entity_id = idem_log_id(%s) || '/' || idem_log_id(order_id)"
            " WHERE action = %s ORDER BY id", worker.SCOPE, action):
        found[order].append((program, attempt))
    return found


##
## Processes
##

class Child:
    """A worker with one request, or a completer, which dies at a step."""
    running = {}
    board = mmap.mmap(-1, 128 * 100)        # of all: the step reached last, and the order
    free = list(range(100))
    log = os.open(os.path.join(os.environ["WORK"], "workers.log"),
                  os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __init__(self, kind, dies_at=None, order=None, amount=None,
                 with_signal=signal.SIGKILL):
        self.kind, self.dies_at, self.order = kind, dies_at, order
        self.kill_at = time.monotonic() + chance.uniform(0, 0.1) if dies_at == ANY else None
        self.slot = self.free.pop()
        self.write("", order or "")
        self.pid = os.fork()
        if self.pid == 0:
            self.run(amount, with_signal)
        self.running[self.pid] = self

    def run(self, amount, with_signal):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(self.log, 2)
        count = itertools.count(1)
        completes = self.kind == "completer"

        def reached(step, order):
            self.write(step, order)
            if step == self.dies_at or completes and self.dies_at and next(count) >= MOST_STEPS:
                os.kill(os.getpid(), with_signal)

        status = 1
        worker.reached = reached
        try:
            if completes:
                worker.complete_for_ever()
            with worker.connect("worker") as connection:
                worker.pay(connection, self.order, amount)
            status = 0
        except worker.Lost:
            status = LOST
        except worker.Unanswered:
            status = UNANSWERED
        except psycopg.OperationalError as error:
            if (error.sqlstate or "08")[:2] in ("08", "57"):
                status = NO_DATABASE
            else:
                traceback.print_exc()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def write(self, step, order):
        self.board[self.slot * 128:(self.slot + 1) * 128] = f"{step}\0{order}".encode().ljust(128)

    def last(self):
        """(step, order)"""
        return self.board[self.slot * 128:(self.slot + 1) * 128].decode().rstrip().split("\0")

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def wait(self):
        self.ended(os.waitpid(self.pid, 0)[1])

    def ended(self, status):
        del self.running[self.pid]
        self.free.append(self.slot)
        self.killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        self.status = None if self.killed else os.waitstatus_to_exitcode(status)

    @classmethod
    def reap(cls):
        """Those that have ended."""
        while cls.running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            child = cls.running[pid]
            child.ended(status)
            yield child

    @classmethod
    def kill_all(cls):
        for child in list(cls.running.values()):
            child.kill()
            child.wait()
            yield child


def completed(order):
    until("SELECT count(*) FROM idem_lookup(%s, %s) WHERE outcome = 'completed'", 1,
          worker.SCOPE, order)


##
## The promises
##

def program(*arguments):
    """worker.py, as it is."""
    return subprocess.Popen(
        [sys.executable, "-B", "worker.py", *arguments], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PROVIDER_PORT": str(provider.port)}, stderr=Child.log)


def keep_answer(promises):
    """Nothing happens to this one."""
    said = [program("pay", "calm", amount).communicate(timeout=PATIENCE)[0].strip()
            for amount in ("10", "10", "11")]
    promises.keep(
        "a payment is charged and booked, and its repeat gets the answer",
        f"{said[0]}; the same again; another amount: {said[2]}",
        said[0].startswith("201 ") and said[1] == said[0]
        and said[2] == "422 idempotency_key_reused" and charges()["calm"] == ledger()["calm"] != [])


def keep_slow_provider(promises):
    """The holder lives, and the provider takes many leases: longer ones than elsewhere,
    for the machine may be slow, too."""
    short, worker.LEASE = worker.LEASE, datetime.timedelta(seconds=1.5)
    be(slow=1, seconds=5)
    completer = Child("completer")
    holder = Child("worker", None, "slow", 10)
    holder.wait()
    completer.kill()
    completer.wait()
    be()
    worker.LEASE = short
    taken = audited("taken_over")["slow"]
    promises.keep(
        "the provider is slow: the holder keeps its payment by heartbeats",
        f"reply after 5 s, lease 1.5 s: {len(taken)} times taken over,"
        f" {len(charges()['slow'])} charge",
        holder.status == 0 and not taken and len(charges()["slow"]) == 1)


def keep_late_holder(promises):
    """Holders stand still at a step, until others have completed their payments."""
    lates = [Child("worker", step, f"late-{number}", 10, with_signal=signal.SIGSTOP)
             for number, step in enumerate(DIES_AT["worker"]) if step in (
                 "claimed", "charging", "provider asked", "provider has answered", "charged")]
    completer = Child("completer")
    for late in lates:
        completed(late.order)
    for late in lates:
        os.kill(late.pid, signal.SIGCONT)
        late.wait()
    completer.kill()
    completer.wait()
    lost = sum(late.status == LOST for late in lates)
    charged, booked = charges(), ledger()
    once = sum(len(charged[late.order]) == 1 and booked[late.order] == charged[late.order]
               for late in lates)
    promises.keep(
        "a holder that comes back late has lost its claim, and books nothing",
        f"{len(lates)} stopped at a step each, and continued when their payment had been completed:"
        f" {lost} got ID002, {once} charged and booked once",
        lost == once == len(lates) == 5)


def keep_forgetful(promises):
    """What the test would see of a worker that makes a key for each attempt."""
    carry_on = worker.carry_on
    worker.carry_on = lambda connection, claim: carry_on(
        connection, claim._replace(recovery_point=None, checkpoint=None))
    dead = [Child("worker", "provider has answered", f"forgetful-{number}", 10)
            for number in range(20)]
    for child in dead:
        child.wait()
    completers = [Child("completer") for _ in range(2)]
    for child in dead:
        completed(child.order)
    for child in completers:
        child.kill()
        child.wait()
    worker.carry_on = carry_on
    charged, booked = charges(), ledger()
    twice = sum(len(charged[child.order]) > 1 for child in dead)
    promises.keep(
        "not without the checkpoint: with a new provider key in each attempt",
        f"{twice} of {len(dead)} are charged again, and the database does not know:"
        f" {sum(len(booked[child.order]) for child in dead)} rows in the ledger",
        twice > 0)


def crash(orders):
    """All that is killed: (kind, step, order).  Orders are entered with their amounts."""
    crashes, others = [], collections.Counter()
    plans = {kind: itertools.cycle([*steps, ANY]) for kind, steps in DIES_AT.items()}
    server_crashes = 0
    be(busy=0.1, lose=0.05, slow=0.02, seconds=1)

    def died(child):
        if child.killed:
            step, order = child.last()
            crashes.append((child.kind, child.dies_at if child.dies_at == ANY else step, order))
        else:
            others[child.status] += 1

    while len(crashes) < CRASHES:
        kinds = collections.Counter(child.kind for child in Child.running.values())
        for _ in range(WORKERS - kinds["worker"]):
            order = f"order-{len(orders)}"
            # some die not at all, and some are declined
            dies_at = next(plans["worker"]) if len(orders) % 10 else None
            orders[order] = chance.randint(1, 100000) + 100000 * (len(orders) % 50 == 25)
            Child("worker", dies_at, order, orders[order])
        for _ in range(COMPLETERS - kinds["completer"]):
            Child("completer", next(plans["completer"]))
        now = time.monotonic()
        for child in list(Child.running.values()):
            if child.kill_at and child.kill_at <= now:
                child.kill()
                child.kill_at = None
        for child in Child.reap():
            died(child)
        if (server_crashes < SERVER_CRASHES
                and len(crashes) > CRASHES * (server_crashes + 1) / (SERVER_CRASHES + 1)):
            crash_server()
            server_crashes += 1
        time.sleep(0.002)
    for child in Child.kill_all():
        child.dies_at = ANY
        died(child)
    be()
    return crashes, others, server_crashes


def recover():
    """Completers that live, until nothing is open."""
    completers = [program("complete") for _ in range(2)]
    try:
        until("SELECT count(*) FROM idempotency_leases", 0)
    finally:
        for process in completers:
            process.kill()
            process.communicate()


def keep_crashes(promises):
    orders = {}
    crashes, others, server_crashes = crash(orders)
    counts = collections.Counter((kind, step) for kind, step, _ in crashes)
    least = min(counts[kind, step] for kind, steps in DIES_AT.items() for step in steps)
    kinds = collections.Counter(kind for kind, _, _ in crashes)
    promises.keep(
        "killed by SIGKILL at each of their steps",
        f"{len(crashes)} crashes: {kinds['worker']} of workers, {kinds['completer']} of completers,"
        f" at least {least} at each step; the server {server_crashes} times, which"
        f" {others[NO_DATABASE]} lost",
        len(crashes) >= CRASHES and least >= 10 and server_crashes == SERVER_CRASHES
        and set(others) <= {0, LOST, UNANSWERED, NO_DATABASE})

    recover()
    found = dict(rows("SELECT o, (idem_lookup(%s, o)).outcome FROM unnest(%s::text[]) o",
                      worker.SCOPE, list(orders)))
    taken, done = audited("taken_over"), audited("completed")
    refused = audited("failed")
    by = collections.Counter(program for ends in done.values() for program, _ in ends)
    states = collections.Counter(found.values())
    promises.keep(
        "idem_recover finishes what was claimed, however often it is left again",
        f"of {len(orders)} orders {states['completed']} completed, {states['failed']} declined,"
        f" {states['in_progress']} open, {states[None]} never claimed; {by['completer']} by"
        f" completers, up to attempt {max(attempt for e in done.values() for _, attempt in e)}",
        set(found.values()) <= {"completed", "failed", None} and states["completed"] > 0
        and not one("SELECT count(*) FROM idempotency_leases"))
    left = {order for _, step, order in crashes
            if order in orders and step not in (
                "claimed, before COMMIT", "recovered, before COMMIT", "completed", "declined", ANY)}
    finished = sum(attempt > 1 for order in left
                   for _, attempt in done[order] + refused[order])
    promises.keep(
        "whoever finishes what was left is a later attempt",
        f"{finished} of {len(left)} that somebody had died with: attempt 2 or later",
        finished == len(left) > 0)
    twice = one("SELECT count(*) FROM (SELECT FROM idempotency_audit_log"
                " WHERE action IN ('claimed', 'taken_over')"
                " GROUP BY entity_id, attempt HAVING count(*) > 1) t")
    promises.keep("no attempt is given to two",
                  f"{sum(map(len, taken.values()))} take-overs, {twice} attempts given twice",
                  twice == 0 and bool(taken))

    # the senders, who had no reply, or do not trust it
    with worker.connect("sender") as connection:
        replies = {order: worker.pay(connection, order, amount)
                   for order, amount in orders.items()}
    charged, booked = charges(), ledger()
    asked = ask("GET", "/charges")["asked"]
    paid = [order for order, amount in orders.items() if amount <= 100000]
    number = collections.Counter(len(charged[order]) for order in paid)
    promises.keep(
        "one charge a key", f"{number[1]} of {len(paid)} orders charged once; the provider was"
        f" asked {asked['repeats']} times more with a key that it knew, was busy {asked['busy']}"
        f" times, lost {asked['lost']} replies, was slow {asked['slow']} times",
        number == {1: len(paid)} and all(charged[order][0][1] == orders[order] for order in paid)
        and asked["repeats"] > 0 < asked["lost"])
    same = sum(booked[order] == charged[order] for order in orders)
    rest = {order for found in (charged, booked) for order, some in found.items()
            if some and order.startswith("order-")} - set(paid)
    promises.keep(
        "one row in the ledger a charge, with that charge; no charge without",
        f"{same} of {len(orders)} orders have the same in both, {len(rest)} others",
        same == len(orders) and not rest)

    def is_right(order):
        reply = replies[order]
        if orders[order] > 100000:
            return reply.http_status == 402 and json.loads(reply.body) == {"error": "declined"}
        return reply.http_status == 201 and json.loads(reply.body) == {
            "order": order, "amount": orders[order], "charge": booked[order][0][0]}
    outcomes = collections.Counter(reply.outcome for reply in replies.values())
    right = sum(is_right(order) for order in orders)
    fresh = {order for order in orders if found[order] is None}
    promises.keep(
        "each repeat gets the answer",
        f"{outcomes['replayed']} replayed, and the {len(fresh)} whose claim was not committed"
        f" executed now; {right} of {len(orders)} right",
        right == len(orders) == outcomes["replayed"] + len(fresh)
        and {order for order in orders if replies[order].outcome != "replayed"} == fresh)
    rows("SELECT idem_audit_seal()")
    done, refused = audited("completed"), audited("failed")
    problems = one("SELECT count(*) FROM idem_audit_verify()")
    ends = collections.Counter(len(done[order]) + len(refused[order]) for order in orders)
    promises.keep(
        "the audit log has one end of each",
        f"{ends[1]} of {len(orders)}; {problems} problems found by the seals",
        ends == {1: len(orders)} and problems == 0)
    return crashes, done, charged, orders


def table(crashes, done, charged, orders):
    """Where they were killed, and what became of it."""
    print("\n  {:<32}{:>8}{:>11}{:>8}{:>14}{:>10}".format(
        "killed", "workers", "completers", "orders", "idem_recover", "charges"))
    for step in ["claimed, before COMMIT", "claimed", "recovered, before COMMIT", "recovered",
                 "charging, before COMMIT", "charging", "provider asked",
                 "provider has answered", "charged, before COMMIT", "charged",
                 "completed, before COMMIT", "completed", "declined, before COMMIT", "declined",
                 ANY]:
        kinds = collections.Counter(kind for kind, at, _ in crashes if at == step)
        hit = {order for _, at, order in crashes
               if at == step and orders.get(order, 10**6) <= 100000}
        by = sum(done[order][0][0] == "completer" for order in hit)
        number = [len(charged[order]) for order in hit] or ["-"]
        if kinds:
            print("  {:<32}{:>8}{:>11}{:>8}{:>14}{:>10}".format(
                step, kinds["worker"], kinds["completer"], len(hit), by,
                f"{min(number)} to {max(number)}"))


def main():
    promises = Promises("recovery")
    with provider:
        try:
            keep_answer(promises)
            keep_slow_provider(promises)
            keep_late_holder(promises)
            seen = keep_crashes(promises)
            keep_forgetful(promises)
        finally:
            list(Child.kill_all())
    table(*seen)
    return promises.finish()


if __name__ == "__main__":
    sys.exit(main())
