"""Projections that are computed in one product and picked apart become products of their own.

    Gather(Layout(MatMul(x, w) + b), i) -> Layout(MatMul(x, w[:, i]) + b[i])

`torch.nn.MultiheadAttention` packs the weights of keys and values (and queries) that way, and the copies that pick
them apart cost more than one large product saves over two. Declined unless every reader picks one constant index
of an axis that is the outermost part of the product's last axis.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemm.rewrite import build, dims, layout
from edgemm.rewrite.dims import Dim
from edgemm.tensors import IOSpec


def apply(model: ir.Model, io: IOSpec) -> int:
    """Unpacks projections of the main graph; returns how many products were taken apart."""
    if model.graph.opset_imports.get("", 1) < layout.OPSET:
        return 0
    return sum(_unpack(n) for n in list(model.graph) if n.op_type == "MatMul" and n.graph is model.graph)


def _unpack(product: ir.Node) -> bool:
    weight = build.array(product.inputs[1])
    if product.domain != "" or weight is None or weight.ndim != 2 or not build.only_use(product.outputs[0]):
        return False
    value, bias = product.outputs[0], None
    add = build.reader(value)
    if add.op_type == "Add":
        bias = build.array(add.inputs[1] if add.inputs[0] is value else add.inputs[0])
        value = add.outputs[0]
        if bias is None or bias.shape != weight.shape[1:]:
            return False
    found = layout.start(value)
    while found is not None and build.only_use(value) and layout.is_layout(node := build.reader(value)):
        found, value = layout.step(found, node), node.outputs[0]
    if found is None or value.is_graph_output():
        return False
    picks = [use.node for use in value.uses()]
    last = len(found.dims) - 1
    axis = _packed_axis(found, last)
    if axis is None or len(picks) < 2 or not all(_picks(n, value, axis, len(found.groups)) for n in picks):
        return False
    factor = found.groups[axis][0]
    count = found.sizes[factor].size
    kept = {f: s for f, s in found.sizes.items() if f != factor}
    part = (*found.dims[:last], Dim(weight.shape[1] // count))
    groups = tuple(g for i, g in enumerate(found.groups) if i != axis)
    if layout.steps(layout.Layout(found.source, part, kept, groups)) is None:
        return False
    for pick in picks:
        index = int(build.integers(pick.inputs[1])[0]) % count  # type: ignore[index]
        columns = slice(index * part[last].size, (index + 1) * part[last].size)
        builder = build.Builder(product)
        own = builder.constant(np.ascontiguousarray(weight[:, columns]))
        result = builder.node("MatMul", [product.inputs[0], own], like=found.source, shape=part)
        if bias is not None:
            result = builder.node("Add", [result, builder.constant(bias[columns].copy())], like=result, shape=part)
        rest = layout.Layout(result, part, kept, groups)
        build.replace(pick.outputs[0], layout.emit(rest, build.Builder(pick)))
        build.remove_dead(builder.graph, pick)
    return True


def _packed_axis(found: layout.Layout, last: int) -> int | None:
    """Returns the axis that is the outermost of several parts of the source's last axis."""
    parts = sorted(f for f in found.sizes if f[0] == last)
    axes = [i for i, g in enumerate(found.groups) if g == (parts[0],)] if len(parts) > 1 else []
    return axes[0] if axes and found.sizes[parts[0]].fixed is not None else None


def _picks(node: ir.Node, value: ir.Value, axis: int, rank: int) -> bool:
    index = build.array(node.inputs[1]) if node.op_type == "Gather" and node.inputs[0] is value else None
    if index is None or index.ndim != 0 or node.outputs[0].is_graph_output():
        return False
    return node.attributes.get_int("axis", 0) % rank == axis and dims.of(node.outputs[0]) is not None
