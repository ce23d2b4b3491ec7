"""Per fixture: accuracy, latency ratio to plain float ONNX Runtime, size ratio, conversion seconds, peak memory.

    python -m benchmarks.foundation [NAME ...] [--seconds S] [--json OUT]

Each fixture is converted by the command line in a process of its own, whose peak memory is read. Latency is then
measured here, interleaved at batch 1 over evaluation samples: the bundle against the plain float model, which is
what torch.onnx.export(dynamo=True) writes (or the .onnx file itself) in one session with default options.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.driver import run
from benchmarks.fixtures import Fixture, build
from edgemm.data import make_feed, open_samples
from edgemm.export.factory import call_factory
from edgemm.pipeline.timing import latency_feeds, time_sessions
from edgemm.runtime import open_session
from edgemm.runtime.latency import ratio
from edgemm.tensors import Feed, IOSpec

FOLDER = Path("build/benchmarks")


def convert(fixture: Fixture, output: Path) -> tuple[dict[str, Any], float, float]:
    """Returns `(what --json prints, seconds, peak memory in MB)` of one conversion by the command line."""
    command = [
        sys.executable,
        "-m",
        "edgemm",
        "convert",
        *fixture.arguments,
        "-o",
        str(output),
        "--force",
        "--json",
    ]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        out.seek(0)
        err.seek(0)
        if status != 0:
            raise RuntimeError(err.read().decode().strip().splitlines()[-2])
        return json.loads(out.read()), seconds, usage.ru_maxrss / 1024


@dataclass(slots=True)
class PlainFloat:
    """The float model in one ONNX Runtime session with default options; states go round as in the bundle."""

    session: onnxruntime.InferenceSession
    io: IOSpec
    states: dict[str, np.ndarray]
    first: dict[str, np.ndarray]

    @classmethod
    def open(cls, fixture: Fixture, io: IOSpec, feed: Feed) -> PlainFloat:
        """Exports the fixture with torch.onnx.export unless it is ONNX already, and opens it."""
        model = fixture.model if fixture.model.suffix == ".onnx" else export_plain(fixture, io, feed)
        names = {s.input for s in io.states}
        zeros = {
            i.name: np.zeros([d if isinstance(d, int) else 1 for d in i.shape], i.dtype)
            for i in io.inputs
            if i.name in names
        }
        return cls(onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]), io, zeros, zeros)

    def reset_state(self) -> None:
        """Starts from zeros again."""
        self.states = self.first

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Returns the outputs by name."""
        names = [o.name for o in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(names, {**self.states, **feed}), strict=True))
        self.states = {s.input: outputs[s.output] for s in self.io.states}
        return outputs

    def run_timed(self, feed: Feed) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Returns what `run` returns, and no times of parts."""
        return self.run(feed), {}


def export_plain(fixture: Fixture, io: IOSpec, feed: Feed) -> bytes:
    """Returns the model as torch.onnx.export writes it, dynamic where the bundle is."""
    arguments = {name: torch.from_numpy(np.concatenate([array] * 2)) for name, array in feed.items()}
    if fixture.model.suffix == ".pt2":
        program = torch.export.load(fixture.model)
        exported = torch.onnx.export(program, dynamo=True, verbose=False)
    else:
        module = call_factory(fixture.options[fixture.options.index("--factory") + 1]).eval()
        module.load_state_dict(torch.load(fixture.model, weights_only=True))
        dynamic = {i.name: {0: torch.export.Dim.DYNAMIC} for i in io.feed_inputs}
        exported = torch.onnx.export(
            module, (), kwargs=arguments, dynamic_shapes=dynamic, dynamo=True, verbose=False
        )
    names = [i.name for i in io.feed_inputs]
    for value, name in zip(exported.model.graph.inputs, names, strict=True):
        value.name = name
    data: bytes = exported.model_proto.SerializeToString()
    return data


def measure(fixture: Fixture, bundle: Path, seconds: float) -> dict[str, Any]:
    """Returns medians and their ratio of the bundle and the plain float model, from one interleaved run."""
    with open_session(bundle) as session:
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
        print(f"geometric mean of the latency ratio over {len(ratios)}: {np.exp(np.mean(np.log(ratios))):.2f}")


if __name__ == "__main__":
    run(__doc__, row, show, seconds=10.0)
