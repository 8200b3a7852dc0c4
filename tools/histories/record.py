"""What clients write down of a history."""

import dataclasses
import threading


@dataclasses.dataclass
class Line:
    """One statement, when it was sent, and what came back."""
    sql: str
    values: tuple
    begin: float
    end: float = None
    answer: str = "(no reply)"

    def __str__(self):
        if not self.values:
            return self.sql
        parts = self.sql.split("%s")
        return parts[0] + "".join(literal(value) + part
                                  for value, part in zip(self.values, parts[1:]))


def literal(value):
    """A value as SQL would have it."""
    if value is None:
        return "NULL"
    if isinstance(value, (bytes, bytearray)):
        return f"'\\x{bytes(value).hex()}'"
    if isinstance(value, list):
        return "ARRAY[" + ", ".join(map(literal, value)) + "]"
    if isinstance(value, (int, float)):
        return str(value)
    return "'" + str(value).replace("'", "''") + "'"


@dataclasses.dataclass
class Result:
    """What a call said of a key."""
    call: str                   # run, claim, complete, fail, lease, lookup, dedupe ...
    group: int
    key: str
    variant: int
    begun: float
    ended: float
    attempt: "Attempt"
    tx: "Tx"
    row: dict = dataclasses.field(default_factory=dict)
    stored: dict = None         # the answer that was given with it
    token: int = None           # that was presented
    wait: int = None
    first: bool = None          # of idem_dedupe
    own: bool = False           # the transaction had been at this key before
    undone: bool = False        # its savepoint was rolled back
    owner: str = None

    @property
    def end(self):
        return self.tx.end

    @property
    def outcome(self):
        return self.row.get("outcome")


class Tx:
    """One transaction of an attempt."""

    def __init__(self, committing):
        self.committing = committing    # the statement under way may commit it
        self.end = None                 # committed, aborted or unknown


class Attempt:
    """One try of an operation: a transaction, or several of a leased claim."""

    def __init__(self, client, op, number, plan, begun):
        self.client = client
        self.op = op
        self.number = number
        self.plan = plan
        self.iso = plan.get("iso", "READ COMMITTED")
        self.begun = begun
        self.ended = None
        self.tx = Tx(False)
        self.unknown = False            # of some transaction nobody knows whether it is there
        self.results = []
        self.errors = []                # (SQLSTATE, statement)
        self.lines = []
        self.gid = None

    @property
    def name(self):
        return f"{self.client}.{self.op}.{self.number}"

    def begin(self, committing=False):
        """The next transaction."""
        self.tx = Tx(committing)

    def finish(self, end):
        self.tx.end = self.tx.end or end
        self.unknown |= end == "unknown"

    def add(self, **values):
        result = Result(attempt=self, tx=self.tx, **values)
        self.results.append(result)
        return result

    def wrote(self, sql, values, now):
        line = Line(sql, values, now)
        self.lines.append(line)
        return line


class Journal:
    """The outside: work that no transaction holds, such as a payment.  It refuses a
    smaller token than it has seen, which is all that it does."""

    def __init__(self, fenced=True):
        self.fenced = fenced
        self.written = []           # (key, token, accepted), in order
        self._highest = {}
        self._lock = threading.Lock()

    def write(self, key, token):
        with self._lock:
            accepted = not self.fenced or token >= self._highest.get(key, 0)
            self._highest[key] = max(token, self._highest.get(key, 0))
            self.written.append((key, token, accepted))
            return accepted
