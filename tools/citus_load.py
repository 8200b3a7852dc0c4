"""citus_load.py KEYS COORDINATOR WORKER WORKER WORKER SINGLE - the numbers are ports.

Started by tools/citus-load.  Each run has new keys, each sent three times by 16
clients through any node; what answers with an error, or not at all, is sent
again.  What happens meanwhile is told by the progress of the run, not by a clock.
"""

import collections
import logging
import os
import pathlib
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time

import psycopg

# a rollback on a connection that is gone is no news
logging.getLogger("psycopg").setLevel(logging.ERROR)

CLIENTS = 16
REPEATS = 3
TENANTS = 40
WORK = pathlib.Path(os.environ["WORK"])

APPLICATION = """
CREATE ROLE shop_owner LOGIN;
CREATE ROLE app LOGIN;
GRANT USAGE, CREATE ON SCHEMA public TO shop_owner;
GRANT USAGE ON SCHEMA idempotency TO app;
SELECT idempotency.idem_grant('app', 'app');
CREATE TABLE orders (tenant bigint, id uuid DEFAULT gen_random_uuid(), key text, PRIMARY KEY (tenant, id));
CREATE TABLE stock (tenant bigint, sku text, n integer, PRIMARY KEY (tenant, sku));
ALTER TABLE orders OWNER TO shop_owner;
ALTER TABLE stock OWNER TO shop_owner;
GRANT SELECT, INSERT, UPDATE ON orders, stock TO app;
"""

DISTRIBUTED = """
SELECT create_distributed_table('orders', 'tenant');
SELECT create_distributed_table('stock', 'tenant', colocate_with => 'orders');
SELECT idempotency.idem_distribute('orders');
"""

FUNCTIONS = f"""
INSERT INTO stock SELECT t, 'chair', 0 FROM generate_series(1, {TENANTS}) t;
CREATE FUNCTION buy(tenant bigint, key text) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO orders (tenant, key) VALUES (buy.tenant, buy.key);
    UPDATE stock SET n = n + 1 WHERE stock.tenant = buy.tenant AND sku = 'chair';
    RETURN jsonb_build_object('key', buy.key);
END $$;
CREATE FUNCTION buy(request jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO orders (tenant, key) VALUES ((request->>'tenant')::bigint, request->>'key');
    UPDATE stock SET n = n + 1 WHERE tenant = (request->>'tenant')::bigint AND sku = 'chair';
    RETURN jsonb_build_object('key', request->>'key');
END $$;
CREATE FUNCTION order_once(tenant bigint, key text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN (idempotency.idem_run('public.buy(jsonb)', idempotency.idem_scope(tenant::text, 'POST /orders'), key,
        jsonb_build_object('tenant', tenant, 'key', key))).outcome;
END $$;
"""

DELEGATED = """
SELECT create_distributed_function('order_once(bigint, text)', 'tenant', colocate_with => 'orders', force_delegation => true);
SELECT create_distributed_function('buy(bigint, text)', 'tenant', colocate_with => 'orders', force_delegation => true);
"""


class Node:
    def __init__(self, name, port):
        self.name, self.port = name, port

    def connect(self, user="postgres"):
        return psycopg.connect(f"host=127.0.0.1 port={self.port} user={user} dbname=postgres", autocommit=True)

    def run(self, sql):
        """The rows of the last statement."""
        with self.connect() as connection:
            rows = connection.execute(sql)
            while rows.nextset():
                pass
            return rows.fetchall() if rows.description else []

    def kill(self):
        """SIGKILL, and a start."""
        pid = int((WORK / self.name / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        for _ in range(600):
            # while a process of the old server lives its memory is in use
            if subprocess.run(["pg_ctl", "-D", WORK / self.name, "-l", WORK / f"{self.name}.log", "-w", "start"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
                return
            time.sleep(0.1)
        sys.exit(f"{self.name} does not start")


class Run:
    """Clients at work, and what is done to the nodes meanwhile."""

    def __init__(self, cluster, name, keys, tenants=1):
        self.cluster, self.name, self.tenants = cluster, name, tenants
        self.keys = [f"{name}-{i}".replace(" ", "-") for i in range(keys // tenants)]
        self.todo = self.keys * REPEATS
        random.shuffle(self.todo)
        self.total = len(self.todo)
        self.lock = threading.Lock()
        self.answers = collections.Counter()
        self.errors = collections.Counter()
        self.internal = collections.Counter()
        self.kills = self.moves = 0

    def calls(self, key):
        number = int(key.rsplit("-", 1)[1])
        return [((number + step * 7) % TENANTS + 1, key) for step in range(self.tenants)]

    def send(self, connection, key):
        with connection.transaction():
            return [connection.execute("SELECT order_once(%s, %s)", call).fetchone()[0] for call in self.calls(key)]

    def client(self):
        connection = None
        while True:
            with self.lock:
                if not self.todo:
                    return
                key = self.todo.pop()
            while True:
                try:
                    if connection is None or connection.closed or random.random() < 0.02:
                        connection = random.choice(self.cluster.open).connect("app")
                    for outcome in self.send(connection, key):
                        self.answers[outcome] += 1
                    break
                except psycopg.Error as error:
                    with self.lock:
                        self.errors[error.sqlstate or ("lost" if connection and connection.broken else "refused")] += 1
                        if error.sqlstate == "XX000":
                            self.internal[re.sub(r"\d+", "N", error.diag.message_primary)] += 1
                    if connection is not None:
                        connection.close()
                    connection = None
                    time.sleep(0.02)

    def progress(self, share):
        while self.total - len(self.todo) < share * self.total:
            time.sleep(0.01)

    def go(self, events):
        clients = [threading.Thread(target=self.client) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        for number, event in enumerate(events):
            self.progress((number + 1) / (len(events) + 2))
            event(self)
        for client in clients:
            client.join()
        return self.check()

    def check(self):
        ask = self.cluster.nodes[0].run
        pattern = self.name.replace(" ", "-") + "-%"
        for _ in range(600):
            ask("SELECT recover_prepared_transactions()")
            prepared = sum(node.run("SELECT count(*) FROM pg_prepared_xacts")[0][0] for node in self.cluster.open)
            if prepared == 0:
                break
            time.sleep(0.1)
        effects, distinct = ask(f"SELECT count(*), count(DISTINCT (tenant, key)) FROM orders WHERE key LIKE '{pattern}'")[0]
        kept = ask(f"SELECT count(*) FROM idempotency.idempotency_keys WHERE key LIKE '{pattern}'")[0][0]
        apart = ask(f"""SELECT count(*) FROM (SELECT tenant, key FROM orders WHERE key LIKE '{pattern}') o FULL JOIN
            (SELECT tenant, key FROM idempotency.idempotency_keys WHERE key LIKE '{pattern}') k
            ON o.tenant = k.tenant AND o.key = k.key WHERE o.key IS NULL OR k.key IS NULL""")[0][0]
        stock = ask("SELECT (SELECT sum(n) FROM stock) - (SELECT count(*) FROM orders)")[0][0]
        wanted = len(self.keys) * self.tenants
        lost = wanted - self.answers["completed"]
        good = (effects, distinct, kept, apart, stock, prepared) == (wanted, wanted, wanted, 0, 0, 0)
        errors = ", ".join(f"{count} {state}" for state, count in sorted(self.errors.items())) or "none"
        print(f"| {self.name} | {wanted} | {self.kills} | {self.moves} | {effects} | {lost} | {errors} |"
              + ("" if good else f" WRONG: {distinct} distinct, {kept} keys, {apart} apart, {stock} of stock, {prepared} prepared"),
              flush=True)
        return good


class Cluster:
    def __init__(self, ports):
        self.nodes = [Node(f"node{number}", port) for number, port in enumerate(ports)]
        self.open = self.nodes[:3]

    def set_up(self):
        first = self.nodes[0]
        for node in self.nodes:
            node.run("CREATE EXTENSION citus")
        first.run(f"SELECT citus_set_coordinator_host('127.0.0.1', {first.port})")
        for node in self.nodes[1:3]:
            first.run(f"SELECT citus_add_node('127.0.0.1', {node.port})")
        first.run("CREATE EXTENSION pgcrypto")
        first.run("CREATE SCHEMA idempotency; CREATE EXTENSION idempotency SCHEMA idempotency")
        for part in (APPLICATION, DISTRIBUTED, FUNCTIONS, DELEGATED):
            for statement in re.split(r";\n(?=CREATE|SELECT|GRANT|ALTER|INSERT|$)", part.strip() + "\n"):
                if statement.strip():
                    first.run(statement)

    def move(self, number, target=None):
        """Move a shard, and those beside it, online."""
        def event(run):
            groups = self.nodes[0].run("""SELECT shardid, nodeport FROM pg_dist_shard JOIN pg_dist_placement USING (shardid)
                JOIN pg_dist_node USING (groupid) WHERE logicalrelid = 'orders'::regclass ORDER BY shardid""")
            shard, port = groups[number % len(groups)]
            to = target or next(node for node in self.nodes[1:3] if node.port != port)
            if to.port != port:
                self.nodes[0].run(f"""SELECT citus_move_shard_placement({shard}, '127.0.0.1', {port},
                    '127.0.0.1', {to.port}, 'force_logical')""")
                run.moves += 1
        return event

    def kill(self, *nodes):
        def event(run):
            for node in nodes:
                node.kill()
                run.kills += 1
        return event

    def join(self, run):
        first, node = self.nodes[0], self.nodes[3]
        first.run(f"SELECT citus_add_inactive_node('127.0.0.1', {node.port})")
        first.run("SELECT idempotency.idem_distribute_node()")
        first.run(f"SELECT citus_activate_node('127.0.0.1', {node.port})")
        first.run("SELECT idempotency.idem_distribute_node()")
        first.run("SELECT replicate_reference_tables('force_logical')")
        self.open.append(node)


def runs(cluster, keys):
    first, one, two, third = cluster.nodes
    yield Run(cluster, "plain", keys), []
    yield Run(cluster, "a worker dies", keys), [cluster.kill(one)] * 2
    yield Run(cluster, "the other dies", keys), [cluster.kill(two)] * 2
    yield Run(cluster, "the coordinator dies", keys), [cluster.kill(first)] * 2
    yield Run(cluster, "all die in turn", keys), [cluster.kill(node) for node in (one, first, two)]
    yield Run(cluster, "two tenants", keys, 2), []
    yield Run(cluster, "two tenants and all die", keys, 2), [cluster.kill(node) for node in (one, two, first, one)]
    yield Run(cluster, "shards move", keys), [cluster.move(number) for number in (0, 1, 2)]
    yield Run(cluster, "a node joins", keys), [cluster.join, cluster.move(0, third), cluster.move(1, third)]


def pgbench(port, script, seconds):
    path = WORK / "script.sql"
    path.write_text(script)
    out = subprocess.run(["pgbench", "-n", "-M", "prepared", "-c", "4", "-j", "2", "-T", str(seconds), "-p", str(port), "-U", "app",
                          "-f", path, "postgres"], capture_output=True, text=True, check=True).stdout
    return float(re.search(r"tps = ([\d.]+)", out).group(1))


def speed(cluster, single, rounds=5, seconds=3):
    tenant = f"\\set t random(1, {TENANTS})\n"
    fresh = tenant + "\\set r random(1, 9000000000000000)\nSELECT order_once(:t, 's' || :r);\n"
    scripts = {"bare": tenant + "SELECT buy(:t, 'bare');\n", "new key": fresh,
               "replay": tenant + "SELECT order_once(:t, 'again');\n"}
    where = {"local": single, "delegated": cluster.nodes[0]}
    seen = collections.defaultdict(list)
    for node in cluster.nodes + [single]:
        node.run("ALTER SYSTEM SET fsync = on")
        node.run("SELECT pg_reload_conf()")
    for node in where.values():
        for number in range(1, TENANTS + 1):
            with node.connect("app") as connection:
                connection.execute("SELECT order_once(%s, 'again')", (number,))
    for _ in range(rounds):
        for kind, script in scripts.items():
            for place, node in where.items():
                seen[kind, place].append(pgbench(node.port, script, seconds))
    middle = {name: statistics.median(values) for name, values in seen.items()}
    print("\n| | local | delegated | delegated / local |\n| --- | --- | --- | --- |")
    for kind in scripts:
        print(f"| {kind} | {middle[kind, 'local']:.0f} | {middle[kind, 'delegated']:.0f} |"
              f" {middle[kind, 'delegated'] / middle[kind, 'local']:.2f} |")
    print("| new key / bare | " + " | ".join(f"{middle['new key', place] / middle['bare', place]:.2f}" for place in where) + " | |")


def main():
    keys, *ports = map(int, sys.argv[1:])
    cluster, single = Cluster(ports[:4]), Node("single", ports[4])
    cluster.set_up()
    single.run("CREATE EXTENSION pgcrypto")
    single.run("CREATE SCHEMA idempotency; CREATE EXTENSION idempotency SCHEMA idempotency")
    single.run(APPLICATION + FUNCTIONS)
    good = True
    internal = collections.Counter()
    print("| run | keys | kills | moves | effects | replies lost | errors met |\n| --- | --- | --- | --- | --- | --- | --- |")
    for run, events in runs(cluster, keys):
        good = run.go(events) and good
        internal.update(run.internal)
    print("\nXX000:", "; ".join(f"{count} {message}" for message, count in internal.items()) or "none")
    speed(cluster, single)
    return 0 if good else 1


sys.exit(main())
