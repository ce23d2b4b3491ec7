"""A BatchNormalization behind a Conv, ConvTranspose or Gemm goes into its weights.

With s = scale / sqrt(var + epsilon), per output channel:

    BN(Conv(x, W, b))       -> Conv(x, W·s, (b − mean)·s + bias)
    BN(ConvTranspose(x, …)) -> the same, with s along the output channels of each group
    BN(Gemm(x, W, c))       -> Gemm(x, W·s, (beta·c − mean)·s + bias), beta = 1

Declined when the normalization trains, when the value between the two is used or given out elsewhere, when a
weight is no constant, and when weights and statistics differ in type. The weights are computed in float64. The
node in front keeps its name; weights that other nodes share are left to them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgemm.tensors import IOSpec

Array = npt.NDArray[np.float64]
_AHEAD = frozenset({"Conv", "ConvTranspose", "Gemm"})


def apply(model: ir.Model, io: IOSpec) -> int:
    """Folds batch norms of the main graph; returns how many."""
    return sum(_fold(model.graph, n) for n in list(model.graph) if n.op_type == "BatchNormalization")


def why_not(norm: ir.Node) -> str | None:
    """Returns why `norm` cannot be folded into the node in front of it, or None if it can."""
    if norm.attributes.get_int("training_mode", 0):
        return "it normalizes by the statistics of the batch"
    if any(o.uses() or o.is_graph_output() for o in norm.outputs[1:]):
        return "its statistics are used"
    value = norm.inputs[0]
    ahead = value.producer() if value is not None else None
    if value is None or ahead is None or ahead.op_type not in _AHEAD or ahead.domain != "":
        return "no Conv, ConvTranspose or Gemm is in front of it"
    if value.is_graph_output() or len(value.uses()) > 1 or ahead.graph is not norm.graph:
        return f"the result of '{ahead.name}' is used elsewhere"
    constants = [*ahead.inputs[1:3], *norm.inputs[1:5]]
    for constant in constants:
        if constant is not None and (constant.const_value is None or constant.is_graph_input()):
            return f"'{constant.name}' is no constant"
    if len({c.const_value.dtype for c in constants if c is not None and c.const_value is not None}) > 1:
        return "weights and statistics differ in type"
    if ahead.op_type == "Gemm" and len(ahead.inputs) > 2 and ahead.inputs[2] is not None:
        addend = _array(ahead.inputs[2])
        if addend.ndim > 1 and addend.shape[0] != 1:
            return f"'{ahead.name}' adds a matrix"
    return None


def _fold(graph: ir.Graph, norm: ir.Node) -> bool:
    if why_not(norm) is not None:
        return False
    middle = norm.inputs[0]
    assert middle is not None
    ahead = middle.producer()
    assert ahead is not None
    scale, bias, mean, variance = (_array(v) for v in norm.inputs[1:5])
    factor = scale / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    weight = _scaled(ahead, factor)
    addend = ahead.inputs[2] if len(ahead.inputs) > 2 else None
    start = _array(addend).reshape(-1) if addend is not None else np.zeros(1)
    if ahead.op_type == "Gemm":
        start = start * ahead.attributes.get_float("beta", 1.0)
        ahead.attributes.pop("beta", None)
    offset = np.broadcast_to((start - mean) * factor + bias, factor.shape)

    while len(ahead.inputs) < 3:
        ahead.resize_inputs(len(ahead.inputs) + 1)
    ahead.replace_input_with(1, _constant(graph, ahead.inputs[1], f"{ahead.name}_weight", weight))
    ahead.replace_input_with(2, _constant(graph, ahead.inputs[1], f"{ahead.name}_bias", offset))
    output, name = norm.outputs[0], norm.outputs[0].name
    middle.type, middle.shape = output.type or middle.type, output.shape or middle.shape
    ir.convenience.replace_all_uses_with(output, middle, replace_graph_outputs=True)
    graph.remove(norm, safe=True)
    middle.name = name
    return True


def _scaled(node: ir.Node, factor: Array) -> Array:
    """Returns the weight of `node` in float64, times `factor` along its output channels."""
    weight = _array(node.inputs[1])
    if node.op_type == "Gemm":
        shape = (-1, 1) if node.attributes.get_int("transB", 0) else (1, -1)
        return np.multiply(weight, factor.reshape(shape))
    if node.op_type == "Conv":
        return np.multiply(weight, factor.reshape(-1, *[1] * (weight.ndim - 1)))
    group = node.attributes.get_int("group", 1)
    split = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
    factors = factor.reshape(group, 1, -1, *[1] * (weight.ndim - 2))
    return np.multiply(split, factors).reshape(weight.shape)


def _array(value: ir.Value | None) -> Array:
    assert value is not None
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy(), dtype=np.float64)


def _constant(graph: ir.Graph, like: ir.Value | None, name: str, array: Array) -> ir.Value:
    assert like is not None
    assert like.const_value is not None
    dtype = like.const_value.dtype
    unique, number = name, 0
    while unique in graph.initializers:
        number += 1
        unique = f"{name}_{number}"
    tensor = ir.Tensor(array.astype(dtype.numpy()), dtype=dtype, name=unique)
    value = ir.Value(name=unique, shape=ir.Shape(array.shape), type=ir.TensorType(dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
