"""What the examples share: promises with what was seen of them, a server under
test, HTTP calls, and a proxy that cuts connections.  Nothing of the extension is
in here, and nothing but Python's standard library."""

import concurrent.futures
import contextlib
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import namedtuple

PATIENCE = 60       # seconds that anything here may take

# Whoever stops us gets what we have started stopped, too.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


class Promises:
    """A table: what was promised, what was seen, and whether it fits."""

    def __init__(self, system):
        self.system = system
        self.broken = 0
        self.rows = []

    def keep(self, promise, seen, kept):
        """One promise; seen is a short text, such as '1 of 64 ran'."""
        self.rows.append((promise, seen, kept))
        self.broken += not kept
        print(f"  {'kept  ' if kept else 'BROKEN'}  {promise}: {seen}", flush=True)

    def finish(self):
        """Print the table; returns an exit status."""
        print(f"\n{self.system}\n")
        for promise, seen, kept in self.rows:
            left = textwrap.wrap(promise, 46)
            right = textwrap.wrap(seen, 44)
            for number in range(max(len(left), len(right))):
                print("  {:<48}{:<46}{}".format(
                    left[number] if number < len(left) else "",
                    right[number] if number < len(right) else "",
                    ("kept" if kept else "BROKEN") if number == 0 else "").rstrip())
        print(f"\n{self.system}: {len(self.rows) - self.broken} promises kept,"
              f" {self.broken} broken")
        return 1 if self.broken or not self.rows else 0


Reply = namedtuple("Reply", "status headers body")     # headers: lower-case names


def call(port, method, path, body=None, headers=None, timeout=PATIENCE):
    """One request over a connection of its own; OSError or HTTPException when
    there is no reply."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        data = response.read()
        return Reply(response.status,
                     {name.lower(): value for name, value in response.getheaders()}, data)
    finally:
        connection.close()


def together(count, function):
    """function(0), function(1), … at the same moment; their results in order."""
    barrier = threading.Barrier(count)

    def run(number):
        barrier.wait(PATIENCE)
        return function(number)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


class Server:
    """A program that serves HTTP on a loopback port, given to it as PORT."""

    def __init__(self, command, environment=None, ready="/health", log=None):
        self.command = command
        self.environment = environment or {}
        self.ready = ready
        self.log = log
        self.process = None
        # Not one that the system gives to connections: while the server is down
        # somebody's could take it.
        for self.port in random.sample(range(20000, 32000), 100):
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", self.port))
                break

    def start(self):
        """Returns when it answers."""
        with open(self.log or os.devnull, "ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **self.environment, "PORT": str(self.port)},
                start_new_session=True)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError, http.client.HTTPException):
                if call(self.port, "GET", self.ready, timeout=1).status == 200:
                    return self
            time.sleep(0.02)
        self.kill()
        with open(self.log or os.devnull, encoding="utf-8", errors="replace") as log:
            said = log.read()[-2000:]
        raise RuntimeError(f"{self.command[-1]} does not answer; it said:\n{said}")

    def kill(self):
        """SIGKILL for the program and all its children."""
        self._end(signal.SIGKILL)

    def stop(self):
        self._end(signal.SIGTERM)

    def _end(self, number):
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *exception):
        self.stop()


class CuttingProxy:
    """Stands between a program and PostgreSQL, and loses the replies to COMMIT that
    it is told to: the server has committed, its reply does not arrive, and the
    connection is gone.

    With the tag of another statement, such as "SELECT 1", it is the reply to that
    one, where it is a transaction by itself: the end of the reply only, so that the
    rows arrive and that they were committed does not, or all of it, as self.whole
    says."""

    def __init__(self, directory=None, port=5432, tag="COMMIT"):
        """directory: where the proxy listens on a unix socket; libpq's PGHOST for the
        program.  Without it, the proxy listens on a loopback port, self.port, for a
        program that can do nothing else and asks for no SSL."""
        self.upstream = f"{os.environ['PGHOST']}/.s.PGSQL.{os.environ.get('PGPORT', port)}"
        self.address = f"{directory}/.s.PGSQL.{port}" if directory else None
        self.tag = tag.encode() + b"\0"
        self.whole = False
        self.cuts = 0
        self.passed = 0             # replies with the tag that were not lost
        self._armed = 0
        self._lock = threading.Lock()
        if directory:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(self.address)
        else:
            self._listener = socket.socket()
            self._listener.bind(("127.0.0.1", 0))
            port = self._listener.getsockname()[1]
        self.port = port
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, count=1):
        """Lose the replies to the next COMMITs."""
        with self._lock:
            self._armed += count

    def disarm(self):
        with self._lock:
            self._armed = 0

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self.upstream)
            except OSError:         # no server there, for the moment
                client.close()
                continue
            threading.Thread(target=self._requests, args=(client, server), daemon=True).start()
            threading.Thread(target=self._replies, args=(client, server), daemon=True).start()

    @staticmethod
    def _requests(client, server):
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
        for end in client, server:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _replies(self, client, server):
        """Message by message: a type, four bytes of length, the rest.  A reply ends
        with ReadyForQuery, which says "I" when the server is in no transaction: only
        then was it committed.  So the end of a reply is held back until then."""
        buffer = held = b""
        tagged = ready = False
        try:
            while data := server.recv(65536):
                buffer += data
                while len(buffer) >= 5:
                    size = 1 + int.from_bytes(buffer[1:5], "big")
                    if len(buffer) < size:
                        break
                    message, buffer = buffer[:size], buffer[size:]
                    tagged |= message[:1] == b"C" and message[5:] == self.tag
                    if tagged or ready and self.whole:
                        held += message
                    else:
                        client.sendall(message)
                    if message[:1] == b"Z":
                        if tagged and message[5:] == b"I" and self._cut():
                            return
                        client.sendall(held)
                        held, tagged, ready = b"", False, True
        except OSError:
            pass
        finally:
            for end in client, server:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _cut(self):
        with self._lock:
            if not self._armed:
                self.passed += 1
                return False
            self._armed -= 1
            self.cuts += 1
            return True

    def close(self):
        self._listener.close()
        if self.address:
            with contextlib.suppress(OSError):
                os.unlink(self.address)
