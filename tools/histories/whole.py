"""What must be true of a database after many histories."""

import contextlib
import os
import re
import subprocess

import psycopg

VERIFY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "verify-audit")
LOGGED = re.compile(r"PANIC|TRAP|signal 11|signal 6|stack smashing"
                    r"|\] XX\w{3} (ERROR|FATAL)")
GROWTH = 512 * 1024     # bytes by which a session may grow that has done it all before
KEY_TABLES = "'idempotency_keys', 'idempotency_leases'"


def check(server, database, veteran=None):
    """Problems, as texts."""
    problems = []
    with contextlib.closing(server.operator(database)) as operator:
        for part in (rows, pages, seals):
            try:
                problems += part(operator)
            except psycopg.Error as error:
                problems.append(f"{part.__name__}: {error.sqlstate} {error}".strip())
    problems += logged(server)
    if veteran:
        problems += veteran.check()
    return problems


def rows(operator):
    """No key twice, which no index is asked."""
    operator.execute("SET enable_indexscan = off; SET enable_indexonlyscan = off;"
                     " SET enable_bitmapscan = off")
    twice = operator.execute("SELECT count(*) FROM (SELECT FROM idempotency_keys"
                             " GROUP BY scope, key HAVING count(*) > 1) s").fetchone()[0]
    return [f"rows: {twice} keys have several rows"] if twice else []


def pages(operator):
    """amcheck: every row is in every index, and every page is sound."""
    problems = []
    tables = "SELECT c.oid FROM pg_class c WHERE c.relnamespace = 'idempotency'::regnamespace" \
             " AND c.relkind = 'r' OR c.oid IN ('effect'::regclass, 'ended'::regclass)"
    for name, in operator.execute(
            f"SELECT i.indexrelid::regclass FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid"
            f" JOIN pg_am a ON a.oid = x.relam WHERE i.indrelid IN ({tables})"
            " AND a.amname = 'btree' AND i.indisvalid AND x.relkind = 'i'").fetchall():
        try:
            operator.execute("SELECT bt_index_check(%s::regclass, true)", (name,))
        except psycopg.Error as error:
            problems.append(f"pages: {name}: {error.diag.message_primary}")
    for name, block, text in operator.execute(
            f"SELECT t.oid::regclass, v.blkno, v.msg FROM ({tables}) t, verify_heapam(t.oid) v"
            ).fetchall():
        problems.append(f"pages: {name}, block {block}: {text}")
    return problems


def seals(operator):
    """The audit log against its seals: by the extension, and by a program that has only
    the exported tables."""
    operator.execute("SET statement_timeout = '60s'")
    operator.execute("SELECT idem_audit_seal()")
    problems = [f"seals: segment {row[0]}: {row[1]} {row[2]}" for row in
                operator.execute("SELECT * FROM idem_audit_verify()").fetchall()]
    folder = os.environ["WORK"]
    # before the export: the worker may seal meanwhile
    digest = operator.execute("SELECT idem_audit_digest()").fetchone()[0]
    operator.execute("SET timezone = 'UTC'; SET datestyle = 'ISO, YMD'; SET bytea_output = 'hex'")
    operator.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    for name, order in ("log", "id"), ("seals", "segment"):
        with open(f"{folder}/audit.{name}", "wb") as file, operator.cursor().copy(
                f"COPY (SELECT * FROM idempotency_audit_{name} ORDER BY {order})"
                " TO STDOUT") as copy:
            for data in copy:
                file.write(data)
    keys = operator.execute("SELECT key_id, encode(secret, 'hex') FROM idempotency_secrets"
                            " WHERE purpose = 'audit' AND secret <> ''").fetchall()
    operator.execute("COMMIT")
    command = ["/usr/bin/python3", "-B", VERIFY, f"{folder}/audit.log", f"{folder}/audit.seals",
               "--digest", digest]
    for number, secret in keys:
        with open(f"{folder}/audit.key{number}", "w", encoding="ascii") as file:
            file.write(secret)
        command += ["--key", f"{number}={folder}/audit.key{number}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        problems += [f"verify-audit: {line}" for line in
                     (run.stdout + run.stderr).strip().splitlines()[:5]]
    return problems


_read = {}


def logged(server):
    """What the server says in its log that it should never have to."""
    problems = []
    with contextlib.suppress(FileNotFoundError), open(server.log, encoding="utf-8",
                                                      errors="replace") as file:
        file.seek(_read.get(server.log, 0))
        for line in file:
            if LOGGED.search(line):
                problems.append(f"log: {line.strip()[:300]}")
        _read[server.log] = file.tell()
    return problems[:5]


def trim(server, database):
    """Forget the histories that were, so that the next ones find small tables."""
    with contextlib.closing(server.operator(database)) as operator:
        # What a REINDEX CONCURRENTLY left that lost against a client, also where a VACUUM
        # FULL has made it valid: each next one would double it.
        for name, in operator.execute("SELECT indexrelid::regclass FROM pg_index"
                                      " WHERE indexrelid::regclass::text ~ '_cc(new|old)'"
                                      ).fetchall():
            operator.execute(f"DROP INDEX {name}")
        operator.execute("TRUNCATE effect, ended, idempotency_keys, idempotency_leases")
        operator.execute("SELECT idem_audit_prune(clock_timestamp())")


class Veteran:
    """A session that does the same again and again, and whose memory must not grow."""

    WORK = [
        "SELECT * FROM idem_run('work_jsonb(jsonb)', 'veteran', %(key)s, %(request)s::jsonb)",
        "SELECT * FROM idem_run('work_jsonb(jsonb)', 'veteran', %(key)s, %(request)s::jsonb)",
        "SELECT * FROM idem_claim('veteran', %(key)s, '{}', policy => 'keep')",
        "BEGIN", "SELECT * FROM idem_claim('veteran', %(key)s || ' tx', policy => 'keep')",
        "SAVEPOINT s", "SELECT * FROM idem_complete('veteran', %(key)s || ' tx', '{}'::json)",
        "ROLLBACK TO s", "SELECT * FROM idem_fail('veteran', %(key)s || ' tx', '{}'::jsonb)",
        "COMMIT", "SELECT * FROM idem_dedupe('veteran', ARRAY[%(key)s || ' in'])",
        "SELECT * FROM idem_recover('lease', 5)",
        "SELECT * FROM idem_complete('veteran', 'nothing', '{}'::json)",
        "SELECT idem_forget('veteran', %(key)s)"]

    def __init__(self, server, database, patience=3):
        self.patience = patience        # a cache may grow, but not again and again
        self.server = server
        self.database = database
        self.first = None
        self.runs = 0
        self.connection = server.connect(database, user="postgres", name="veteran")

    def work(self, rounds):
        """Each way to the key table has plans of its own: both are taken, lest the session
        seem to grow when the other comes."""
        for number in range(rounds):
            self.runs += 1
            self.connection.execute("SET idempotency.storage = "
                                    + ("auto" if number % 2 else "sql"))
            values = {"key": f"v{self.runs}", "request":
                      '{"scope": "veteran", "key": "v", "variant": 0}'}
            for sql in self.WORK:
                try:
                    self.connection.execute(sql, values if "%(" in sql else None)
                except psycopg.DatabaseError as error:
                    if error.sqlstate != "ID001":
                        raise
        # What is used: the blocks that hold it come in powers of two, and caches that are
        # built anew leave holes in them.
        return dict(self.connection.execute(
            "SELECT name, sum(used_bytes)::bigint FROM pg_backend_memory_contexts"
            " GROUP BY name").fetchall())

    def check(self):
        try:
            now = self.work(60)
        except psycopg.OperationalError:    # the server was killed since
            self.connection.close()
            self.connection = self.server.connect(self.database, user="postgres", name="veteran")
            self.first = None
            now = self.work(60)
        if self.first is None:
            self.work(60)
            self.first = self.work(60)
            return []
        before, size = sum(self.first.values()), sum(now.values())
        if size <= before + GROWTH:
            return []
        self.patience -= 1
        if self.patience > 0:
            self.first = now
            return []
        grown = sorted(((used - self.first.get(name, 0), name) for name, used in now.items()),
                       reverse=True)[:3]
        return [f"memory: a session grew from {before} to {size} bytes: "
                + ", ".join(f"{name} by {more}" for more, name in grown)]
