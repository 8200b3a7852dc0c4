"""The audit log of a history: it must tell of each transition that was committed, and of
nothing else."""

import collections
import hashlib

Row = collections.namedtuple("Row", "id xid action attempt token")

CLAIMS = ("claimed", "taken_over")


def log_id(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check(history, operator, number, group, effects, by_key, scope_forgotten):
    if group["policy"] == "plain":
        return
    scope = history.scope(number)
    names = {f"{log_id(scope)}/{log_id(key)}": key for key in group["keys"]}
    rows = collections.defaultdict(list)
    for row in operator.execute(
            "SELECT entity_id, id, xid, action, attempt, token FROM idempotency_audit_log"
            " WHERE entity = 'idempotency_key' AND entity_id = ANY(%s)"
            " AND (detail IS NULL OR NOT detail ? 'count') ORDER BY id", (list(names),)):
        rows[names[row[0]]].append(Row(*row[1:]))
    for key in group["keys"]:
        found = Finder(history, number, group, key)
        check_effects(found, rows[key], effects[number, key])
        check_path(found, rows[key], group["class"], scope_forgotten, history.stepped)
        check_told(found, rows[key], by_key[number, key], history)


class Finder:
    def __init__(self, history, number, group, key):
        self.history = history
        self.where = f"group {number} ({group['class']}), key {key!r}"

    def __call__(self, detail, *results):
        self.history.found("audit", f"{self.where}: {detail}",
                           [result.attempt for result in results])


def check_effects(found, rows, effects):
    """The completions in the log are those of the transactions that had an effect."""
    done = sorted(row.xid for row in rows if row.action == "completed")
    worked = sorted(effect.xid for effect in effects if not effect.failed)
    if done != worked:
        found(f"completed in transactions {done}, effects in {worked}")
    failed = {row.xid for row in rows if row.action == "failed"}
    if not {effect.xid for effect in effects if effect.failed} <= failed:
        found("a failure that was kept is not in the log")


def check_path(found, rows, kind, scope_forgotten, stepped):
    """The transitions of a key, in their order, as doc/functions.md has them."""
    state, attempt, token = "free", 0, 0
    for row in rows:
        said = f"{row.action} (attempt {row.attempt}, token {row.token}) when {state}"
        if row.token is not None and row.token < token:
            found(f"{said}: the token was {token}")
        if row.action in CLAIMS:
            fresh = row.attempt == 1 and row.action == "claimed"
            further = row.attempt == attempt + 1
            legal = {
                "free": fresh, "failed": further, "released": further,
                "claimed": further and row.action == "taken_over",
                # an expired key begins anew; so does one whose scope was forgotten
                "completed": fresh and (kind == "brief" or scope_forgotten)}[state]
            if state in ("failed", "released") and (kind == "brief" or scope_forgotten):
                legal = legal or fresh
            state = "claimed"
        elif row.action == "completed" and row.attempt == 1 and kind in ("dedupe", "mixed") \
                and state == "free":
            legal, state = True, "completed"
        elif row.action in ("completed", "failed", "released"):
            legal = state == "claimed" and row.attempt == attempt
            state = row.action
        elif row.action == "lease_ended":
            legal = state == "claimed"
        else:
            legal = row.action == "forgotten"
            state = "free"
        if not legal:
            found(f"{said}, after attempt {attempt}")
        attempt = row.attempt if state != "free" else 0
        # Once the row is gone, only the clock makes tokens grow; and a row that idem_run has
        # written does not remember the token, which nobody was given.
        gone = stepped and (state == "free" or kind in ("brief", "fail") or scope_forgotten)
        token = 0 if gone else max(token, row.token or 0)


def check_told(found, rows, results, history):
    """What was acknowledged is in the log, with its token and attempt."""
    claims = {(row.token, row.attempt) for row in rows if row.action in CLAIMS}
    for result in results:
        if result.outcome != "claimed" or result.end != "committed" or result.undone or result.own:
            continue
        lost = history.lost_at is not None and result.begun < history.lost_at
        # A claim that is committed unfinished is flushed, whatever synchronous_commit says;
        # a standby that is behind does not have it all the same.
        flushed = result.call in ("lease", "recover") and history.plan["arena"] == "kill"
        if (not lost or flushed) and (result.row["token"], result.row["attempt"]) not in claims:
            found(f"the claim with token {result.row['token']} is not in the log", result)
