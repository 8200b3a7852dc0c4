"""POST /api/admin/pending/bulk.approve: approves many pending items at once.

    DATABASE="dbname=approvals user=bulk_api" PORT=8000 python3 server.py

A request carries X-Idempotency-Key, which is good for one approval: its first
use is answered with 200, every other with 409.  The key and the approval are
one transaction: what fails undoes both, and leaves the key free.
"""

import json
import os

import psycopg
import uvicorn
from fastapi import FastAPI, Header, Request, Response
from psycopg_pool import AsyncConnectionPool

ROUTE = "/api/admin/pending/bulk.approve"
SCOPE = f"POST {ROUTE}"

# The body goes to the database as it came: that decides what is JSON, and makes
# the fingerprint, which does not depend on the order of keys or on spaces.
CLAIM = """
    SELECT r.outcome, idempotency.idem_log_id(%(scope)s),
           idempotency.idem_http_problem(r), idempotency.idem_http_headers(r)
    FROM idempotency.idem_claim(%(scope)s, %(key)s, convert_from(%(body)s, 'UTF8')::jsonb,
                                policy => 'bulk-approve') AS r
"""

# The rows are locked in one order, so that two requests with items in common
# cannot deadlock.
APPROVE = """
    WITH pending AS (
        SELECT id FROM admin.items WHERE id = ANY (%(ids)s) AND state = 'pending'
        ORDER BY id FOR UPDATE
    ), approved AS (
        UPDATE admin.items SET state = 'approved' FROM pending WHERE items.id = pending.id
        RETURNING items.id
    )
    INSERT INTO admin.approvals (item, approved_by, key)
    SELECT id, %(by)s, %(key)s FROM approved
    RETURNING item
"""

# Without a response: it is never replayed, so there is nothing to keep.
COMPLETE = "SELECT idempotency.idem_complete(%(scope)s, %(key)s, status_code => 200)"

app = FastAPI()
pool = AsyncConnectionPool(os.environ["DATABASE"], open=False,
                           min_size=int(os.environ.get("POOL_SIZE", "20")))


class Refused(Exception):
    """Undoes the transaction, the claim of the key included."""

    def __init__(self, *reply):
        super().__init__()
        self.reply = reply


def answer(status, content, media_type="application/json"):
    """The bytes are promised: the order of keys, and a space after : and comma."""
    return Response(json.dumps(content, ensure_ascii=False), status, media_type=media_type)


def error(status, code, message, **more):
    return answer(status, {"error": code, "message": message, **more})


@app.post(ROUTE)
async def bulk_approve(request: Request, x_idempotency_key: str = Header("")):
    if not (x_idempotency_key and x_idempotency_key.isascii()):
        return error(400, "missing_idempotency_key", "X-Idempotency-Key is required, in ASCII")
    key = {"scope": SCOPE, "key": x_idempotency_key}
    body = await request.body()
    async with pool.connection() as connection:     # one transaction: COMMIT at its end
        claim = await connection.execute(CLAIM, {**key, "body": body})
        outcome, scope_hash, problem, headers = await claim.fetchone()
        if outcome != "claimed":
            return refusal(outcome, x_idempotency_key, scope_hash, problem, headers)
        approved = await approve(connection, x_idempotency_key, body)
        await connection.execute(COMPLETE, key)
    return answer(200, approved)


def refusal(outcome, key, scope_hash, problem, headers):
    if outcome == "duplicate":
        return error(409, "duplicate_idempotency_key",
                     f"Request with key '{key}' already processed", scope_hash=scope_hash)
    # In progress still, after the wait of the policy: nobody knows yet whether
    # the key will have been used.
    reply = answer(problem["status"], problem, "application/problem+json")
    for header in headers:
        reply.headers.update(header)
    return reply


def parse(body):
    """PostgreSQL has taken it for JSON; but Python has limits of its own."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


async def approve(connection, key, body):
    """The work: all of the items, or none."""
    match parse(body):
        case {"ids": [_, *_] as ids, "by": str(by), **rest} if (
                by and not rest and all(type(one) is int for one in ids)):
            pass
        case _:
            raise Refused(422, "invalid_request", 'expected {"ids": [1, 2, 3], "by": "admin"}')
    rows = await connection.execute(APPROVE, {"ids": ids, "by": by, "key": key})
    approved = {item async for item, in rows}
    if len(approved) != len(ids):
        raise Refused(422, "not_pending", "Nothing was approved: not all of the items are"
                      " pending, or some are named twice")
    return {"approved_count": len(approved), "ids": ids, "by": by}


@app.exception_handler(Refused)
async def refused(_, exception):
    return error(*exception.reply)


@app.exception_handler(psycopg.DataError)
@app.exception_handler(psycopg.errors.StatementTooComplex)
async def bad_data(_, exception):
    """The body is no JSON, or nested too deeply."""
    return error(400, "bad_request", exception.diag.message_primary or "bad request")


@app.exception_handler(psycopg.DatabaseError)
async def bad_key(_, exception):
    """ID012 says that the key is too long; whatever else comes here is a fault."""
    if exception.sqlstate != "ID012":
        raise exception
    return error(400, "bad_request", exception.diag.message_primary)


@app.exception_handler(psycopg.OperationalError)
async def unknown(_, exception):
    """Connection lost, server going down, deadlock, no connection free: the
    client cannot know whether its request was done.  The same key tells: 409 if
    it was, and if not, the repeat is its first use."""
    reply = error(503, "try_again", "Repeat the request with the same key")
    reply.headers["Retry-After"] = "1"
    return reply


@app.get("/health")
async def health():
    return {"ok": True}


@app.on_event("startup")
async def startup():
    await pool.open(wait=True)


@app.on_event("shutdown")
async def shutdown():
    await pool.close()


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning",
                access_log=False)
