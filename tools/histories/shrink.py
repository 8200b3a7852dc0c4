"""What a violation looks like, and how few operations show it."""

import copy
import time

import plan as plans
from client import RESULT


def report(history):
    plan = history.plan
    print(f"\nVIOLATION: --seed {plan['seed']} --arena {plan['arena']}, plan {plans.digest(plan)},"
          f" database {plan['database']}, storage {plan['storage']}, scopes {history.name}.*")
    for violation in history.violations[:10]:
        print(f"  {violation}")
    print_attempts(concerned(history))


def concerned(history):
    """The attempts that the first violations are about, or all."""
    shown = {id(attempt): attempt for violation in history.violations[:3]
             for attempt in violation.attempts}
    return list(shown.values()) or history.attempts


def print_attempts(attempts):
    """Statements of all of these clients, in the order in which they were sent."""
    if not attempts:
        return
    lines = [(line, attempt) for attempt in attempts for line in attempt.lines]
    lines.sort(key=lambda pair: pair[0].begin)
    start = lines[0][0].begin if lines else 0
    for line, attempt in lines:
        end = "      ?" if line.end is None else f"{(line.end - start) * 1000:7.1f}"
        print(f"  {(line.begin - start) * 1000:7.1f} {end}  client {attempt.name:<8}"
              f" {str(line).replace(RESULT, '*')}")
        print(f"{'':19}-> {line.answer[:400]}")


def kinds(history):
    return {violation.check for violation in history.violations}


def parts(plan):
    """What may be left out, largest first: clients, faults, operations, acts."""
    found = [("client", number) for number in range(len(plan["clients"]))]
    found += [("fault", number) for number in range(len(plan["faults"]))]
    found += [("op", number, op) for number, ops in enumerate(plan["clients"])
              for op in range(len(ops)) if len(ops) > 1]
    found += [("act", number, op, act) for number, ops in enumerate(plan["clients"])
              for op, what in enumerate(ops) for act in range(len(what.get("acts", [])))
              if len(what["acts"]) > 1]
    found += [("step", number, op, step) for number, ops in enumerate(plan["clients"])
              for op, what in enumerate(ops) for step in range(len(what.get("steps", [])))]
    return found


def without(plan, part):
    small = copy.deepcopy(plan)
    kind, number, *rest = part
    if kind == "fault":
        del small["faults"][number]
    elif kind == "client":
        del small["clients"][number]
    elif kind == "op":
        del small["clients"][number][rest[0]]
    else:
        del small["clients"][number][rest[0]][kind + "s"][rest[1]]
    last = max(0, plans.count(small) - 1)
    for fault in small["faults"]:
        fault["after"] = min(fault["after"], last)
    return small


def smaller(program, history, seconds, sabotage=None, arena=None):
    """The shortest history that was found to show a violation of the same kind; each
    candidate is tried three times, since clients meet as they will."""
    wanted = kinds(history)
    best = None
    plan = history.plan
    deadline = time.monotonic() + seconds
    tried = True
    while tried and time.monotonic() < deadline:
        tried = False
        for part in parts(plan):
            if time.monotonic() > deadline:
                break
            small = without(plan, part)
            if not plans.count(small):
                continue
            for _ in range(3):
                again = program.one(small, sabotage, arena)
                if again is not None and kinds(again) & wanted:
                    plan, best, tried = small, again, True
                    break
            if tried:
                break
    return best


def print_small(history):
    print(f"\n  fewest operations that showed it: {plans.count(history.plan)}, of"
          f" {len(history.plan['clients'])} clients, faults:"
          f" {', '.join(fault['do'] for fault in history.plan['faults']) or 'none'}")
    for violation in history.violations[:3]:
        print(f"  {violation}")
    print_attempts(concerned(history))
