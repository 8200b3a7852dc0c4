#!/usr/bin/env python3
"""plot.py RESULTS: plots of the CSV files there, as SVG and PNG beside them."""

import pathlib
import sys
import textwrap

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402, pylint: disable=wrong-import-position
from matplotlib.ticker import FuncFormatter, NullLocator  # noqa: E402

import runs  # noqa: E402

# The colours of Okabe and Ito, which the colour-blind can tell apart, and
# shapes for those who print in grey: of each contender by its name.
STYLES = {
    "idem_run, direct way": ("#0072B2", "o"),
    "idem_run, SQL way": ("#56B4E9", "o"),
    "idem_run": ("#0072B2", "o"),
    "replay, direct way": ("#0072B2", "o"),
    "replay, SQL way": ("#56B4E9", "o"),
    "bare": ("#767676", "s"),
    "SELECT": ("#767676", "s"),
    "PL/pgSQL function": ("#E69F00", "^"),
    "claim, work, complete, direct way": ("#009E73", "v"),
    "claim, work, complete, SQL way": ("#009E73", "v"),
    "insert, work, update": ("#F0E442", "<"),
    "advisory lock": ("#CC79A7", "D"),
    "second connection": ("#D55E00", "P"),
    "Redis": ("#000000", "X"),
}
MARKS = {"p50_ms": ("p50", "o"), "p95_ms": ("p95", "|"), "p99_ms": ("p99", "D"),
         "p999_ms": ("p99.9", ">")}
WIDE = 9.5


def plain(script):
    return runs.name(script).replace("`", "")


def short(value, _position=None):
    """1000 as 1k, 1000000 as 1M, so that ticks stay short."""
    for unit, sign in (1e6, "M"), (1e3, "k"):
        if value >= unit:
            return f"{value / unit:g}{sign}"
    return f"{value:g}"


def drop_second_statements(found):
    """Those of a transaction are drawn in one way only, as idem_run shows both."""
    if any(script.endswith("statements@direct") for script in found):
        return {s: p for s, p in found.items() if not s.endswith("statements@sql")}
    return found


def lines(axes, found, title, unit):
    """A line for each contender; nothing says how things are between the points."""
    for script, points in found.items():
        colour, shape = STYLES[plain(script)]
        axes.plot(list(points), list(points.values()), color=colour, marker=shape,
                  linestyle="--" if script.endswith("@sql") else "-",
                  markersize=5, linewidth=1.5, label=plain(script), clip_on=False)
    ticks = sorted({x for points in found.values() for x in points})
    axes.set_xscale("log")
    axes.set_xticks(ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(short))
    axes.yaxis.set_major_formatter(FuncFormatter(short))
    axes.set_title(title)
    axes.set_xlabel(unit)
    axes.legend(frameon=False)


def panels(count, height=4.2, **more):
    figure, axes = plt.subplots(1, count, figsize=(WIDE, height), squeeze=False,
                                layout="constrained", **more)
    return figure, list(axes[0])


def save(figure, results, name):
    """Without a date or a version: the same numbers give the same files."""
    figure.savefig(results / f"{name}.svg", metadata={"Date": None, "Creator": None})
    figure.savefig(results / f"{name}.png", metadata={"Software": None}, dpi=110)
    plt.close(figure)


def throughput(rows, results):
    groups = {"peers": "by pgbench", "clients": "by Python clients"}
    groups = {group: title for group, title in groups.items() if runs.medians(rows, group)}
    if not groups:
        return
    figure, axes = panels(len(groups))
    for axis, (group, title) in zip(axes, groups.items()):
        lines(axis, drop_second_statements(runs.medians(rows, group)), title, "clients")
        axis.set_ylim(0)
    axes[0].set_ylabel("requests a second, durable commits")
    save(figure, results, "throughput")


def latency(waits, results):
    wanted = [("peers", "8", "8 clients"), ("peers", "64", "64 clients"),
              ("contention", "", "64 clients, one key")]
    found = []
    for group, parameter, title in wanted:
        here = [w for w in waits if (w["group"], w["parameter"]) == (group, parameter)
                and not w["script"].startswith("clients/")]
        here = {w["script"]: w for w in sorted(here, key=lambda w: runs.place(w["script"]))}
        if here:
            found.append((title, drop_second_statements(here)))
    if not found:
        return
    names = list(dict.fromkeys(plain(script) for _, here in found for script in here))
    figure, axes = panels(len(found), 2.9, sharey=True)
    for axis, (title, here) in zip(axes, found):
        for script, wait in here.items():
            colour, _ = STYLES[plain(script)]
            place = names.index(plain(script))
            xs = [float(wait[column]) for column in MARKS]
            axis.plot(xs, [place] * len(xs), color=colour, linewidth=1)
            for x, (_, shape) in zip(xs, MARKS.values()):
                axis.plot(x, place, color=colour, marker=shape, markersize=6)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(short))
        axis.set_title(title)
        axis.set_xlabel("ms")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    keys = [plt.Line2D([], [], color="#444444", marker=shape, linestyle="", label=label)
            for label, shape in MARKS.values()]
    figure.legend(handles=keys, loc="lower center", ncols=len(keys), frameon=False)
    figure.get_layout_engine().set(rect=(0, 0.1, 1, 0.9))
    save(figure, results, "latency")


def bodies(rows, results):
    found = runs.medians(rows, "body")
    if not found:
        return
    replays = {s: p for s, p in found.items() if "replay" in s or "select" in s}
    executed = {s: p for s, p in found.items() if s not in replays}
    figure, axes = panels(2)
    for axis, part, title in zip(axes, (executed, replays), ("executed", "replayed")):
        lines(axis, part, title, "bytes of the answer")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(short))
    axes[0].set_ylabel("requests a second")
    save(figure, results, "bodies")


def stored(rows, results):
    found = runs.medians(rows, "size")
    if not found:
        return
    executed = {s: p for s, p in found.items() if s.startswith(("ours/run", "peers/bare"))}
    replays = {s: p for s, p in found.items() if s not in executed}
    figure, axes = panels(2)
    for axis, part, title in zip(axes, (executed, replays), ("executed", "replayed")):
        lines(axis, part, title, "stored keys")
        axis.set_ylim(0)
    axes[0].set_ylabel("requests a second")
    save(figure, results, "stored")


def ratios(table, rounds, results):
    """Each ratio, the rounds of which it is the median, and a bar at what is required."""
    table = [row for row in table if row["ours"]]
    if not table:
        return
    figure, (axis,) = panels(1, 0.8 + 0.42 * len(table))
    for place, row in enumerate(table):
        value, low, high = (float(row[c]) for c in ("result", "lowest", "highest"))
        short_of = row["met"] == "no"
        colour = "#D55E00" if short_of else "#0072B2"
        axis.plot([low, high], [place, place], color=colour, linewidth=1.5)
        single = [float(r["ratio"]) for r in rounds if r["what"] == row["what"]]
        axis.plot(single, [place] * len(single), "|", color=colour, markersize=5)
        axis.plot(value, place, "o", color=colour, markersize=7,
                  markerfacecolor="white" if short_of else colour)
        if row["required"]:
            bound = float(row["required"].split()[1])
            axis.plot([bound, bound], [place - 0.35, place + 0.35], color="black", linewidth=2)
    axis.set_yticks(range(len(table)),
                    [textwrap.fill(row["what"].replace("`", ""), 60) for row in table])
    axis.invert_yaxis()
    axis.set_xlim(0)
    axis.axvline(1, color="#BBBBBB", linewidth=1, zorder=0)
    axis.set_xlabel("ratio to the peer, and those of the rounds\n"
                    "black bar: required, at least (of bytes at most); hollow: falls short")
    save(figure, results, "ratios")


def main():
    results = pathlib.Path(sys.argv[1])
    plt.rcParams.update({
        "svg.hashsalt": "idempotency", "svg.fonttype": "path", "font.size": 9,
        "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "axes.grid.axis": "both", "grid.color": "#E5E5E5",
        "axes.axisbelow": True, "legend.fontsize": 8})
    rows = runs.read(results / "runs.csv")
    throughput(rows, results)
    latency(runs.read(results / "latency.csv"), results)
    bodies(rows, results)
    stored(rows, results)
    ratios(runs.read(results / "rows.csv"), runs.read(results / "ratios.csv"), results)


main()
