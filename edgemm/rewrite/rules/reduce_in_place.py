"""A reduction, or the choice of one index, reads what was rearranged only for it where it was.

    ReduceMean(Transpose(x, [1, 0, 2]), axis 1)                -> ReduceMean(x, axis 0)
    ReduceMean(Unsqueeze(x, −2), axes −1, −2), keeping them    -> Reshape(ReduceMean(x, axis −1))
    Gather(Transpose(x, [1, 0, 2]), scalar, axis 1)            -> Gather(x, scalar, axis 0)

Declined when an axis is no whole axis of the source, and when the axes that stay change their order.
"""

from __future__ import annotations

import onnx_ir as ir

from edgemm.rewrite import build, dims, layout
from edgemm.tensors import IOSpec

_AXES_INPUT = {"ReduceSum": 13}
_REDUCTIONS = frozenset(
    {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceProd"}
)


def apply(model: ir.Model, io: IOSpec) -> int:
    """Moves reductions in front of layout chains; returns how many."""
    opset = model.graph.opset_imports.get("", 1)
    if opset < layout.OPSET:
        return 0
    return sum(_move(n, opset) for n in list(model.graph) if n.domain == "" and n.graph is model.graph)


def _move(node: ir.Node, opset: int) -> bool:
    axes = _axes(node, opset)
    value, output = node.inputs[0] if node.inputs else None, node.outputs[0]
    if axes is None or value is None or value.shape is None or output.is_graph_output():
        return False
    found = _source(value)
    wanted = dims.of(output)
    if found is None or wanted is None:
        return False
    rank = len(found.groups)
    gone = {a % rank for a in axes}
    factors = {f for a in gone for f in found.groups[a]}
    picked = {f[0] for f in factors}
    whole = all(f in factors for f in found.sizes if f[0] in picked)
    stay = [f for i, g in enumerate(found.groups) if i not in gone for f in g]
    if not picked or not whole or stay != sorted(stay):
        return False
    keeps = node.op_type != "Gather" and node.attributes.get_int("keepdims", 1) == 1
    if found.source is value and not (keeps and _is_rearranged(output)):
        return False
    kept = tuple(d for i, d in enumerate(found.dims) if i not in picked)
    if kept != wanted and (dims.target(kept, wanted) is None or any(d.fixed == 0 for d in kept)):
        return False
    builder = build.Builder(node)
    result = _rebuilt(node, builder, found.source, sorted(picked), kept, opset)
    if kept != wanted:
        result = builder.reshape(result, kept, wanted)
    build.replace(output, result)
    build.remove_dead(builder.graph, node)
    return True


def _source(value: ir.Value) -> layout.Layout | None:
    """Returns `value` as a layout of the value that the chain of single uses above it begins with."""
    chain: list[ir.Node] = []
    top = value
    while layout.is_layout(producer := top.producer()) and producer is not None:
        above = producer.inputs[0]
        if above is None:
            break
        chain.append(producer)
        top = above
    found = layout.start(top)
    for node in reversed(chain):
        found = layout.step(found, node) if found is not None else None
    return found


def _is_rearranged(value: ir.Value) -> bool:
    return build.only_use(value) and layout.is_layout(build.reader(value))


def _axes(node: ir.Node, opset: int) -> list[int] | None:
    if node.op_type == "Gather":
        index = build.array(node.inputs[1])
        return [node.attributes.get_int("axis", 0)] if index is not None and index.ndim == 0 else None
    if node.op_type not in _REDUCTIONS:
        return None
    if opset >= _AXES_INPUT.get(node.op_type, 18):
        axes = build.integers(node.inputs[1]) if len(node.inputs) > 1 else None
    else:
        axes = list(node.attributes.get_ints("axes", ()))
    return axes or None


def _rebuilt(
    node: ir.Node,
    builder: build.Builder,
    source: ir.Value,
    axes: list[int],
    kept: tuple[dims.Dim, ...],
    opset: int,
) -> ir.Value:
    output = node.outputs[0]
    if node.op_type == "Gather":
        return builder.node("Gather", [source, node.inputs[1]], {"axis": axes[0]}, like=output, shape=kept)
    attributes: dict[str, int | list[int]] = {"keepdims": 0}
    inputs = [source]
    if opset >= _AXES_INPUT.get(node.op_type, 18):
        inputs.append(builder.integers(axes))
    else:
        attributes["axes"] = axes
    return builder.node(node.op_type, inputs, attributes, like=output, shape=kept)
