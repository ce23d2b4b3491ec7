"""Chains of Reshape, Transpose, Squeeze, Unsqueeze and Flatten become the shortest chain that does the same.

Transpose(Transpose(x)) -> x, Reshape(Reshape(x)) -> Reshape(x), and every longer mixture (see `layout`). Declined
when a dimension on the way is unknown, when a new Reshape would need a computed shape, and when nothing is gained
because values on the way are used elsewhere.
"""

from __future__ import annotations

import onnx_ir as ir

from edgemm.rewrite import build, layout
from edgemm.tensors import IOSpec


def apply(model: ir.Model, io: IOSpec) -> int:
    """Simplifies chains in the main graph; returns how many were replaced."""
    graph = model.graph
    if graph.opset_imports.get("", 1) < layout.OPSET:
        return 0
    count = 0
    for node in list(graph):
        if node.graph is graph and layout.is_layout(node) and not _goes_on(node):
            count += _simplify(graph, node)
    return count


def _goes_on(node: ir.Node) -> bool:
    """Whether the chain's end is further down: its only reader rearranges it again."""
    value = node.outputs[0]
    return build.only_use(value) and layout.is_layout(build.reader(value))


def _simplify(graph: ir.Graph, end: ir.Node) -> bool:
    chain = [end]  # upwards
    while (above := chain[-1].inputs[0]) is not None and layout.is_layout(producer := above.producer()):
        assert producer is not None
        if producer.graph is not graph:
            break
        chain.append(producer)
    best: tuple[int, layout.Layout] | None = None
    freed, free = 0, True
    for length, top in enumerate(chain, start=1):
        free = free and (length == 1 or build.only_use(top.outputs[0]))
        freed += layout.COSTS.get(top.op_type, layout.COSTS["Reshape"]) if free else 0
        found = _layout(chain[:length])
        way = layout.steps(found) if found is not None else None
        if way is None or found is None:
            continue
        gain = freed - layout.cost(way)
        if gain > 0 and (best is None or gain > best[0]):
            if not way and end.outputs[0].is_graph_output() and not _may_be_output(found.source, graph):
                continue
            best = gain, found
    if best is None:
        return False
    value = layout.emit(best[1], build.Builder(end))
    build.replace(end.outputs[0], value)
    build.remove_dead(graph, end)
    return True


def _may_be_output(value: ir.Value, graph: ir.Graph) -> bool:
    """Whether `value` can take an output's name: a node of this graph makes it, and it has no such name yet."""
    producer = value.producer()
    return producer is not None and producer.graph is graph and not value.is_graph_output()


def _layout(chain: list[ir.Node]) -> layout.Layout | None:
    top = chain[-1].inputs[0]
    found = layout.start(top) if top is not None else None
    for node in reversed(chain):
        found = layout.step(found, node) if found is not None else None
    return found
