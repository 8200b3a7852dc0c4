"""What a history does, made from its seed and nothing else: groups of keys, what each
client does in which order, and the faults.  A plan is plain data, so that it can be
printed, compared and cut down."""

import hashlib
import json
import random
import uuid

ISOLATION = ["READ COMMITTED"] * 3 + ["REPEATABLE READ", "SERIALIZABLE"]
# How a transaction ends; "leave" leaves it prepared until the end of the history.
FATES = ["commit", "rollback", "prepare-commit", "prepare-rollback", "leave-commit",
         "leave-rollback"]
SHAPES = ["json", "jsonb", "text", "bytea", "response"]

# What a group of keys is for: the policy of its claims, and how often it is chosen.
CLASSES = {
    "atomic": ("keep", 5),
    "quiet": ("plain", 1),          # no audit log
    "reject": ("reject", 1),        # on_repeat = 'reject'
    "fail": ("keep", 2),            # handlers and work that fail
    "brief": ("brief", 2),          # expires within the history, and is swept
    "tomb": ("tomb", 1),            # expires, and is refused from then on
    "strict": ("strict", 1),        # on_unfinished = 'error'
    "context": ("keep", 1),         # bound to a user, across a change of the secret
    "forget": ("keep", 1),          # an operator forgets keys
    "dedupe": ("keep", 2),
    "mixed": ("keep", 1),           # idem_dedupe and idem_run for the same keys
    "lease": ("lease", 5),
}
BRIEF_MS = 40
LEASE_MS = 120
LIGHT = ["cancel", "terminate", "reindex", "vacuum_full", "vacuum", "storage", "sweep", "rotate",
         "policy", "analyze"]
ARENAS = ["fleet", "kill", "disk", "clock", "failover"]


def chance(rng, probability):
    return rng.random() < probability


def make_key(rng, number):
    """Most are plain; some are UUIDs, which are one key in any case, or hold what a
    careless program would stumble over."""
    kind = rng.random()
    if kind < 0.25:
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    if kind < 0.35:
        return f"k'{number}\\ ü\u200b%s"
    if kind < 0.40:
        return f"{number}-" + "x" * rng.choice([100, 200, 240])
    return f"k{number}"


def spell(rng, key):
    """A UUID as another client would write it."""
    return key.upper() if len(key) == 36 and chance(rng, 0.3) else key


class Maker:
    def __init__(self, seed, arena, classes=None, faults=None):
        self.rng = random.Random(f"{arena} {seed}")
        self.arena = arena
        self.groups = []
        names = classes or list(CLASSES)
        weights = [CLASSES[name][1] for name in names]
        for _ in range(len(classes) if classes else self.rng.choice([1, 2, 2, 3])):
            name = self.rng.choices(names, weights)[0]
            self.groups.append({
                "class": name, "policy": CLASSES[name][0],
                "shape": self.rng.choice(SHAPES),
                "keys": [make_key(self.rng, n) for n in range(self.rng.choice([1, 1, 2, 3, 5]))]})
        if arena in ("kill", "failover"):
            self.groups.append({"class": "atomic", "policy": "keep", "shape": "jsonb",
                                "keys": [f"k{n}" for n in range(6)]})
        self.allowed = faults

    # acts, which are parts of a transaction

    def key_of(self, number):
        group = self.groups[number]
        index = self.rng.randrange(len(group["keys"]))
        return {"g": number, "k": index, "as": spell(self.rng, group["keys"][index])}

    def variant(self):
        return 0 if chance(self.rng, 0.85) else 1

    def wait(self):
        return self.rng.choice([0, 0, 0, None, 20, 60])

    def run(self, number):
        name = self.groups[number]["class"]
        act = {"a": "run", **self.key_of(number), "v": self.variant(), "wait": self.wait(),
               "on_error": "raise", "mode": "ok"}
        if name == "fail":
            act["mode"] = self.rng.choice(["ok", "raise", "raise", "release"])
            act["on_error"] = self.rng.choice(["raise", "record", "record"])
        return act

    def claim(self, number):
        name = self.groups[number]["class"]
        patterns = ["plain"] * 4 + ["undo", "redo", "subclaim", "drop", "reclaim", "require",
                                   "twice", "owner"]
        if name == "fail":
            patterns += ["fail"] * 3 + ["final"] * 2 + ["release"]
        if name == "strict":
            patterns += ["unfinished"] * 4 + ["undo", "drop", "reclaim", "release"]
        return {"a": "claim", **self.key_of(number), "v": self.variant(), "wait": self.wait(),
                "pattern": self.rng.choice(patterns), "body": self.rng.getrandbits(32),
                "owner": str(uuid.UUID(int=self.rng.getrandbits(128), version=4))}

    def act(self, number):
        """One act of a group of any class but "lease"."""
        name = self.groups[number]["class"]
        roll = self.rng.random()
        if name == "dedupe" or name == "mixed" and roll < 0.5:
            keys = self.groups[number]["keys"]
            order = [self.rng.randrange(len(keys))
                     for _ in range(self.rng.randint(1, len(keys) + 1))]
            return {"a": "dedupe", "g": number, "ks": order,
                    "as": [spell(self.rng, keys[k]) for k in order]}
        if name == "forget" and roll < 0.25:
            return {"a": "forget", **self.key_of(number)}
        if name == "forget" and roll < 0.30:
            return {"a": "forget_scope", "g": number}
        if roll > 0.93:
            return {"a": "lookup", **self.key_of(number)}
        if name in ("atomic", "quiet", "context", "fail") and roll > 0.35 or name == "strict":
            return self.claim(number)
        return self.run(number)

    # operations, each of which a client repeats until it is settled

    def transaction(self, usual):
        acts = [self.act(usual)]
        auto = acts[0]["a"] == "run" and chance(self.rng, 0.6)
        op = {"op": "tx", "auto": auto, "iso": self.rng.choice(ISOLATION), "fate": "commit",
              "acts": acts}
        if not auto:
            while chance(self.rng, 0.25) and len(acts) < 4:
                other = self.rng.randrange(len(self.groups))
                if self.groups[other]["class"] != "lease":
                    acts.append(self.act(other))
                else:
                    acts.append({"a": "sleep", "ms": self.rng.randint(1, 15)})
            op["fate"] = self.rng.choices(
                FATES, [79, 8, 8, 3, 1.5, 0.5])[0]
        return op

    def lease(self, number):
        roll = self.rng.random()
        if roll < 0.2:
            return {"op": "recover", "g": number, "n": self.rng.choice([1, 1, 5]),
                    "finish": self.rng.choice(["complete", "complete", "abandon"])}
        if roll < 0.24:
            return {"op": "end_lease", **self.key_of(number)}
        if roll < 0.28:
            return {"op": "tx", "auto": False, "iso": "READ COMMITTED", "fate": "commit",
                    "acts": [{"a": "lookup", **self.key_of(number)}]}
        steps = []
        for _ in range(self.rng.randint(0, 3)):
            steps.append(self.rng.choice([
                ["checkpoint"], ["extend", self.rng.choice([30, LEASE_MS])],
                ["sleep", self.rng.choice([2, 20, LEASE_MS + 20])], ["journal"], ["repeat"]]))
        return {"op": "lease", **self.key_of(number), "v": self.variant(), "wait": self.wait(),
                "owner": str(uuid.UUID(int=self.rng.getrandbits(128), version=4)),
                "lease": self.rng.choice([None, 20, 60]), "steps": steps,
                "iso": self.rng.choice(ISOLATION),
                "finish": self.rng.choices(
                    ["complete", "fail", "final", "release", "abandon", "released_status"],
                    [10, 2, 1, 1, 3, 1])[0],
                "again": self.rng.choice([None, "same", "other"]),
                "body": self.rng.getrandbits(32)}

    def cut(self, op):
        """The connection breaks at a byte: of what the client sends, or of the reply."""
        if self.allowed is not None and "cut" not in self.allowed:
            return
        if op["op"] in ("tx", "lease") and chance(self.rng, 0.12):
            up = chance(self.rng, 0.4)
            op["cut"] = {"way": "up" if up else "down",
                         "bytes": self.rng.randint(0, 60 if up else 120),
                         "at": self.rng.choice(["end", "end", "first"])}

    def faults(self, total):
        """When how many operations have begun, what happens."""
        names = [name for name in LIGHT if self.allowed is None or name in self.allowed]
        made = []
        for _ in range(self.rng.choice([0, 0, 1, 1, 2, 3]) if names else 0):
            made.append({"after": self.rng.randrange(total), "do": self.rng.choice(names),
                         "n": self.rng.getrandbits(16)})
        middle = self.rng.randrange(total // 4, max(total * 3 // 4, total // 4 + 1))
        special = {
            "kill": [{"do": self.rng.choice(["kill_backend", "kill_server", "kill_server"])}
                     for _ in range(self.rng.choice([1, 1, 2]))],
            "disk": [{"do": "fill_disk"}],
            "clock": [{"do": "step_clock", "s": self.rng.choice([-3600, -2, 1, 3, 7200])}
                      for _ in range(self.rng.choice([1, 2]))],
            "failover": [{"do": "failover"}],
            "fleet": []}[self.arena]
        for fault in special:
            made.append({"after": middle, "n": self.rng.getrandbits(16), **fault})
            middle = min(middle + 2, total - 1)
        return sorted(made, key=lambda fault: fault["after"])

    def plan(self, seed):
        clients = []
        for _ in range(self.rng.randint(3, 8)):
            ops = []
            for _ in range(self.rng.randint(2, 5)):
                number = self.rng.randrange(len(self.groups))
                op = (self.lease(number) if self.groups[number]["class"] == "lease"
                      else self.transaction(number))
                self.cut(op)
                if chance(self.rng, 0.1):
                    op["pause"] = self.rng.choice([1, 10, 50])
                ops.append(op)
            clients.append(ops)
        return {"seed": seed, "arena": self.arena,
                "database": self.rng.choice(["main", "main", "parted"]),
                "storage": self.rng.choice(["auto", "auto", "sql"]),
                # of the clients' commits; replication, where there is a standby
                "asynchronous": self.arena in ("kill", "failover") and chance(self.rng, 0.4),
                "groups": self.groups, "clients": clients,
                "faults": self.faults(sum(map(len, clients)))}


def make(seed, arena="fleet", classes=None, faults=None):
    return Maker(seed, arena, classes, faults).plan(seed)


def digest(plan):
    """The same for the same plan."""
    text = json.dumps(plan, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def count(plan):
    return sum(map(len, plan["clients"]))
