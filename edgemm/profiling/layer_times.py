"""Reads what the engines' profilers wrote: a `Timed` per layer, traced back to nodes of the bundle's graph."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.errors import BackendError
from edgemm.profiling import cost
from edgemm.profiling.onnx_nodes import Graph, Node, Tensor, read_graph
from edgemm.profiling.origins import Origins

_KERNEL = "_kernel_time"
"""How ONNX Runtime ends the name of the event of a node."""

_TYPES = {"float": "float32", "double": "float64"}
"""ONNX Runtime's names of dtypes, where they are not numpy's."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One layer of one engine.

    Attributes:
        name: As the runtime calls it.
        op: Type of the operator, as the runtime calls it.
        ms: float64[runs], or one number where the runtime tells a mean only.
        nodes: Nodes of the bundle's graph inside of it, the one that ends it first; empty where nothing tells.
        flops: Operations of one call; None where they are not counted, or sizes are unknown.
        bytes: Bytes of one call, likewise.
        integer: Whether its products are those of integers.
    """

    name: str
    op: str
    ms: np.ndarray
    nodes: tuple[Node, ...] = ()
    flops: int | None = None
    bytes: int | None = None
    integer: bool = False


@dataclass(frozen=True, slots=True)
class Profiled:
    """What the profiler of a backend wrote.

    Attributes:
        layers: In the order in which they ran.
        runs: How many were counted.
        statistic: `"median"` over the runs, or the `"mean"` that the runtime itself gives.
        resolution_us: Step of the runtime's clock in microseconds.
    """

    layers: tuple[Timed, ...]
    runs: int
    statistic: str
    resolution_us: float


@dataclass(frozen=True, slots=True)
class Engine:
    """What a profile is read with.

    Attributes:
        prefix: `SessionOptions.profile_prefix` of the engine.
        graph: Of the ONNX file that it is, or was built from.
        tensors: Tensor of that graph -> dtype and sizes, as far as they are known.
        network: Layer of a TensorRT network -> its ONNX node, in the network's order.
        skip: First runs that are left out.
    """

    prefix: str
    graph: Graph
    tensors: Mapping[str, Tensor]
    network: Mapping[str, str] = field(default_factory=dict)
    skip: int = 0


def read_onnxruntime(engine: Engine) -> Profiled:
    """Returns what ONNX Runtime's trace and its optimized graph tell.

    Shapes are those of the last run. Nodes inside of If and Loop are part of these.

    Raises:
        BackendError: There is no trace, or it is none.
    """
    place = Path(engine.prefix)
    traces = sorted(place.parent.glob(f"{_escaped(place.name)}_*.json"))
    if not traces:
        raise _unreadable(engine, "it was not written")
    events = _events(engine, traces[-1])
    optimized = read_graph(Path(f"{engine.prefix}.onnx"))
    origins = Origins(engine.graph)
    by_name = {node.name: node for node in optimized.nodes if node.name}
    unnamed = _unnamed(engine.graph, optimized)
    made_of = origins.of_optimized(optimized)
    layers = []
    for name, found in events.items():
        node = by_name.get(name) or unnamed.get(name)
        if node is None:
            continue
        nodes = made_of.get(node.name, ()) if node.name else _same(engine.graph, node)
        ms = np.array([event["dur"] for event in found[engine.skip :]], np.float64) / 1e3
        if ms.size:
            layers.append(_sized(name, node, nodes, ms, (found[-1]["args"], optimized, engine.graph)))
    return Profiled(tuple(layers), max((x.ms.size for x in layers), default=0), "median", 1.0)


def _events(engine: Engine, trace: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns node -> its events in order of time."""
    try:
        told = json.loads(trace.read_text(encoding="utf-8", errors="replace"))
        events: dict[str, list[dict[str, Any]]] = {}
        for event in told:
            if event.get("cat") == "Node" and str(event["name"]).endswith(_KERNEL):
                events.setdefault(str(event["name"]).removesuffix(_KERNEL), []).append(event)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise _unreadable(engine, str(error)) from error
    return events


def _unnamed(graph: Graph, optimized: Graph) -> dict[str, Node]:
    """Returns ONNX Runtime's name of an unnamed node, `OP_INDEX`, -> that node of the optimized graph.

    The index is the node's place in the file; nodes that ONNX Runtime makes have names.
    """
    given = {output: node for node in optimized.nodes if not node.name for output in node.outputs if output}
    return {
        f"{node.op}_{at}": given[node.outputs[0]]
        for at, node in enumerate(graph.nodes)
        if not node.name and node.outputs and node.outputs[0] in given
    }


def _same(graph: Graph, node: Node) -> tuple[Node, ...]:
    return tuple(n for n in graph.nodes if n.outputs == node.outputs)


def _sized(
    name: str, node: Node, nodes: tuple[Node, ...], ms: np.ndarray, told: tuple[Mapping[str, Any], Graph, Graph]
) -> Timed:
    """Returns a layer with its cost from the shapes in an event, and from the weights of the graph."""
    args, optimized, graph = told
    inputs = _aligned(node.inputs, optimized.constants, _shapes(args.get("input_type_shape")))
    given = _shapes(args.get("output_type_shape"))
    there = [at for at, output in enumerate(node.outputs) if output]
    outputs: list[Tensor | None] = [None] * len(node.outputs)
    if len(there) == len(given):
        for at, tensor in zip(there, given, strict=True):
            outputs[at] = tensor
    while outputs and outputs[-1] is None and not node.outputs[len(outputs) - 1]:
        outputs.pop()
    weight = _weight(nodes, graph) if node.domain == "com.microsoft.nchwc" else None
    return Timed(
        name,
        node.op,
        ms,
        nodes,
        cost.flops(node.op, node.attributes, inputs, outputs, domain=node.domain, weight=weight),
        cost.moved(node.op, inputs, [o for o, n in zip(outputs, node.outputs, strict=False) if n]),
        cost.is_integer(node.op, inputs),
    )


def _weight(nodes: Iterable[Node], graph: Graph) -> Tensor | None:
    """Returns the weight of the only convolution of a fusion, as the file has it."""
    found = [graph.constants.get(n.inputs[1]) for n in nodes if n.op == "Conv" and len(n.inputs) > 1]
    return found[0] if len(found) == 1 else None


def _shapes(told: Any) -> list[Tensor]:
    """Returns the tensors of `[{"float": [1, 3]}, ...]`."""
    pairs = [next(iter(entry.items())) for entry in told or () if entry]
    return [Tensor(_TYPES.get(dtype, dtype), tuple(map(int, shape))) for dtype, shape in pairs]


def _aligned(
    names: Sequence[str], constants: Mapping[str, Tensor], given: Sequence[Tensor]
) -> list[Tensor | None]:
    """Returns the tensors of a node's inputs; weights that a kernel has packed for itself lack in `given`."""
    waiting, result = list(given), list[Tensor | None]()
    for name in names:
        constant = constants.get(name)
        if not name or (constant is not None and waiting[:1] != [constant]):
            result.append(constant)
        else:
            result.append(waiting.pop(0) if waiting else None)
    return result


def read_openvino(engine: Engine) -> Profiled:
    """Returns what OpenVINO's performance counters tell.

    Raises:
        BackendError: They were not written.
    """
    told = _json(engine)
    origins = Origins(engine.graph)
    named = [origins.all_named([*e["nodes"], e["name"]]) if e["nodes"] else () for e in told["layers"]]
    unnamed = _recurrent(engine.graph, told["layers"], named)
    layers = []
    for at, entry in enumerate(told["layers"]):
        nodes = named[at] or unnamed.get(at, ())
        inputs, outputs = (_openvino_tensors(entry[key]) for key in ("inputs", "outputs"))
        name, op = entry["name"], entry["op"]
        if op in ("Input", "Output", "Parameter", "Result", "Constant"):
            continue
        counted, _ = _costs(nodes, engine.tensors)
        integer = any(t is not None and t.dtype in cost.INTEGERS for t in inputs[:1])
        ms = np.array([entry["ms"]])
        moved = cost.moved(op, inputs, outputs)
        layers.append(Timed(name, op, ms, nodes, counted, moved, integer))
    return Profiled(tuple(layers), int(told["runs"]), "mean", 1.0)


_SEQUENCES = {"LSTMSequence": "LSTM", "GRUSequence": "GRU", "RNNSequence": "RNN"}
"""OpenVINO's recurrent operators, which lose the name of their node, and ONNX's."""


def _recurrent(
    graph: Graph, entries: Sequence[Mapping[str, Any]], named: Sequence[tuple[Node, ...]]
) -> dict[int, tuple[Node, ...]]:
    """Returns index of an entry -> its recurrent node: the next one whose weights have the same shapes."""
    claimed = {id(node) for nodes in named for node in nodes}
    free = [n for n in graph.nodes if n.op in _SEQUENCES.values() and id(n) not in claimed]
    found: dict[int, tuple[Node, ...]] = {}
    for at, entry in enumerate(entries):
        shapes = [tuple(t["shape"]) for t in entry["inputs"] if t["shape"] is not None]
        for node in free:
            weights = [graph.constants.get(name) for name in node.inputs[1:3]]
            alike = all(w is not None and w.shape in shapes for w in weights)
            if not named[at] and _SEQUENCES.get(entry["op"]) == node.op and alike:
                found[at] = (node,)
                free.remove(node)
                break
    return found


def _openvino_tensors(told: Iterable[Mapping[str, Any]]) -> list[Tensor | None]:
    return [None if t["shape"] is None else Tensor(t["dtype"], tuple(t["shape"])) for t in told]


def read_tensorrt(engine: Engine) -> Profiled:
    """Returns what TensorRT's profiler tells.

    Raises:
        BackendError: It was not written.
    """
    origins = Origins(engine.graph)
    layers, runs = [], 0
    for entry in _json(engine)["layers"]:
        ms = np.array(entry["ms"][engine.skip :], np.float64)
        if not ms.size:
            continue
        nodes = origins.all_named(entry["nodes"]) or origins.in_fused_name(entry["name"], engine.network)
        counted, moved = _costs(nodes, engine.tensors)
        op = " + ".join(dict.fromkeys(node.op for node in nodes)) or "inserted"
        integer = any(_integer(node, engine) for node in nodes)
        layers.append(Timed(entry["name"], op, ms, nodes, counted, moved, integer))
        runs = max(runs, ms.size)
    return Profiled(tuple(layers), runs, "median", 0.0)


def _integer(node: Node, engine: Engine) -> bool:
    """Returns whether TensorRT computes a node in integers: its data and its weight are dequantized."""
    producers = engine.graph.producers()
    sources = [producers.get(name) for name in node.inputs[:2]]
    heavy = node.op in ("Conv", "MatMul", "Gemm")
    return heavy and all(s is not None and s.op == "DequantizeLinear" for s in sources)


def _costs(nodes: Sequence[Node], tensors: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
    """Returns operations and bytes of a fusion: bytes are those of tensors that enter or leave it."""
    if not nodes:
        return None, None
    each = [cost.flops(n.op, n.attributes, *_tensors(n, tensors), domain=n.domain) for n in nodes]
    counted = [c for c in each if c is not None]
    made = {name for node in nodes for name in node.outputs}
    read = {name for node in nodes for name in node.inputs if name} - made
    inner = {name for node in nodes for name in node.inputs} & made
    crossing = [tensors.get(name) for name in (*read, *(made - inner - {""}))]
    bytes_ = None if any(t is None for t in crossing) else sum(t.nbytes for t in crossing if t is not None)
    return (sum(counted) if counted else None), bytes_


def _tensors(node: Node, tensors: Mapping[str, Tensor]) -> tuple[list[Tensor | None], list[Tensor | None]]:
    return [tensors.get(n) for n in node.inputs], [tensors.get(n) for n in node.outputs]


def _json(engine: Engine) -> Any:
    file = Path(f"{engine.prefix}.json")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(engine, str(error)) from error


def _unreadable(engine: Engine, why: str) -> BackendError:
    return BackendError(
        f"the profile of the engine '{Path(engine.prefix).name}' cannot be read: {why}.",
        hint="is there room in the temporary folder (TMPDIR)? then measure again",
    )


def _escaped(text: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", text)


READERS: dict[str, Callable[[Engine], Profiled]] = {
    "onnxruntime": read_onnxruntime,
    "openvino": read_openvino,
    "tensorrt": read_tensorrt,
}
"""Backend -> what reads its profile; those that are not here do not tell the time of a layer."""
