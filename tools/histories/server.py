"""A server of PostgreSQL under test: started, killed, copied, and asked."""

import contextlib
import os
import shutil
import signal
import subprocess
import time

import psycopg

PATIENCE = 60
SETTINGS = ["-c search_path=public,idempotency"]


class Server:
    """One that has its data in a folder, and listens in another."""

    def __init__(self, data, socket, environment=None):
        self.data = data
        self.socket = socket
        self.log = data + ".log"
        self.environment = environment or {}
        self.bin = os.environ["PG_BIN"]

    def _ctl(self, *arguments):
        subprocess.run([f"{self.bin}/pg_ctl", "-D", self.data, "-w", "-t", str(PATIENCE),
                        *arguments], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, env={**os.environ, **self.environment})

    def start(self):
        self._ctl("-l", self.log, "start")

    def stop(self, mode="fast"):
        self._ctl("-m", mode, "stop")

    def promote(self):
        self._ctl("promote")

    def pid(self):
        with open(f"{self.data}/postmaster.pid", encoding="utf-8") as file:
            return int(file.readline())

    def children(self):
        pid = self.pid()
        with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as file:
            return [int(child) for child in file.read().split()]

    def kill(self):
        """SIGKILL for all of its processes.  The first is stopped before the others are
        killed, so that it starts no new ones."""
        pid = self.pid()
        os.kill(pid, signal.SIGSTOP)
        victims = self.children() + [pid]
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while any(alive(victim) for victim in victims) and time.monotonic() < deadline:
            time.sleep(0.01)
        # The next server would take the pid in these files for a live one: it may be used
        # again, or nobody may have waited for the dead process yet.
        for file in f"{self.data}/postmaster.pid", f"{self.socket}/.s.PGSQL.5432.lock":
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file)

    def configure(self, *lines):
        with open(f"{self.data}/postgresql.conf", "a", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))

    def listen_at(self, socket):
        os.makedirs(socket, exist_ok=True)
        self.socket = socket
        self.configure(f"unix_socket_directories = '{socket}'")

    def copy(self, name, socket, **options):
        """A server of its own with a copy of the data; this one must be stopped."""
        data = os.path.join(os.path.dirname(self.data), name)
        shutil.copytree(self.data, data, symlinks=True)
        os.chmod(data, 0o700)
        other = Server(data, socket, **options)
        other.listen_at(socket)
        return other

    def standby(self, name, socket):
        data = os.path.join(os.path.dirname(self.data), name)
        subprocess.run([f"{self.bin}/pg_basebackup", "-D", data, "-h", self.socket, "-p", "5432",
                        "-U", "postgres", "-c", "fast", "-R", "--no-sync"], check=True,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        other = Server(data, socket)
        other.listen_at(socket)
        return other

    def remove(self):
        with contextlib.suppress(subprocess.CalledProcessError):
            self.stop("immediate")
        shutil.rmtree(self.data, ignore_errors=True)

    def connect(self, database, user="client", host=None, name="histories", options=()):
        return psycopg.connect(
            host=host or self.socket, port=5432, user=user, dbname=database, autocommit=True,
            connect_timeout=10, application_name=name, options=" ".join([*SETTINGS, *options]))

    def operator(self, database):
        """As a superuser, at last: a server that comes up refuses for a while."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self.connect(database, user="postgres", name="operator")
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


def alive(pid):
    """Whether a process runs; one that is dead and not waited for does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
