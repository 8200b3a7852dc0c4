#!/usr/bin/python3
"""An edge node of the furniture shop: POST /purchases over HTTP.

It keeps nothing itself.  The customer's name and address come from the proxy in
front of it, which has authenticated him, in X-Customer and X-Forwarded-For.  All
else, the key included, is decided by one statement."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg

BUY = """SELECT http_status, idempotency.idem_http_headers(r)::text,
    coalesce(r.content_type, 'application/problem+json'),
    coalesce(r.body, convert_to(idempotency.idem_http_problem(r)::text, 'UTF8'))
FROM shop.buy(%s, idempotency.idem_key(%s), %s::jsonb, %s::inet) r"""

# What the shop raises, and what of the request is not fit for the database.
STATUS = {"SHP01": 409, "SHP02": 404, "SHP03": 400, "SHP04": 429, "22023": 400, "22P02": 400}


class Edge(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(200, [], "application/json", b"{}")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key = self.headers.get("Idempotency-Key")
        if key is None:
            return self.refuse(400, "Idempotency-Key is missing")
        try:
            with psycopg.connect(dbname="shop", user="shop_web", autocommit=True) as connection:
                status, headers, content_type, answer = connection.execute(
                    BUY, (self.headers.get("X-Customer"), key, body.decode(),
                          self.headers.get("X-Forwarded-For"))).fetchone()
        except psycopg.Error as error:
            # Without a SQLSTATE the database cannot be reached, or was lost on
            # the way: whether the purchase was made is known to the next
            # request with the same key.
            refused = STATUS.get(error.sqlstate, 500)
            wait = [{"Retry-After": error.diag.message_detail}] if refused == 429 else []
            said = error.diag.message_primary if refused != 500 else "try again"
            return self.refuse(refused, said, wait)
        self.answer(status, json.loads(headers), content_type, answer)

    def refuse(self, status, error, headers=()):
        self.answer(status, headers, "application/json", json.dumps({"error": error}).encode())

    def answer(self, status, headers, content_type, body):
        self.send_response(status)
        for header in headers:
            for name, value in header.items():
                self.send_header(name, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


if __name__ == "__main__":
    Server(("127.0.0.1", int(os.environ["PORT"])), Edge).serve_forever()
