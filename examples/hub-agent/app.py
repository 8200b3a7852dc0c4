"""The hub's HTTP server.  All that a request does is one statement, hub.handle()
in schema.sql; what is left for here is to carry it there, as often as it takes.

Listens on PORT; the database is named by the usual PG* variables."""

import asyncio
import datetime
import http
import os

import fastapi
import psycopg
import starlette.exceptions
import uvicorn
from psycopg_pool import AsyncConnectionPool

HANDLE = """SELECT status, headers, content_type, answer
    FROM hub.handle(%s, %s, %s, %s, %s::jsonb, %s, %s, %s)"""
TRIES = 3
PASSING = ("08", "40", "53", "57P")     # connection lost, rolled back, no room, going down

app = fastapi.FastAPI()
pool = AsyncConnectionPool(
    "dbname=hub user=hub_web", min_size=4, max_size=32, open=False,
    timeout=float(os.environ.get("POOL_TIMEOUT", "30")), kwargs={"autocommit": True})


def problem(status, code, detail, headers=None):
    """An error that the database does not answer, in the shape of those it does."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")
    return fastapi.responses.JSONResponse(
        {"type": "about:blank", "title": http.HTTPStatus(status).phrase, "status": status,
         "detail": detail, "code": code, "time": now.replace("+00:00", "Z")},
        status, headers, "application/problem+json")


def is_passing(error):
    return isinstance(error, psycopg.OperationalError) and (
        error.sqlstate is None or error.sqlstate.startswith(PASSING))


def refusal(error):
    if (error.sqlstate or "").startswith("HB"):         # a handler's, see schema.sql
        return problem(int(error.sqlstate[2:]), error.diag.message_primary,
                       error.diag.message_detail)
    if isinstance(error, psycopg.DataError) or error.sqlstate == "ID012":
        return problem(400, "request_invalid", "The body or the Idempotency-Key is malformed.")
    if is_passing(error):
        return problem(503, "unavailable", "Send the same request again.", {"Retry-After": "1"})
    raise error


async def handle(arguments):
    """One try after the other: the key makes it safe, also when it is not known
    what became of the last one."""
    for attempt in range(1, TRIES + 1):
        try:
            async with pool.connection() as connection:
                return await (await connection.execute(HANDLE, arguments)).fetchone()
        except psycopg.Error as error:
            if attempt == TRIES or not is_passing(error):
                raise
            await asyncio.sleep(0.05 * attempt)


@app.put("/channels/token")
@app.post("/channels/token")
@app.post("/denylist")
@app.post("/certificates/sign")
@app.post("/requests")
async def mutation(request: fastapi.Request):
    keys = request.headers.getlist("idempotency-key")
    principal = request.headers.get("x-principal")      # of whoever authenticates callers
    try:
        body = (await request.body()).decode()
        status, headers, content_type, answer = await handle((
            request.method, request.url.path, principal, keys[0] if len(keys) == 1 else None, body,
            request.headers.get("origin"), request.client.host,
            request.headers.get("user-agent")))
    except UnicodeDecodeError:
        return problem(400, "request_invalid", "The body is no UTF-8.")
    except psycopg.Error as error:
        return refusal(error)
    response = fastapi.Response(answer, status, media_type=content_type)
    for header in headers:
        for name, value in header.items():
            if name != "Idempotency-Replayed":      # a replay has the first answer's headers
                response.headers.append(name, value)
    return response


@app.get("/health")
async def health():
    return {"ok": True}


@app.exception_handler(starlette.exceptions.HTTPException)
async def refused(request, error):
    phrase = http.HTTPStatus(error.status_code).phrase
    return problem(error.status_code, phrase.lower().replace(" ", "_"), phrase, error.headers)


@app.exception_handler(Exception)
async def failed(request, error):
    return problem(500, "internal_error", "Send the same request again.")


@app.on_event("startup")
async def startup():
    await pool.open()


@app.on_event("shutdown")
async def shutdown():
    await pool.close()


if __name__ == "__main__":
    # Behind a proxy, name it in forwarded_allow_ips; anybody else who says
    # X-Forwarded-For could choose the address that a key is bound to.
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), proxy_headers=False,
                log_level="warning")
