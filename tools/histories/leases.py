"""Leased claims: who holds a key, by token, and until when."""

import datetime

HOLD = ("lease", "recover")


def check(here):
    """The claims of one key that were acknowledged, in the order of their tokens."""
    claims = {}
    for result in here.results:
        if result.outcome != "claimed" or result.end == "aborted" or result.undone:
            continue
        if result.own or result.end != "committed" and result.call not in HOLD:
            continue
        token = result.row["token"]
        first = claims.get(token)
        if first is None or result.begun < first.begun:
            claims[token] = result
        if first is not None and (result.owner is None or first.owner != result.owner):
            here.found("token", f"{token} was given to two", first, result)
    check_order(here, list(claims.values()))
    if here.kind != "lease":
        return
    ordered = [claims[token] for token in sorted(claims)]
    for first, second in zip(ordered, ordered[1:]):
        check_pair(here, first, second)
    check_journal(here)
    check_checkpoints(here, ordered)


def check_order(here, claims):
    """Who is given a key later has a greater token.  Once a row is gone only the clock
    makes tokens grow."""
    if here.history.stepped and here.kind in ("brief", "forget"):
        return
    by_time = sorted(claims, key=lambda result: result.begun)
    for number, first in enumerate(by_time):
        for second in by_time[number + 1:]:
            if first.ended < second.begun and first.row["token"] >= second.row["token"] \
                    and here.kept(first) and not lost_between(here, first):
                here.found("token", f"{second.row['token']} after {first.row['token']}",
                           first, second)


def lost_between(here, first):
    """A row that failover has lost remembers nothing, and the clock may have moved."""
    return here.history.stepped and not here.kept(first)


def check_pair(here, first, second):
    """A lease that follows another begins when that has ended."""
    token = first.row["token"]
    if first.row["created_at"] != second.row["created_at"] or not here.kept(first):
        return
    if any(attempt.plan["op"] == "end_lease" for attempt in here.history.attempts):
        return
    if second.row["attempt"] <= first.row["attempt"]:
        here.found("attempt", f"{second.row['attempt']} after {first.row['attempt']}",
                   first, second)
    ends = [result for result in here.results if result.token == token]
    if any(result.call in ("fail", "release") for result in ends) or unknown_end(here, first):
        return
    for result in ends:
        if result.call == "complete" and result.end == "committed":
            here.found("lease", "taken over after it was completed", first, result, second)
            return
    # A heartbeat may also shorten the lease; and it may have been lost on the way.
    heard = [result for result in here.results if result.end == "committed" and (
        result.token == token and result.call in ("extend", "checkpoint")
        or result.outcome == "claimed" and result.row["token"] == token)]
    last = max(heard, key=lambda result: result.begun)
    until = last.row.get("until") or last.row["lease_until"]
    if lost_heartbeat(here, first):
        return
    slack = datetime.timedelta(seconds=here.history.stepped)
    if second.row["ended"] + slack < until:
        here.found("lease", f"{second.row['token']} was claimed before {second.row['ended']},"
                   f" and {token} had it until {until}", first, second)


def unknown_end(here, first):
    """Somebody may have given the claim up, and nobody was told."""
    return any(attempt.unknown and attempt.plan["op"] == "lease"
               and attempt.plan.get("finish") in ("fail", "release", "released_status", "final")
               and (attempt.client, attempt.op) == (first.attempt.client, first.attempt.op)
               for attempt in here.history.attempts)


def lost_heartbeat(here, first):
    return any(attempt.unknown and (attempt.client, attempt.op) == (
        first.attempt.client, first.attempt.op) and "idem_extend" in line.sql
        for attempt in here.history.attempts for line in attempt.lines)


def check_journal(here):
    """Outside, no token comes after a greater one; and who was refused there must not
    have completed."""
    highest = 0
    refused = set()
    for place, token, accepted in here.history.journal.written:
        if place != (here.number, here.key):
            continue
        if accepted and token < highest:
            here.found("fence", f"the outside took token {token} after {highest}")
        if not accepted:
            refused.add(token)
        highest = max(highest, token)
    for result in here.results:
        if result.call == "complete" and result.token in refused and result.end == "committed" \
                and here.history.lost_at is None:
            here.found("fence", "the outside refused the token, and the key was completed with it",
                       result)


def check_checkpoints(here, claims):
    """Who takes a key over gets the last checkpoint of an earlier attempt."""
    points = [result for result in here.results if result.call == "checkpoint"]
    unsure = [attempt for attempt in here.history.attempts if attempt.unknown
              and any("idem_checkpoint" in line.sql for line in attempt.lines)]
    if unsure or here.history.lost_at is not None:
        return
    for claim in claims:
        if claim.outcome != "claimed" or "created_at" not in claim.row:
            continue
        token = claim.row["token"]
        earlier = [point for point in points if point.token < token
                   and created(claims, point.token) == claim.row["created_at"]]
        if not earlier or claim.row["attempt"] == 1:
            continue
        last = max(earlier, key=lambda point: (point.token, point.begun))
        if claim.row["recovery_point"] != last.row["point"]:
            here.found("checkpoint", f"{claim.row['recovery_point']!r} in place of"
                       f" {last.row['point']!r}", last, claim)


def created(claims, token):
    return next((claim.row["created_at"] for claim in claims if claim.row["token"] == token), None)
