"""edgemm beside other ways to quantize an ONNX model for the CPU, each in an environment of its own.

    python -m benchmarks.peers [FIXTURE ...] [--peer NAME ...] [--threads 1,2] [--json OUT]

Every peer gets the same float model and the same calibration samples. All models of a fixture are scored at
batch 1 on the evaluation split, and timed in one interleaved run against plain float ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.fixtures import FIXTURES, build
from benchmarks.peers.measure import FLOAT, measure
from benchmarks.peers.produce import Limits, Produced, convert, convert_edgemm, prepare
from benchmarks.peers.registry import PEERS
from benchmarks.peers.table import show
from edgemm.pipeline.provenance import measured_here, tool_versions

NAMES = ("imu", "av_digits", "av_gru", "av_attention", "review_image")
FOLDER = Path("build/benchmarks/peers")
OURS: dict[str, tuple[str, ...]] = {"edgemm": (), "edgemm-1": ("--threads", "1")}
"""Rows of edgemm -> options of `edgemm convert`: what is fastest is measured with the threads that will run it."""


def rows_of(name: str, peers: list[str], threads: tuple[int, ...], limits: Limits, seconds: float) -> list[Any]:
    """Returns the rows of one fixture: float, edgemm and every peer."""
    task = prepare(build(name), FOLDER / name)
    produced = {FLOAT: Produced(path=task.model, size=task.model.stat().st_size)}
    for peer in peers:
        print(f"{name}: {peer}", file=sys.stderr)
        folder = FOLDER / name / peer
        found = (
            convert_edgemm(task, folder, limits, OURS[peer])
            if peer in OURS
            else convert(task, PEERS[peer], folder, limits)
        )
        produced[peer] = found
    print(f"{name}: measuring", file=sys.stderr)
    measured = measure(task, produced, threads, seconds)
    size = task.model.stat().st_size
    rows = []
    for peer, made in produced.items():
        row = {"fixture": name, "peer": peer, "size_ratio": None if made.size is None else made.size / size}
        told = {
            "seconds": made.seconds,
            "peak_memory_mb": made.peak_memory_mb,
            "lines": made.lines,
            "versions": dict(made.versions),
            "note": made.note,
            "failure": made.failure,
        }
        rows.append(row | told | measured[peer])
    return rows


def main() -> None:
    """Converts, scores and times, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="FIXTURE", help=f"default: {' '.join(NAMES)}")
    parser.add_argument("--peer", action="append", choices=[*OURS, *PEERS], metavar="NAME", help="default: all")
    parser.add_argument("--threads", default="1,2", help="numbers of threads to time with (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of an interleaved measurement")
    parser.add_argument("--budget", type=float, default=0.01, help="largest loss of an accurate peer")
    parser.add_argument("--time-limit", type=float, default=1200.0, help="seconds that a conversion may take")
    parser.add_argument("--memory-limit", type=float, default=12.0, help="GB that a conversion may take")
    parser.add_argument("--json", type=Path, help="where to keep the results")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in FIXTURES]
    if unknown:
        parser.error(f"no fixture {unknown[0]!r} (fixtures: {', '.join(FIXTURES)})")
    warnings.simplefilter("ignore")
    threads = tuple(int(count) for count in options.threads.split(","))
    limits = Limits(options.time_limit, options.memory_limit * 1024)
    console = Console(width=160)
    rows: list[Any] = []
    loads = [os.getloadavg()[0]]
    counts = [str(count) for count in threads]
    names = options.names or NAMES
    for name in names:
        rows += rows_of(name, options.peer or [*OURS, *PEERS], threads, limits, options.seconds)
        loads.append(os.getloadavg()[0])
        if options.json:
            _keep(options.json, rows, loads)
        if len(names) > 1:
            show([r for r in rows if r["fixture"] == name], counts, options.budget, console)
            print()
    show(rows, counts, options.budget, console)


def _keep(path: Path, rows: list[Any], loads: list[float]) -> None:
    """Writes what there is so far: the run is long."""
    finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record = {
        **measured_here(0),
        "finished": finished,
        "load_average": loads,
        "tools": tool_versions(),
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
