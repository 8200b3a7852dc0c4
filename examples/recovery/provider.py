#!/usr/bin/python3
"""A payment provider on loopback that remembers idempotency keys.

    POST /charges        {"order": …, "amount": …} with Idempotency-Key: a charge,
                         the same one for the same key; 402 above the limit
    GET  /charges        all charges, and how often it was asked
    PUT  /mood           how often it is busy, loses a reply, or is slow

It is not part of what is shown, and keeps all in memory: it is never killed."""

import contextlib
import json
import os
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LIMIT = 100000

lock = threading.Lock()
dice = random.Random(1)
charges = {}            # by key
asked = {"requests": 0, "repeats": 0, "busy": 0, "lost": 0, "slow": 0, "refused": 0}
mood = {"busy": 0, "lose": 0, "slow": 0, "seconds": 0}


def throw():
    """What happens to this request, by the mood; None for most."""
    asked["requests"] += 1
    number = dice.random()
    for what in "busy", "lose", "slow":
        number -= mood[what]
        if number < 0:
            asked["lost" if what == "lose" else what] += 1
            return what
    return None


def charge(key, body):
    """Once a key; to be called with the lock."""
    if body["amount"] > LIMIT:
        asked["refused"] += 1
        return 402, {"error": "declined"}
    first = charges.get(key)
    if first is None:
        charges[key] = {"charge": f"ch_{len(charges) + 1}", "key": key, **body}
        return 201, charges[key]
    asked["repeats"] += 1
    if {name: first[name] for name in body} != body:
        return 422, {"error": "another request has this key"}
    return 201, first


class Provider(BaseHTTPRequestHandler):
    def do_GET(self):
        with lock:
            answer = {"charges": list(charges.values()), "asked": asked}
        self.answer(200, answer)

    def do_PUT(self):
        with lock:
            mood.update(self.body())
        self.answer(200, mood)

    def do_POST(self):
        key, body = self.headers["Idempotency-Key"], self.body()
        with lock:
            fate = throw()
            slow = mood["seconds"] if fate == "slow" else 0
        if fate == "busy":
            return self.answer(503, {"error": "busy"})
        time.sleep(slow / 2)            # before the charge, and after it
        with lock:
            status, answer = charge(key, body)
        time.sleep(slow / 2)
        if fate != "lose":
            self.answer(status, answer)

    def body(self):
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, status, answer):
        body = json.dumps(answer).encode()
        with contextlib.suppress(ConnectionError):      # whoever asked was killed
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Most are connections of the killed."""


if __name__ == "__main__":
    Server(("127.0.0.1", int(os.environ["PORT"])), Provider).serve_forever()
