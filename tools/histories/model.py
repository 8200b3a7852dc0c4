"""What must be true of a history.  The model knows what clients asked and were told, what
is in tables of our own, and the audit log; it knows nothing of the extension's code, and
keeps no state machine but the one that doc/functions.md describes.

An effect is a row that work has written, in the transaction of its key; a key has at
most one for each of its lives.  A life ends when an operator forgets the key, or when it
expires."""

import collections
import datetime
import hashlib
import json
import re

import audit
import leases
from faults import EXPECTED
from plan import BRIEF_MS

Effect = collections.namedtuple(
    "Effect", "id scope key variant body status headers content_type failed xid at committed")

HTTP = {"in_progress": 409, "duplicate": 409, "expired": 409, "mismatch": 422}
CODE = {"in_progress": "in_progress", "duplicate": "duplicate", "expired": "expired",
        "mismatch": "reused"}
FINISH = "idem_(complete|fail|release|extend|checkpoint)"
SLOW = 20           # seconds over its wait that a call may take on a busy machine


def check(history, operator, states):
    effects = read_effects(history, operator)
    ended = read_ended(history, operator)
    by_key = collections.defaultdict(list)
    for attempt in history.attempts:
        for result in attempt.results:
            by_key[result.group, result.key].append(result)
            check_result(history, result)
        check_errors(history, attempt)
        check_own(history, attempt)
    for number, group in enumerate(history.plan["groups"]):
        for key in group["keys"]:
            here = Key(history, number, group, key, by_key[number, key], effects[number, key],
                       [end for end in ended if end[0] == number and end[1] in (key, None)],
                       states[number, key])
            check_key(here)
            leases.check(here)
        audit.check(history, operator, number, group, effects, by_key,
                    any(end[0] == number and end[1] is None for end in ended))


class Key:
    """All that is known of one key."""

    def __init__(self, history, number, group, key, results, effects, ended, state):
        self.history = history
        self.number = number
        self.group = group
        self.kind = group["class"]
        self.key = key
        self.results = results
        self.effects = effects
        self.ended = ended
        self.state = state

    def found(self, check, detail, *results):
        self.history.found(check, f"group {self.number} ({self.kind}), key {self.key!r}: {detail}",
                           [result.attempt for result in results])

    def kept(self, result):
        """Whether what was committed then must still be there."""
        return self.history.lost_at is None or result.begun > self.history.lost_at


def read_effects(history, operator):
    effects = collections.defaultdict(list)
    for number in range(len(history.plan["groups"])):
        for row in operator.execute(
                "SELECT id, scope, key, variant, body, status, headers, content_type, failed, xid,"
                " at, pg_xact_commit_timestamp(xid::xid) FROM effect WHERE scope = %s ORDER BY id",
                (history.scope(number),)):
            effects[number, row[2]].append(Effect(*row))
    return effects


def read_ended(history, operator):
    """(group, key or None, when it was committed)"""
    return [(number, row[0], row[1]) for number in range(len(history.plan["groups"]))
            for row in operator.execute(
                "SELECT key, pg_xact_commit_timestamp(xid::xid) FROM ended WHERE scope = %s",
                (history.scope(number),))]


# one result by itself

def check_result(history, result):
    row = result.row
    outcome = result.outcome
    if result.call in ("dedupe", "checkpoint", "extend", "release", "recover", "lookup"):
        return
    wanted = {
        "claim": {"claimed", "in_progress", "replayed", "mismatch", "duplicate", "expired"},
        "run": {"completed", "failed", "in_progress", "replayed", "mismatch", "duplicate",
                "expired"},
        "complete": {"completed"}, "fail": {"failed"}}
    wanted["lease"] = wanted["claim"]

    def found(detail):
        history.found("result", f"{result.call}: {detail}", [result.attempt])

    if outcome not in wanted[result.call]:
        found(f"outcome {outcome}")
    if (row["token"] is None) != (outcome != "claimed"):
        found(f"token {row['token']} with {outcome}")
    status = HTTP.get(outcome, None if outcome == "claimed" else row["status_code"])
    if row["http_status"] != status:
        found(f"http_status {row['http_status']} with {outcome}")
    code = f"idempotency_key_{CODE[outcome]}" if outcome in CODE else None
    if row["error_code"] != code:
        found(f"error_code {row['error_code']} with {outcome}")
    pause = row["retry_after_ms"]
    if (outcome == "in_progress") != (pause is not None and pause > 0):
        found(f"retry_after_ms {row['retry_after_ms']} with {outcome}")
    body = row["body"]
    if body is not None and (row["body_size"] != len(body)
                             or row["body_sha256"] != hashlib.sha256(body).digest()):
        found("size or SHA-256 are not those of the body")
    if result.call != "fail" and outcome in ("completed", "replayed") and not history.stepped \
            and row["expires_at"] and row["expires_at"] <= row["began"]:
        found(f"{outcome} at {row['began']}, which had expired at {row['expires_at']}")
    check_time(history, result, found)


def check_time(history, result, found):
    if result.wait is None or result.call not in ("run", "claim", "lease"):
        return
    took = (result.ended - result.begun) * 1000
    if result.outcome == "in_progress" and not result.own and took < result.wait - 1 \
            and not history.stepped:
        found(f"in_progress after {took:.1f} ms, in place of {result.wait} ms")
    # by the server's clock, since a client may not be let run on a busy machine
    if not history.stepped:
        took = (result.row["ended"] - result.row["began"]).total_seconds() * 1000
    if took > result.wait + SLOW * 1000:
        found(f"took {took:.0f} ms with a wait of {result.wait} ms")


def check_own(history, attempt):
    """A key that a transaction has finished is replayed to it."""
    finished = {}
    for result in attempt.results:
        place = (result.group, result.key)
        kind = history.plan["groups"][result.group]["class"]
        if attempt.plan["op"] != "tx" or kind not in ("atomic", "quiet", "context", "strict"):
            continue
        first = finished.get(place)
        if result.call in ("run", "claim", "lookup") and first is not None and not first.undone:
            wanted = {"completed"} if result.call == "lookup" else {"replayed"}
            if first.variant not in (None, result.variant) and result.call != "lookup":
                wanted = {"mismatch"}
            if result.outcome not in wanted or result.outcome != "mismatch" \
                    and result.row["body"] != stored_body(first):
                history.found("own key", f"{result.outcome} for a key that the transaction"
                              " has finished", [attempt])
        if stored_body(result) is not None and result.call in ("run", "complete"):
            finished[place] = result


# errors

def check_errors(history, attempt):
    for state, sql in attempt.errors:
        if state not in allowed(history, attempt, sql):
            history.found("error", f"SQLSTATE {state} of {sql.split('(')[0][:60]}", [attempt])


def allowed(history, attempt, sql):
    """What this statement may raise: little; faults explain the rest."""
    plan = attempt.plan
    acts = plan.get("acts", [plan])
    classes = {history.plan["groups"][act["g"]]["class"] for act in acts if "g" in act}
    # Work at several keys may meet that of others in another order.
    states = {"40P01"} if re.match("SELECT|INSERT|COMMIT", sql) else set()
    if attempt.iso != "READ COMMITTED" or "mixed" in classes:
        states.add("40001")
    for kind in history.faulty:
        states |= EXPECTED.get(kind, set())
    if attempt.number == 0 and "cut" in plan:
        states.add("08006")
    if "idem_require" in sql:
        states |= {"ID003", "ID004", "ID005", "ID006", "ID007"}
    if "idem_run" in sql and "fail" in classes:
        states |= {"P0002", "ID010"}
    if re.match("COMMIT$|PREPARE", sql) and any(act.get("pattern") == "unfinished"
                                                for act in acts):
        states.add("ID011")
    # A claim that was committed may be taken over, and then be finished or given up.
    if plan["op"] in ("lease", "recover") and re.search(FINISH, sql):
        states |= {"ID001", "ID002", "ID003"}
    return states


# one key with all that was said of it

def check_key(here):
    check_lives(here)
    for result in here.results:
        if result.own and result.call != "dedupe":
            continue
        check_stored(here, result)
        if result.outcome == "replayed" or result.call == "lookup" and \
                result.outcome == "completed":
            check_replay(here, result)
            check_written(here, result)
        elif result.outcome == "mismatch":
            check_mismatch(here, result)
        elif result.outcome == "duplicate" and (here.kind != "reject" or not here.effects) \
                and here.kept(result):
            here.found("duplicate", "of nothing", result)
        elif result.outcome == "expired" and here.kind != "tomb" and result.call != "lookup":
            here.found("expired", "under a policy that forgets", result)
        elif result.outcome == "in_progress":
            check_in_progress(here, result)
        if result.call == "dedupe" and result.end == "committed" and here.kept(result) \
                and not here.effects:
            here.found("marked", "without an effect", result)
    check_state(here)


def check_lives(here):
    """At most one effect for each life."""
    effects = here.effects
    if here.kind == "brief":
        slack = datetime.timedelta(seconds=here.history.stepped)
        for first, second in zip(effects, effects[1:]):
            life = datetime.timedelta(milliseconds=BRIEF_MS)
            if second.at + slack < first.at + life:
                here.found("two effects", f"at {first.at} and {second.at}, within a life of"
                           f" {BRIEF_MS} ms", *writers(here, effects))
        return
    if len(effects) > 1 + len(here.ended):
        here.found("two effects", f"{len(effects)} effects in {1 + len(here.ended)} lives",
                   *writers(here, effects))
        return
    if here.history.stepped:
        return
    ordered = sorted(effects, key=lambda effect: effect.committed)
    for first, second in zip(ordered, ordered[1:]):
        if not any(first.committed <= end[2] <= second.committed for end in here.ended):
            here.found("two effects", f"committed at {first.committed} and {second.committed},"
                       " and nobody forgot the key between them", *writers(here, effects))


def writers(here, effects):
    """The results that tell of these effects."""
    bodies = {effect.body for effect in effects if effect.body is not None}
    return [result for result in here.results
            if stored_body(result) in bodies or result.call == "dedupe" and result.first]


def stored_body(result):
    """The answer of work that this call ended; else None."""
    if result.call in ("complete", "fail") and result.stored:
        return result.stored["body"]
    if result.call == "run" and result.outcome == "completed":
        return result.row["body"]
    return None


def check_stored(here, result):
    """Acknowledged means there, once; rolled back means not there."""
    body = stored_body(result)
    if body is None:
        if result.call == "dedupe" and result.first and result.end == "committed" \
                and here.kept(result) and not here.effects:
            here.found("lost", "the first mark was acknowledged, and has no effect", result)
        return
    if result.call in ("complete", "fail"):
        answer = {name: result.row[name] for name in ("body", "status_code", "content_type")}
        for name, value in answer.items():
            if value != result.stored[name]:
                here.found("answer", f"{name} was given as {result.stored[name]!r}, and is"
                           f" {value!r}", result)
    there = sum(effect.body == body for effect in here.effects)
    if result.call == "fail" and result.stored["status_code"] != 402:
        wanted = {0}
    elif result.undone or result.end == "aborted":
        wanted = {0}
    elif result.end == "committed" and here.kept(result):
        wanted = {1}
    else:
        wanted = {0, 1}
    if there not in wanted:
        check = "lost" if there == 0 else "two effects" if there > 1 else "undone"
        here.found(check, f"the work was {result.end}, and its effect is there {there} times",
                   result)


def check_replay(here, result):
    """The first answer, byte for byte, and to the request that it was given to."""
    row = result.row
    if not here.effects:
        if here.kept(result):
            here.found("replay", "of work that is not there", result)
        return
    if not here.kept(result):
        return
    same = [effect for effect in here.effects if effect.body == row["body"]]
    if not same:
        here.found("replay", f"the answer is {row['body']!r}, which no work gave", result)
        return
    for name, mine in ("status_code", "status"), ("headers", "headers"), \
            ("content_type", "content_type"):
        if not any(row[name] == getattr(effect, mine) for effect in same):
            here.found("replay", f"{name} is {row[name]!r}, not {getattr(same[0], mine)!r}", result)
    variants = {effect.variant for effect in same}
    if result.variant is not None and None not in variants and result.variant not in variants:
        here.found("replay", "to another request than the first", result)
    if row["fingerprint"] is not None and None not in variants:
        if row["fingerprint"] not in {fingerprint(here, variant) for variant in variants}:
            here.found("replay", "the fingerprint is not that of the first request", result)


def fingerprint(here, variant):
    if here.kind == "fail":
        return b"variant %d" % variant
    if here.kind == "context":
        return b"the same for both users"
    asked = {"scope": here.history.scope(here.number), "key": here.key, "variant": variant}
    text = json.dumps(asked, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


def check_mismatch(here, result):
    """Somebody must have asked for something else first."""
    if here.kind == "dedupe":
        here.found("mismatch", "in an inbox", result)
    others = [attempt for attempt in here.history.attempts if attempt.begun < result.ended
              and asks_other(here, attempt, result)]
    if not others and here.kind != "mixed":
        here.found("mismatch", "and nobody asked for anything else", result)
    single = here.kind in ("atomic", "quiet", "context", "strict", "tomb")
    if single and here.effects and here.kept(result) \
            and here.effects[0].variant == result.variant:
        here.found("mismatch", "for the request of the first claim", result)


def asks_other(here, attempt, result):
    for act in attempt.plan.get("acts", [attempt.plan]):
        if act.get("g") == here.number and "v" in act and act["v"] != result.variant \
                and here.history.key(act) == here.key:
            return True
    return False


def check_in_progress(here, result):
    """Not once the work was acknowledged."""
    other = acknowledged(here, result)
    if other is not None:
        here.found("in progress", "after the work was acknowledged", other, result)


def check_written(here, result):
    """A replay takes no transaction id; one that began before the work was done may have
    tried to do it."""
    if result.attempt.plan.get("auto") and result.row["xid"] is not None \
            and acknowledged(here, result) is not None:
        here.found("result", f"replayed, and took transaction id {result.row['xid']}", result)


def acknowledged(here, result):
    """Who was told that the work is done before this call began; None where it may have
    to be done again."""
    if here.kind not in ("atomic", "quiet", "reject", "context", "strict", "tomb", "lease"):
        return None
    for other in here.results:
        body = stored_body(other)
        if body is not None and other.end == "committed" and not other.undone and \
                other.attempt.ended is not None and other.attempt.ended < result.begun \
                and not (other.call == "fail" and other.stored["status_code"] != 402) \
                and here.kept(other):
            return other
    return None


def check_state(here):
    """What a lookup says at the end, before anybody settled the key."""
    if here.kind in ("brief", "forget", "fail"):
        return
    if here.kind == "tomb":
        wanted = {"expired", "completed"} if here.effects else {None}
    elif here.effects:
        wanted = {"failed" if here.effects[0].failed else "completed"}
    else:
        wanted = {None, "failed", "in_progress", "released"} if here.kind == "lease" else {None}
    if here.state not in wanted:
        here.found("state", f"{here.state} with {len(here.effects)} effects",
                   *writers(here, here.effects))


def check_probes(history):
    """What the last claims of each key said; they may have done the work themselves."""
    attempts = [attempt for attempt in history.attempts if attempt.client == 99]
    with history.server.operator(history.database) as operator:
        effects = read_effects(history, operator)
        ended = read_ended(history, operator)
        left = operator.execute("SELECT count(*) FROM idempotency_leases WHERE scope LIKE %s",
                                (history.name + ".%",)).fetchone()[0]
    if left:
        history.found("stuck", f"{left} leases are open after the end")
    for number, group in enumerate(history.plan["groups"]):
        for key in group["keys"]:
            results = [result for attempt in history.attempts for result in attempt.results
                       if (result.group, result.key) == (number, key)]
            here = Key(history, number, group, key, results, effects[number, key],
                       [end for end in ended if end[0] == number and end[1] in (key, None)], None)
            check_lives(here)
            if not here.effects:
                here.found("lost", "at the end there is no effect")
            leases.check(here)
    history.effects = sum(map(len, effects.values()))
    for attempt in attempts:
        check_errors(history, attempt)
        for result in attempt.results:
            check_result(history, result)
            if result.outcome == "replayed":
                group = history.plan["groups"][result.group]
                here = Key(history, result.group, group, result.key, [],
                           effects[result.group, result.key], [], None)
                check_replay(here, result)
