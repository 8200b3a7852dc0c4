#!/usr/bin/env python3
"""report.py RESULTS LOGS [README]: the table of bench/run.

Reads runs.csv and machine.txt in RESULTS and the transaction logs of pgbench in
LOGS; writes rows.csv and latency.csv beside them, and the table to stdout and
between the two marks of README.
"""

import csv
import pathlib
import re
import statistics
import sys

# What, group of ours, script of ours, group and script of the peer, at least.
RATIOS = [
    ("replay against a SELECT of the same columns by primary key",
     "replay", "ours/replay", "replay", "peers/select", 0.70),
    ("the same, request given (the server computes the fingerprint)",
     "replay", "ours/replay_request", "replay", "peers/select", None),
    ("`idem_run`, durable commits, 8 clients, against bare",
     "durable", "ours/run", "durable", "peers/bare", 0.90),
    ("`idem_run`, `synchronous_commit = off`, against bare",
     "cpu", "ours/run", "cpu", "peers/bare", 0.65),
    ("the same against a hand-written PL/pgSQL function",
     "cpu", "ours/run", "cpu", "peers/plpgsql", 1.15),
    ("the same against five statements of the client",
     "cpu", "ours/run", "cpu", "peers/five", 2.00),
    ("`idem_dedupe` of 1,000 keys against `INSERT … ON CONFLICT DO NOTHING`",
     "dedupe", "ours/dedupe", "dedupe", "peers/insert", 0.80),
    ("`idem_sweep_all` of expired keys against a plain batched `DELETE`",
     "sweep", "ours/sweep", "sweep", "peers/delete", 0.60),
    ("replay, many stored keys against few",
     "size bench", "ours/replay", "size small", "ours/replay", None),
    ("claim, many stored keys against few",
     "size bench", "ours/claim", "size small", "ours/claim", None),
    ("for comparison: the SELECT, many stored keys against few",
     "size bench", "peers/select", "size small", "peers/select", None),
]

LATER = [
    "replays in a pipeline of 100",
    "`idem_throttle` against an empty C function",
]


def read_runs(path):
    """Values by (group, script), in the order of the rounds."""
    runs = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            runs.setdefault((row["group"], row["script"]), []).append(
                float(row["value"]))
    return runs


def ratio_rows(runs):
    for what, group, script, peer_group, peer, target in RATIOS:
        ours = runs.get((group, script))
        theirs = runs.get((peer_group, peer))
        if not ours or not theirs:
            continue
        paired = [a / b for a, b in zip(ours, theirs)]
        ratio = statistics.median(paired)
        yield {
            "what": what,
            "ours": f"{statistics.median(ours):.0f}",
            "peer": f"{statistics.median(theirs):.0f}",
            "result": f"{ratio:.2f}",
            "lowest": f"{min(paired):.2f}",
            "highest": f"{max(paired):.2f}",
            "required": "" if target is None else f"≥ {target:.2f}",
            "met": "" if target is None else
                   "yes" if round(ratio, 2) >= target else "no",
        }


def count_row(what, value, required, met):
    return {"what": what, "ours": "", "peer": "", "result": value, "lowest": "",
            "highest": "", "required": required, "met": "yes" if met else "no"}


def count_rows(runs):
    """Rows that are counts: of transaction ids, WAL and tuples."""
    xids = runs.get(("xids", "ours/replay"))
    if xids:
        wal = [a - b for a, b in zip(runs["wal", "ours/replay"],
                                     runs["wal", "peers/select"])]
        xid, beyond = statistics.median(xids), statistics.median(wal)
        yield count_row("transaction ids used by 2,000 replays",
                        f"{xid:.0f}", "0", xid == 0)
        yield count_row("bytes of WAL beyond those of 2,000 SELECTs",
                        f"{beyond:.0f}", "0", beyond <= 0)
    dead = runs.get(("tuples", "dead tuples of 2000 idem_run"))
    if dead:
        hot = (runs["tuples", "HOT updates of these"][0] /
               runs["tuples", "updates by 2000 claim and complete"][0])
        yield count_row("dead tuples left by 2,000 executed `idem_run`",
                        f"{dead[0]:.0f}", "0", dead[0] == 0)
        yield count_row("share of HOT among claim-then-complete updates",
                        f"{hot:.2f}", "≥ 0.90", round(hot, 2) >= 0.9)


def latencies(logs):
    """Latencies in ms by (group, script): third column of a log, in µs."""
    found = {}
    for path in sorted(logs.iterdir()):
        group, script = path.name.split(",")[:2]
        with path.open() as file:
            found.setdefault((group, script.replace(".", "/")), []).extend(
                int(line.split()[2]) / 1000 for line in file)
    return found


def latency_rows(logs):
    for (group, script), values in sorted(latencies(logs).items()):
        values.sort()
        yield {"group": group, "script": script, "transactions": len(values),
               "p50_ms": f"{values[len(values) // 2]:.3f}",
               "p99_ms": f"{values[len(values) * 99 // 100]:.3f}"}


def write_csv(path, rows):
    if not rows:
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def markdown(header, rows):
    lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def report(results, logs):
    runs = read_runs(results / "runs.csv")
    rows = [*ratio_rows(runs), *count_rows(runs)]
    waits = list(latency_rows(logs))
    write_csv(results / "rows.csv", rows)
    write_csv(results / "latency.csv", waits)

    table = [[row["what"],
              f"**{row['result']}**" + (f" ({row['lowest']}–{row['highest']})"
                                        if row["lowest"] else ""),
              row["required"], row["met"],
              f"{row['ours']} : {row['peer']}" if row["ours"] else ""]
             for row in rows]
    table += [[what, "not yet", "", "", ""] for what in LATER]
    machine = (results / "machine.txt").read_text().splitlines()
    parts = ["\n".join(f"- {line}" for line in machine),
             markdown(["what", "median of the rounds' ratios (lowest–highest), or count",
                       "required", "met", "per second, ours : peer"], table)]
    if waits:
        parts.append(markdown(
            ["group", "script", "p50, ms", "p99, ms"],
            [[row["group"], f"`{row['script']}.sql`", row["p50_ms"],
              row["p99_ms"]] for row in waits]))
    return "\n\n".join(parts)


def main():
    results, logs = map(pathlib.Path, sys.argv[1:3])
    text = report(results, logs)
    print(text)
    for readme in map(pathlib.Path, sys.argv[3:]):
        old = readme.read_text()
        new = re.sub(r"(<!-- results -->\n).*(<!-- end of results -->)",
                     lambda match: f"{match[1]}{text}\n{match[2]}", old,
                     flags=re.DOTALL)
        readme.write_text(new)


main()
