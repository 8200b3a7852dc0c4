"""A proxy between clients and the server that breaks a connection at a chosen byte,
of what is sent or of the reply.  One thread serves all connections."""

import contextlib
import os
import queue
import selectors
import socket
import threading


class Link:
    """One connection through the proxy.  After cut() so many more bytes pass one way;
    then both ends are closed."""

    def __init__(self, client, server):
        self.ends = {"up": (client, server), "down": (server, client)}
        self.left = {"up": None, "down": None}
        self.broken = False

    def cut(self, way, after):
        self.left[way] = after

    def pump(self, way):
        """Pass on what is there; whether the connection still holds."""
        source, target = self.ends[way]
        try:
            data = source.recv(65536)
            left = self.left[way]
            if left is not None:
                self.left[way] = left - len(data)
                if self.left[way] <= 0:
                    self.broken = True
                    data = data[:left]
            if data:
                target.sendall(data)
            return bool(data) and not self.broken
        except OSError:
            return False


class Proxy:
    """Listens on a unix socket in a folder, which is libpq's host."""

    def __init__(self, folder):
        os.makedirs(folder, exist_ok=True)
        self.folder = folder
        self.port = 5432
        self.upstream = None        # path of the server's socket
        self.cuts = 0
        self.connecting = threading.Lock()
        self._made = queue.Queue()
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{folder}/.s.PGSQL.{self.port}")
        self._listener.listen(64)
        self._selector.register(self._listener, selectors.EVENT_READ)
        threading.Thread(target=self._serve, daemon=True).start()

    def connect(self, connect):
        """What connect() returns, and its link.  One at a time, so that we know whose
        link it is."""
        with self.connecting:
            while not self._made.empty():
                self._made.get()
            connection = connect()
            return connection, self._made.get(timeout=10)

    def _accept(self):
        client, _ = self._listener.accept()
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self.upstream)
        except OSError:             # no server there, for the moment
            client.close()
            server.close()
            return
        link = Link(client, server)
        self._selector.register(client, selectors.EVENT_READ, (link, "up"))
        self._selector.register(server, selectors.EVENT_READ, (link, "down"))
        self._made.put(link)

    def _serve(self):
        closed = set()
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._accept()
                    continue
                link, way = key.data
                if link in closed or link.pump(way):
                    continue
                closed.add(link)
                self.cuts += link.broken
                for end in link.ends["up"]:
                    with contextlib.suppress(OSError, KeyError, ValueError):
                        self._selector.unregister(end)
                    end.close()
            closed.clear()
