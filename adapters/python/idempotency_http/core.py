"""What asgi.py and wsgi.py have in common: claim, work, completion and COMMIT, and
what is repeated.  The coroutines wait for nothing but methods of a subclass and the
work, so that wsgi.py can run them without an event loop."""

import contextlib
import hashlib
import http
import json
import logging
import random
import re
import urllib.parse
from collections import namedtuple

import psycopg

PAUSES = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, 2]       # before the second try, the third, …
JSON = re.compile(r"application/([^;\s]+\+)?json\s*(;|$)", re.IGNORECASE)

NAME = "idempotency.idem_scope(%(principal)s, %(method)s, %(path)s), idempotency.idem_key(%(key)s)"
BODY = "convert_from(%(json)s::bytea, 'UTF8')::jsonb"
# The limiter is asked only where there is work: a CASE evaluates no more than it needs.
CLAIM = f"""
    SELECT r.outcome::text, r.http_status AS status, r.content_type, r.body,
           idempotency.idem_http_headers(r) AS headers, idempotency.idem_http_problem(r)::text AS problem,
           CASE WHEN r.outcome = 'claimed' AND %(limiter)s::text IS NOT NULL THEN
               (SELECT idempotency.idem_http_problem('rate_limited', retry_after_ms => t.retry_after_ms)::text
                  FROM idempotency.idem_throttle(%(limiter)s, %(principal)s) t WHERE NOT t.allowed)
           END AS limited
      FROM idempotency.idem_claim({NAME},
               CASE %(query)s::text WHEN '' THEN {BODY} ELSE jsonb_build_array(%(query)s::text, {BODY}) END,
               %(fingerprint)s::bytea, policy => %(policy)s) r"""
COMPLETE = f"""
    SELECT r.status_code AS status, r.content_type, r.body, idempotency.idem_http_headers(r) AS headers
      FROM idempotency.idem_complete({NAME}, %(body)s::bytea, status_code => %(status)s,
               headers => %(headers)s::json, content_type => %(content_type)s) r"""
UNCLAIMED = "SELECT idempotency.idem_http_problem(%(code)s)::text AS problem"

log = logging.getLogger("idempotency_http")

Request = namedtuple("Request", "principal method path query key content_type body policy")
Answer = namedtuple("Answer", "status headers body error", defaults=[None])     # headers: pairs


class Undone(Exception):
    """Rolls back: nothing is stored, and the answer goes out."""

    def __init__(self, answer, outcome=None):
        super().__init__()
        self.answer, self.outcome = answer, outcome


class KeyInvalid(Exception):
    pass


class Noting:
    """A connection that keeps its last error, since frameworks make an answer of any;
    but not one that only follows from an error before."""

    failure = None

    @contextlib.contextmanager
    def noting(self):
        try:
            yield
        except psycopg.Error as error:
            if error.sqlstate != "25P02":
                self.failure = error
            raise


class Collected:
    """An answer as it comes from the application.  One whose end is not known is refused
    at once: half of it sent, it could no longer be rolled back."""

    def __init__(self, limit):
        self.limit, self.status, self.headers, self.body = limit, None, [], b""
        self.complete, self.refused = False, None

    def start(self, status, headers):
        self.status, self.headers = status, headers

    def add(self, chunk, more):
        self.body += chunk
        self.complete = not more
        length = find(self.headers, "content-length")
        if more and chunk and length is None:
            self.refuse("it is a stream, without Content-Length")
        if len(self.body) > self.limit:
            self.refuse(f"it has more than {self.limit} bytes")
        if self.complete and length not in (None, str(len(self.body))):
            self.refuse("it has not the length that its Content-Length says")

    def refuse(self, reason):
        self.refused = cannot_store(reason)
        raise self.refused                      # the application may catch it

    def answer(self, error=None):
        """error: what the application has raised; it counts, unless its page is here."""
        if self.refused:
            raise self.refused
        if error and not (self.complete and self.status >= 500):
            raise error
        if not self.complete:
            self.refuse("it has no end")
        return Answer(self.status, self.headers, self.body, error)


def find(headers, name):
    return next((value for one, value in headers if one.lower() == name), None)


def to_send(answer):
    """Headers and body; a length has what may have a body (RFC 9110, 6.4.1)."""
    if answer.status in (204, 304):
        return answer.headers, b""
    if find(answer.headers, "content-length") is not None:
        return answer.headers, answer.body
    return [*answer.headers, ("Content-Length", str(len(answer.body)))], answer.body


def stored(row):
    headers = [pair for one in row.headers for pair in one.items()]
    if row.content_type is not None:
        headers.append(("Content-Type", row.content_type))
    return Answer(row.status, headers, row.body or b"")


def problem(text, headers=()):
    details = json.loads(text)
    headers = [("Content-Type", "application/problem+json"), *headers]
    if "retry_after" in details:
        headers.append(("Retry-After", str(details["retry_after"])))
    if details["status"] == 401:
        headers.append(("WWW-Authenticate", "Bearer"))
    return Answer(details["status"], headers, text.encode())


def refusal(status, detail, **more):
    """A problem that the database has no word for."""
    return problem(json.dumps({"type": "about:blank", "title": http.HTTPStatus(status).phrase,
                               "status": status, "detail": detail, **more}))


def cannot_store(reason):
    log.error("an answer cannot be stored: %s", reason)
    return Undone(refusal(500, f"Nothing was done, since the answer cannot be stored: {reason}."))


def is_transient(error):
    state = getattr(error, "sqlstate", "")
    if state is None:                           # the connection is lost
        return isinstance(error, psycopg.OperationalError)
    return re.match(r"08|57P0[1235]|40001|40P01|53300", state) is not None


class Adapter:
    def __init__(self, app, pool, *, principal, policy="default", limiter=None,
                 max_body=1 << 20, max_answer=16 << 20):
        """principal: who sends a request, a function of ASGI's scope or WSGI's environ.
        policy: a name, for POST and PATCH; or a function of method and path, whose
        result is the name, or None where the adapter is to keep out.
        max_body, max_answer: the bytes that a request and an answer may have."""
        if not issubclass(pool.connection_class, Noting):
            raise TypeError("make the pool with the function pool() of this module")
        self.app, self.pool, self.principal, self.limiter = app, pool, principal, limiter
        self.max_body, self.max_answer = max_body, max_answer
        self.policy = policy if callable(policy) else (
            lambda method, path: policy if method in ("POST", "PATCH") else None)

    async def respond(self, request, work):
        """work(db) is the application's answer, made in the transaction of the claim.  It
        is called again where that was rolled back for no fault of its own, or lost."""
        code = ("principal_missing" if not request.principal else
                "idempotency_key_missing" if request.key is None else None)
        answer = refusal(503, "Nobody knows whether this was done: send the same request again,"
                         " with the same key.", retry_after=1)
        lost = False
        for pause in [*PAUSES, None]:
            db = None
            try:
                async with self.connection() as db, self.transaction(db):
                    db.failure = None
                    if code:
                        return problem((await self.row(db, UNCLAIMED, {"code": code})).problem)
                    return await self.once(db, request, work)
            except KeyInvalid:
                code = "idempotency_key_invalid"
                continue
            except Exception as error:
                failure = error if db is None else db.failure
                if is_transient(failure):
                    log.warning("once more, after %s", failure.sqlstate or "a lost connection")
                elif not isinstance(error, Undone):
                    raise
                elif lost and error.outcome == "in_progress":
                    answer = error.answer       # the claim may be our own, its COMMIT under way
                else:
                    return error.answer
            if pause is None or db is None:
                break
            if db.closed:
                lost = True
                await self.check()              # others of the pool may be lost, too
            await self.pause(pause * random.uniform(0.5, 1))
        return answer

    async def once(self, db, request, work):
        name = {**request._asdict(), "path": urllib.parse.quote(request.path), "limiter": self.limiter,
                "json": None, "fingerprint": None}
        if request.body and JSON.match(request.content_type):
            name["json"] = request.body
        else:
            what = request.body + (b"?" + request.query.encode() if request.query else b"")
            name |= {"fingerprint": hashlib.sha256(what).digest(), "query": ""}
        claim = await self.claim(db, name)
        if claim.problem:
            headers = [pair for one in claim.headers for pair in one.items()]
            raise Undone(problem(claim.problem, headers), claim.outcome)
        if claim.outcome != "claimed":
            raise Undone(stored(claim))
        if claim.limited:
            raise Undone(problem(claim.limited))
        answer = await work(db)
        if answer.error:
            raise Undone(answer)
        return await self.complete(db, name, answer)

    async def claim(self, db, name):
        try:
            return await self.row(db, CLAIM, name)
        except (psycopg.DataError, psycopg.errors.StatementTooComplex) as error:
            raise Undone(refusal(400, error.diag.message_primary or str(error))) from error
        except psycopg.Error as error:
            if error.sqlstate == "ID012":
                raise KeyInvalid from error
            raise

    async def complete(self, db, name, answer):
        """The answer as it was stored, which is what every repeat gets."""
        content_type = find(answer.headers, "content-type")
        headers = [pair for pair in answer.headers if pair[0].lower() != "content-type"]
        body = None if content_type is None and not answer.body else answer.body
        try:
            return stored(await self.row(db, COMPLETE, {
                **name, "status": answer.status, "headers": json.dumps(headers),
                "content_type": content_type, "body": body}))
        except psycopg.Error as error:
            # 25P02: the handler has made an answer of an error, and the transaction is over.
            if error.sqlstate == "ID010" or error.sqlstate == "25P02" and answer.status >= 400:
                raise Undone(answer) from error
            if is_transient(db.failure):
                raise
            raise cannot_store(error.diag.message_primary or str(error)) from error
