#!/usr/bin/env python3
"""churn.py churn|idle WORK RESULTS RATE [README]: the table and plot of bench/churn.

Reads the samples and logs in WORK; writes churn.csv, or idle.csv, with a plot
of it to RESULTS, and the table to stdout and between two marks of README.
"""

import csv
import pathlib
import re
import statistics
import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402, pylint: disable=wrong-import-position

FIELDS = ["phase", "at", "table_bytes", "index_bytes", "live_rows", "lag_s",
          "dead_rows", "autovacuums"]
FIRST_MINUTE = 60
MB = 1024 * 1024


def samples(work, phase):
    """Those of a phase, with the time since its first."""
    with (work / f"{phase}.samples").open(encoding="utf-8") as file:
        rows = [dict(zip(FIELDS, [phase, *map(float, line.split(","))]))
                for line in file if line.count(",") == len(FIELDS) - 2]
    start = rows[0]["at"]
    for row in rows:
        row["at"] = round(row["at"] - start, 3)
    return rows


def latencies(work, phases):
    """In milliseconds, from when a request was due, in order."""
    found = []
    for phase in phases:
        for path in (work / "log").glob(f"{phase}.*"):
            with path.open(encoding="ascii") as file:
                found += [int(line.split(" ", 3)[2]) / 1000 for line in file]
    return sorted(found)


def quantile(ordered, share):
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def waits(ordered):
    return ", ".join(f"{name} {quantile(ordered, share):.2f} ms" for name, share in
                     (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))) + f", most {ordered[-1]:.0f} ms"


def ratios(rows, row_bytes):
    """How many times larger table and indexes are than those of the live rows alone."""
    return [(row["table_bytes"] + row["index_bytes"]) / (row["live_rows"] * row_bytes)
            for row in rows if row["at"] >= FIRST_MINUTE and row["live_rows"]]


def megabytes(row):
    return (row["table_bytes"] + row["index_bytes"]) / MB


def report_churn(work, phases, row_bytes):
    rows = phases["sweeping"]
    size = ratios(rows, row_bytes) or [0]
    without = latencies(work, ("before", "after"))
    sweeping = latencies(work, ("sweeping",))
    p99 = quantile(sweeping, 0.99) / quantile(without, 0.99)
    yield ("live rows, median", f"{statistics.median(r['live_rows'] for r in rows):,.0f}", "")
    yield ("table and indexes against the live rows alone, after the first minute: "
           "most (median)", f"**{max(size):.2f}** ({statistics.median(size):.2f})", "< 3")
    yield ("table and indexes at the end: with sweeping, without",
           f"{megabytes(rows[-1]):.0f} MB, {megabytes(phases['before'][-1]):.0f} MB in half the time", "")
    yield ("p99 with sweeping against without", f"**{p99:.2f}**", "< 1.5")
    yield ("latencies without sweeping", waits(without), "")
    yield ("latencies with sweeping", waits(sweeping), "")
    yield ("`sweep_lag`, most", f"{max(r['lag_s'] for r in rows):.1f} s", "")
    yield ("autovacuums", f"{rows[-1]['autovacuums']:.0f}", "")


def report_idle(work, phases, _row_bytes):
    idling, recovering = phases["idling"], phases["recovering"]
    dead = [row["dead_rows"] for row in recovering]
    done = next((row["at"] for row in recovering if row["dead_rows"] < dead[0] / 10), None)
    yield ("the transaction idled for", f"{idling[-1]['at'] / 60:.0f} min", "")
    yield ("live rows, median", f"{statistics.median(r['live_rows'] for r in idling):,.0f}", "")
    yield ("`sweep_lag`: most, at the end", f"**{max(r['lag_s'] for r in idling):.1f} s**, "
           f"{idling[-1]['lag_s']:.1f} s", "")
    yield ("dead rows that VACUUM could not remove, at the end", f"{idling[-1]['dead_rows']:,.0f}", "")
    yield ("table and indexes at the end", f"{megabytes(idling[-1]):,.0f} MB", "")
    yield ("latencies in that time", waits(latencies(work, ("idling",))), "")
    yield ("latencies in the first and last tenth: p99",
           " ms, ".join(f"{quantile(part, 0.99):.2f}" for part in tenths(work)) + " ms", "")
    yield ("nine tenths of the dead rows were gone after",
           f"**{done:.0f} s**" if done is not None else "**not within the minute**", "")
    yield ("table and indexes a minute later, mostly free for new rows",
           f"{megabytes(recovering[-1]):,.0f} MB", "")


def tenths(work):
    """The latencies of the first and of the last tenth, each in order."""
    found = []
    for path in (work / "log").glob("idling.*"):
        with path.open(encoding="ascii") as file:
            for line in file:
                fields = line.split()
                found.append((int(fields[4]), int(fields[2]) / 1000))
    first, last = min(found)[0], max(found)[0]
    tenth = (last - first) / 10
    return (sorted(ms for at, ms in found if at <= first + tenth),
            sorted(ms for at, ms in found if at >= last - tenth))


def plot(name, phases, row_bytes, results):
    main = phases["sweeping"] if name == "churn" else phases["idling"] + [
        row | {"at": row["at"] + phases["idling"][-1]["at"]} for row in phases["recovering"]]
    figure, axis = plt.subplots(figsize=(9.5, 3.6), constrained_layout=True)
    minutes = [row["at"] / 60 for row in main]
    axis.plot(minutes, [megabytes(row) for row in main], color="#0072B2",
              label="table and indexes")
    axis.plot(minutes, [row["live_rows"] * row_bytes / MB for row in main], color="#767676",
              label="the live rows alone")
    if name == "churn":
        axis.plot(minutes, [3 * row["live_rows"] * row_bytes / MB for row in main],
                  color="black", linestyle=":", label="three times that")
    axis.set_ylim(0)
    axis.set_xlabel("minutes")
    axis.set_ylabel("MB")
    axis.legend(loc="upper right")
    for kind in "svg", "png":
        figure.savefig(results / f"{name}.{kind}", dpi=110, metadata={"Date": None} if kind == "svg" else None)


def markdown(lines):
    return "\n".join(f"| {' | '.join(line)} |"
                     for line in [("what", "seen", "required"), ("---", "---", "---"), *lines])


def main():
    name, work, results, rate = sys.argv[1], *map(pathlib.Path, sys.argv[2:4]), sys.argv[4]
    names = ("before", "sweeping", "after") if name == "churn" else ("idling", "recovering")
    phases = {phase: samples(work, phase) for phase in names}
    count, size = map(int, (work / "alone").read_text(encoding="ascii").split(","))
    row_bytes = size / count
    with (results / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(row for rows in phases.values() for row in rows)

    report = report_churn if name == "churn" else report_idle
    settings = ", ".join((work / "settings").read_text(encoding="utf-8").splitlines())
    text = (f"{rate} requests a second, {row_bytes:.0f} bytes a row with its index entries; {settings}.\n\n"
            + markdown(report(work, phases, row_bytes))
            + f"\n\n![Size over time](results/{name}.svg)")
    print(text)
    plt.rcParams.update({"svg.hashsalt": "idempotency", "svg.fonttype": "path", "font.size": 9,
                         "axes.spines.top": False, "axes.spines.right": False,
                         "axes.grid": True, "grid.color": "#E5E5E5", "axes.axisbelow": True})
    plot(name, phases, row_bytes, results)
    for readme in map(pathlib.Path, sys.argv[5:]):
        old = readme.read_text(encoding="utf-8")
        readme.write_text(re.sub(rf"(<!-- {name} -->\n).*(<!-- end of {name} -->)",
                                 lambda match: f"{match[1]}{text}\n{match[2]}", old,
                                 flags=re.DOTALL), encoding="utf-8")


main()
