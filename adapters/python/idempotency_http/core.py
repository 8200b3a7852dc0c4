"""What asgi.py and wsgi.py have in common: claim, work, completion and COMMIT, and
what is repeated.  The coroutines wait for nothing but methods of a subclass and the
work, so that wsgi.py can run them without an event loop."""

import hashlib
import json
import random
import re
import urllib.parse
from collections import namedtuple

import psycopg

from .answer import Undone, find, log, pairs, problem, refusal, stored, unstorable

PAUSES = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, 2]       # before the second try, the third, …
JSON = re.compile(r"application/([^;\s]+\+)?json\s*(;|$)", re.IGNORECASE)

KEY = "idempotency.idem_scope(%(principal)s, %(method)s, %(path)s), idempotency.idem_key(%(key)s)"
BODY = "convert_from(%(json)s::bytea, 'UTF8')::jsonb"
# The limiter is asked only where there is work: a CASE evaluates no more than it needs.
CLAIM = f"""
    SELECT r.outcome::text, r.http_status AS status, r.content_type, r.body,
           idempotency.idem_http_headers(r) AS headers, idempotency.idem_http_problem(r)::text AS problem,
           CASE WHEN r.outcome = 'claimed' AND %(limiter)s::text IS NOT NULL THEN
               (SELECT idempotency.idem_http_problem('rate_limited', retry_after_ms => t.retry_after_ms)::text
                  FROM idempotency.idem_throttle(%(limiter)s, %(principal)s) t WHERE NOT t.allowed)
           END AS limited
      FROM idempotency.idem_claim({KEY},
               CASE %(query)s::text WHEN '' THEN {BODY} ELSE jsonb_build_array(%(query)s::text, {BODY}) END,
               %(fingerprint)s::bytea, policy => %(policy)s) r"""
COMPLETE = f"""
    SELECT r.status_code AS status, r.content_type, r.body, idempotency.idem_http_headers(r) AS headers
      FROM idempotency.idem_complete({KEY}, %(body)s::bytea, status_code => %(status)s,
               headers => %(headers)s::json, content_type => %(content_type)s) r"""
UNCLAIMED = "SELECT idempotency.idem_http_problem(%(code)s)::text AS problem"

# path without escapes, query with them; key as in the header, None without
Request = namedtuple("Request", "principal method path query key content_type body policy")


class KeyInvalid(Exception):
    pass


class Noting:
    """Of a connection.  Frameworks make an answer of any error, so the connection keeps
    the last one; but not those that only follow, in a transaction that has failed."""

    failure = None

    def note(self, error):
        if error.sqlstate != "25P02":
            self.failure = error


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
        is called again where that was lost, or rolled back through no fault of its own."""
        code = ("principal_missing" if not request.principal else
                "idempotency_key_missing" if request.key is None else None)
        parameters, lost = self.parameters(request), False
        answer = refusal(503, "Nobody knows whether this was done: send the same request again,"
                         " with the same key.", retry_after=1)
        for pause in [*PAUSES, None]:
            db = None
            try:
                async with self.connection() as db, self.transaction(db):
                    db.failure = None
                    if code:
                        return problem((await self.row(db, UNCLAIMED, {"code": code})).problem)
                    await self.claim(db, parameters)
                    return await self.complete(db, parameters, await work(db))
            except KeyInvalid:
                code = "idempotency_key_invalid"
                continue
            except Exception as error:
                failure = error if db is None else db.failure
                if is_transient(failure):
                    log.warning("a transaction has failed: %s", failure.sqlstate or failure)
                elif not isinstance(error, Undone):
                    raise
                elif lost and error.outcome == "in_progress":
                    answer = error.answer       # the claim may be our own, its COMMIT under way
                else:
                    return error.answer
            if pause is None or db is None:     # or there was no connection to be had
                return answer
            if db.closed:
                lost = True
                await self.check()              # others of the pool may be lost, too
            await self.pause(pause * random.uniform(0.5, 1))

    def parameters(self, request):
        """Of a claim.  JSON is compared as such, any other body by its bytes; the query
        is compared with either."""
        values = {**request._asdict(), "path": urllib.parse.quote(request.path), "limiter": self.limiter,
                  "json": request.body, "fingerprint": None}
        if not request.body or not JSON.match(request.content_type):
            what = request.body + (b"?" + request.query.encode() if request.query else b"")
            values |= {"json": None, "query": "", "fingerprint": hashlib.sha256(what).digest()}
        return values

    async def claim(self, db, parameters):
        """Returns if there is work to do."""
        try:
            row = await self.row(db, CLAIM, parameters)
        except (psycopg.DataError, psycopg.errors.StatementTooComplex) as error:
            raise Undone(refusal(400, error.diag.message_primary or str(error))) from error
        except psycopg.Error as error:
            if error.sqlstate == "ID012":
                raise KeyInvalid from error
            raise
        if row.problem:
            raise Undone(problem(row.problem, pairs(row.headers)), row.outcome)
        if row.outcome != "claimed":
            raise Undone(stored(row))
        if row.limited:
            raise Undone(problem(row.limited))
        parameters["limiter"] = None            # charged, also if this try is in vain

    async def complete(self, db, parameters, answer):
        """The answer as it is stored, which is what every repeat gets."""
        if answer.error:
            raise Undone(answer)
        content_type = find(answer.headers, "content-type")
        headers = [pair for pair in answer.headers if pair[0].lower() != "content-type"]
        body = None if content_type is None and not answer.body else answer.body
        try:
            return stored(await self.row(db, COMPLETE, {
                **parameters, "status": answer.status, "headers": json.dumps(headers),
                "content_type": content_type, "body": body}))
        except psycopg.Error as error:
            # 25P02: the handler has made an answer of an error, and the transaction is over.
            if error.sqlstate == "ID010" or error.sqlstate == "25P02" and answer.status >= 400:
                raise Undone(answer) from error
            if is_transient(db.failure):
                raise
            raise unstorable(error.diag.message_primary or str(error)) from error
