"""One history: runs the clients of a plan against a server, does its faults, settles
what is left, and hands all that was seen to the model."""

import contextlib
import threading
import time

import psycopg

import faults
import model
from client import COLUMNS, Client
from record import Journal

LIMIT = 60          # seconds that clients may take, killed servers included
SETTLE = 20         # seconds in which every key must be claimed or replayed


class Violation:
    def __init__(self, check, detail, attempts=()):
        self.check = check
        self.detail = detail
        self.attempts = list(attempts)

    def __str__(self):
        return f"{self.check}: {self.detail}"


class History:
    """What all clients of a history share."""

    numbers = iter(range(1, 1 << 60))   # scopes of one run are those of no other

    def __init__(self, plan, arena, sabotage=None):
        self.plan = plan
        self.arena = arena              # servers, proxy and pool
        self.server = arena.server
        self.proxy = arena.proxy
        self.pool = arena.pool
        self.database = arena.database or plan["database"]
        self.sabotage = sabotage.name if sabotage else None
        self.sabotage_hooks = sabotage
        self.options = (("-c synchronous_commit=off",)
                        if self.sabotage == "async" or plan["asynchronous"]
                        and plan["arena"] == "kill" else ())
        self.name = f"h{next(History.numbers)}"
        self.attempts = []
        self.violations = []
        self.mistakes = []
        self.prepared = {}              # by their names: how they end, and of which attempt
        self.done = {}                  # faults, by kind
        self.over = threading.Event()
        self.journal = Journal(fenced=self.sabotage != "no-fence")
        self.lost_at = None             # when acknowledged commits may have gone
        self.stepped = 0                # seconds that the clock was moved, in all
        self.faulty = set()
        self.faults_to_come = True
        self.doing = None               # the fault that is being done
        self.effects = 0
        self._begun = 0
        self._tick = threading.Condition()

    clock = staticmethod(time.monotonic)

    def scope(self, group):
        return f"{self.name}.{group}"

    def key(self, act):
        return self.plan["groups"][act["g"]]["keys"][act["k"]]

    def find(self, scope, key):
        """Group and place of a key, or None for one of another history."""
        for number, group in enumerate(self.plan["groups"]):
            if scope == self.scope(number) and key in group["keys"]:
                return number, group["keys"].index(key)
        return None

    def found(self, check, detail, attempts=()):
        self.violations.append(Violation(check, detail, attempts))

    def tick(self):
        """An operation begins."""
        with self._tick:
            self._begun += 1
            self._tick.notify_all()

    def wait_for(self, count):
        with self._tick:
            self._tick.wait_for(lambda: self._begun > count or self.over.is_set(), LIMIT)

    def run(self):
        faults.choose_storage(self)
        if self.sabotage_hooks:
            self.sabotage_hooks.before(self)
        clients = [Client(self, number, ops) for number, ops in enumerate(self.plan["clients"])]
        threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
        injector = threading.Thread(target=faults.inject, args=(self,), daemon=True)
        deadline = time.monotonic() + LIMIT
        manager = threading.Thread(target=self.manage, daemon=True)
        for thread in [*threads, injector, manager]:
            thread.start()
        for thread in threads:
            thread.join(max(0, deadline - time.monotonic()))
        stuck = [client for client, thread in zip(clients, threads) if thread.is_alive()]
        self.over.set()
        with self._tick:
            self._tick.notify_all()
        injector.join(LIMIT)
        manager.join(LIMIT)
        if injector.is_alive():
            self.found("stuck", f"a fault did not end, {self.doing}: {self.activity()}")
        for client in stuck:
            self.found("stuck", f"client {client.number} did not end in {LIMIT} s",
                       [client.attempt])
        if self.mistakes:
            raise self.mistakes[0]
        self.settle()
        return self.violations

    def activity(self):
        """What the server is at, for one who asks why something does not end."""
        try:
            with contextlib.closing(self.server.operator(self.database)) as operator:
                rows = operator.execute(
                    "SELECT pid, application_name, state, wait_event_type, wait_event,"
                    " pg_blocking_pids(pid), age(clock_timestamp(), state_change), left(query, 100)"
                    " FROM pg_stat_activity WHERE state <> 'idle' AND pid <> pg_backend_pid()")
                return "; ".join(" ".join(map(str, row)) for row in rows) or "the server is idle"
        except psycopg.Error as error:
            return f"the server does not say ({error})"

    # the end: nothing may be stuck

    def settle(self):
        with contextlib.closing(self.server.operator(self.database)) as operator:
            self.end_prepared(operator, list(self.prepared))
            before = self.states(operator)
            try:
                model.check(self, operator, before)
                if not (self.sabotage and self.violations):
                    self.probe()
            except psycopg.Error as error:
                self.found("error", f"{error.sqlstate} {error} at the end")

    def manage(self):
        """The transaction manager: ends what was prepared and left, as planned.  It waits
        for the faults, which may be a restart, but not for ever: others wait for it."""
        operator = None
        while not self.over.wait(0.05):
            old = [gid for gid, (_, attempt) in list(self.prepared.items())
                   if attempt.ended is not None and attempt.ended + (
                       1 if self.faults_to_come else 0.1) < self.clock()]
            if not old:
                continue
            try:
                operator = operator or self.server.operator(self.database)
                self.end_prepared(operator, old)
            except psycopg.Error:
                operator = None         # the server has gone
        if operator:
            operator.close()

    def end_prepared(self, operator, names):
        """One that is not there was ended by its client, or was never prepared."""
        there = {gid for (gid,) in operator.execute("SELECT gid FROM pg_prepared_xacts")}
        for gid in names:
            how, attempt = self.prepared[gid]
            if gid in there:
                operator.execute(f"{how.upper()} PREPARED '{gid}'")
            # Was it prepared for certain, then it must be there, whatever happened to the
            # server; the model knows it as committed from now on.
            if attempt.gid and attempt.plan["fate"].startswith("leave"):
                attempt.tx.end = "committed" if how == "commit" else "aborted"
                attempt.ended = self.clock()
            del self.prepared[gid]

    def states(self, operator):
        """What idem_lookup says of each key, before anybody settles it."""
        found = {}
        for number, group in enumerate(self.plan["groups"]):
            for key in group["keys"]:
                row = operator.execute(f"SELECT {COLUMNS} FROM idem_lookup(%s, %s)",
                                       (self.scope(number), key)).fetchone()
                found[number, key] = row[0]
        return found

    def probe(self):
        """Every key can be claimed or replayed, within bounds."""
        if self.stepped:            # a clock that was set back lets leases end late
            faults.step_clock(self, {"s": self.arena.clock_highest - self.arena.clock_offset})
        prober = Client(self, 99, [])
        for number, group in enumerate(self.plan["groups"]):
            for index in range(len(group["keys"])):
                if self.sabotage and self.violations:
                    return
                self.settle_key(prober, number, group, index)
        if prober.plain is not None:
            self.pool.give(prober, prober.plain)
        model.check_probes(self)

    def settle_key(self, prober, number, group, index):
        op = {"op": "tx", "auto": False, "iso": "READ COMMITTED", "fate": "commit", "acts": [
            {"a": "claim", "g": number, "k": index, "as": group["keys"][index], "v": 0,
             "wait": 100, "pattern": "plain", "body": 0, "owner": None}]}
        if group["class"] == "dedupe":
            op["acts"] = [{"a": "dedupe", "g": number, "ks": [index], "as": [group["keys"][index]]}]
        patience = 1.5 if self.sabotage else SETTLE
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            for variant in range(2):
                op["acts"][0]["v"] = variant
                if settled(prober, op, group["class"]):
                    return
        self.found("stuck", f"group {number}, key {group['keys'][index]!r}:"
                   f" neither claimed nor replayed in {patience} s", [prober.attempt])


def settled(prober, op, kind):
    """Another request than the first is refused; under a key that idem_dedupe marked, any
    request is another."""
    history = prober.history
    history.over.clear()
    prober.repeat(0, op)
    history.over.set()
    attempt = prober.attempt
    if attempt.tx.end != "committed":
        return False
    no = {"in_progress"} if kind == "mixed" else {"in_progress", "mismatch"}
    return all(result.outcome not in no for result in attempt.results)
