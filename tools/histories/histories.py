"""Seeded histories of many clients with faults, checked by a model: see README.md."""

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import sys
import time
import traceback

import plan as plans

RARE = {"kill": 60, "clock": 60, "disk": 120, "failover": 250}     # one of so many
SHORT = {"fleet": 100, "kill": 5, "clock": 3, "disk": 3, "failover": 1}    # 20 s each at most
BATCH = 100         # histories after which the whole database is looked at


def parse():
    parser = argparse.ArgumentParser(prog="tools/histories/run", description=__doc__)
    parser.add_argument("--short", action="store_true", help="all that there is, for CI")
    parser.add_argument("--histories", type=int, metavar="N", help="so many; 200 unless told")
    parser.add_argument("--seconds", type=float, metavar="S", help="end after so many")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the first history")
    parser.add_argument("--arena", choices=plans.ARENAS, help="this kind of history only")
    parser.add_argument("--classes", metavar="LIST", help="of keys: " + ", ".join(plans.CLASSES))
    parser.add_argument("--faults", metavar="LIST", help="only these small faults: cut, "
                        + ", ".join(plans.LIGHT) + "; or none")
    parser.add_argument("--sabotages", action="store_true", help="show that the model can fail")
    parser.add_argument("--sabotage", metavar="NAME", help="one of them; --sabotage list")
    parser.add_argument("--shrink", type=float, default=30, metavar="S",
                        help="seconds for making a violation small")
    parser.add_argument("--plan", action="store_true", help="print the plan of the seed only")
    return parser.parse_args()


def choices(options):
    classes = options.classes.split(",") if options.classes else None
    faults = options.faults.split(",") if options.faults else None
    return classes, faults


def arena_of(options, seed):
    """The same seed takes place where it did before."""
    if options.arena:
        return options.arena
    rng = random.Random(f"arena {seed}")
    for name, rarity in RARE.items():
        if rng.random() < 1 / rarity:
            return name
    return "fleet"


class Tally:
    """What is in the table at the end."""

    def __init__(self):
        self.histories = collections.Counter()
        self.faults = collections.Counter()
        self.outcomes = collections.Counter()
        self.errors = collections.Counter()
        self.operations = self.statements = self.attempts = self.effects = 0
        self.passed = self.failed = 0
        self.violations = collections.Counter()
        self.looks = 0
        self.skipped = {}
        self.time = collections.Counter()

    def add(self, history):
        self.histories[history.plan["arena"]] += 1
        self.operations += plans.count(history.plan)
        self.faults.update(history.done)
        for attempt in history.attempts:
            self.attempts += 1
            self.statements += len(attempt.lines)
            self.errors.update(state for state, _ in attempt.errors)
            for result in attempt.results:
                if result.outcome and result.call != "lookup":
                    self.outcomes[f"{result.call} {result.outcome}"] += 1
                elif result.call == "dedupe":
                    self.outcomes["dedupe first" if result.first else "dedupe seen"] += 1
        self.effects += history.effects
        self.violations.update(violation.check for violation in history.violations)

    def print(self):
        def many(counter):
            return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or "none"

        rows = [("histories", many(self.histories)),
                ("operations", f"{self.operations}, in {self.attempts} attempts,"
                 f" {self.statements} statements"),
                ("faults", many(self.faults)), ("effects", self.effects),
                ("outcomes", many(self.outcomes)), ("errors", many(self.errors)),
                ("databases looked at", self.looks), ("violations", many(self.violations))]
        rows += [("not done", f"{name}: {why}") for name, why in self.skipped.items()]
        rows.append(("seconds", ", ".join(f"{name} {spent:.0f}" for name, spent in
                                           self.time.items())))
        print()
        for name, value in rows:
            print(f"  {name:<20} {value}")


class Program:
    def __init__(self, options):
        import arena
        self.options = options
        self.module = arena
        self.tally = Tally()
        self.began = time.monotonic()
        self.fleet = arena.Fleet()
        self.arenas = {"fleet": self.fleet, "kill": self.fleet}
        self.veterans = {}

    def arena(self, name):
        """Made when it is first needed; None where it cannot be."""
        if name not in self.arenas:
            make = {"disk": self.module.Small, "clock": self.module.Clock,
                    "failover": self.module.Failover}[name]
            try:
                self.arenas[name] = make(self.fleet)
            except self.module.Unable as why:
                self.tally.skipped[name] = why
                self.arenas[name] = None
        return self.arenas[name]

    def one(self, plan, sabotage=None, arena=None):
        """Run a history; returns it, or None where it cannot be run."""
        from history import History
        arena = arena or self.arena(plan["arena"])
        if arena is None:
            return None
        begun = time.monotonic()
        arena.before(plan, sabotage)
        history = History(plan, arena, sabotage)
        cuts = arena.proxy.cuts
        try:
            history.run()
        finally:
            # those of one server share it
            for one in self.arenas.values():
                if one is not None and one.server is arena.server:
                    one.after(plan)
        if arena.proxy.cuts > cuts:
            history.done["cut"] = arena.proxy.cuts - cuts
        self.tally.time[plan["arena"]] += time.monotonic() - begun
        return history

    def run(self, seeds, arena=None, seconds=None):
        """Histories of these seeds, for so many seconds at most."""
        begun = time.monotonic()
        classes, faults = choices(self.options)
        for number, seed in enumerate(seeds, 1):
            plan = plans.make(seed, arena or arena_of(self.options, seed), classes, faults)
            try:
                history = self.one(plan)
            except Exception:       # of our own, or a server that does not start
                print(f"\nNOT RUN: --seed {seed} --arena {plan['arena']}\n"
                      f"{traceback.format_exc()}", flush=True)
                self.tally.failed += 1
                self.tally.violations["not run"] += 1
                if self.tally.violations["not run"] == 3:
                    break
                continue
            if history is None:
                continue
            self.tally.add(history)
            if history.violations:
                self.tally.failed += 1
                self.report(history)
            else:
                self.tally.passed += 1
            if number % BATCH == 0:
                self.look()
                self.progress(number)
            if self.late() or seconds is not None and time.monotonic() - begun > seconds:
                break

    def late(self):
        limit = self.options.seconds
        return limit is not None and time.monotonic() - self.began > limit

    def progress(self, number):
        print(f"== {number} histories, {self.tally.failed} failed,"
              f" {time.monotonic() - self.began:.0f} s", flush=True)

    def report(self, history):
        import shrink
        shrink.report(history)
        if self.options.shrink > 0:
            small = shrink.smaller(self, history, self.options.shrink)
            if small is not None:
                shrink.print_small(small)

    def look(self):
        """At the databases as a whole."""
        import whole
        begun = time.monotonic()
        for name, arena in list(self.arenas.items()):
            if arena is None or name == "kill":
                continue
            for database in [arena.database] if arena.database else ["main", "parted"]:
                if (name, database) not in self.veterans and name == "fleet":
                    self.veterans[name, database] = whole.Veteran(arena.server, database)
                self.looked(whole.check(arena.server, database,
                                        self.veterans.get((name, database))), f"{name} {database}")
                whole.trim(arena.server, database)
        self.tally.time["looks"] += time.monotonic() - begun

    def looked(self, problems, where):
        self.tally.looks += 1
        if not problems:
            self.tally.passed += 1
            return
        self.tally.failed += 1
        for problem in problems:
            print(f"VIOLATION of the database {where}: {problem}", flush=True)
            self.tally.violations[problem.split(":")[0]] += 1

    def close(self):
        for arena in self.arenas.values():
            if arena is not None:
                arena.close()


def print_plan(options):
    classes, faults = choices(options)
    plan = plans.make(options.seed, arena_of(options, options.seed), classes, faults)
    print(json.dumps(plan, indent=1, ensure_ascii=False))
    print(f"plan {plans.digest(plan)}")


def main():
    options = parse()
    if options.plan:
        print_plan(options)
        return 0
    import sabotage
    if options.sabotage == "list":
        print("\n".join(f"{one.name:<20} {one.does}" for one in sabotage.SABOTAGES))
        return 0
    program = Program(options)
    signal.signal(signal.SIGTERM, signal.default_int_handler)   # the table is printed then, too
    try:
        if options.sabotages or options.sabotage:
            sabotage.run_all(program, options.sabotage)
        elif options.short:
            for arena, count in SHORT.items():
                program.run(range(options.seed, options.seed + count), arena, 20)
            program.look()
            sabotage.run_all(program)
        else:
            count = options.histories or (200 if options.seconds is None else 1 << 40)
            program.run(range(options.seed, options.seed + count))
            program.look()
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    program.tally.print()
    print(f"{program.tally.passed} passed, {program.tally.failed} failed", flush=True)
    with contextlib.suppress(Exception):
        program.close()
    return 1 if program.tally.failed or not program.tally.passed else 0


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    sys.exit(main())
