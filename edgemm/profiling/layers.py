"""The time of every layer: a run of its own under the engines' profilers, apart from the latency measurement.

    report |= profile_layers(open_, feeds)     # keys `layers`, `roofline`, `profiled`

A layer is what the engine runs, after its runtime has fused and rewritten the graph. Each is traced back to the
nodes of the graph in the bundle, and by these to its stage and to the path in the original torch module; what
cannot be traced stays in the list and is told as unmapped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import fsum, isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edgemm.bundle import EngineEntry
from edgemm.errors import BackendError, EdgemmError
from edgemm.profiling import cost
from edgemm.profiling.layer_times import READERS, Engine, Profiled, Timed
from edgemm.profiling.onnx_nodes import Graph, Node, Tensor, known_tensors, read_graph
from edgemm.profiling.peaks import MEASURED, Peaks, machine_peaks
from edgemm.profiling.roofline import ridge, roof
from edgemm.profiling.stages import stage_of
from edgemm.runtime._trt.sidecar import load_sidecar
from edgemm.runtime.fusion import FusionSession
from edgemm.runtime.session import SessionOptions
from edgemm.tensors import Feed

WARMUP = 10
"""Calls under the profiler that are not counted."""

RUNS = 200
"""Most calls that are counted."""

SECONDS = 2.0
"""No further call begins after this long; `LEAST` are made."""

LEAST = 10

MAX_TIMED = 40_000
"""So many nodes are timed in all runs together: traces grow with it."""

LABEL = "a run of its own under the engines' profilers: its sum is not the latency"

Open = Callable[[SessionOptions], FusionSession]
"""Opens what is profiled with the options that it is given, nothing cached."""


@dataclass(frozen=True, slots=True)
class _Read:
    """An engine, what its profiler told, and what its layers are compared with."""

    entry: EngineEntry
    profiled: Profiled
    stage: Callable[[Node | None], str]
    tensors: Mapping[str, Tensor]
    peaks: Peaks | None


def profile_layers(
    open_: Open,
    folder: Path,
    feeds: Sequence[Feed],
    *,
    runs: int = RUNS,
    seconds: float = SECONDS,
    threads: int = 0,
    peaks: Callable[..., Peaks] = machine_peaks,
) -> dict[str, Any]:
    """Returns the report's keys `layers`, `roofline` and `profiled`.

    Args:
        open_: What opens the model; called once.
        folder: Of the files that the engines are named below: the bundle, or where the file is.
        feeds: Inputs to run over and over.
        runs: Most calls that are counted.
        seconds: How long at most; at least `LEAST` calls are made.
        threads: That engines were asked to use; 0 lets them decide.
        peaks: What measures the machine; called as `machine_peaks`.

    Raises:
        BackendError: No engine tells the times of its layers.
        EdgemmError: The model does not open or run.
    """
    with tempfile.TemporaryDirectory(prefix="edgemm-layers-") as place:
        options = SessionOptions(profile_to=str(Path(place) / "layers"), profile_skip=WARMUP)
        with open_(options) as session:
            _silent(session)
            files = [Path(folder) / file for file in _files(session)]
            graphs = [_graph(file) for file in files]
            nodes = sum(len(graph.nodes) for graph in graphs)
            _run(session, feeds, min(runs, max(LEAST, MAX_TIMED // max(nodes, 1))), seconds)
        read: list[_Read] = []
        sizes = session.io.sizes(feeds[0])
        for entry, file, graph in zip(session.variant.engines, files, graphs, strict=True):
            backend = _backend(session, entry)
            if backend not in READERS:
                continue
            tensors = known_tensors(graph, sizes)
            network = _network(file) if backend == "tensorrt" else {}
            engine = Engine(options.profile_prefix(file), graph, tensors, network, WARMUP)
            own = SessionOptions(threads=threads).for_engine(entry.options)
            measured = _peaks(peaks, backend, own.threads, own.precision)
            told = READERS[backend](engine)
            read.append(_Read(entry, told, stage_of(graph, entry, session.manifest), tensors, measured))
    return _report(session, read, _silent(session))


_WHY = "what runs it does not tell the times of layers: its kernels run on after each node has been launched"


def _silent(session: FusionSession) -> list[dict[str, Any]]:
    """Returns the engines whose backend does not tell the times of layers.

    Raises:
        BackendError: None does.
    """
    backends = {entry.name: _backend(session, entry) for entry in session.variant.engines}
    silent = {name: backend for name, backend in backends.items() if backend not in READERS}
    if len(silent) == len(backends):
        raise BackendError(
            f"the engines of this model run by {', '.join(dict.fromkeys(silent.values()))}, which does not tell "
            "the times of layers.",
            hint=f"leave --layers out, or open a variant for {', '.join(READERS)}",
        )
    return [{"name": n, "backend": b, "unavailable": _WHY} for n, b in silent.items()]


def _run(session: FusionSession, feeds: Sequence[Feed], runs: int, seconds: float) -> None:
    for at in range(WARMUP):
        session.run_timed(feeds[at % len(feeds)])
    end = perf_counter() + seconds
    for at in range(runs):
        session.run_timed(feeds[at % len(feeds)])
        if at + 1 >= LEAST and perf_counter() >= end:
            return


def _report(session: FusionSession, read: Sequence[_Read], refused: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    layers = [_layer(engine, timed) for engine in read for timed in engine.profiled.layers]
    total = fsum(layer["mean_ms"] for layer in layers)
    for layer in layers:
        layer["share"] = layer["mean_ms"] / total if total else 0.0
    layers.sort(key=lambda layer: -layer["mean_ms"])
    engines = [
        {
            "name": engine.entry.name,
            "backend": _backend(session, engine.entry),
            "layers": len(engine.profiled.layers),
            "runs": engine.profiled.runs,
            "statistic": engine.profiled.statistic,
            "resolution_us": engine.profiled.resolution_us,
        }
        for engine in read
    ]
    unmapped = fsum(layer["mean_ms"] for layer in layers if layer["module"] is None)
    profiled = {
        "label": LABEL,
        "warmup": WARMUP,
        "engines": [*engines, *refused],
        "sum_ms": total,
        "unmapped_ms": unmapped,
        "unmapped_share": unmapped / total if total else 0.0,
    }
    return {"layers": layers, "roofline": _roofline(read, layers), "profiled": profiled}


def _layer(engine: _Read, timed: Timed) -> dict[str, Any]:
    main = _main(timed.nodes, engine.tensors)
    above = roof(engine.peaks, timed.flops, timed.bytes, integer=timed.integer) if engine.peaks else None
    mean = _midmean(timed.ms)
    return {
        "name": timed.name,
        "op": timed.op,
        "engine": engine.entry.name,
        "stage": engine.stage(main),
        "module": None if main is None else main.module,
        "nodes": [node.name for node in timed.nodes if node.name],
        "p50_ms": float(np.median(timed.ms)),
        "mean_ms": mean,
        "share": 0.0,
        "flops": timed.flops,
        "bytes": timed.bytes,
        "intensity": above.intensity if above else None,
        "bound": above.bound if above else None,
        "roof_ms": above.ms if above else None,
        "of_roof": above.ms / mean if above and mean else None,
        "gflops": timed.flops / mean / 1e6 if timed.flops and mean else None,
    }


def _main(nodes: Sequence[Node], tensors: Mapping[str, Tensor]) -> Node | None:
    """Returns the node that a layer is named by: the one with the most arithmetic, else the one that ends it.

    Where it does not tell its module the first one that does is taken.
    """
    if not nodes:
        return None

    def work(node: Node) -> int:
        given = [[tensors.get(n) for n in names] for names in (node.inputs, node.outputs)]
        counted = cost.flops(node.op, node.attributes, *given, domain=node.domain)
        return counted if counted is not None else int(node.op in _HEAVY)

    heaviest = max(nodes, key=work)
    return heaviest if heaviest.module is not None else next((n for n in nodes if n.module is not None), heaviest)


_HEAVY = frozenset(
    {"Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN", "MultiHeadAttention", "Attention"}
)


def _midmean(ms: np.ndarray) -> float:
    """Returns the mean of the middle half: finer than a median where a clock counts whole microseconds."""
    cut = ms.size // 4
    return float(np.sort(ms)[cut : ms.size - cut].mean())


def _roofline(read: Sequence[_Read], layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the machine's peaks per engine, and the sums over the layers."""
    peaks = {engine.entry.name: engine.peaks for engine in read}
    counted = [layer for layer in layers if layer["flops"]]
    moved = [layer["bytes"] for layer in layers if layer["bytes"] is not None]
    return {
        "label": "an estimate: counted operations and the least bytes against peaks measured on this machine",
        "peaks": [
            {"engine": name, **p.to_json(), "ridge": ridge(p)} if p else {"engine": name, "unavailable": _NO_PEAK}
            for name, p in peaks.items()
        ],
        "flops": sum(layer["flops"] for layer in counted),
        "bytes": sum(moved),
        "bytes_unknown": len(layers) - len(moved),
        "compute_bound_share": sum(x["share"] for x in layers if x["bound"] == "compute"),
        "memory_bound_share": sum(x["share"] for x in layers if x["bound"] == "memory"),
    }


_NO_PEAK = f"the peak of a machine is measured through {' or '.join(MEASURED)}"


def _peaks(measure: Callable[..., Peaks], backend: str, threads: int, precision: str) -> Peaks | None:
    if backend not in MEASURED:
        return None
    with suppress(EdgemmError):
        peaks = measure(backend, threads, precision)
        return peaks if isfinite(peaks.float_flops) else None
    return None


def _backend(session: FusionSession, entry: EngineEntry) -> str:
    """Returns what runs an engine; graphs for TensorRT may be run by something else."""
    chosen = session.choice
    return chosen.backend if chosen is not None and "module" in entry.options else entry.backend


def _files(session: FusionSession) -> tuple[str, ...]:
    """Returns the file of each engine of the variant as it was opened."""
    return session.choice.engines if session.choice is not None else tuple(e.file for e in session.variant.engines)


def _graph(engine: Path) -> Graph:
    """Returns the graph of an engine: itself, or what it was built from, which lies beside it."""
    if engine.suffix == ".onnx":
        return read_graph(engine)
    source = engine.with_name(f"{engine.stem.rpartition('.')[0] or engine.stem}.onnx")
    return read_graph(source) if source.is_file() else Graph((), {}, {})


def _network(engine: Path) -> dict[str, str]:
    return {layer.name: layer.node for layer in load_sidecar(engine).layers}
