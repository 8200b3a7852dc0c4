"""What report.py and plot.py share: runs.csv, and how its contenders are called."""

import csv
import statistics

NAMES = {
    "ours/run": "`idem_run`",
    "ours/run_json": "`idem_json(idem_run(…))`",
    "ours/replay": "replay",
    "ours/body": "`idem_run`",
    "ours/body_replay": "replay",
    "ours/contend": "`idem_run`",
    "ours/statements": "claim, work, complete",
    "ours/contend_statements": "claim, work, complete",
    "peers/bare": "bare",
    "peers/select": "SELECT",
    "peers/select_stored": "SELECT as stored",
    "peers/plpgsql": "PL/pgSQL function",
    "peers/statements": "insert, work, update",
    "peers/advisory": "advisory lock",
    "peers/body_bare": "bare",
    "peers/body_plpgsql": "PL/pgSQL function",
    "peers/body_select": "SELECT",
    "peers/contend_plpgsql": "PL/pgSQL function",
    "peers/contend_advisory": "advisory lock",
    "clients/run": "`idem_run`",
    "clients/bare": "bare",
    "clients/store": "second connection",
    "clients/redis": "Redis",
    "clients/contend_run": "`idem_run`",
    "clients/contend_store": "second connection",
    "clients/contend_redis": "Redis",
}
WAYS = {"": "", "direct": ", direct way", "sql": ", SQL way"}


def name(script):
    """ours/statements@sql: "claim, work, complete, SQL way"."""
    script, _, way = script.partition("@")
    return NAMES[script] + WAYS[way]


def read(path):
    """Rows of a CSV file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path, rows):
    """Rows, if there are any, as a CSV file."""
    if not rows:
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def values(rows, column="value"):
    """Values by (group, parameter, script), in the order of the rounds."""
    found = {}
    for row in rows:
        if row[column]:
            key = row["group"], row["parameter"], row["script"]
            found.setdefault(key, []).append(float(row[column]))
    return found


def place(script):
    """Where a contender stands among the others."""
    return list(NAMES).index(script.partition("@")[0]), script


def medians(rows, group):
    """Of one group: medians by script, then by parameter, smallest first."""
    found = {}
    for (of, parameter, script), run in values(rows).items():
        if of == group:
            found.setdefault(script, {})[int(parameter or 0)] = statistics.median(run)
    return {script: dict(sorted(points.items())) for script, points in found.items()}
