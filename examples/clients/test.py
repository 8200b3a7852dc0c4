"""The programs of doc/clients.md under conditions that they are made for.

    test.py PG_CTL DATA_DIRECTORY SERVER_LOG

Each row is one promise for one client.  All five work at the same time, each on
an article of its own; what they did is counted in the database.
"""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

import psycopg
from promises import PATIENCE, CuttingProxy, Promises, together

HERE = pathlib.Path(__file__).parent
PG_CTL, DATA, LOG = sys.argv[1:]
THREAD = threading.local()
TRIES = 10          # of the programs
REPLAYS = 30
CUTS = 100
CONFLICTS = 5
BUSY = 3
TERMINATED = 5
RESTARTED = 40

# What a server may say: worth a retry, and not.
WORTH = ["40001", "40P01", "08006", "53300", "57P01", "57P02", "57P03"]
NOT_WORTH = ["22023", "23505", "25006", "42501", "ID009", "ID012", "P0002"]


class Program:
    """A client under test.  The proxy that it connects through cuts only when armed."""

    def __init__(self, name, title, source, command, tag, tcp=False, repeats=False):
        """tag: of the statement that commits; tcp: can do without unix sockets only;
        repeats: the library itself may send a statement again whose connection was
        lost, so that fewer tries are counted than there were."""
        self.name, self.title, self.source = name, title, source
        self.command, self.tag, self.tcp, self.repeats = command, tag, tcp, repeats
        self.process = None
        self.log = open(f"{os.environ['WORK']}/{name}.errors", "ab")

    def __str__(self):
        return self.title

    def listen(self):
        directory = None
        if not self.tcp:
            directory = f"{os.environ['WORK']}/{self.name}.proxy"
            os.mkdir(directory)
        self.proxy = CuttingProxy(directory, tag=self.tag)
        self.host = directory

    def start(self, direct=False):
        """A new process; direct: without the proxy, where the client has unix sockets."""
        environment = {**os.environ, "PGUSER": "shop_web",
                       "PGDATABASE": "shop", "PGAPPNAME": self.name}
        if self.tcp:
            environment["DATABASE_URL"] = (
                f"jdbc:postgresql://127.0.0.1:{self.proxy.port}/shop"
                f"?user=shop_web&sslmode=disable&ApplicationName={self.name}")
        elif not direct:
            environment["PGHOST"] = self.host
        self.process = subprocess.Popen(
            self.command, cwd=HERE / self.name, env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.log)
        return self

    def stop(self):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def buy(self, key, sku=None):
        """Status, outcome or SQLSTATE, tries, body; the program is killed if it hangs."""
        request = json.dumps({"sku": sku or self.name, "reference": key})
        guard = threading.Timer(PATIENCE, self.process.kill)
        guard.start()
        try:
            self.process.stdin.write(f"{key} {request}\n".encode())
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        finally:
            guard.cancel()
        status, outcome, tries, *body = line.rstrip(b"\n").split(b" ", 3)
        return status.decode(), outcome.decode(), int(tries), b"".join(body)


def connect(user="postgres"):
    return psycopg.connect(dbname="shop", user=user, autocommit=True,
                           options=f"-c statement_timeout={PATIENCE}s")


def admin():
    """A connection for each thread."""
    if getattr(THREAD, "admin", None) is None or THREAD.admin.closed:
        THREAD.admin = connect()
    return THREAD.admin


def one(query, *values):
    return admin().execute(query, values).fetchone()[0]


def run_sql(*statements):
    for statement in statements:
        admin().execute(statement)


def stored(key):
    return one("SELECT body FROM idempotency.idem_lookup("
               "idempotency.idem_scope('shop', 'buy'), %s)", key)


def effects(keys):
    """For each key, how many sales."""
    sales = dict(admin().execute(
        "SELECT reference, count(*) FROM shop.sales WHERE reference = ANY(%s)"
        " GROUP BY reference", (keys,)).fetchall())
    return [sales.get(key, 0) for key in keys]


def once(keys):
    return all(number == 1 for number in effects(keys))


def counted(keys):
    numbers = sorted(set(effects(keys)))
    return f"{' or '.join(map(str, numbers))} effect a key"


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.005)


@contextlib.contextmanager
def rival(program, key):
    """The same purchase by somebody else, whose transaction is open for the while."""
    with connect("shop_web") as connection, connection.transaction():
        connection.execute(
            "SELECT outcome FROM idempotency.idem_run('shop.buy(jsonb)',"
            " idempotency.idem_scope('shop', 'buy'), %s,"
            " jsonb_build_object('sku', %s::text, 'reference', %s::text), 'orders')",
            (key, program.name, key))
        yield


def meanwhile(function, *values):
    """Call it in a thread; returns a function that waits for its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*values)), daemon=True)
    thread.start()

    def result():
        thread.join(2 * PATIENCE)
        return results[0]
    return result


def everywhere(programs, promise, scene, promises, direct=False):
    """A scene, played by all clients at once, each with a new process."""
    def play(number):
        program = programs[number].start(direct)
        program.proxy.disarm()
        program.proxy.whole = False
        try:
            return scene(program)
        except Exception as error:          # of whatever kind: it is BROKEN
            return f"{type(error).__name__}: {error}", False
        finally:
            program.stop()

    for program, (seen, kept) in zip(programs, together(len(programs), play)):
        promises.keep(f"{program}: {promise}", seen, kept)


# The scenes.  Each returns what was seen, and whether it is as promised.

def replay(program):
    keys = [f"{program.name}-replay-{number}" for number in range(REPLAYS)]
    first = [program.buy(key) for key in keys]
    again = [program.buy(key) for key in keys]
    same = sum(a[3] == b[3] == stored(key) for key, a, b in zip(keys, first, again))
    ran = sum(answer[:3] == ("200", "completed", 1) for answer in first)
    replayed = sum(answer[:3] == ("200", "replayed", 1) for answer in again)
    return (f"{ran} ran, {replayed} replayed, {same} with the same bytes",
            ran == replayed == same == REPLAYS and once(keys)
            and len({answer[3] for answer in first}) == REPLAYS)


def lost_reply(program):
    keys = [f"{program.name}-cut-{number}" for number in range(CUTS)]
    right = replays = by_itself = 0
    before = program.proxy.cuts
    for number, key in enumerate(keys):
        program.proxy.whole = number % 2 == 1
        program.proxy.arm()
        status, outcome, tries, body = program.buy(key)
        right += status == "200" and body == stored(key)
        replays += outcome == "replayed"
        by_itself += tries == 2
    cuts = program.proxy.cuts - before
    return (f"{cuts} cuts, {replays} replays, {right} with the right bytes, {by_itself}"
            f" by its own loop; {counted(keys)}",
            cuts == replays == right == CUTS and once(keys)
            and by_itself >= CUTS // (2 if program.repeats else 1))


def gives_up(program):
    """Every reply is lost, until the program gives up; the key is kept by the caller."""
    key = f"{program.name}-hopeless"
    before = program.proxy.cuts
    program.proxy.arm(1000)
    status, state, tries, _ = program.buy(key)
    program.proxy.disarm()
    cuts = program.proxy.cuts - before
    answer = program.buy(key)
    return (f"error after {tries} tries, {cuts} cuts; later {answer[1]};"
            f" effects {effects([key])[0]}",
            status == "error" and tries == TRIES and answer[1] == "replayed" and once([key]))


def conflict(program):
    """REPEATABLE READ: the rival commits the key after the statement's snapshot."""
    keys = [f"{program.name}-rival-{number}" for number in range(CONFLICTS)]
    good = 0
    for key in keys:
        with rival(program, key):
            result = meanwhile(program.buy, key)
            wait_until(lambda: one(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = %s"
                " AND state = 'active' AND wait_event IS NOT NULL AND backend_xmin IS NOT NULL"
                " AND query LIKE '%%idem_run%%')", program.name))
        status, outcome, tries, body = result()
        good += (status, outcome, tries, body) == ("200", "replayed", 2, stored(key))
    return (f"{good} of {CONFLICTS} replayed at the second try; {counted(keys)}",
            good == CONFLICTS and once(keys))


def busy(program):
    """The rival is at work until the program has been told so; then it commits."""
    keys = [f"{program.name}-busy-{number}" for number in range(BUSY)]
    good = 0
    most = 0
    for key in keys:
        told = program.proxy.passed
        with rival(program, key):
            result = meanwhile(program.buy, key)
            wait_until(lambda: program.proxy.passed > told)
        status, outcome, tries, body = result()
        good += (status, outcome, body) == ("200", "replayed", stored(key)) and tries > 1
        most = max(most, tries)
    return (f"{good} of {BUSY} replayed, after {most} tries at most;"
            f" {counted(keys)}", good == BUSY and once(keys))


def terminated(program):
    """The backend is terminated while its handler waits for the stock row."""
    keys = [f"{program.name}-terminated-{number}" for number in range(TERMINATED)]
    killed = good = 0
    for key in keys:
        with connect() as blocker, blocker.transaction():
            blocker.execute("SELECT FROM shop.stock WHERE sku = %s FOR UPDATE", (program.name,))
            result = meanwhile(program.buy, key)
            blocked = "FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
            me = blocker.info.backend_pid
            wait_until(lambda: one(f"SELECT EXISTS (SELECT {blocked})", me))
            killed += one(f"SELECT pg_terminate_backend(pid) {blocked}", me)
        status, outcome, tries, body = result()
        good += (status, outcome, body) == ("200", "completed", stored(key)) \
            and (tries == 2 or program.repeats)
    by_whom = "by the library" if program.repeats and tries == 1 else "at the second try"
    return (f"{killed} terminated, {good} done {by_whom}; {counted(keys)}",
            killed == good == TERMINATED and once(keys))


def states(program):
    """A trigger raises what the key says, every other time; a sequence counts."""
    def tries_for(state):
        run_sql(f"SELECT setval('shop.raised_{program.name}', 2)")
        status, said, tries, _ = program.buy(f"{program.name}-raise-{state}")
        ran = one(f"SELECT last_value - 2 FROM shop.raised_{program.name}")
        return status, said, tries, ran

    again = [state for state in WORTH if tries_for(state) == ("200", "completed", 2, 2)]
    not_again = [state for state in NOT_WORTH if tries_for(state) == ("error", state, 1, 1)]
    keys = [f"{program.name}-raise-{state}" for state in WORTH + NOT_WORTH]
    return (f"again after {' '.join(again)}; not after {' '.join(not_again)}",
            again == WORTH and not_again == NOT_WORTH
            and effects(keys) == [1] * len(WORTH) + [0] * len(NOT_WORTH))


def mismatch(program):
    key = f"{program.name}-mismatch"
    first = program.buy(key)
    other = program.buy(key, "something else")
    return (f"{first[1]}, then {other[0]} {other[1]} at try {other[2]}",
            first[:2] == ("200", "completed") and other == ("422", "mismatch", 1, b"")
            and once([key]))


class Restart:
    """The server is restarted while all five are at work."""

    def __init__(self):
        self.begin = threading.Barrier(
            len(PROGRAMS), action=threading.Thread(target=self.restart, daemon=True).start)
        self.over = threading.Event()
        self.status = None

    def restart(self):
        self.status = subprocess.call(
            [PG_CTL, "-D", DATA, "-l", LOG, "-w", "-t", "60", "-m", "fast", "restart"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.over.set()

    def __call__(self, program):
        keys = [f"{program.name}-restart-{number}" for number in range(RESTARTED // 2)]
        answers = [program.buy(key) for key in keys]
        self.begin.wait(PATIENCE)
        # at work until it is over, and for a while after that
        while not self.over.is_set() or len(keys) < RESTARTED:
            keys.append(f"{program.name}-restart-{len(keys)}")
            answers.append(program.buy(keys[-1]))
        good = sum(answer[0] == "200" for answer in answers)
        most = max(answer[2] for answer in answers)
        return (f"{good} of {len(keys)} answered, after {most} tries at most; {counted(keys)}",
                self.status == 0 and good == len(keys) and once(keys)
                and (most > 1 or program.repeats))


def document():
    """The programs that doc/clients.md shows, by their language."""
    text = (HERE / "../../doc/clients.md").read_text()
    return re.findall(r"^```(c|python|js|java|go)\n(.*?)^```$", text, re.M | re.S)


PROGRAMS = [
    Program("c", "libpq", "buy.c", ["./buy"], "SELECT 1"),
    Program("python", "psycopg", "buy.py", ["/usr/bin/python3", "-B", "buy.py"], "COMMIT"),
    Program("node", "node-postgres", "buy.js", ["node", "buy.js"], "SELECT 1"),
    Program("java", "JDBC", "Buy.java",
            ["java", "-XX:TieredStopAtLevel=1", "-cp", "/usr/share/java/postgresql.jar:.", "Buy"],
            "COMMIT", tcp=True),
    Program("go", "Go, lib/pq", "buy.go", ["./buy"], "SELECT 1", repeats=True),
]


def main():
    promises = Promises("clients")
    shown = dict(document())
    same = [program for program in PROGRAMS
            if shown.get({"node": "js"}.get(program.name, program.name))
            == (HERE / program.name / program.source).read_text()]
    promises.keep("doc/clients.md shows the programs as they are",
                  f"{len(same)} of {len(PROGRAMS)} the same",
                  same == PROGRAMS and len(document()) == len(PROGRAMS))
    for program in PROGRAMS:
        program.listen()
        run_sql(f"CREATE SEQUENCE shop.raised_{program.name}")
    run_sql("""
        CREATE FUNCTION shop.raise_as_told() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            state text := substring(NEW.reference from '-raise-(.*)');
        BEGIN
            IF state IS NOT NULL AND nextval('shop.raised_' || NEW.sku) % 2 = 1 THEN
                RAISE 'as told' USING ERRCODE = state;
            END IF;
            RETURN NEW;
        END $$""", """
        CREATE TRIGGER as_told BEFORE INSERT ON shop.sales
            FOR EACH ROW EXECUTE FUNCTION shop.raise_as_told()""",
        "ALTER FUNCTION shop.raise_as_told() SECURITY DEFINER")

    def scene(*arguments, **options):
        everywhere(PROGRAMS, *arguments, promises, **options)

    scene("a repeat gets the same bytes", replay, direct=True)
    scene("another request with the key is refused, without a retry", mismatch)
    scene("the reply is lost: its own loop gets the replay", lost_reply)
    scene("all replies are lost: it gives up, and the key still counts", gives_up)
    scene("SQLSTATEs worth a retry, and others", states)
    scene("57P01: the backend is terminated", terminated)

    run_sql("SELECT idempotency.idem_policy('orders', wait => '30 s')",
            "ALTER ROLE shop_web SET default_transaction_isolation = 'repeatable read'")
    scene("40001: a rival commits the key meanwhile", conflict)

    run_sql("SELECT idempotency.idem_policy('orders', wait => '0')",
            "ALTER ROLE shop_web RESET default_transaction_isolation")
    scene("in_progress: somebody else is at work", busy)

    run_sql("SELECT idempotency.idem_policy('orders', wait => '1 s')")
    admin().close()
    scene("the server is restarted", Restart())

    # Over all scenes: what left the stock is what was sold.
    sold = one("SELECT count(*) FROM shop.sales")
    left = one("SELECT sum(1000000 - quantity) FROM shop.stock")
    twice = one("SELECT count(*) FROM (SELECT FROM shop.sales GROUP BY reference"
                " HAVING count(*) > 1) AS twice")
    promises.keep("no purchase ran twice", f"{sold} sales, {left} articles gone, {twice} twice",
                  sold == left and twice == 0 and sold > 0)
    for program in PROGRAMS:
        program.proxy.close()
    return promises.finish()


sys.exit(main())
