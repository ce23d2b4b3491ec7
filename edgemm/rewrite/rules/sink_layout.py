"""A product with weights reads its rows where they are; what comes out is rearranged, if it is anyway.

    Layout'(MatMul(Layout(x), w) + b)          -> Layout''(MatMul(x, w) + b)
    Layout'(Gemm(Layout(x), w, b, transB = 1)) -> Layout''(MatMul(x, wᵀ) + b)

for a Layout of one or two steps that leaves the last axis alone. `torch.nn.MultiheadAttention` puts the sequence
first and the batch back afterwards; both go. Declined when anything but a rearrangement reads the product, and
when that does not leave less to rearrange.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemm.rewrite import build, layout
from edgemm.rewrite.dims import Dim
from edgemm.tensors import IOSpec


def apply(model: ir.Model, io: IOSpec) -> int:
    """Sinks rearrangements behind products of the main graph; returns how many products were moved."""
    if model.graph.opset_imports.get("", 1) < layout.OPSET:
        return 0
    return sum(_sink(n) for n in list(model.graph) if n.op_type in ("MatMul", "Gemm") and n.domain == "")


def _sink(node: ir.Node) -> bool:
    weights = _weights(node)
    moved = _rows(node.inputs[0])
    if weights is None or moved is None:
        return False
    weight, bias = weights
    end = node.outputs[0]
    if node.op_type == "MatMul" and build.only_use(end) and (add := build.reader(end)).op_type == "Add":
        bias = build.array(add.inputs[1] if add.inputs[0] is end else add.inputs[0])
        if bias is None or bias.shape != weight.shape[1:]:
            return False
        end = add.outputs[0]
    if end.is_graph_output() or not end.uses() or not all(layout.is_layout(u.node) for u in end.uses()):
        return False
    last = len(moved.dims) - 1
    shape = (*moved.dims[:last], Dim(weight.shape[1]))
    sizes = {f: s for f, s in moved.sizes.items() if f[0] != last} | {(last,): shape[last]}
    rest = layout.Layout(moved.source, shape, sizes, (*moved.groups[:-1], ((last,),)))
    if weight.shape[1] == 1 or not _pays(node, end, rest):
        return False
    builder = build.Builder(node)
    stored = node.inputs[1] if node.op_type == "MatMul" or not _transposed(node) else builder.constant(weight)
    result = builder.node("MatMul", [moved.source, stored], like=node.outputs[0], shape=shape)
    if bias is not None:
        result = builder.node("Add", [result, builder.constant(bias.reshape(-1))], like=result, shape=shape)
    rest = layout.Layout(result, shape, sizes, rest.groups)
    producer = end.producer()
    build.replace(end, layout.emit(rest, builder))
    build.remove_dead(builder.graph, producer)
    return True


def _pays(node: ir.Node, end: ir.Value, rest: layout.Layout) -> bool:
    """Whether there is less to rearrange when every chain behind `end` begins with `rest`."""
    now, then = layout.start(end), layout.steps(rest)
    value = node.inputs[0]
    if now is None or then is None or value is None:
        return False
    before, after = layout.cost(then) / len(value.uses()), 0.0
    for use in end.uses():
        old: layout.Layout | None = now
        new: layout.Layout | None = rest
        reader = use.node
        while True:
            old = layout.step(old, reader) if old is not None else None
            new = layout.step(new, reader) if new is not None else None
            value = reader.outputs[0]
            if not build.only_use(value) or not layout.is_layout(build.reader(value)):
                break
            reader = build.reader(value)
        was, becomes = (
            layout.steps(old) if old is not None else None,
            layout.steps(new) if new is not None else None,
        )
        if was is None or becomes is None:
            return False
        before, after = before + layout.cost(was), after + layout.cost(becomes)
    return after < before


def _transposed(node: ir.Node) -> bool:
    return bool(node.attributes.get_int("transB", 0))


def _weights(node: ir.Node) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Returns the constant matrix [in, out] and the constant vector [out] that is added, if any."""
    weight = build.array(node.inputs[1])
    if weight is None or weight.ndim != 2:
        return None
    if node.op_type == "MatMul":
        return weight, None
    plain = node.attributes.get_float("alpha", 1.0) == node.attributes.get_float("beta", 1.0) == 1.0
    if not plain or bool(node.attributes.get_int("transA", 0)):
        return None
    if _transposed(node):
        weight = np.ascontiguousarray(weight.T)
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return weight, None
    bias = build.array(node.inputs[2])
    return (weight, bias) if bias is not None and bias.size == weight.shape[1] else None


def _rows(value: ir.Value | None) -> layout.Layout | None:
    """Returns `value` as a layout that leaves the last axis of its source alone, or None if it is none."""
    chain: list[ir.Node] = []
    while value is not None and layout.is_layout(producer := value.producer()) and producer is not None:
        chain.append(producer)
        value = producer.inputs[0]
    found = layout.start(value) if value is not None else None
    for node in reversed(chain):
        found = layout.step(found, node) if found is not None else None
    if found is None or not chain or not found.groups:
        return None
    last = len(found.dims) - 1
    way = layout.steps(found)
    alone = last > 0 and found.groups[-1] == ((last,),)
    return found if alone and way and len(way) < 3 else None
