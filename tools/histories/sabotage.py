"""Ways to break what the model must notice.  Each is a fault of a database, of a setting
or of a client that no honest system has; histories with it must not pass.  None needs
another library: they work from outside."""

import contextlib
import time

import psycopg

import plan as plans

TRIES = 25          # histories in which a sabotage must be noticed
SECONDS = 20


class Sabotage:
    """name: as told to --sabotage; does: what it says of itself; sql: run at first in the
    database; arena and classes: of the histories in which it has a chance to matter."""

    def __init__(self, name, does, sql=None, classes=("atomic",), arena="fleet", faults=("none",),
                 plan=None, before=None, during=None, after=None):
        self.name = name
        self.does = does
        self.sql = sql
        self.classes = list(classes)
        self.arena = arena
        self.faults = list(faults)
        self._plan = plan
        self._during = during
        self._before = before
        self.after = after

    def plan(self, seed):
        plan = plans.make(seed, self.arena, self.classes, self.faults)
        plan["database"], plan["storage"] = "main", "auto"
        if self._plan:
            self._plan(plan)
        return plan

    def during(self, history):
        if self._during:
            self._during(history)

    def before(self, history):
        if self._before:
            self._before(history)


def trigger(table, when, body):
    return f"""CREATE FUNCTION public.sabotage() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN {body} RETURN NEW; END $$;
    CREATE TRIGGER sabotage BEFORE {when} ON {table} FOR EACH ROW
    EXECUTE FUNCTION public.sabotage()"""


def repeatedly(sql, pause=0.01):
    """A statement of a superuser, again and again while clients are at work."""
    def during(history):
        with contextlib.closing(history.server.operator(history.database)) as operator:
            while not history.over.is_set():
                with contextlib.suppress(psycopg.Error):
                    operator.execute(sql)
                time.sleep(pause)
    return during


def hold_key(history):
    """A session that has a key, and does nothing any more."""
    history.holder = history.server.connect(history.database, name="holder")
    history.holder.execute("BEGIN")
    history.holder.execute("SELECT idem_claim(%s, %s, wait => '1 second')",
                           (history.scope(0), history.plan["groups"][0]["keys"][0]))


def audit_rows(change):
    """Somebody with the rights to do so changes the log after it was sealed."""
    def after(operator):
        operator.execute("SELECT idem_audit_seal()")
        operator.execute("SET session_replication_role = replica")
        for (table,) in operator.execute(
                "SELECT inhrelid::regclass FROM pg_inherits"
                " WHERE inhparent = 'idempotency_audit_log'::regclass").fetchall():
            operator.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
            operator.execute(change.format(table=table))
    return after


def durable(plan):
    """The plan says that what was acknowledged stays."""
    plan["asynchronous"] = False
    for fault in plan["faults"]:
        if fault["do"] == "kill_backend":
            fault["do"] = "kill_server"


def plain(plan):
    """No savepoints, which would notice before the model does."""
    for ops in plan["clients"]:
        for op in ops:
            for act in op["acts"]:
                if "pattern" in act:
                    act["pattern"] = "plain"


# In place of an index that is whole: rows that it does not have.
DAMAGE = """SET session_replication_role = replica;
UPDATE pg_index SET indisready = false, indisvalid = false
    WHERE indexrelid = 'idempotency.idempotency_keys_purge_at'::regclass;
INSERT INTO idempotency.idempotency_keys (created_at, expires_at, purge_at, claim_xid, state, scope,
    key, claimed_by) VALUES (now(), 'infinity', 'infinity', '1', 'c', 'damage', 'k', 'client');
UPDATE pg_index SET indisready = true, indisvalid = true
    WHERE indexrelid = 'idempotency.idempotency_keys_purge_at'::regclass"""

NO_INDEX = """ALTER TABLE idempotency.idempotency_keys DROP CONSTRAINT idempotency_keys_pkey;
CREATE INDEX idempotency_keys_pkey ON idempotency.idempotency_keys (scope, key)"""

SABOTAGES = [
    Sabotage("apart", "a client commits key and answer, then the work", plan=plain),
    Sabotage("twice", "a client does the work twice"),
    Sabotage("no-claim", "a client works although the key is in progress elsewhere"),
    Sabotage("no-wait", "a client asks without the wait it was told", classes=["atomic", "lease"]),
    Sabotage("no-fence", "the outside takes any token", classes=["lease", "lease"]),
    Sabotage("unseen", "keys are forgotten, and nobody writes it down", classes=["forget"]),
    Sabotage("no-index", "the key table has no primary key", NO_INDEX),
    Sabotage("delete", "rows of keys are deleted in the middle",
             during=repeatedly("DELETE FROM idempotency_keys")),
    Sabotage("delete-leases", "open leases are deleted from their list", classes=["lease"],
             during=repeatedly("DELETE FROM idempotency_keys WHERE state = 'p'")),
    Sabotage("body", "a trigger changes stored answers",
             trigger("idempotency.idempotency_keys", "INSERT OR UPDATE",
                     "NEW.body := NEW.body || '\\x20'::bytea;")),
    Sabotage("headers", "a trigger normalizes stored headers",
             trigger("idempotency.idempotency_keys", "INSERT OR UPDATE",
                     "NEW.headers := NEW.headers::jsonb::json; NEW.status_code := 200;")),
    Sabotage("fingerprint", "a trigger takes fingerprints away",
             trigger("idempotency.idempotency_keys", "INSERT OR UPDATE",
                     "NEW.fingerprint := NULL;")),
    Sabotage("retention", "a trigger shortens every retention",
             trigger("idempotency.idempotency_keys", "INSERT OR UPDATE",
                     "NEW.expires_at := LEAST(NEW.expires_at, clock_timestamp());")),
    Sabotage("policy", "a trigger on policies makes answers short-lived, and audits nothing",
             trigger("idempotency.idempotency_policies", "INSERT OR UPDATE",
                     "NEW.completed_ttl := '1 millisecond'; NEW.audit := false;")
             + "; SELECT idempotency.idem_policy('keep', wait => '0')"),
    Sabotage("lease", "leases end before their time", classes=["lease", "lease"],
             during=repeatedly("UPDATE idempotency_keys SET lease_until = clock_timestamp()"
                               " WHERE state = 'p' AND scope LIKE 'h%'", 0.004)),
    Sabotage("token", "a trigger lets every token be the same", classes=["lease", "lease"],
             sql=trigger("idempotency.idempotency_keys", "INSERT OR UPDATE", "NEW.token := 1;")),
    Sabotage("attempt", "a trigger forgets attempts", classes=["lease", "lease"],
             sql=trigger("idempotency.idempotency_keys", "INSERT OR UPDATE",
                         "NEW.attempt := NULL;")),
    Sabotage("checkpoint", "a trigger forgets checkpoints", classes=["lease", "lease"],
             sql=trigger("idempotency.idempotency_keys", "INSERT OR UPDATE",
                         "NEW.recovery_point := NULL;")),
    Sabotage("constraint", "a constraint refuses keys",
             "ALTER TABLE idempotency.idempotency_keys ADD CONSTRAINT sabotage"
             " CHECK (length(key) < 2) NOT VALID"),
    Sabotage("stuck", "a session that is idle has a key", before=hold_key, classes=["quiet"]),
    Sabotage("audit-changed", "sealed rows of the log are changed", after=audit_rows(
        "UPDATE {table} SET token = token + 1 WHERE id % 2 = 0")),
    Sabotage("audit-deleted", "sealed rows of the log are deleted", after=audit_rows(
        "DELETE FROM {table} WHERE id % 3 = 0")),
    Sabotage("audit-missing", "a trigger keeps rows out of the log",
             trigger("idempotency.idempotency_audit_log_default", "INSERT",
                     "IF NEW.action = 'completed' THEN RETURN NULL; END IF;")),
    Sabotage("index-damaged", "an index does not have all rows", after=lambda operator:
             operator.execute(DAMAGE)),
    Sabotage("memory", "a session keeps what it should let go", after=lambda operator: None),
    Sabotage("secret", "the only secret of contexts is dropped, and there is another",
             classes=["context", "context"], during=repeatedly(
                 "SELECT idem_secret_drop('context', (SELECT min(key_id) FROM idempotency_secrets"
                 " WHERE purpose = 'context' AND secret <> '')), idem_secret('context',"
                 " gen_random_bytes(32))", 0.02)),
    Sabotage("async", "synchronous_commit = off is taken for durable", arena="kill",
             plan=durable),
    Sabotage("behind", "a standby that is behind is taken for synchronous", arena="failover",
             plan=durable),
]


def run_all(program, name=None):
    """Say of each whether it was caught."""
    chosen = [one for one in SABOTAGES if name in (None, one.name)]
    if not chosen:
        raise SystemExit(f"no sabotage {name}: see --sabotage list")
    print(f"\n== {len(chosen)} sabotages, each of which must be noticed", flush=True)
    for one in chosen:
        begun = time.monotonic()
        count, seen = run_one(program, one)
        caught = bool(seen)
        program.tally.passed += caught
        program.tally.failed += not caught
        print(f"  {'caught' if caught else 'MISSED'}  {one.name:<14} {one.does}:"
              f" {seen or 'nothing'} ({count} histories, {time.monotonic() - begun:.1f} s)",
              flush=True)


def show(program, history, sabotage, arena):
    """For a single one: what a violation looks like, and the shortest history with it."""
    import shrink
    shrink.report(history)
    small = shrink.smaller(program, history, program.options.shrink, sabotage, arena)
    if small is not None:
        shrink.print_small(small)


def run_one(program, sabotage):
    """How many histories it took, and the first violation."""
    import whole
    arena = program.arena(sabotage.arena)
    if arena is None:
        return 0, ""
    database = "sabotage"
    own = sabotage.arena != "failover"
    before = (arena.database, arena.storage)
    if own:
        program.fleet.create(database)
        arena.database = database
    else:
        arena.database = "main"
    veteran = whole.Veteran(arena.server, database, 1) if sabotage.name == "memory" else None
    try:
        if sabotage.sql:
            with contextlib.closing(arena.server.operator(arena.database)) as operator:
                operator.execute(sabotage.sql)
        deadline = time.monotonic() + SECONDS
        limit = 2 if sabotage.after else TRIES
        for number in range(1, limit + 1):
            history = program.one(sabotage.plan(number), sabotage)
            close(history)
            if history.violations:
                if program.options.sabotage:
                    show(program, history, sabotage, arena)
                return number, str(history.violations[0])[:110]
            if time.monotonic() > deadline:
                break
        if not sabotage.after:
            return number, ""
        with contextlib.closing(arena.server.operator(arena.database)) as operator:
            sabotage.after(operator)
        if veteran:
            veteran.check()
            veteran.connection.execute("DO $$ BEGIN FOR i IN 1..2000 LOOP EXECUTE"
                                       " format('PREPARE leak%s AS SELECT %s', i, i);"
                                       " END LOOP; END $$")
        problems = whole.check(arena.server, arena.database, veteran)
        return number, "; ".join(problems)[:110]
    finally:
        arena.database = before[0]
        arena.pool.close()
        if veteran:
            veteran.connection.close()
        if own:
            program.fleet.drop(database)


def close(history):
    holder = getattr(history, "holder", None)
    if holder is not None:
        holder.close()
