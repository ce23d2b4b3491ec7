"""A mask that is gathered at every index in order is only reshaped: GatherND(mask, (b, k) for all b, k) -> mask.

Attention masks of `transformers` are exported as GatherND with indices from Range, Unsqueeze, Expand and Concat.
Where index i counts 0, 1, 2, ... along an axis of its own and to the end of axis i of the mask, the result is the
mask with axes of size 1 between. Declined for other indices, and when the result repeats the mask.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemm.rewrite import build, dims, layout
from edgemm.rewrite.dims import ONE, Dim
from edgemm.tensors import IOSpec


def apply(model: ir.Model, io: IOSpec) -> int:
    """Replaces such gathers in the main graph; returns how many."""
    return sum(_read(n) for n in list(model.graph) if n.op_type == "GatherND" and n.graph is model.graph)


def _read(node: ir.Node) -> bool:
    data, indices = node.inputs[0], node.inputs[1]
    shape, wanted = dims.of(data), dims.of(node.outputs[0])
    if node.attributes.get_int("batch_dims", 0) or data is None or shape is None or indices is None:
        return False
    axes = _counted(indices, shape)
    if axes is None or axes != sorted(set(axes)):
        return False
    rank = len(indices.shape or ()) - 1
    result = [ONE] * rank
    for axis, dim in zip(axes, shape, strict=True):
        result[axis] = dim
    if wanted is None or tuple(result) != wanted or dims.target(shape, wanted) is None:
        return False
    if node.outputs[0].is_graph_output():
        return False
    builder = build.Builder(node)
    build.replace(node.outputs[0], builder.reshape(data, shape, wanted))
    build.remove_dead(builder.graph, node)
    return True


def _counted(indices: ir.Value, shape: tuple[Dim, ...]) -> list[int] | None:
    """Returns along which axis of the result each index counts, or None if one does not."""
    join = indices.producer()
    if join is None or join.op_type != "Concat" or indices.shape is None or len(join.inputs) != len(shape):
        return None
    last = len(indices.shape) - 1
    if join.attributes.get_int("axis", 0) % (last + 1) != last:
        return None
    axes = []
    for value, dim in zip(join.inputs, shape, strict=True):
        axis = _counts(value, dim, last)
        if axis is None:
            return None
        axes.append(axis)
    return axes


def _counts(value: ir.Value | None, dim: Dim, last: int) -> int | None:
    """Returns the axis along which `value` counts to `dim`; its last axis, the index tuple's, has size 1."""
    column = value.producer() if value is not None else None
    if column is None or column.op_type not in ("Unsqueeze", "Reshape") or not layout.is_layout(column):
        return None
    if dims.of(value) is None or (dims.of(value) or ())[-1] != ONE:
        return None
    inner = column.inputs[0]
    expand = inner.producer() if inner is not None else None
    if expand is not None and expand.op_type == "Expand":
        inner = expand.inputs[0]
    if inner is None or dim == ONE:
        return None
    found = build.array(inner)
    if found is not None:
        long = [i for i, size in enumerate(found.shape) if size != 1]
        counts = len(long) == 1 and np.array_equal(found.reshape(-1), np.arange(found.size))
        return last - found.ndim + long[0] if counts and dim.fixed == found.size else None
    chain: list[ir.Node] = []
    while layout.is_layout(producer := inner.producer()) and producer is not None:
        chain.append(producer)
        inner = producer.inputs[0]
        if inner is None:
            return None
    source = inner.producer()
    if source is None or source.op_type != "Range" or dims.of(inner) != (dim,):
        return None
    if build.scalar(source.inputs[0]) != 0 or build.scalar(source.inputs[2]) != 1:
        return None
    arranged = layout.start(inner)
    for node in reversed(chain):
        arranged = layout.step(arranged, node) if arranged is not None else None
    if arranged is None:
        return None
    long = [i for i, g in enumerate(arranged.groups) if g]
    return last - len(arranged.groups) + long[0] if len(long) == 1 else None
