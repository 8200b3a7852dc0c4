"""What happens to a server while clients are at work."""

import contextlib
import os
import random
import signal
import time

import psycopg

EXPECTED = {
    # SQLSTATEs that a fault explains
    "cancel": {"57014"},
    "terminate": {"57P01", "08006"},
    "kill_backend": {"57P01", "57P02", "57P03", "08006", "08001"},
    "kill_server": {"57P01", "57P02", "57P03", "08006", "08001"},
    "failover": {"57P01", "57P02", "57P03", "08006", "08001", "25006"},
    "cut": {"08006"},
    "fill_disk": {"53100"},
    "reindex": {"40001", "40P01"},
    # A session takes up the change when it is idle: for a while there are both ways, and
    # an idem_run in the one may meet a claim in the other.
    "storage": {"40001"},
}


def choose_storage(history):
    """The way to the key table that the plan names."""
    want = history.plan["storage"]
    if history.arena.storage == want:
        return
    with contextlib.closing(history.server.operator(history.database)) as operator:
        set_storage(operator, want)
    history.arena.storage = want
    history.faulty.add("storage")


def set_storage(operator, way):
    operator.execute(f"ALTER SYSTEM SET idempotency.storage = {way}")
    operator.execute("SELECT pg_reload_conf()")


def inject(history):
    """Do the faults of the plan, each when its time has come."""
    try:
        for fault in history.plan["faults"]:
            history.wait_for(fault["after"])
            if history.over.is_set():
                break
            history.doing = fault
            do(history, fault)
        history.faults_to_come = False
        if history.sabotage_hooks:
            history.sabotage_hooks.during(history)
    except Exception as error:
        history.mistakes.append(error)
    finally:
        history.faults_to_come = False


def do(history, fault):
    kind = fault["do"]
    history.faulty.add(kind)
    rng = random.Random(fault["n"])
    if kind in LARGE:
        LARGE[kind](history, fault)
        history.done[kind] = history.done.get(kind, 0) + 1
        return
    with contextlib.closing(history.server.operator(history.database)) as operator:
        operator.execute("SET lock_timeout = '5s'")
        try:
            SMALL[kind](history, operator, rng)
            history.done[kind] = history.done.get(kind, 0) + 1
        except psycopg.errors.Error as error:
            # An operator's own statement may lose against clients, or with the server.
            if error.sqlstate not in ("55P03", "40P01", "57P01", "40001", "57014", None):
                raise


def somebody(operator, history, rng):
    """The process of a client that has something to do, if one has."""
    rows = operator.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'client %'"
        " AND datname = current_database() AND state <> 'idle' ORDER BY pid").fetchall()
    return rng.choice(rows)[0] if rows else None


def hit(function):
    def do_hit(history, operator, rng):
        """Three times at most: a client is fast, and gone when we look."""
        for _ in range(3):
            pid = somebody(operator, history, rng)
            if pid:
                operator.execute(f"SELECT {function}(%s)", (pid,))
            time.sleep(rng.uniform(0, 0.01))
    return do_hit


def toggle_storage(history, operator, rng):
    for _ in range(2):
        way = "sql" if history.arena.storage == "auto" else "auto"
        set_storage(operator, way)
        history.arena.storage = way
        time.sleep(rng.uniform(0, 0.03))


def reindex(history, operator, rng):
    name = rng.choice(["INDEX idempotency_keys_pkey", "TABLE idempotency_keys",
                       "TABLE idempotency_leases"])
    operator.execute(f"REINDEX {name.replace(' ', ' CONCURRENTLY ')}")


def sweep(_history, operator, rng):
    for _ in range(3):
        operator.execute("SELECT idem_sweep(%s)", (rng.choice([1, 5, 1000]),))
        time.sleep(rng.uniform(0, 0.02))


def rotate(_history, operator, _rng):
    """A new secret; of four that may live, the oldest goes, which no key of this history
    was bound by: a history changes them three times at most."""
    ids = [row[0] for row in operator.execute(
        "SELECT key_id FROM idempotency_secrets WHERE purpose = 'context' AND secret <> ''"
        " ORDER BY key_id").fetchall()]
    if len(ids) >= 4:
        operator.execute("SELECT idem_secret_drop('context', %s)", (ids[0],))
    operator.execute("SELECT idem_secret('context', gen_random_bytes(32))")


def change_policy(_history, operator, _rng):
    """Another policy than those in use, which every session must load anew."""
    operator.execute("SELECT idem_policy('other', wait => '1 second')")
    operator.execute("SELECT idem_policy_drop('other')")


def statement(sql):
    return lambda _history, operator, _rng: operator.execute(sql)


SMALL = {
    "cancel": hit("pg_cancel_backend"),
    "terminate": hit("pg_terminate_backend"),
    "reindex": reindex,
    "vacuum_full": statement("VACUUM FULL idempotency_keys"),
    "vacuum": statement("VACUUM (FREEZE) idempotency_keys, idempotency_leases"),
    "analyze": statement("ANALYZE idempotency_keys"),
    "storage": toggle_storage,
    "sweep": sweep,
    "rotate": rotate,
    "policy": change_policy,
}


# those that concern the whole server

def kill_backend(history, fault):
    """SIGKILL of one session: the server ends all others and recovers."""
    rng = random.Random(fault["n"])
    with contextlib.closing(history.server.operator(history.database)) as operator:
        pid = somebody(operator, history, rng)
        os.kill(pid or operator.info.backend_pid, signal.SIGKILL)
        time.sleep(0.05)
    history.server.operator(history.database).close()
    if history.plan["asynchronous"]:
        history.lost_at = history.clock()


def kill_server(history, _fault):
    history.server.kill()
    if history.plan["asynchronous"]:
        history.lost_at = history.clock()
    history.server.start()


def failover(history, _fault):
    """The primary dies, the standby takes over.  Where it is behind, that is because its
    receiver has been stopped for a while."""
    primary, standby = history.server, history.arena.standby
    if history.plan["asynchronous"] or history.sabotage == "behind":
        with contextlib.closing(primary.operator(history.database)) as operator:
            operator.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
            operator.execute("SELECT pg_reload_conf()")
            senders = operator.execute("SELECT pid FROM pg_stat_replication").fetchall()
        for (pid,) in senders:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.05)
    primary.kill()
    if history.plan["asynchronous"]:
        history.lost_at = history.clock()
    standby.promote()
    history.server = standby
    history.proxy.upstream = f"{standby.socket}/.s.PGSQL.5432"


def fill_disk(history, fault):
    """The tablespace is full for a while: of a file that is not the server's."""
    rng = random.Random(fault["n"])
    name = os.path.join(os.environ["SMALL"], "filler")
    with open(name, "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(8192))
        time.sleep(rng.uniform(0.05, 0.2))
    os.unlink(name)


def step_clock(history, fault):
    """The server's clock, which every call of it looks at."""
    history.stepped += abs(fault["s"])
    history.arena.clock_offset += fault["s"]
    history.arena.clock_highest = max(history.arena.clock_highest, history.arena.clock_offset)
    history.arena.set_clock()
    time.sleep(0.02)


LARGE = {"kill_backend": kill_backend, "kill_server": kill_server, "failover": failover,
         "fill_disk": fill_disk, "step_clock": step_clock}
