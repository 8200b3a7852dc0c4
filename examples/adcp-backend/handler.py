"""Handlers that place an order, as a server with PgBackend has them: the order and
its record commit together, or neither is there."""

import hashlib
import json

from pg_backend import AlreadyStored


def payload_hash(request):
    """SHA-256 of canonical JSON: the order of its members does not matter."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


async def place_order(backend, scope, key, request):
    """Claim, work, put: of many callers with one key, one inserts an order.  The
    budget is charged after put(), to show that this is no worse than before it."""
    async with backend.transaction(scope, key, payload_hash(request)) as turn:
        if turn.record is None:
            await turn.put(await insert_order(turn.conn, scope, request))
            await charge_budget(turn.conn, scope, request)
    return turn.record


async def place_order_then_put(backend, scope, key, request):
    """Work, put: for a server that stores what its handlers have answered.  Callers
    with one key at the same moment all insert an order; one of these is committed."""
    try:
        async with backend.pool.connection() as conn:
            answer = await insert_order(conn, scope, request)
            record = await backend.put(scope, key, payload_hash(request), answer, conn=conn)
            await charge_budget(conn, scope, request)
        return record
    except AlreadyStored:                   # what we did is rolled back
        return await backend.get(scope, key)


async def insert_order(conn, scope, request):
    cursor = await conn.execute(
        "INSERT INTO orders (tenant, item, cents) VALUES (%s, %s, %s) RETURNING id",
        (scope.tenant, request["item"], request["cents"]))
    order, = await cursor.fetchone()
    return {"order": order, "item": request["item"]}


async def charge_budget(conn, scope, request):
    """Fails where the budget does not suffice, by the CHECK on it."""
    await conn.execute("UPDATE budgets SET cents = cents - %s WHERE tenant = %s",
                       (request["cents"], scope.tenant))
