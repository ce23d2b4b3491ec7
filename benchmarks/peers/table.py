"""The table that is printed, and its summary over fixtures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]
"""One model of one fixture, as it stands in the results file."""


def best_accurate(rows: Sequence[Row], peers: Sequence[str], threads: str, budget: float) -> Row | None:
    """Returns the fastest row among `peers` whose accuracy (else agreement) is at most `budget` below float's."""
    base = next(r for r in rows if r["peer"] == "float")
    key = "accuracy" if base.get("accuracy") is not None else "agreement"
    kept = [r for r in rows if r["peer"] in peers and r.get("latency") and base[key] - r[key] <= budget + 1e-9]
    return min(kept, key=lambda r: r["latency"][threads]["ratio"], default=None)


def geometric_means(rows: Sequence[Row], threads: str) -> dict[str, tuple[float, int]]:
    """Returns `peer -> (geometric mean of its latency ratio, number of fixtures that it ran)`."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.get("latency"):
            found.setdefault(row["peer"], []).append(row["latency"][threads]["ratio"])
    return {peer: (float(np.exp(np.mean(np.log(v)))), len(v)) for peer, v in found.items()}


def make_table(rows: Sequence[Row], threads: Sequence[str]) -> Table:
    """Returns the table of some rows; a failed one has its reason under the numbers."""
    table = Table(box=None, pad_edge=False)
    numbers = ["accuracy", "agree", *(f"x float, {t} thr" for t in threads), "size", "s", "MB", "lines"]
    for column in ("fixture", "peer", *numbers):
        table.add_column(column, justify="left" if column in ("fixture", "peer") else "right", no_wrap=True)
    table.add_column("note", overflow="fold")
    for row in rows:
        latency = row.get("latency") or {}
        table.add_row(
            row["fixture"],
            row["peer"],
            _number(row.get("accuracy"), ".4f"),
            _number(row.get("agreement"), ".4f"),
            *(_number(latency.get(t, {}).get("ratio"), ".2f") for t in threads),
            _number(row.get("size_ratio"), ".2f"),
            _number(row.get("seconds"), ".0f"),
            _number(row.get("peak_memory_mb"), ".0f"),
            _number(row.get("lines"), "d"),
            row.get("failure") or row.get("note") or "",
        )
    return table


def show(rows: Sequence[Row], threads: Sequence[str], budget: float, console: Console) -> None:
    """Prints the table, and per fixture edgemm beside the fastest peer that keeps the accuracy budget."""
    console.print(make_table(rows, threads))
    ours = sorted(name for name in {r["peer"] for r in rows} if name.startswith("edgemm"))
    peers = sorted({r["peer"] for r in rows} - {"float", *ours})
    for fixture in dict.fromkeys(r["fixture"] for r in rows):
        own = [r for r in rows if r["fixture"] == fixture]
        for count in threads:
            parts = []
            for name, among in (("edgemm", _for_threads(ours, count)), ("best accurate peer", peers)):
                best = best_accurate(own, among, count, budget)
                which = "none within the budget" if best is None else f"{best['latency'][count]['ratio']:.2f}"
                parts.append(f"{name} {which}" + (f" ({best['peer']})" if best and among is peers else ""))
            console.print(f"{fixture}, {count} threads: {', '.join(parts)}", highlight=False)
    for count in threads:
        means = sorted(geometric_means(rows, count).items(), key=lambda item: item[1][0])
        text = ", ".join(f"{peer} {mean:.2f} ({n})" for peer, (mean, n) in means)
        console.print(f"geometric mean of the ratio at {count} threads (fixtures run): {text}", highlight=False)


def _for_threads(ours: Sequence[str], count: str) -> list[str]:
    """Returns the row of edgemm that was converted for a number of threads, else the one with its defaults."""
    return [name for name in ours if name == f"edgemm-{count}"] or ["edgemm"]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
