"""A BatchNormalization in front of Conv, Gemm or MatMul goes into their weights.

With s = scale / sqrt(var + epsilon) and t = bias − mean·s per input channel, BN(x) = s·x + t:

    Conv(BN(x), W, b)               -> Conv(x, W·s, b + Σ W·t)          without padding
    Conv(BN(x), W, b), zero padding -> Conv(x + t/s, W·s, b)            nothing to add where t = 0
    Gemm(BN(x), W, b)               -> Gemm(x, s·W, b + t·W), alpha as it was, beta = 1
    MatMul(BN(x), W)                -> MatMul(x, s·W) + t·W

What a padded convolution reads beyond the border is 0 behind the normalization, which is not BN(0) but BN(−t/s);
x + t/s is 0 there, so the border stays exact. Every reader must take it; one padded reader makes all read x + t/s.
Declined when the normalization trains, when a weight is no constant or of another type, and when padding meets a
scale so small that t/s would lose digits. Comes after `fold_batch_norm`: behind a Conv it folds for nothing.
Weights are computed in float64; weights that other nodes share are left to them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgemm.rewrite import build
from edgemm.tensors import IOSpec

Array = npt.NDArray[np.float64]

_LARGEST = 1e3
"""Largest |t/s|: beyond, what the addition rounds away is multiplied back by a small s."""


def apply(model: ir.Model, io: IOSpec) -> int:
    """Folds batch norms of the main graph into what reads them; returns how many."""
    nodes = [n for n in model.graph if n.op_type == "BatchNormalization" and n.domain == ""]
    return sum(_fold(n) for n in nodes)


def _fold(norm: ir.Node) -> bool:
    source, output = norm.inputs[0], norm.outputs[0]
    constants = [build.array(v) for v in norm.inputs[1:5]]
    readers = [use.node for use in output.uses()]
    if (
        source is None
        or output.is_graph_output()
        or not readers
        or norm.attributes.get_int("training_mode", 0) != 0
    ):
        return False
    if any(o.uses() or o.is_graph_output() for o in norm.outputs[1:]) or any(c is None for c in constants):
        return False
    dtype = source.dtype.numpy() if source.dtype is not None else None
    if any(c is not None and c.dtype != dtype for c in constants):
        return False
    scale, bias, mean, variance = (np.asarray(c, np.float64) for c in constants)
    s = scale / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    t = bias - mean * s
    if not all(_takes(n, output, len(s)) and build.array(n.inputs[1]).dtype == dtype for n in readers):  # type: ignore[union-attr]
        return False
    builder, read = build.Builder(norm), source
    if any(_pads(n) for n in readers) and t.any():
        with np.errstate(divide="ignore", invalid="ignore"):
            shift = np.where(t == 0, 0.0, t / s)
        rank = len(source.shape) if source.shape is not None else 0
        if not rank or not np.all(np.abs(shift) <= _LARGEST):
            return False
        addend = builder.constant(shift.astype(dtype).reshape(-1, *[1] * (rank - 2)))
        read, t = builder.node("Add", [source, addend], like=output), np.zeros_like(t)
    for reader in readers:
        _put_in(reader, read, s, t)
    build.remove_dead(builder.graph, norm)
    return True


def _takes(node: ir.Node, value: ir.Value, channels: int) -> bool:
    """Whether `node` reads `value` as data alone, with constant weights for `channels` channels in axis 1."""
    weight = build.array(node.inputs[1]) if len(node.inputs) > 1 else None
    addend = node.inputs[2] if len(node.inputs) > 2 else None
    if node.domain != "" or weight is None or [v for v in node.inputs if v is value] != [node.inputs[0]]:
        return False
    if addend is not None and build.array(addend) is None:
        return False
    if node.op_type == "Conv":
        return bool(weight.shape[1] * node.attributes.get_int("group", 1) == channels)
    rank = len(value.shape) if value.shape is not None else 0
    if node.op_type == "Gemm":
        side = 1 if node.attributes.get_int("transB", 0) else 0
        rows = build.array(addend)
        plain = rows is None or rows.ndim < 2 or rows.shape[0] == 1
        return bool(plain and not node.attributes.get_int("transA", 0) and weight.shape[side] == channels)
    return bool(node.op_type == "MatMul" and rank == 2 and weight.ndim == 2 and weight.shape[0] == channels)


def _pads(node: ir.Node) -> bool:
    if node.op_type != "Conv":
        return False
    return any(node.attributes.get_ints("pads", ())) or node.attributes.get_string("auto_pad", "NOTSET") not in (
        "NOTSET",
        "VALID",
    )


def _put_in(node: ir.Node, read: ir.Value, s: Array, t: Array) -> None:
    """Makes `node` read `read` in place of s·read + t."""
    builder = build.Builder(node)
    stored = build.array(node.inputs[1])
    assert stored is not None
    weight = np.asarray(stored, np.float64)
    if node.op_type == "Conv":
        group = node.attributes.get_int("group", 1)
        split = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)
        parts = s.reshape(group, 1, -1, 1), t.reshape(group, 1, -1, 1)
        scaled, offset = (split * parts[0]).reshape(weight.shape), (split * parts[1]).sum((2, 3)).reshape(-1)
    elif node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0:
        scaled, offset = weight * s, weight @ t
    else:
        scaled, offset = weight * s[:, None], t @ weight
    node.replace_input_with(0, read)
    node.replace_input_with(1, builder.constant(scaled.astype(stored.dtype)))
    if not offset.any():
        return
    if node.op_type == "MatMul":
        output = node.outputs[0]
        uses, given = list(output.uses()), output.is_graph_output()
        addend = builder.constant(offset.astype(stored.dtype))
        total = ir.node("Add", [output, addend], name=f"{node.name}__shift")
        total.metadata_props.update(node.metadata_props)
        builder.graph.insert_after(node, total)
        result, name = total.outputs[0], output.name
        result.type, result.shape = output.type, output.shape and output.shape.copy()
        for use in uses:
            use.node.replace_input_with(use.idx, result)
        if given:
            places = [i for i, v in enumerate(builder.graph.outputs) if v is output]
            for place in places:
                builder.graph.outputs[place] = result
        output.name, result.name = f"{name}__product", name
        return
    addend_value = node.inputs[2] if len(node.inputs) > 2 else None
    start = np.zeros(1) if addend_value is None else np.asarray(build.array(addend_value), np.float64).reshape(-1)
    if node.op_type == "Gemm":
        offset = offset * node.attributes.get_float("alpha", 1.0)
        start = start * node.attributes.get_float("beta", 1.0)
        node.attributes.pop("beta", None)
    while len(node.inputs) < 3:
        node.resize_inputs(len(node.inputs) + 1)
    node.replace_input_with(2, builder.constant((start + offset).astype(stored.dtype)))
