"""Orders from standard input, a line each: KEY REQUEST.  For each, one line:
STATUS OUTCOME TRIES BODY.  Connects as the PG* variables say."""

import random
import sys
import time

import psycopg

TRIES = 10
BUY = """
    SELECT outcome, http_status, body, retry_after_ms
        FROM idempotency.idem_run('shop.buy(jsonb)',
            idempotency.idem_scope('shop', 'buy'), %s, %s::jsonb, 'orders')"""

connection = None


def worth_a_retry(error):
    """No SQLSTATE: the connection is lost, or there was none."""
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError)
    return state.startswith(("08", "57P")) or state in ("40001", "40P01", "53300")


def pause_before(tries, at_least):
    """50 ms, 100 ms, … 2 s, from half of it to the whole; at least so many s."""
    seconds = min(2, 0.05 * 2 ** (tries - 1)) * random.uniform(0.5, 1)
    time.sleep(max(seconds, at_least))


def buy(key, request):
    """Status, outcome, number of tries and body."""
    global connection
    for tries in range(1, TRIES + 1):
        retry_after_ms = 0
        try:
            if connection is None or connection.closed:
                connection = psycopg.connect(connect_timeout=5)
            with connection.transaction():      # COMMIT at its end, ROLLBACK after an error
                outcome, status, body, retry_after_ms = connection.execute(
                    BUY, (key, request)).fetchone()
            if outcome != "in_progress" or tries == TRIES:
                return status, outcome, tries, body or b""
        except psycopg.Error as error:
            if not worth_a_retry(error) or tries == TRIES:
                print(error, file=sys.stderr)
                return "error", error.sqlstate or "none", tries, b""
        pause_before(tries, (retry_after_ms or 0) / 1000)


for line in sys.stdin:
    status, outcome, tries, body = buy(*line.split(" ", 1))
    sys.stdout.buffer.write(f"{status} {outcome} {tries} ".encode() + body + b"\n")
    sys.stdout.flush()
