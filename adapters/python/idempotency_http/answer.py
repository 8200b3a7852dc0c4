"""Answers: those that come from the application, those that go out, and problems."""

import http
import json
import logging
from collections import namedtuple

log = logging.getLogger("idempotency_http")

# headers: pairs; error: for the server, once the answer has been sent
Answer = namedtuple("Answer", "status headers body error", defaults=[None])


class Undone(Exception):
    """Rolls back: nothing is stored, and the answer goes out."""

    def __init__(self, answer, outcome=None):
        super().__init__()
        self.answer, self.outcome = answer, outcome


class Collected:
    """An answer as it comes from the application.  One whose end is not known is refused
    at once: half of it sent, it could no longer be rolled back."""

    def __init__(self, limit):
        self.limit, self.status, self.headers, self.body = limit, None, [], bytearray()
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
            self.refuse("its Content-Length says otherwise")

    def refuse(self, reason):
        self.refused = unstorable(reason)
        raise self.refused                      # the application may catch it

    def answer(self, error=None):
        """error: what the application has raised; it counts, unless its page is here."""
        if self.refused:
            raise self.refused
        if error and not (self.complete and self.status >= 500):
            raise error
        if not self.complete:
            self.refuse("it has no end")
        return Answer(self.status, self.headers, bytes(self.body), error)


def find(headers, name):
    return next((value for one, value in headers if one.lower() == name), None)


def pairs(headers):
    """Of what idem_http_headers gives; others may have stored what servers cannot send."""
    return [(name, value.encode("latin-1", "replace").decode("latin-1"))
            for one in headers for name, value in one.items()]


def stored(row):
    """The answer in a row; a status that can have no body has no length (RFC 9110, 8.6)."""
    headers, body = pairs(row.headers), row.body or b""
    if row.content_type is not None and find(headers, "content-type") is None:
        headers.append(("Content-Type", row.content_type))
    if row.status in (204, 304):
        return Answer(row.status, headers, b"")
    return Answer(row.status, [*headers, ("Content-Length", str(len(body)))], body)


def problem(text, headers=()):
    details, body = json.loads(text), text.encode()
    headers = [*headers, ("Content-Type", "application/problem+json"), ("Content-Length", str(len(body)))]
    if "retry_after" in details:
        headers.append(("Retry-After", str(details["retry_after"])))
    if details["status"] == 401:
        headers.append(("WWW-Authenticate", "Bearer"))
    return Answer(details["status"], headers, body)


def refusal(status, detail, **more):
    """A problem that the database has no word for."""
    return problem(json.dumps({"type": "about:blank", "title": http.HTTPStatus(status).phrase,
                               "status": status, "detail": detail, **more}))


def unstorable(reason):
    log.error("an answer cannot be stored: %s", reason)
    return Undone(refusal(500, f"Nothing was done, since the answer cannot be stored: {reason}."))
