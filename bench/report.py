#!/usr/bin/env python3
"""report.py RESULTS LOGS KEPT [README]: the tables of bench/run.

Reads runs.csv and machine.txt in RESULTS and the logs of each transaction in
LOGS, and in KEPT lines of an earlier latency.csv; writes rows.csv, ratios.csv
and latency.csv beside the first, and the tables to stdout and between the two
marks of README.
"""

import csv
import pathlib
import re
import statistics
import sys
from array import array

import runs

# What, group, script of ours, script of the peer, at least; with an empty way
# where there is no choice, or it is not ours.
RATIOS = [
    ("replay against a SELECT of the same columns by primary key",
     "replay", "ours/replay", "peers/select", {"direct": 0.95, "sql": 0.75}),
    ("replay against a SELECT of what is stored, without what a replay computes of it",
     "replay", "ours/replay", "peers/select_stored", {"direct": None}),
    ("replay, request given (the server computes the fingerprint), against the same",
     "replay", "ours/replay_request", "peers/select", {"": None}),
    ("100 replays in a pipeline against 100 SELECTs in one",
     "pipeline", "ours/replay_pipeline", "peers/select_pipeline",
     {"direct": 0.90, "sql": None}),
    ("`idem_run` against bare, durable commits, 8 clients, on a simulated disk that is 2 ms slower",
     "disk", "ours/run", "peers/bare", {"direct": 0.95, "sql": None}),
    ("`idem_run` against bare, durable commits, 8 clients, on this disk",
     "durable", "ours/run", "peers/bare", {"direct": None, "sql": None}),
    ("`idem_run`, the answer alone, against bare, processor time",
     "cpu", "ours/run_json", "peers/bare", {"direct": 0.68, "sql": None}),
    ("`idem_run`, all columns, against bare, processor time",
     "cpu", "ours/run", "peers/bare", {"direct": 0.64, "sql": None}),
    ("`idem_run`, the answer alone, against the hand-written PL/pgSQL function, processor time",
     "cpu", "ours/run_json", "peers/plpgsql", {"direct": 1.10, "sql": None}),
    ("`idem_run`, all columns, against the hand-written PL/pgSQL function, processor time",
     "cpu", "ours/run", "peers/plpgsql", {"direct": 1.00, "sql": None}),
    ("claim, work, complete in one transaction against insert, work, update by hand in one, "
     "processor time",
     "statements", "ours/statements", "peers/statements", {"direct": 0.90, "sql": None}),
    ("leased claim, then completion, two transactions, against the same two by hand, "
     "durable commits, 8 clients",
     "leased", "ours/leased", "peers/leased", {"direct": 0.90, "sql": None}),
    ("`idem_dedupe` of 1,000 keys against `INSERT … ON CONFLICT DO NOTHING`",
     "dedupe", "ours/dedupe", "peers/insert", {"": 1.30}),
    ("audited `idem_run` (two rows of the log) against `idem_run`",
     "audit", "ours/audit", "ours/run", {"": 0.80}),
    ("audited `idem_run`, sealed each second, against the same without sealing",
     "audit", "ours/audit_sealed", "ours/audit", {"": 0.90}),
    ("`idem_throttle` against an empty C function of the same result type, in `FROM`",
     "throttle", "ours/throttle", "peers/empty", {"": 0.80}),
    ("64 clients that throttle one subject against 64 with many",
     "subjects", "ours/throttle_one", "ours/throttle", {"": None}),
    ("`idem_sweep_all` of expired keys against a plain batched `DELETE`",
     "sweep", "ours/sweep", "peers/delete", {"direct": 1.00, "sql": 0.70}),
]
# Ratios that must not fall with many stored keys.
# group and both sides, and what is required of many keys against few
SCALE = {"`idem_run` / bare": ("scale", "ours/run", "peers/bare", 0.85),
         "`idem_run` with keys that grow with time / bare": ("scale", "ours/run_growing", "peers/bare", None),
         "`idem_run` / bare, `wal_compression = lz4`,": ("scale_lz4", "ours/run", "peers/bare", None),
         "the hand-written PL/pgSQL function / bare": ("scale_peer", "peers/plpgsql", "peers/bare", None),
         "replay / SELECT": ("scale", "ours/replay", "peers/select", 0.85)}

QUANTILES = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99, "p999_ms": 0.999}


def row(what, result="", required="", met="", **more):
    return {"what": what, "ours": "", "peer": "", "result": result, "lowest": "",
            "highest": "", "required": required, "met": met} | more


def ratio_row(what, target, pairs, form="{:.0f}", at_most=False):
    """The median of the rounds' ratios, against at least, or at most, a target."""
    line = row(what, "not yet")
    if target is not None:
        line["required"] = f"{'≤' if at_most else '≥'} {target:.2f}"
    if not pairs:
        return line
    paired = [a / b for a, b in pairs]
    ratio = statistics.median(paired)
    ours, theirs = (statistics.median(side) for side in zip(*pairs))
    line |= {"ours": form.format(ours), "peer": form.format(theirs), "result": f"{ratio:.2f}",
             "lowest": f"{min(paired):.2f}", "highest": f"{max(paired):.2f}"}
    if target is not None:
        good = round(ratio, 2) <= target if at_most else round(ratio, 2) >= target
        line["met"] = "yes" if good else "no"
    return line


def ratio_rows(values):
    """Of each ratio its group, its row, and what both sides did in each round.

    A way that this build does not have is named without a number.
    """
    for what, group, script, peer, bounds in RATIOS:
        if not any(of == group for of, _, _ in values):
            continue
        for way, target in bounds.items():
            at = f"@{way}" if way else ""
            ours = values.get((group, "", script + at), [])
            theirs = values.get((group, "", peer), [])
            pairs = list(zip(ours, theirs))
            yield group, ratio_row(what + runs.WAYS[way], target, pairs), pairs


def bytes_rows(values):
    ours, theirs = (values.get(("bytes", "", f"{side}/bytes"), []) for side in ("ours", "peers"))
    pairs = list(zip(ours, theirs))
    if pairs:
        yield "bytes", ratio_row(
            "bytes for each stored key, heap and both indexes, answers of 50 bytes, against the "
            "hand-written function's", 1.15, pairs, at_most=True), pairs


def scale_rows(values):
    sizes = sorted({int(parameter) for group, parameter, _ in values if group == "scale"})
    if len(sizes) != 2:
        return
    for what, (group, *scripts, target) in SCALE.items():
        few, many = ([a / b for a, b in zip(*(values.get((group, str(size), script), [])
                                              for script in scripts))] for size in sizes)
        pairs = list(zip(many, few))
        yield "scale", ratio_row(
            f"{what} with {sizes[1]:,} stored keys against the same with {sizes[0]:,}",
            target, pairs, "{:.2f}"), pairs
    for what, (group, ours, peer, _) in SCALE.items():
        pairs = list(zip(*(values.get((group + "_wal", str(size), ours), []) for size in reversed(sizes))))
        if peer == "peers/bare":
            yield "scale", ratio_row(
                f"bytes of WAL of {what.replace(' / bare', '')} with {sizes[1]:,} stored keys against {sizes[0]:,}",
                None, pairs), pairs


def round_rows(ratios):
    for group, line, pairs in ratios:
        for number, (ours, theirs) in enumerate(pairs, 1):
            yield {"group": group, "what": line["what"], "round": number,
                   "ours": round(ours, 4), "peer": round(theirs, 4),
                   "ratio": round(ours / theirs, 4)}


def count_row(what, value, required, met):
    return row(what, value, required, "yes" if met else "no")


def count_rows(values):
    """Rows that are counts: of transaction ids, WAL and tuples."""
    for way, name in runs.WAYS.items():
        replay, run, statements = (f"ours/{script}@{way}"
                                   for script in ("replay", "run", "statements"))
        xids = values.get(("xids", "", replay))
        if xids:
            xid = statistics.median(xids)
            beyond = statistics.median(
                a - b for a, b in zip(values["wal", "", replay],
                                      values["wal", "", "peers/select"]))
            yield count_row(f"transaction ids used by 2,000 replays{name}",
                            f"{xid:.0f}", "0", xid == 0)
            yield count_row(f"bytes of WAL beyond those of 2,000 SELECTs{name}",
                            f"{beyond:.0f}", "0", beyond <= 0)
        dead = values.get(("dead", "", run))
        if dead:
            yield count_row(f"dead tuples left by 2,000 executed `idem_run`{name}",
                            f"{dead[0]:.0f}", "0", dead[0] == 0)
        hot = values.get(("hot", "", statements))
        if hot:
            share = hot[0] / values["updates", "", statements][0]
            yield count_row(f"share of HOT among claim-then-complete updates{name}",
                            f"{share:.2f}", "≥ 0.90", round(share, 2) >= 0.9)


def latency_rows(logs):
    """A log's name tells group, parameter and script; its third column is in µs."""
    files = {}
    for path in logs.iterdir():
        group, parameter, script = path.name.split(",")[:3]
        key = group, int(parameter or 0), script.replace(".", "/")
        files.setdefault(key, []).append(path)
    for (group, parameter, script), paths in sorted(files.items()):
        waits = array("I")
        for path in paths:
            with path.open(encoding="ascii") as file:
                waits.extend(int(line.split(None, 3)[2]) for line in file)
        waits = sorted(waits)
        yield {"group": group, "parameter": parameter or "", "script": script,
               "transactions": len(waits)} | {
                   column: f"{waits[int((len(waits) - 1) * share)] / 1000:.3f}"
                   for column, share in QUANTILES.items()}


def markdown(header, rows):
    lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    lines += ["| " + " | ".join(line) + " |" for line in rows]
    return "\n".join(lines)


def number(value):
    return f"{value:,.0f}"


def ratio_table(rows):
    lines = [[line["what"],
              f"**{line['result']}** ({line['lowest']}–{line['highest']})"
              if line["lowest"] else f"**{line['result']}**" if line["met"] else line["result"],
              line["required"], line["met"],
              f"{line['ours']} : {line['peer']}" if line["ours"] else ""]
             for line in rows]
    return markdown(["what", "median of the rounds' ratios (lowest–highest), or count",
                     "required", "met", "ours : peer, a second, or bytes, or ratios"], lines)


def idle_note(idle):
    """How busy the processors were in the runs with durable commits."""
    notes = []
    for group, disk in ("durable", "this disk"), ("disk", "the simulated disk"):
        shares = [f"{runs.name(script)} {statistics.median(run):.0f} %"
                  for (of, _, script), run in idle.items() if of == group]
        if shares:
            notes.append(f"on {disk} {', '.join(shares)}")
    return ("Idle processor time in the runs of 8 clients with durable commits: "
            + "; ".join(notes) + ".") if notes else ""


def points_table(rows, group, unit):
    """Requests a second: a line for each contender, a column for each parameter."""
    found = runs.medians(rows, group)
    if not found:
        return ""
    parameters = sorted({parameter for points in found.values() for parameter in points})
    return markdown([f"requests a second; {unit}:"] + [f"{p:,}" for p in parameters],
                    [[runs.name(script)] + [number(points[p]) if p in points else ""
                                            for p in parameters]
                     for script, points in found.items()])


def contention_table(values, waits):
    lines = []
    for (group, _, script), run in values.items():
        if group != "contention":
            continue
        wait = next((w for w in waits if (w["group"], w["script"]) == (group, script)), {})
        keys, done = (sum(values[what, "", script]) for what in ("keys", "effects"))
        client = "Python" if script.startswith("clients/") else "pgbench"
        lines.append([runs.name(script), client, number(statistics.median(run)),
                      *(wait.get(column, "") for column in QUANTILES),
                      number(keys), number(done)])
    return markdown(["64 clients, one key", "client", "requests a second", "p50, ms", "p95, ms",
                     "p99, ms", "p99.9, ms", "keys", "work done"], lines) if lines else ""


def latency_table(waits):
    """Those of other parameters are in latency.csv only."""
    lines = [[w["group"], str(w["parameter"]), f"`{w['script']}`",
              *(w[column] for column in QUANTILES)]
             for w in waits if w["parameter"] in ("", 8, 64) and w["group"] != "contention"]
    return markdown(["group", "clients", "script", "p50, ms", "p95, ms", "p99, ms", "p99.9, ms"],
                    lines) if lines else ""


def picture(name, text):
    return f"![{text}](results/{name}.svg)"


def section(title, *parts):
    """Nothing, if the first part is: then its group was not run."""
    return ["### " + title, *filter(None, parts)] if parts[0] else []


def kept_rows(path, fields):
    """Lines without a header."""
    with path.open(newline="", encoding="utf-8") as file:
        return [row | {"parameter": int(row["parameter"]) if row["parameter"] else ""}
                for row in csv.DictReader(file, fields)]


def report(results, logs, kept):
    rows = runs.read(results / "runs.csv")
    values = runs.values(rows)
    ratios = [*ratio_rows(values), *bytes_rows(values), *scale_rows(values)]
    table = [*(line for _, line, _ in ratios), *count_rows(values)]
    waits = list(latency_rows(logs))
    fields = ["group", "parameter", "script", "transactions", *QUANTILES]
    waits = sorted(kept_rows(kept, fields) + waits,
                   key=lambda w: (w["group"], w["parameter"] or 0, w["script"]))
    runs.write(results / "rows.csv", table)
    runs.write(results / "ratios.csv", list(round_rows(ratios)))
    runs.write(results / "latency.csv", waits)

    machine = (results / "machine.txt").read_text(encoding="utf-8").splitlines()
    parts = ["\n".join(f"- {line}" for line in machine)]
    if table:
        parts += section("Against what is required", ratio_table(table),
                         picture("ratios", "Ratios and what is required"),
                         idle_note(runs.values(rows, "idle")))
    parts += section("Peers, by pgbench", points_table(rows, "peers", "clients"),
                     picture("throughput", "Requests a second by number of clients"),
                     picture("latency", "Latencies of 8 and 64 clients, and of 64 on one key"))
    parts += section("Peers, by Python clients", points_table(rows, "clients", "clients"))
    parts += section("One key for all", contention_table(values, waits))
    parts += section("Bodies", points_table(rows, "body", "bytes of the answer"),
                     picture("bodies", "Requests a second by size of the answer"))
    parts += section("Stored keys", points_table(rows, "size", "stored keys"),
                     picture("stored", "Requests a second by number of stored keys"))
    parts += section("Latencies", latency_table(waits))
    return "\n\n".join(parts)


def main():
    results, logs, kept = map(pathlib.Path, sys.argv[1:4])
    text = report(results, logs, kept)
    print(text)
    for readme in map(pathlib.Path, sys.argv[4:]):
        old = readme.read_text(encoding="utf-8")
        new = re.sub(r"(<!-- results -->\n).*(<!-- end of results -->)",
                     lambda match: f"{match[1]}{text}\n{match[2]}", old,
                     flags=re.DOTALL)
        readme.write_text(new, encoding="utf-8")


main()
