"""Where histories take place: the server that most share, and those of their own."""

import contextlib
import os
import struct
import time

from client import Pool
from proxy import Proxy
from server import Server

HERE = os.path.dirname(os.path.abspath(__file__))
WORK = os.environ["WORK"]


ENDING = ("terminate", "kill_backend", "kill_server", "failover")


class Unable(Exception):
    """This machine cannot do that, and why."""


class Arena:
    def __init__(self, name, server, database=None):
        self.name = name
        self.server = server
        self.database = database    # in place of that of the plan
        self.pool = Pool()
        self.proxy = Proxy(f"{WORK}/proxy.{name}")
        self.storage = None
        self.standby = None
        self.clock_offset = 0
        self.ready()

    def ready(self):
        self.proxy.upstream = f"{self.server.socket}/.s.PGSQL.5432"

    def before(self, plan, sabotage=None):
        """Called before each history."""

    def after(self, plan):
        """Called after each history.  Connections that a fault may have ended are no
        start for the next one."""
        if any(fault["do"] in ENDING for fault in plan["faults"]):
            self.pool.close()

    def close(self):
        self.pool.close()


class Fleet(Arena):
    """The server that lib.sh has started, with a database for each form of key table."""

    def __init__(self):
        super().__init__("fleet", Server(f"{WORK}/histories", os.environ["PGHOST"]))
        with contextlib.closing(self.server.operator("postgres")) as operator:
            operator.execute("CREATE ROLE client LOGIN")
            operator.execute("CREATE DATABASE pristine")
        with open(f"{HERE}/schema.sql", encoding="utf-8") as file:
            schema = file.read()
        with contextlib.closing(self.server.operator("pristine")) as operator:
            operator.execute(schema)
        self.create("main")
        self.create("parted")
        with contextlib.closing(self.server.operator("parted")) as operator:
            operator.execute(PARTITION)
        # What servers of their own begin with.
        self.server.stop()
        self.spare = self.server.copy("spare", f"{WORK}/spare.socket")
        self.server.start()

    def create(self, name, more=""):
        with contextlib.closing(self.server.operator("postgres")) as operator:
            operator.execute(f"CREATE DATABASE {name} TEMPLATE pristine {more}")

    def drop(self, name):
        with contextlib.closing(self.server.operator("postgres")) as operator:
            operator.execute(f"DROP DATABASE {name} (FORCE)")


# As doc/storage.md says.
PARTITION = """
BEGIN;
SET LOCAL search_path = idempotency, public;
ALTER EXTENSION idempotency DROP TABLE idempotency_keys;
ALTER TABLE idempotency_keys RENAME TO idempotency_keys_old;
ALTER TABLE idempotency_keys_old DROP CONSTRAINT idempotency_keys_pkey;
CREATE TABLE idempotency_keys (LIKE idempotency_keys_old INCLUDING COMMENTS,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (scope, key)) PARTITION BY HASH (scope, key);
CREATE TABLE idempotency_keys_1 PARTITION OF idempotency_keys
    FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE idempotency_keys_2 PARTITION OF idempotency_keys
    FOR VALUES WITH (MODULUS 2, REMAINDER 1);
DROP TABLE idempotency_keys_old;
CREATE INDEX idempotency_keys_purge_at ON idempotency_keys (purge_at);
ALTER EXTENSION idempotency ADD TABLE idempotency_keys;
COMMIT"""


class Small(Arena):
    """A database in a tablespace that is soon full; run has mounted a file system."""

    def __init__(self, fleet):
        place = os.environ.get("SMALL")
        if not place:
            raise Unable("no small file system could be mounted")
        with contextlib.closing(fleet.server.operator("postgres")) as operator:
            operator.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
        fleet.create("small", "TABLESPACE small")
        # CREATE DATABASE leaves holes in its files, which must be filled while there is room.
        with contextlib.closing(fleet.server.operator("postgres")) as operator:
            operator.execute("CHECKPOINT")
        super().__init__("small", fleet.server, "small")


class Clock(Arena):
    """A server of its own, whose clock can be set: see moved_clock.c."""

    def __init__(self, fleet):
        self.clock_offset = 0
        self.file = open(f"{WORK}/clock", "wb", buffering=0)
        self.set_clock()
        server = fleet.spare.copy("clock.data", f"{WORK}/clock.socket", environment={
            "LD_PRELOAD": f"{WORK}/moved_clock.so", "MOVED_CLOCK": self.file.name})
        server.start()
        super().__init__("clock", server)
        with contextlib.closing(server.operator("main")) as operator:
            before = operator.execute("SELECT clock_timestamp()").fetchone()[0]
            self.clock_offset = 1000
            self.set_clock()
            after = operator.execute("SELECT clock_timestamp()").fetchone()[0]
            if not 990 < (after - before).total_seconds() < 1100:
                raise Unable("the server's clock does not move")

    def set_clock(self):
        os.pwrite(self.file.fileno(), struct.pack("=q", self.clock_offset), 0)

    def before(self, plan, sabotage=None):
        self.clock_offset = self.clock_highest = 0
        self.set_clock()

    def close(self):
        super().close()
        self.server.remove()
        self.file.close()


class Failover(Arena):
    """A primary and a standby for each history.  The standby that took over is the next
    primary."""

    def __init__(self, fleet):
        self.fleet = fleet
        self.number = 0
        server = fleet.spare.copy("server0", f"{WORK}/server0.socket")
        server.start()
        super().__init__("failover", server)

    def before(self, plan, sabotage=None):
        self.number += 1
        name = f"server{self.number}"
        self.standby = self.server.standby(name, f"{WORK}/{name}.socket")
        self.standby.start()
        self.ready()
        way = "off" if plan["asynchronous"] else "remote_apply"
        with contextlib.closing(self.server.operator("postgres")) as operator:
            deadline = time.monotonic() + 30
            while not operator.execute(
                    "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
                    ).fetchone()[0]:
                if time.monotonic() > deadline:
                    raise RuntimeError("the standby does not follow")
                time.sleep(0.05)
            operator.execute(f"ALTER SYSTEM SET synchronous_commit = {way}")
            names = "" if plan["asynchronous"] else "*"
            operator.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
            operator.execute("SELECT pg_reload_conf()")

    def after(self, _plan):
        """Whichever serves now goes on; the other is removed."""
        self.pool.close()
        old, new = self.server, self.standby
        if promoted(new):
            self.server = new
        else:
            with contextlib.closing(old.operator("postgres")) as operator:
                operator.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
                operator.execute("SELECT pg_reload_conf()")
            old = new
        old.remove()
        self.ready()

    def close(self):
        super().close()
        self.server.remove()


def promoted(server):
    with contextlib.closing(server.operator("postgres")) as operator:
        return not operator.execute("SELECT pg_is_in_recovery()").fetchone()[0]
