"""Per fixture: nodes and latency of the graph as exported, rewritten, and prepared for ONNX Runtime on the CPU.

    python -m benchmarks.rewrites [NAME ...] [--seconds S] [--json OUT]

Nodes are those that ONNX Runtime runs, after its own optimizations. Latency is measured interleaved at batch 1
over evaluation samples, with one thread and with two, as a ratio to the exported graph; the difference is the
largest absolute one of any output over those samples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from rich.console import Console
from rich.table import Table

from benchmarks.driver import run
from benchmarks.fixtures import Fixture, build
from edgemm import graph
from edgemm.data import open_samples
from edgemm.export.model import ModelSource, load_model
from edgemm.export.torch_onnx import ExportRequest, export_model
from edgemm.graph import ExportedGraph
from edgemm.pipeline.timing import latency_feeds, time_sessions
from edgemm.rewrite import rewrite
from edgemm.rewrite.prepare import prepare
from edgemm.runtime.latency import ratio
from edgemm.tensors import Feed, StateSpec

THREADS = (1, 2)


@dataclass(frozen=True, slots=True)
class Runner:
    """One ONNX Runtime session; a state starts from zeros in every run."""

    session: onnxruntime.InferenceSession
    states: dict[str, np.ndarray]

    def reset_state(self) -> None:
        """There is nothing to forget."""

    def run(self, feed: Feed) -> list[np.ndarray]:
        """Returns the outputs in order."""
        outputs: list[np.ndarray] = self.session.run(None, {**self.states, **feed})
        return outputs

    def run_timed(self, feed: Feed) -> tuple[list[np.ndarray], dict[str, float]]:
        """Returns what `run` returns, and no times of parts."""
        return self.run(feed), {}


def options(threads: int) -> onnxruntime.SessionOptions:
    """Returns default session options with `threads` threads."""
    result = onnxruntime.SessionOptions()
    result.intra_op_num_threads = threads
    result.log_severity_level = 3
    return result


def exported(fixture: Fixture) -> tuple[ExportedGraph, Sequence[Feed]]:
    """Returns the fixture's graph as `edgemm.export` writes it, and feeds of one sample each."""
    more = list(fixture.options)
    factory = more[more.index("--factory") + 1] if "--factory" in more else None
    states = tuple(StateSpec(*more[i + 1].split("=")) for i, o in enumerate(more) if o == "--state")
    samples = open_samples(str(fixture.eval))
    loaded = load_model(ModelSource(fixture.model, factory, False))
    result = export_model(loaded, ExportRequest(states=states), samples, lambda _: None)
    return result.graph, latency_feeds(result.graph.io, samples, {})


def nodes(payload: bytes) -> int:
    """Returns how many nodes ONNX Runtime runs."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = options(1)
        chosen.optimized_model_filepath = f"{folder}/optimized.onnx"
        onnxruntime.InferenceSession(payload, chosen, providers=["CPUExecutionProvider"])
        return len(onnx.load(chosen.optimized_model_filepath).graph.node)


def row(name: str, seconds: float) -> dict[str, Any]:
    """Returns everything that is measured of one fixture."""
    before, feeds = exported(build(name))
    after, log = rewrite(before)
    models = {"exported": before.model, "rewritten": after.model, "prepared": prepare(after.model, "cpu")}
    payloads = {kind: graph.serialize(model) for kind, model in models.items()}
    kept = {s.input for s in before.io.states}
    states = {
        i.name: np.zeros([d if isinstance(d, int) else 1 for d in i.shape], i.dtype)
        for i in before.io.inputs
        if i.name in kept
    }
    result: dict[str, Any] = {"fixture": name, "nodes": {k: nodes(p) for k, p in payloads.items()}, "log": log}
    for threads in THREADS:
        chosen = options(threads)
        runners = {
            kind: Runner(onnxruntime.InferenceSession(p, chosen, providers=["CPUExecutionProvider"]), states)
            for kind, p in payloads.items()
        }
        if threads == 1:
            result["max_abs"] = {k: _difference(runners["exported"], runners[k], feeds) for k in models}
        timings = time_sessions(runners, feeds, seconds=seconds)
        found = {k: ratio(t.total, timings["exported"].total) for k, t in timings.items()}
        result[f"threads_{threads}"] = {
            k: {"ms": timings[k].ms, "ratio": r.value, "ratio_95": [r.low, r.high]} for k, r in found.items()
        }
    return result


def _difference(a: Runner, b: Runner, feeds: Sequence[Feed]) -> float:
    pairs = [p for feed in feeds for p in zip(a.run(feed), b.run(feed), strict=True)]
    return max(float(np.abs(x.astype(np.float64) - y).max(initial=0.0)) for x, y in pairs)


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the table."""
    table = Table(box=None, pad_edge=False)
    columns = "fixture,nodes,rewritten,prepared,max-abs,ms,rewr. 1t,prep. 1t,rewr. 2t,prep. 2t"
    for column in columns.split(","):
        table.add_column(column, justify="left" if column == "fixture" else "right")
    for r in rows:
        ratios = [f"{r[f'threads_{t}'][k]['ratio']:.2f}" for t in THREADS for k in ("rewritten", "prepared")]
        table.add_row(
            r["fixture"],
            *(str(count) for count in r["nodes"].values()),
            f"{max(r['max_abs'].values()):.0e}",
            f"{r['threads_1']['exported']['ms']:.3f}",
            *ratios,
        )
    Console(width=120).print(table)
    for threads in THREADS:
        ratios = [r[f"threads_{threads}"]["prepared"]["ratio"] for r in rows]
        print(f"geometric mean, prepared, {threads} thread(s): {np.exp(np.mean(np.log(ratios))):.3f}")


if __name__ == "__main__":
    run(__doc__, row, show, seconds=6.0)
