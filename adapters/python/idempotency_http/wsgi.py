"""WSGI: Flask, Django and others.

    pool = wsgi.pool("dbname=shop user=web_app")
    app.wsgi_app = wsgi.Idempotency(app.wsgi_app, pool, principal=…)

A handler finds its connection, a psycopg.Connection, in environ["idempotency.db"]."""

import contextlib
import http.client
import io
import time

import psycopg
import psycopg_pool
from psycopg.rows import namedtuple_row

from .answer import Collected, Undone, refusal
from .core import Adapter, Noting, Request


class Connection(Noting, psycopg.Connection):
    def wait(self, *args, **kwargs):
        try:
            return super().wait(*args, **kwargs)
        except psycopg.Error as error:
            self.note(error)
            raise


def pool(conninfo="", *, kwargs=None, **options):
    """A psycopg_pool.ConnectionPool, also for a pooler of transactions; the first request
    opens it, and so a server may fork before."""
    return psycopg_pool.ConnectionPool(
        conninfo, connection_class=Connection, open=False,
        kwargs={"prepare_threshold": None, **(kwargs or {})}, **options)


class Idempotency(Adapter):
    def __call__(self, environ, start_response):
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        path = path.encode("latin-1").decode(errors="replace")
        policy = self.policy(environ["REQUEST_METHOD"], path)
        if not policy:
            return self.app(environ, start_response)
        try:
            body = read(environ, self.max_body)
            request = Request(
                self.principal(environ), environ["REQUEST_METHOD"], path,
                environ.get("QUERY_STRING", ""), environ.get("HTTP_IDEMPOTENCY_KEY"),
                environ.get("CONTENT_TYPE", ""), body, policy)
            answer = finish(self.respond(request, lambda db: self.work(db, environ, body)))
        except Undone as refused:
            answer = refused.answer
        start_response(f"{answer.status} {http.client.responses.get(answer.status, 'Unknown')}", answer.headers)
        return [answer.body]

    async def work(self, db, environ, body):
        """The application's answer, which it may have to give more than once."""
        collected = Collected(self.max_answer)

        def start(status, headers, exc_info=None):
            collected.start(int(status[:3]), headers)
            return lambda chunk: collected.add(chunk, True)

        inner = {**environ, "idempotency.db": db, "wsgi.input": io.BytesIO(body),
                 "CONTENT_LENGTH": str(len(body))}
        inner.pop("HTTP_TRANSFER_ENCODING", None)
        inner.pop("wsgi.file_wrapper", None)
        chunks = self.app(inner, start)
        # Django's answers say what they are.
        more = not isinstance(chunks, (list, tuple)) and getattr(chunks, "streaming", True)
        try:
            for chunk in chunks:
                collected.add(chunk, more)
            collected.add(b"", False)
        finally:
            getattr(chunks, "close", lambda: None)()
        return collected.answer()

    @contextlib.asynccontextmanager
    async def connection(self):
        self.pool.open()
        with self.pool.connection() as db:
            yield db

    @contextlib.asynccontextmanager
    async def transaction(self, db):
        with db.transaction():
            yield

    async def row(self, db, statement, parameters):
        return db.cursor(row_factory=namedtuple_row).execute(statement, parameters).fetchone()

    async def check(self):
        self.pool.check()

    async def pause(self, seconds):
        time.sleep(seconds)


def finish(coroutine):
    """The result of a coroutine that waits for nothing but such as above."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("a coroutine waits")


def read(environ, limit):
    """The body; one without a length only where the server says that it ends."""
    length, ends = environ.get("CONTENT_LENGTH") or "", environ.get("wsgi.input_terminated")
    if not length and "HTTP_TRANSFER_ENCODING" in environ and not ends:
        raise Undone(refusal(411, "The request has no Content-Length."))
    size = int(length) if length.isdigit() else limit + 1 if ends else 0
    body = environ["wsgi.input"].read(min(size, limit + 1))
    if len(body) > limit:
        raise Undone(refusal(413, f"The request has more than {limit} bytes."))
    if length and len(body) < size:
        raise Undone(refusal(400, "The request is shorter than its Content-Length says."))
    return body
