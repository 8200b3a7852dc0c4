"""ASGI: FastAPI, Starlette and others.

    pool = asgi.pool("dbname=shop user=web_app")
    app.add_middleware(asgi.Idempotency, pool=pool, principal=…)

A handler finds its connection, a psycopg.AsyncConnection, in
request.scope["idempotency.db"]."""

import asyncio
import contextlib
import inspect

import psycopg
import psycopg_pool
from psycopg.rows import namedtuple_row

from .answer import Collected, Undone, refusal
from .core import Adapter, Noting, Request


class Connection(Noting, psycopg.AsyncConnection):
    async def wait(self, *args, **kwargs):
        try:
            return await super().wait(*args, **kwargs)
        except psycopg.Error as error:
            self.note(error)
            raise


def pool(conninfo="", *, kwargs=None, **options):
    """A psycopg_pool.AsyncConnectionPool, also for a pooler of transactions; the first
    request opens it."""
    return psycopg_pool.AsyncConnectionPool(
        conninfo, connection_class=Connection, open=False,
        kwargs={"prepare_threshold": None, **(kwargs or {})}, **options)


class Idempotency(Adapter):
    tasks = set()                               # asyncio keeps none alive by itself

    async def __call__(self, scope, receive, send):
        policy = scope["type"] == "http" and self.policy(scope["method"], scope["path"])
        if not policy:
            return await self.app(scope, receive, send)
        try:
            body = await read(receive, self.max_body)
            if body is None:                    # the client has gone
                return
            headers = decode(scope["headers"])
            keys = [value for name, value in headers if name == "idempotency-key"]
            principal = self.principal(scope)
            request = Request(
                await principal if inspect.isawaitable(principal) else principal, scope["method"], scope["path"],
                scope["query_string"].decode("latin-1"), ", ".join(keys) if keys else None,
                dict(headers).get("content-type", ""), body, policy)
            # A task of its own goes on to its end where we are cancelled, by a time-out or
            # for a client that has gone: no connection is left inside a transaction.
            task = asyncio.ensure_future(self.respond(request, lambda db: self.work(db, scope, receive, body)))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            answer = await asyncio.shield(task)
        except Undone as refused:
            answer = refused.answer
        await send({"type": "http.response.start", "status": answer.status, "headers": [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in answer.headers]})
        await send({"type": "http.response.body", "body": answer.body})
        if answer.error:
            raise answer.error

    async def work(self, db, scope, receive, body):
        """The application's answer, which it may have to give more than once."""
        unread = [{"type": "http.request", "body": body, "more_body": False}]
        collected = Collected(self.max_answer)

        async def receive_again():
            return unread.pop() if unread else await receive()

        async def collect(message):
            if message["type"] == "http.response.start":
                collected.start(message["status"], decode(message.get("headers", [])))
            elif message["type"] == "http.response.body":
                collected.add(message.get("body", b""), message.get("more_body", False))

        try:
            await self.app({**scope, "idempotency.db": db, "extensions": {}}, receive_again, collect)
        except Exception as error:
            return collected.answer(error)
        return collected.answer()

    @contextlib.asynccontextmanager
    async def connection(self):
        await self.pool.open()
        async with self.pool.connection() as db:
            yield db

    def transaction(self, db):
        return db.transaction()

    async def row(self, db, statement, parameters):
        cursor = await db.cursor(row_factory=namedtuple_row).execute(statement, parameters)
        return await cursor.fetchone()

    async def check(self):
        await self.pool.check()

    async def pause(self, seconds):
        await asyncio.sleep(seconds)


def decode(headers):
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers]


async def read(receive, limit):
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:
            raise Undone(refusal(413, f"The request has more than {limit} bytes."))
    return body
