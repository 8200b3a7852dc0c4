"""The operations of clients, as statements."""

import json
import time

ANSWER_HEADERS = '[{"X-A": "1"},  {"X-A": "2"}]'


def tx(client, op, cut, rng):
    """A transaction of several acts, or one statement that is one."""
    from client import Again
    attempt = client.attempt
    attempt.begin(committing=op["auto"])
    if cut and (op["auto"] or cut["at"] == "first"):
        client.arm(cut)
    if op["auto"]:
        settled = ACTS[op["acts"][0]["a"]](client, op["acts"][0], rng)
        attempt.finish("committed")
        return settled
    client.query(f"BEGIN ISOLATION LEVEL {op['iso']}")
    seen = set()
    for act in op["acts"]:
        before = len(attempt.results)
        settled = ACTS[act["a"]](client, act, rng)
        for result in attempt.results[before:]:
            result.own = (result.group, result.key) in seen or result.own
            if not settled and not result.own:
                raise Again
        seen |= {(result.group, result.key) for result in attempt.results[before:]}
    if cut and cut["at"] == "end":
        client.arm(cut)
    finish(client, op["fate"])
    return True


def finish(client, fate):
    """End the transaction as planned."""
    attempt = client.attempt
    if fate == "rollback":
        client.query("ROLLBACK")
        attempt.finish("aborted")
        return
    attempt.tx.committing = True
    if fate == "commit":
        client.query("COMMIT")
        attempt.finish("committed")
        return
    # Whoever finds it prepared ends it as planned, also after a restart.
    how, last = fate.split("-")
    gid = f"{client.history.name} {attempt.name}"
    client.history.prepared[gid] = (last, attempt)
    client.query(f"PREPARE TRANSACTION '{gid}'")
    attempt.gid = gid
    if how == "leave":
        return
    client.query(f"{last.upper()} PREPARED '{gid}'")
    attempt.finish("committed" if last == "commit" else "aborted")


def request(client, act):
    """What is asked for under the key, and the fingerprint in place of it where the
    request has a part that differs."""
    group = client.history.plan["groups"][act["g"]]
    asked = {"scope": client.history.scope(act["g"]), "key": client.history.key(act),
             "variant": act["v"]}
    fingerprint = None
    if group["class"] == "fail":
        fingerprint = b"variant %d" % act["v"]
        asked["mode"] = act.get("mode", "ok")
    elif group["class"] == "context":
        fingerprint = b"the same for both users"
    return json.dumps(asked, ensure_ascii=False), fingerprint


def milliseconds(value):
    return None if value is None else f"{value} ms"


def context_of(client, act):
    """SQL for the context of a user, in a group that binds keys to one."""
    if client.history.plan["groups"][act["g"]]["class"] != "context":
        return "NULL"
    return f"idem_context('user {act['v']}')"


def named(client, act):
    return {**act, "key": client.history.key(act)}


def run(client, act, _rng):
    """idem_run; whether it is settled."""
    group = client.history.plan["groups"][act["g"]]
    asked, fingerprint = request(client, act)
    shape = "response" if act["mode"] == "release" else group["shape"]
    wait = 0 if client.history.sabotage == "no-wait" else act["wait"]
    result = client.result(
        "run", act["g"], named(client, act),
        f"idem_run('work_{shape}(jsonb)', %s, %s, %s::jsonb, policy => %s,"
        f" context => {context_of(client, act)}, wait => %s::interval, on_error => %s,"
        " fingerprint => %s::bytea)",
        client.history.scope(act["g"]), act["as"], asked, group["policy"], milliseconds(wait),
        act["on_error"], fingerprint)
    if result.outcome == "in_progress" and client.history.sabotage == "no-claim":
        client.query(f"SELECT work_{shape}(%s::jsonb)", asked)
        return True
    return result.outcome != "in_progress"


def do_work(client, act, stored, variant=None, failed=False):
    """The effect of work that the client does itself."""
    client.query(
        "INSERT INTO effect (scope, key, variant, body, status, headers, content_type, failed)"
        " VALUES (%s, %s, %s, %s::bytea, %s, %s, %s, %s)",
        client.history.scope(act["g"]), client.history.key(act),
        act["v"] if variant is None else variant, stored["body"], stored["status_code"],
        stored["headers"], stored["content_type"], failed)


def answer(client, act, status=200):
    """An answer that no other attempt gives, in the shape of the group."""
    shape = client.history.plan["groups"][act["g"]]["shape"]
    text = (f'{{ "nonce":  "{client.history.name} {client.attempt.name}'
            f' {act.get("body", 0)} {len(client.attempt.lines)}" , "ü": 1.0}}')
    stored = {"status_code": status, "headers": None, "content_type": "application/json"}
    if shape == "jsonb":
        text = json.dumps(json.loads(text), ensure_ascii=False)
        stored["value"], stored["type"] = text, "jsonb"
    elif shape == "bytea":
        stored["value"] = stored["body"] = b"\0\xff" + text.encode()
        stored["type"], stored["content_type"] = "bytea", "application/octet-stream"
    elif shape == "text":
        text = "plain \\x00 " + text
        stored["value"], stored["type"], stored["content_type"] = text, "text", "text/plain"
    elif shape == "response":
        stored["value"], stored["type"], stored["headers"] = text, "json", ANSWER_HEADERS
    else:
        stored["value"], stored["type"] = text, "json"
    if "body" not in stored:
        stored["body"] = text.encode()
    if shape == "jsonb":            # as the server prints it: longer names come last
        stored["body"] = f'{{"ü": 1.0, "nonce": "{json.loads(text)["nonce"]}"}}'.encode()
    return stored


def store(client, act, stored, call="complete", token=None, final=False):
    """idem_complete or idem_fail."""
    retryable = f", retryable => {str(not final).lower()}" if call == "fail" else ""
    result = client.result(
        call, act["g"], named(client, act),
        f"idem_{call}(%s, %s, %s::{stored['type']}, status_code => %s, headers => %s::json,"
        f" content_type => %s, token => %s::bigint{retryable})",
        client.history.scope(act["g"]), act["as"], stored["value"], stored["status_code"],
        stored["headers"], stored["content_type"], token)
    result.stored = stored
    result.token = token
    return result


def claim_call(client, act, call="claim", owner=None, lease=None):
    group = client.history.plan["groups"][act["g"]]
    asked, fingerprint = request(client, act)
    wait = 0 if client.history.sabotage == "no-wait" else act["wait"]
    result = client.result(
        call, act["g"], named(client, act),
        f"idem_claim(%s, %s, %s::jsonb, fingerprint => %s::bytea, policy => %s,"
        f" context => {context_of(client, act)}, owner => %s::uuid, wait => %s::interval,"
        " lease => %s::interval)",
        client.history.scope(act["g"]), act["as"], None if fingerprint else asked, fingerprint,
        group["policy"], owner, milliseconds(wait), milliseconds(lease))
    result.owner = owner
    return result


def savepoint(client, name):
    client.query(f"SAVEPOINT {name}")


def back_to(client, name, before):
    """ROLLBACK TO: what was said since is undone."""
    client.query(f"ROLLBACK TO SAVEPOINT {name}")
    for result in client.attempt.results[before:]:
        result.undone = True


def claim(client, act, _rng):
    """A claim with its work and its completion, with savepoints here and there."""
    pattern = act["pattern"]
    before = len(client.attempt.results)
    if pattern in ("undo", "subclaim", "drop", "reclaim"):
        savepoint(client, "before")
    if pattern == "require":
        asked, fingerprint = request(client, act)
        group = client.history.plan["groups"][act["g"]]
        client.query(
            "SELECT idem_require(%s, %s, %s::jsonb, fingerprint => %s::bytea, policy => %s,"
            f" context => {context_of(client, act)}, wait => %s::interval)",
            client.history.scope(act["g"]), act["as"], None if fingerprint else asked,
            fingerprint, group["policy"], milliseconds(act["wait"]))
    else:
        result = claim_call(client, act, owner=act["owner"] if pattern == "owner" else None)
        if result.outcome != "claimed":
            return result.outcome != "in_progress"
        result.stored = {}
    if pattern in ("drop", "reclaim"):      # ROLLBACK TO gives the key up, for others too
        back_to(client, "before", before)
        if pattern == "drop":
            return True
        result = claim_call(client, act)
        if result.outcome != "claimed":
            return result.outcome != "in_progress"
    if pattern in ("twice", "owner"):
        repeat_own(client, act, pattern, result)
    stored = answer(client, act)
    if pattern == "redo":
        savepoint(client, "work")
        do_work(client, act, {**stored, "body": b"undone"})
        client.query("ROLLBACK TO SAVEPOINT work")
    if pattern in ("fail", "final"):
        final = pattern == "final"
        stored["status_code"] = 402 if final else 500
        if final:
            do_work(client, act, stored, failed=True)
        store(client, act, stored, "fail", final=final)
    elif pattern == "release":
        client.query("SELECT idem_release(%s, %s)", client.history.scope(act["g"]), act["as"])
    elif pattern == "unfinished":
        do_work(client, act, {**stored, "body": b"unfinished"})
    else:
        complete(client, act, stored)
    if pattern == "undo":
        back_to(client, "before", before)
    elif pattern == "subclaim":
        client.query("RELEASE SAVEPOINT before")
    return True


def complete(client, act, stored):
    """The work and its answer, in this transaction - or wrongly in two."""
    if client.history.sabotage == "apart":
        store(client, act, stored)
        client.query("COMMIT")
        client.query("BEGIN")
        if act["body"] % 2:         # and what may happen between them
            do_work(client, act, stored)
        return
    do_work(client, act, stored)
    if client.history.sabotage == "twice":
        do_work(client, act, stored)
    store(client, act, stored)


def repeat_own(client, act, pattern, first):
    """The same transaction claims again: in progress, or its own again."""
    again = claim_call(client, act, owner=act["owner"] if pattern == "owner" else None)
    again.own = True
    wanted = ("claimed", first.row["attempt"], first.row["token"])
    got = (again.outcome, again.row["attempt"], again.row["token"])
    if pattern == "owner" and got != wanted:
        client.history.found("own claim", f"{got} in place of {wanted}", [client.attempt])
    if pattern == "twice" and again.outcome != "in_progress":
        client.history.found("own claim", f"{again.outcome} for a key of this transaction",
                             [client.attempt])


def dedupe(client, act, _rng):
    """Marks keys, and does the work of those that come for the first time."""
    history = client.history
    group = history.plan["groups"][act["g"]]
    begun = history.clock()
    rows = client.query("SELECT ord, key, first FROM idem_dedupe(%s, %s::text[], %s)",
                        history.scope(act["g"]), act["as"], group["policy"])
    if [row[:2] for row in rows] != [(n, key) for n, key in enumerate(act["as"], 1)]:
        history.found("dedupe order", f"{rows}", [client.attempt])
    taken = set()
    for (_, _, first), index in zip(rows, act["ks"]):
        client.attempt.add(call="dedupe", group=act["g"], key=group["keys"][index], variant=None,
                           begun=begun, ended=history.clock(), first=first, own=index in taken)
        if first and index in taken:
            history.found("dedupe twice", f"{rows}", [client.attempt])
        taken.add(index)
        if first:
            do_work(client, {"g": act["g"], "k": index, "v": None},
                    {"body": None, "status_code": 200, "headers": None, "content_type": None})
    return True


def forget(client, act, _rng):
    if client.query("SELECT idem_forget(%s, %s)", client.history.scope(act["g"]),
                    act["as"])[0][0] and client.history.sabotage != "unseen":
        client.query("INSERT INTO ended (scope, key) VALUES (%s, %s)",
                     client.history.scope(act["g"]), client.history.key(act))
    return True


def forget_scope(client, act, _rng):
    scope = client.history.scope(act["g"])
    if client.query("SELECT idem_forget_scope(%s)", scope)[0][0]:
        client.query("INSERT INTO ended (scope) VALUES (%s)", scope)
    return True


def lookup(client, act, _rng):
    client.result("lookup", act["g"], named(client, act), "idem_lookup(%s, %s)",
                  client.history.scope(act["g"]), act["as"])
    return True


def pause(_client, act, _rng):
    """Idle in the transaction; pg_sleep would sleep on when the clock is set back."""
    time.sleep(act["ms"] / 1000)
    return True


ACTS = {"run": run, "claim": claim, "dedupe": dedupe, "forget": forget,
        "forget_scope": forget_scope, "lookup": lookup, "sleep": pause}


# Leased claims: the work is in the journal, outside, and an effect is written with the
# completion.

def lease(client, op, cut, rng):
    """A claim that is committed unfinished, the work, and its completion."""
    attempt = client.attempt
    attempt.begin(committing=True)
    if cut and cut["at"] == "first":
        client.arm(cut)
    result = claim_call(client, op, "lease", op["owner"], op["lease"])
    attempt.finish("committed")
    if result.outcome != "claimed":
        return result.outcome != "in_progress"
    result.stored = {}
    token = result.row["token"]
    for step in op["steps"]:
        take_step(client, op, step, token)
    client.history.journal.write((op["g"], client.history.key(op)), token)
    if op["finish"] == "abandon":
        return True
    if cut and cut["at"] == "end":
        client.arm(cut)
    return finish_lease(client, op, token, op["finish"])


def take_step(client, op, step, token):
    history = client.history
    scope, key = history.scope(op["g"]), op["as"]
    begun = history.clock()
    row = {}
    client.attempt.begin(committing=True)
    if step[0] == "checkpoint":
        point = f"{client.attempt.name} {len(client.attempt.lines)}"
        row["until"] = client.query(
            "SELECT idem_checkpoint(%s, %s, %s, %s, %s::jsonb)", scope, key, token, point,
            json.dumps({"at": point}))[0][0]
        row["point"] = point
    elif step[0] == "extend":
        row["until"] = client.query("SELECT idem_extend(%s, %s, %s, %s::interval)", scope, key,
                                    token, milliseconds(step[1]))[0][0]
    elif step[0] == "sleep":
        time.sleep(step[1] / 1000)
        client.attempt.finish("aborted")
        return
    elif step[0] == "journal":
        history.journal.write((op["g"], history.key(op)), token)
        client.attempt.finish("aborted")
        return
    elif step[0] == "repeat":       # as after a lost reply
        again = claim_call(client, op, "lease", op["owner"], op["lease"])
        client.attempt.finish("committed")
        if again.outcome == "claimed":
            again.stored = {}
        return
    client.attempt.finish("committed")
    client.attempt.add(call=step[0], group=op["g"], key=history.key(op), variant=op["v"],
                       begun=begun, ended=history.clock(), row=row, token=token)


def finish_lease(client, op, token, how):
    """The completion of a leased claim, with its effect, in one transaction."""
    attempt = client.attempt
    attempt.begin()
    stored = answer(client, op)
    client.query(f"BEGIN ISOLATION LEVEL {op.get('iso', 'READ COMMITTED')}")
    if how == "release":
        client.query("SELECT idem_release(%s, %s, %s)", client.history.scope(op["g"]), op["as"],
                     token)
        note(client, op, "release", token)
    elif how in ("fail", "final"):
        stored["status_code"] = 402 if how == "final" else 500
        if how == "final":
            do_work(client, op, stored, failed=True)
        store(client, op, stored, "fail", token, how == "final")
    elif how == "released_status":
        stored["status_code"] = 503
        result = store(client, op, stored, "complete", token)
        result.call = "fail"
    else:
        do_work(client, op, stored)
        store(client, op, stored, "complete", token)
    attempt.tx.committing = True
    client.query("COMMIT")
    attempt.finish("committed")
    if op.get("again") and how == "complete":
        finish_again(client, op, token, stored)
    return True


def note(client, op, call, token):
    now = client.history.clock()
    client.attempt.add(call=call, group=op["g"], key=client.history.key(op), variant=op["v"],
                       begun=now, ended=now, token=token)


def finish_again(client, op, token, stored):
    """The reply was lost, for all that the client knows; or it has another answer."""
    from client import Failed
    history = client.history
    first = next(result for result in reversed(client.attempt.results) if result.stored)
    client.attempt.begin(committing=True)
    try:
        if op["again"] == "same":
            result = store(client, op, stored, "complete", token)
            if result.row["finished_at"] != first.row["finished_at"]:
                history.found("repeated completion", "finished at another time", [client.attempt])
            client.attempt.finish("committed")
        else:
            other = dict(stored, status_code=299)
            store(client, op, other, "complete", token)
            history.found("other completion", "another answer was taken", [client.attempt])
            client.attempt.results.pop()
    except Failed as failure:
        wanted = {"same": (), "other": ("ID003",)}[op["again"]]
        if failure.sqlstate not in wanted and failure.sqlstate[:2] in ("ID", "XX"):
            history.found("repeated completion", str(failure), [client.attempt])
        raise


def recover(client, op, cut, _rng):
    """A worker that finishes what was abandoned."""
    history = client.history
    attempt = client.attempt
    attempt.begin(committing=True)
    begun = history.clock()
    if cut:
        client.arm(cut)
    rows = client.query(
        "SELECT scope, key, attempt, token, recovery_point, checkpoint::text, created_at,"
        " lease_until, statement_timestamp(), clock_timestamp() FROM idem_recover(%s, %s, %s)",
        history.plan["groups"][op["g"]]["policy"], op["n"], milliseconds(100))
    ended = history.clock()
    attempt.finish("committed")
    mine = []
    for row in rows:
        where = history.find(row[0], row[1])
        if where is None:
            continue
        number, index = where
        keys = ("attempt", "token", "recovery_point", "checkpoint", "created_at", "lease_until",
                "began", "ended")
        attempt.add(call="recover", group=number, key=row[1], variant=None, begun=begun,
                    ended=ended, row={"outcome": "claimed", **dict(zip(keys, row[2:]))}, stored={})
        mine.append(({"g": number, "k": index, "as": row[1], "v": None, "iso": "READ COMMITTED"},
                     row[3]))
    for act, token in mine:
        history.journal.write((act["g"], history.key(act)), token)
        if op["finish"] == "complete":
            finish_lease(client, act, token, "complete")
    return True


def end_lease(client, op, cut, _rng):
    attempt = client.attempt
    attempt.begin(committing=True)
    if cut:
        client.arm(cut)
    client.query("SELECT idem_end_lease(%s, %s)", client.history.scope(op["g"]), op["as"])
    attempt.finish("committed")
    return True


DO = {"tx": tx, "lease": lease, "recover": recover, "end_lease": end_lease}
