"""A client of a history: does its operations one after the other, each until it is
settled, and writes down what it asked, what it was told, and what it does not know."""

import random
import threading
import time

import psycopg

import work
from record import Attempt

TRIES = 12
LOST = ("08", "57P")                # SQLSTATEs after which there is no connection
REPEAT = {"40001", "40P01", "57014", "53100", "53200", "55P03", "ID004", "25006", "25P02"}
COLUMNS = """outcome::text, attempt, token, status_code, headers::text, content_type, body,
 body_size, body_sha256, recovery_point, checkpoint::text, fingerprint, created_at, finished_at,
 lease_until, expires_at, retry_after_ms, http_status, error_code""".replace("\n", "")
NAMES = [name.split("::")[0] for name in COLUMNS.replace(" ", "").split(",")] + ["began", "ended", "xid"]
RESULT = (COLUMNS + ", statement_timestamp(), clock_timestamp(),"
          " pg_current_xact_id_if_assigned()::text")


class Failed(Exception):
    """A statement was refused, or the connection is gone."""

    def __init__(self, sqlstate, message):
        super().__init__(f"{sqlstate} {message}")
        self.sqlstate = sqlstate
        self.lost = sqlstate.startswith(LOST)


class Again(Exception):
    """The key is in progress elsewhere: roll back and repeat later."""


class Client:
    def __init__(self, history, number, ops):
        self.history = history
        self.number = number
        self.ops = ops
        self.plain = None           # a connection
        self.cut = None             # one that will break
        self.link = None
        self.attempt = None

    # connections

    def connect(self, host=None):
        """Waits for a server that is down."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.history.server.connect(
                    self.history.database, host=host, name=f"client {self.number}",
                    options=self.history.options)
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self.history.over.is_set():
                    raise Failed("08001", "no server") from None
                time.sleep(0.02)

    def connection(self):
        if self.cut:
            return self.cut
        if self.plain is None or self.plain.closed or self.plain.broken:
            self.plain = self.history.pool.take(self)
        return self.plain

    def may_break(self, cut):
        """The operation's connection goes through the proxy."""
        proxy = self.history.proxy
        if cut and proxy:
            self.cut, self.link = proxy.connect(lambda: self.connect(proxy.folder))

    def arm(self, cut):
        if cut and self.link:
            self.link.cut(cut["way"], cut["bytes"])

    def drop(self):
        """The connection is of no use any more."""
        for connection in self.cut, self.plain:
            if connection and (connection is self.cut or connection.closed or connection.broken):
                connection.close()
        self.cut = self.link = None

    # statements

    def query(self, sql, *values):
        """Rows as lists."""
        attempt = self.attempt
        line = attempt.wrote(sql, values, self.history.clock())
        try:
            cursor = self.connection().execute(sql, values or None)
            rows = cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            state = error.sqlstate or "08006"
            line.answer = f"ERROR {state}: {(error.diag.message_primary or str(error)).strip()}"
            line.end = self.history.clock()
            attempt.errors.append((state, sql))
            raise Failed(state, str(error).strip()) from None
        line.answer = "; ".join(" ".join(map(show, row)) for row in rows)
        line.end = self.history.clock()
        return rows

    def result(self, call, group, act, sql, *values):
        """One row of an idem_result, written down."""
        begun = self.history.clock()
        row = self.query(f"SELECT {RESULT} FROM {sql}", *values)[0]
        return self.attempt.add(call=call, group=group, key=act["key"], variant=act.get("v"),
                                begun=begun, ended=self.history.clock(),
                                row=dict(zip(NAMES, row)), wait=act.get("wait"))

    # operations

    def run(self):
        try:
            for number, op in enumerate(self.ops):
                if self.history.over.is_set():
                    break
                self.history.tick()
                if "pause" in op:
                    time.sleep(op["pause"] / 1000)
                self.repeat(number, op)
        except Failed:              # the server did not come back
            pass
        except Exception as error:  # a mistake of ours must be seen
            self.history.mistakes.append(error)
        finally:
            self.drop()
            if self.plain is not None:
                self.history.pool.give(self, self.plain)

    def repeat(self, number, op):
        rng = random.Random(f"{self.history.plan['seed']} {self.number} {number}")
        for attempt in range(TRIES):
            if self.history.over.is_set():
                return
            cut = op.get("cut") if attempt == 0 else None
            self.attempt = Attempt(self.number, number, attempt, op, self.history.clock())
            self.history.attempts.append(self.attempt)
            try:
                self.may_break(cut)
                settled = work.DO[op["op"]](self, op, cut, rng)
            except Again:
                settled = False
                self.roll_back()
            except Failed as failure:
                settled = failure.sqlstate not in REPEAT and not failure.lost
                self.failed(failure)
            finally:
                self.attempt.ended = self.history.clock()
                self.drop()
            if settled:
                return
            time.sleep(rng.uniform(0.002, 0.03))

    def failed(self, failure):
        """What became of the transaction.  Only its end leaves that open."""
        tx = self.attempt.tx
        is_open = failure.lost and tx.committing or self.attempt.gid
        self.attempt.finish("unknown" if is_open else "aborted")
        if not failure.lost:
            self.roll_back()

    def roll_back(self):
        """Whatever is left to roll back."""
        self.attempt.finish("aborted")
        try:
            connection = self.connection()
            if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                connection.execute("ROLLBACK")
        except (psycopg.Error, Failed):
            pass


class Pool:
    """Connections that outlive a history, by the number of the client: sessions with
    caches, prepared statements and memory of their own."""

    def __init__(self):
        self._kept = {}
        self._lock = threading.Lock()

    def take(self, client):
        place = (client.history.server.socket, client.history.database, client.number,
                 client.history.options)
        with self._lock:
            kept = self._kept.pop(place, None)
        if kept and not kept.closed and not kept.broken:
            return kept
        return client.connect()

    def give(self, client, connection):
        idle = psycopg.pq.TransactionStatus.IDLE
        if connection.closed or connection.broken or connection.info.transaction_status != idle:
            connection.close()
            return
        place = (client.history.server.socket, client.history.database, client.number,
                 client.history.options)
        with self._lock:
            other = self._kept.pop(place, None)
            self._kept[place] = connection
        if other:
            other.close()

    def connections(self):
        with self._lock:
            return list(self._kept.values())

    def close(self):
        with self._lock:
            for connection in self._kept.values():
                connection.close()
            self._kept.clear()


def show(value):
    """Short, for a report."""
    if value is None:
        return "-"
    if isinstance(value, (bytes, memoryview)):
        text = bytes(value).hex()
        return "\\x" + (text if len(text) <= 40 else text[:40] + "...")
    text = str(value)
    return text if len(text) <= 80 else text[:80] + "..."
