"""PgBackend: the idempotency store of an async Python server with many workers.

    backend = PgBackend(pool=AsyncConnectionPool(...))
    await backend.create_schema()

    async with backend.transaction(scope, key, payload_hash) as turn:
        if turn.record is None:                     # the key is ours, and so is the work
            await turn.conn.execute("INSERT INTO orders ...")
            await turn.put({"order": 1})
    return turn.record                              # ours, or that of the first

The work, its key and its answer commit together or not at all.  get(), put() and
delete_expired() by themselves take a connection of the pool for each call.
"""

import contextlib
import json
import logging
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

log = logging.getLogger(__name__)

# Checks of idem_health() which tell how it runs.  All others tell whether the
# tables, and what guards them, are as the extension made them.
RUNNING = {"worker", "pg_cron", "sweep_lag", "audit_seals", "buckets", "publications",
           "audit_partitions", "audit_refusals", "roles",
           "server_version"}

STARTING = 0x61646370   # advisory lock: workers that start together take turns
SWEEP = 10_000          # expired records that delete_expired() removes at a time


class IdempotencyError(Exception):
    """What a caller has to expect.  No message contains a scope or a key."""


class PayloadMismatch(IdempotencyError):
    """This scope and key belong to another payload."""


class AlreadyStored(IdempotencyError):
    """Another put was first: roll back, and answer with what get() returns."""


class InProgress(IdempotencyError):
    """Another put has not ended yet: ask again, with the same key."""


class Full(IdempotencyError):
    """The scope holds as many live records as it may."""


class SchemaError(IdempotencyError):
    """The extension is missing, elsewhere, or has not the shape that it should have."""


ERRORS = {"ID003": AlreadyStored, "ID004": InProgress, "ID005": PayloadMismatch, "ID009": Full,
          "ID008": ValueError, "ID012": ValueError, "22004": ValueError, "22023": ValueError}
REFUSALS = {"mismatch": PayloadMismatch, "in_progress": InProgress}


@dataclass(frozen=True)
class Scope:
    """Whose key it is.  repr() shows nothing, so that no log has the principal."""
    tenant: str = field(repr=False)
    principal: str = field(repr=False)


@dataclass(frozen=True)
class Record:
    payload_hash: str                       # SHA-256, in hex
    response: bytes = field(repr=False)
    content_type: str
    expires_at: datetime                    # in UTC
    first: bool = False                     # stored by this very call

    def json(self):
        return json.loads(self.response)


class Turn:
    """What transaction() gives: the connection, and the record, if there is one."""

    def __init__(self, backend, conn, names, record):
        self.conn, self.record = conn, record
        self._backend, self._names = backend, names

    async def put(self, response, content_type=None):
        if self.record is not None:
            raise AlreadyStored("there is a record already")
        self.record = await self._backend._complete(
            self.conn, self._names, *_encode(response, content_type))
        return self.record

    def forget(self):
        """What put() has stored in this transaction is undone with it."""
        if self.record is not None and self.record.first:
            self.record = None


class PgBackend:
    """pool: a psycopg_pool.AsyncConnectionPool.  schema: where the extension is.
    policy: its policy for our keys, which create_schema() sets: ttl is the life of
    a record, max_live_keys the cap on records of one scope, and wait how long a put
    waits for the outcome of another one on the same key."""

    def __init__(self, pool, *, schema="idempotency", policy="adcp", ttl=timedelta(hours=24),
                 max_live_keys=10_000, wait=timedelta(seconds=10)):
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,62}", schema):
            raise ValueError("the schema's name must be an ASCII identifier")
        if ttl <= timedelta(0):             # to the extension, 0 is for ever
            raise ValueError("ttl must be positive")
        self.pool, self.schema, self.policy = pool, schema, policy
        self.ttl, self.max_live_keys, self.wait = ttl, max_live_keys, wait

    async def create_schema(self):
        """Create the extension where it is missing, as a superuser; refuse one that
        is not as it should be; set the policy."""
        try:
            async with self.pool.connection() as conn, conn.transaction():
                await conn.execute("SELECT pg_advisory_xact_lock(%s)", (STARTING,))
                await self._create_extension(conn)
                await self._check_health(conn)
                # A key is claimed and finished in one transaction: the server
                # lets no other one commit.  Nobody ever waits for a lease, but
                # an expired row stays for as long as it.
                await self._call(
                    conn, "SELECT {0}.idem_policy(%(policy)s, completed_ttl => %(ttl)s,"
                    " lease => '1 second', on_unfinished => 'error', wait => %(wait)s,"
                    " on_expiry => 'reuse',"
                    " require_fingerprint => true, max_live_keys => %(cap)s)",
                    dict(ttl=self.ttl, wait=self.wait, cap=self.max_live_keys))
        except (psycopg.ProgrammingError, psycopg.NotSupportedError) as error:
            raise SchemaError(f"not usable: {error.diag.message_primary}") from error

    async def get(self, scope, key):
        """The live record, or None."""
        async with self.pool.connection() as conn:
            row = await self._call(
                conn, "SELECT r.*, {0}.idem_log_id(s) AS scope_id"
                " FROM {0}.idem_scope(%(tenant)s, %(principal)s) s,"
                " LATERAL {0}.idem_lookup(s, %(key)s) r", _names(scope, key))
        log.debug("get in scope %s: %s", row["scope_id"], row["outcome"])
        return _record(row) if row["outcome"] == "completed" else None

    async def put(self, scope, key, payload_hash, response, *, content_type=None,
                  expires_at=None, conn=None):
        """Store a record, unless there is a live one; returns the one that stays.
        The response is bytes, or a value that becomes JSON.

        With conn, the connection of the handler, the record is part of the
        transaction that is open there.  If another put was first, this raises
        AlreadyStored, and the server no longer lets that transaction commit."""
        if conn is None:
            async with self.transaction(scope, key, payload_hash, expires_at=expires_at) as turn:
                if turn.record is None:
                    await turn.put(response, content_type)
            return turn.record
        if conn.autocommit and conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            raise ValueError("conn has no transaction open that the record could be part of")
        names, encoded = _names(scope, key, payload_hash), _encode(response, content_type)
        await self._claim(conn, "idem_require", names, expires_at)
        return await self._complete(conn, names, *encoded)

    @contextlib.asynccontextmanager
    async def transaction(self, scope, key, payload_hash, *, expires_at=None):
        """A transaction in which the key is claimed before the work: of many callers
        one has the work to do, and the others wait for its record."""
        names = _names(scope, key, payload_hash)
        turn = None
        try:
            async with self.pool.connection() as conn, conn.transaction():
                row = await self._claim(conn, "idem_claim", names, expires_at)
                if row["outcome"] not in ("claimed", "replayed"):
                    refusal = REFUSALS.get(row["outcome"], IdempotencyError)
                    raise refusal(f"the key of this put is: {row['outcome']}")
                turn = Turn(self, conn, names,
                            _record(row) if row["outcome"] == "replayed" else None)
                try:
                    yield turn
                except BaseException:       # psycopg.Rollback, too, which ends here
                    turn.forget()
                    raise
        except psycopg.Error as error:
            if error.sqlstate != "ID011":   # by COMMIT: no put(), or a savepoint undid it
                raise
            turn.forget()
            raise IdempotencyError("the transaction ended without put()") from error

    async def delete_expired(self):
        """Remove expired records, a batch at a time; returns how many."""
        deleted, swept = 0, SWEEP
        while swept == SWEEP:
            async with self.pool.connection() as conn:
                row = await self._call(conn, "SELECT {0}.idem_sweep(%(rows)s) AS swept",
                                       dict(rows=SWEEP))
            swept = row["swept"]
            deleted += swept
        return deleted

    async def _create_extension(self, conn):
        async def where():
            return await self._call(conn, "SELECT nspname FROM pg_extension JOIN pg_namespace n"
                                    " ON n.oid = extnamespace WHERE extname = 'idempotency'")

        if await where() is None:
            for command in ("CREATE SCHEMA IF NOT EXISTS {0}",
                            "CREATE EXTENSION IF NOT EXISTS idempotency SCHEMA {0} CASCADE"):
                await conn.execute(sql.SQL(command).format(sql.Identifier(self.schema)))
        found = (await where())["nspname"]
        if found != self.schema:
            raise SchemaError(f"the extension is in the schema {found}, not in {self.schema}")

    async def _check_health(self, conn):
        query = sql.SQL("SELECT check_name, ok, detail FROM {}.idem_health()")
        cursor = await conn.execute(query.format(sql.Identifier(self.schema)))
        wrong = []
        for name, ok, detail in await cursor.fetchall():
            if not ok and name not in RUNNING:
                wrong.append(f"{name}: {detail}")
            elif not ok:
                log.warning("%s: %s", name, detail)
        if wrong:
            raise SchemaError("not as it should be: " + "; ".join(wrong))

    async def _claim(self, conn, function, names, expires_at):
        """By idem_claim: a row, whose outcome the caller looks at.  By idem_require:
        an error at the server, unless the key is ours."""
        row = await self._call(
            conn, "SELECT r.*, {0}.idem_log_id(s) AS scope_id"
            " FROM {0}.idem_scope(%(tenant)s, %(principal)s) s, LATERAL {0}." + function +
            "(s, %(key)s, fingerprint => %(hash)s, policy => %(policy)s, ttl => %(ttl)s) r",
            names | dict(ttl=_ttl(expires_at)))
        log.debug("put in scope %s: %s", row["scope_id"], row.get("outcome", "claimed"))
        return row

    async def _complete(self, conn, names, body, content_type):
        row = await self._call(
            conn, "SELECT expires_at FROM {0}.idem_complete("
            "{0}.idem_scope(%(tenant)s, %(principal)s), %(key)s,"
            " %(body)s::bytea, content_type => %(type)s)",
            names | dict(body=body, type=content_type))
        return Record(names["hash"].hex(), body, content_type, _utc(row["expires_at"]), True)

    async def _call(self, conn, query, values=None):
        """One row, or None.  What the extension refuses becomes an error of ours."""
        try:
            async with conn.cursor(row_factory=dict_row) as cursor:
                await cursor.execute(sql.SQL(query).format(sql.Identifier(self.schema)),
                                     dict(values or {}, policy=self.policy))
                return await cursor.fetchone()
        except psycopg.Error as error:
            if error.sqlstate in ERRORS:
                raise ERRORS[error.sqlstate](error.diag.message_primary) from error
            raise


def _names(scope, key, payload_hash=None):
    names = dict(tenant=scope.tenant, principal=scope.principal, key=key)
    if payload_hash is not None:
        if not re.fullmatch("[0-9A-Fa-f]{64}", payload_hash):
            raise ValueError("payload_hash must be a SHA-256 in hex")
        names["hash"] = bytes.fromhex(payload_hash)
    return names


def _ttl(expires_at):
    """None: as the policy says."""
    if expires_at is None:
        return None
    if expires_at.utcoffset() is None:
        raise ValueError("expires_at must have a time zone")
    ttl = expires_at - datetime.now(timezone.utc)
    if ttl <= timedelta(0):
        raise ValueError("expires_at is in the past")
    return ttl


def _utc(time):
    return time.astimezone(timezone.utc)


def _encode(response, content_type):
    if isinstance(response, (bytes, bytearray, memoryview)):
        return bytes(response), content_type or "application/octet-stream"
    text = json.dumps(response, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode(), content_type or "application/json"


def _record(row):
    return Record(row["fingerprint"].hex(), row["body"], row["content_type"],
                  _utc(row["expires_at"]))
