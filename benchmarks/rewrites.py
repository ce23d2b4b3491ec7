"""Per fixture: nodes and latency of the graph as exported, rewritten, and prepared for ONNX Runtime on the CPU.

    python -m benchmarks.rewrites [NAME ...] [--seconds S] [--json OUT]

Nodes are those that ONNX Runtime runs, after its own optimizations. Latency is measured at batch 1 over evaluation
samples, with one thread and with two, as a ratio to the exported graph. The sessions of all forms take turns in
short blocks whose medians are compared round by round. They are opened six times, in changing order, since where a
session's memory lies moves its latency: the ratio is the median of the six, its interval the least and the largest
(which hold the median over all openings with a confidence of 97 %). A second session on the exported graph,
`again`, shows what is noise. Threads stop spinning after a run, so that no session waits for another's. The
difference is the largest absolute one of any output over those samples. The load average of the machine, before
and after, tells how much else ran.
"""

from __future__ import annotations

import os
import tempfile
import time
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
from edgemm.pipeline.timing import latency_feeds
from edgemm.rewrite import rewrite
from edgemm.rewrite.prepare import prepare
from edgemm.tensors import Feed, StateSpec

THREADS = (1, 2)

SESSIONS = 6
"""Times that every session is opened within a measurement."""

BLOCK = 5
"""Runs of a session in its turn, after one that is not counted."""


@dataclass(frozen=True, slots=True)
class Runner:
    """One ONNX Runtime session; a state starts from zeros in every run."""

    session: onnxruntime.InferenceSession
    states: dict[str, np.ndarray]

    def run(self, feed: Feed) -> list[np.ndarray]:
        """Returns the outputs in order."""
        outputs: list[np.ndarray] = self.session.run(None, {**self.states, **feed})
        return outputs


def options(threads: int) -> onnxruntime.SessionOptions:
    """Returns session options with `threads` threads that rest between runs."""
    result = onnxruntime.SessionOptions()
    result.add_session_config_entry("session.force_spinning_stop", "1")
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
    result["load_average"] = [round(os.getloadavg()[0], 2)]
    runners = {kind: open_runner(p, states, 1) for kind, p in payloads.items()}
    result["max_abs"] = {k: _difference(runners["exported"], runners[k], feeds) for k in models}
    payloads["again"] = payloads["exported"]
    for threads in THREADS:
        result[f"threads_{threads}"] = compare(payloads, states, feeds, threads, seconds)
    result["load_average"].append(round(os.getloadavg()[0], 2))
    return result


def open_runner(payload: bytes, states: dict[str, np.ndarray], threads: int) -> Runner:
    """Returns a session of its own."""
    chosen = options(threads)
    return Runner(onnxruntime.InferenceSession(payload, chosen, providers=["CPUExecutionProvider"]), states)


def compare(
    payloads: dict[str, bytes], states: dict[str, np.ndarray], feeds: Sequence[Feed], threads: int, seconds: float
) -> dict[str, Any]:
    """Returns the median milliseconds of every form and its ratio to the exported graph."""
    kinds = list(payloads)
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    ratios: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(SESSIONS):
        order = kinds[number % len(kinds) :] + kinds[: number % len(kinds)]
        runners = {kind: open_runner(payloads[kind], states, threads) for kind in order}
        medians: dict[str, list[float]] = {kind: [] for kind in kinds}
        end, at = time.perf_counter() + seconds / SESSIONS, 0
        while time.perf_counter() < end or at < len(kinds):
            for kind in kinds[at % len(kinds) :] + kinds[: at % len(kinds)]:
                medians[kind].append(_block(runners[kind], feeds[at % len(feeds)]))
            at += 1
        for kind, found in medians.items():
            times[kind] += found
            ratios[kind].append(float(np.median(np.array(found) / medians["exported"])))
    return {
        kind: {
            "ms": float(np.median(times[kind])) * 1e3,
            "ratio": float(np.median(ratios[kind])),
            "interval": [min(ratios[kind]), max(ratios[kind])],
            "rounds": len(times[kind]),
        }
        for kind in kinds
    }


def _block(runner: Runner, feed: Feed) -> float:
    """Returns the median seconds of a few runs."""
    runner.run(feed)
    times = []
    for _ in range(BLOCK):
        start = time.perf_counter()
        runner.run(feed)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _difference(a: Runner, b: Runner, feeds: Sequence[Feed]) -> float:
    pairs = [p for feed in feeds for p in zip(a.run(feed), b.run(feed), strict=True)]
    return max(float(np.abs(x.astype(np.float64) - y).max(initial=0.0)) for x, y in pairs)


def slower(measured: dict[str, Any], kind: str) -> bool:
    """Whether a form is slower than the exported graph by more than a second session on that is."""
    low, high = measured["again"]["interval"]
    return bool(measured[kind]["interval"][0] > max(1.0, high, 1 / low))


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the table."""
    table = Table(box=None, pad_edge=False)
    columns = ["fixture", "nodes", "rewr.", "prep.", "max-abs"]
    columns += [f"{kind} {t}t" for t in THREADS for kind in ("ms", "again", "rewritten", "prepared")]
    for column in columns:
        table.add_column(column, justify="left" if column == "fixture" else "right")
    for r in rows:
        cells = []
        for t in THREADS:
            measured = r[f"threads_{t}"]
            cells.append(f"{measured['exported']['ms']:.3f}")
            cells += [_ratio(measured, kind) for kind in ("again", "rewritten", "prepared")]
        table.add_row(
            r["fixture"],
            *(str(count) for count in r["nodes"].values()),
            f"{max(r['max_abs'].values()):.0e}",
            *cells,
        )
    Console(width=170).print(table)
    if len(rows) == 1:
        return
    for threads in THREADS:
        for kind in ("again", "rewritten", "prepared"):
            ratios = [r[f"threads_{threads}"][kind]["ratio"] for r in rows]
            print(f"geometric mean, {kind}, {threads} thread(s): {np.exp(np.mean(np.log(ratios))):.3f}")
    late = [
        f"{r['fixture']} {kind} {t}t"
        for r in rows
        for t in THREADS
        for kind in ("rewritten", "prepared")
        if slower(r[f"threads_{t}"], kind)
    ]
    print(f"slower than as exported, beyond noise: {', '.join(late) or 'none'}")


def _ratio(measured: dict[str, Any], kind: str) -> str:
    low, high = measured[kind]["interval"]
    return f"{measured[kind]['ratio']:.2f} [{low:.2f} {high:.2f}]"


if __name__ == "__main__":
    run(__doc__, row, show, seconds=6.0)
