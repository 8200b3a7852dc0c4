#!/usr/bin/python3
"""Payments that are charged once, wherever the process that makes them dies.

    worker.py pay ORDER AMOUNT    a request
    worker.py complete            finishes for ever what others have left

The database is that of libpq's environment, the provider is at PROVIDER_PORT.

A payment goes through these steps, each of which is committed before the next one
begins, so that whoever takes it over knows where to go on:

    claimed     the order is written down
    charging    the key for the provider is written down; then it is asked
    charged     the provider's answer is written down
    completed   the payment is booked, and the request answered, in one transaction

A step that was done and not written down is done again: that of the provider with
the same key, so that it charges once; those in the database had been rolled back."""

import contextlib
import datetime
import http.client
import json
import os
import sys
import threading
import time
import uuid
from collections import namedtuple

import psycopg
from psycopg.rows import namedtuple_row
from psycopg.types.json import Json, Jsonb

POLICY = SCOPE = "payments"
LEASE = datetime.timedelta(seconds=30)
TAKE = 3                            # abandoned payments at a time
LOOK_EVERY = 1                      # seconds between two looks for them
TIMEOUT = 10                        # of the provider, in seconds
PAUSES = (0.05, 0.2, 1)             # before it is asked again
PROVIDER_PORT = int(os.environ.get("PROVIDER_PORT", "8080"))

Claim = namedtuple("Claim", "key token recovery_point checkpoint")


class Lost(Exception):
    """Somebody else has this payment now: stop."""


class Unanswered(Exception):
    """The provider has not answered: the payment stays as it is, to be completed
    when its lease has ended."""


class Declined(Exception):
    """The provider has said no, for good."""


def reached(step, order):
    """Does nothing: where the test kills the process."""


def connect(name):
    return psycopg.connect(dbname="payments", user="payments_worker", application_name=name,
                           autocommit=True, row_factory=namedtuple_row)


@contextlib.contextmanager
def step(connection, name, claim):
    """A transaction of the holder of a claim."""
    try:
        with connection.transaction():
            yield
            reached(name + ", before COMMIT", claim.key)
    except psycopg.Error as error:
        if error.sqlstate in ("ID001", "ID002", "ID003"):
            raise Lost from error
        raise
    reached(name, claim.key)


def pay(connection, order, amount):
    """A request; returns the row of idem_claim or idem_complete, whose http_status,
    content_type and body are the answer."""
    with connection.transaction():
        result = connection.execute(
            "SELECT * FROM idem_claim(%s, %s, %s, policy => %s, lease => %s)",
            (SCOPE, order, Jsonb({"amount": amount}), POLICY, LEASE)).fetchone()
        if result.outcome == "claimed" and result.attempt == 1:
            connection.execute("INSERT INTO orders (order_id, amount) VALUES (%s, %s)",
                               (order, amount))
        reached("claimed, before COMMIT", order)
    if result.outcome != "claimed":
        return result
    reached("claimed", order)
    return carry_on(connection, Claim(order, result.token, result.recovery_point,
                                      result.checkpoint))


def complete(connection):
    """Take over what was abandoned, and finish it; returns how many there were."""
    with connection.transaction():
        claims = [Claim(*row) for row in connection.execute(
            "SELECT key, token, recovery_point, checkpoint FROM idem_recover(%s, %s, %s)",
            (POLICY, TAKE, LEASE))]
        if claims:
            reached("recovered, before COMMIT", claims[0].key)
    if claims:
        reached("recovered", claims[0].key)
    for claim in claims:
        with contextlib.suppress(Lost, Unanswered):     # the others are ours all the same
            carry_on(connection, claim)
    return len(claims)


def carry_on(connection, claim):
    """From the recovery point to the end."""
    amount, = connection.execute("SELECT amount FROM orders WHERE order_id = %s",
                                 (claim.key,)).fetchone()
    point, done = claim.recovery_point, claim.checkpoint

    # The key is made but once, and committed before it is used.  Not every holder
    # has one of his own: the provider would take them for two payments.
    if point is None:
        point, done = "charging", {"provider_key": str(uuid.uuid4())}
        checkpoint(connection, claim, point, done)

    if point == "charging":
        try:
            with heartbeat(connection, claim):
                charge = ask_provider(done["provider_key"], claim.key, amount)
        except Declined:
            with step(connection, "declined", claim):
                return connection.execute(
                    "SELECT * FROM idem_fail(%s, %s, %s::json, status_code => 402,"
                    " token => %s, retryable => false)",
                    (SCOPE, claim.key, Json({"error": "declined"}), claim.token)).fetchone()
        done = {**done, "charge": charge}
        checkpoint(connection, claim, "charged", done)

    with step(connection, "completed", claim):
        connection.execute("INSERT INTO ledger (order_id, charge, amount) VALUES (%s, %s, %s)",
                           (claim.key, done["charge"], amount))
        answer = {"order": claim.key, "amount": amount, "charge": done["charge"]}
        return connection.execute(
            "SELECT * FROM idem_complete(%s, %s, %s::json, status_code => 201, token => %s)",
            (SCOPE, claim.key, Json(answer), claim.token)).fetchone()


def checkpoint(connection, claim, point, done):
    with step(connection, point, claim):
        connection.execute("SELECT idem_checkpoint(%s, %s, %s, %s, %s)",
                           (SCOPE, claim.key, claim.token, point, Jsonb(done)))


@contextlib.contextmanager
def heartbeat(connection, claim):
    """Keeps the lease while the provider is waited for.  Nothing else may use the
    connection meanwhile, and no transaction may be open in it."""
    over = threading.Event()

    def beat():
        while not over.wait(LEASE.total_seconds() / 3):
            try:
                connection.execute("SELECT idem_extend(%s, %s, %s, %s)",
                                   (SCOPE, claim.key, claim.token, LEASE))
            except psycopg.Error:
                return      # lost, or no connection: the next step will see that, too

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def ask_provider(key, order, amount):
    """A charge.  No reply, or one that says "later", is no answer: it may have charged,
    and is asked again with the same key."""
    for pause in (*PAUSES, None):
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, answer = post(key, order, {"order": order, "amount": amount})
            if status == 201:
                return answer["charge"]
            if status == 402:
                raise Declined
        if pause is not None:
            time.sleep(pause)
    raise Unanswered


def post(key, order, body):
    connection = http.client.HTTPConnection("127.0.0.1", PROVIDER_PORT, timeout=TIMEOUT)
    try:
        connection.request("POST", "/charges", json.dumps(body), {"Idempotency-Key": key})
        reached("provider asked", order)
        response = connection.getresponse()
        answer = json.loads(response.read())
        reached("provider has answered", order)
        return response.status, answer
    finally:
        connection.close()


def complete_for_ever():
    while True:
        try:
            with connect("completer") as connection:
                while True:
                    if complete(connection) < TAKE:
                        time.sleep(LOOK_EVERY)
        except psycopg.OperationalError as error:
            print(f"no database: {error}", file=sys.stderr)
            time.sleep(LOOK_EVERY)


def main(command, *arguments):
    if command == "complete":
        complete_for_ever()
    try:
        with connect("worker") as connection:
            result = pay(connection, arguments[0], int(arguments[1]))
        print(result.http_status, result.error_code or result.body.decode())
    except (Lost, Unanswered):
        print(202, "others complete it")


if __name__ == "__main__":
    main(*sys.argv[1:])
