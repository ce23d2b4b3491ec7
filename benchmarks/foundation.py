"""Per fixture: accuracy, latency ratio to plain float ONNX Runtime, size ratio, conversion seconds, peak memory.

    python -m benchmarks.foundation [NAME ...] [--seconds S] [--json OUT]

Each fixture is converted by the command line in a process of its own, whose peak memory is read. Latency is then
measured here, interleaved at batch 1 over evaluation samples: the bundle against the plain float model, which is
what torch.onnx.export(dynamo=True) writes (or the .onnx file itself) in one session with default options.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.driver import run
from benchmarks.fixtures import Fixture, build
from benchmarks.peers.produce import Limits, run_child
from benchmarks.plain import PlainFloat
from edgemm.data import make_feed, open_samples
from edgemm.pipeline.timing import latency_feeds
from edgemm.runtime import open_session
from edgemm.runtime.latency import ratio
from edgemm.runtime.turns import time_sessions

FOLDER = Path("build/benchmarks")


def convert(fixture: Fixture, output: Path, *options: str) -> tuple[dict[str, Any], float, float]:
    """Returns `(what --json prints, seconds, peak memory in MB)` of one conversion by the command line.

    Raises:
        RuntimeError: It fails; the message is its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = run_child(fixture.convert_command(output, "--force", *options), Path(folder), Limits(1800, 16_000))
        if done.failure is not None:
            raise RuntimeError(done.failure)
        assert done.seconds is not None
        assert done.peak_memory_mb is not None
        return json.loads((Path(folder) / "stdout.txt").read_text()), done.seconds, done.peak_memory_mb


def measure(fixture: Fixture, bundle: Path, seconds: float) -> dict[str, Any]:
    """Returns medians and their ratio of the bundle and the plain float model, from one interleaved run."""
    with open_session(bundle, cache="off") as session:
        samples = open_samples(str(fixture.eval))
        feeds = latency_feeds(session.io, samples, {})
        plain = PlainFloat.open(fixture, session.io, make_feed(session.io, [samples[0]]))
        timings = time_sessions({"float": plain, "edge": session}, feeds, seconds=seconds)
    found = ratio(timings["edge"].total, timings["float"].total)
    return {
        "float_ms": timings["float"].ms,
        "edge_ms": timings["edge"].ms,
        "ratio": found.value,
        "ratio_95": [found.low, found.high],
        "runs": timings["edge"].total.runs,
    }


def row(name: str, seconds: float) -> dict[str, Any]:
    """Returns everything that is measured of one fixture, or the error that it ended in."""
    fixture = build(name)
    bundle = FOLDER / f"{name}.edgemm"
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        result, took, memory = convert(fixture, bundle)
    except RuntimeError as error:
        return {"fixture": name, "error": str(error)}
    shipped = next(v for v in result["variants"] if v["refused"] is None)
    return {
        "fixture": name,
        "parameters": sum(s["parameters"] for s in result["stages"]),
        "stages": [s["name"] for s in result["stages"]],
        "variant": shipped["name"],
        "layout": shipped["layout"],
        "decisions": shipped["decisions"],
        "refused": [v["refused"] for v in result["variants"] if v["refused"]],
        "accuracy": shipped["accuracy"],
        "latency": measure(fixture, bundle, seconds),
        "size_ratio": shipped["size_bytes"] / result["float_size_bytes"],
        "convert_seconds": took,
        "peak_memory_mb": memory,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the table."""
    table = Table(box=None, pad_edge=False)
    columns = ("fixture", "ships", "metric", "float", "edge", "ms float", "ms edge", "ratio", "size", "s", "MB")
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:3] else "right")
    for r in rows:
        if "error" in r:
            table.add_row(r["fixture"], f"failed: {r['error']}")
            continue
        accuracy, latency = r["accuracy"], r["latency"]
        table.add_row(
            r["fixture"],
            f"{r['variant'].removeprefix('cpu-')} {r['layout']}",
            accuracy["metric"],
            f"{accuracy['float']:.4f}",
            f"{accuracy['variant']:.4f}",
            f"{latency['float_ms']:.3f}",
            f"{latency['edge_ms']:.3f}",
            f"{latency['ratio']:.2f}",
            f"{r['size_ratio']:.2f}",
            f"{r['convert_seconds']:.0f}",
            f"{r['peak_memory_mb']:.0f}",
        )
    Console(width=120).print(table)
    ratios = [r["latency"]["ratio"] for r in rows if "latency" in r]
    if ratios:
        print(f"geometric mean of the latency ratio over {len(ratios)}: {geometric_mean(ratios):.2f}")


if __name__ == "__main__":
    run(__doc__, row, show, seconds=10.0)
