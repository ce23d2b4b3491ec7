"""Bias correction: the mean error that rounding leaves in a layer's output, taken off its bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.2: rounded
weights and inputs shift the expected output of a channel, E[W x] ≠ E[Ŵ x̂]. The paper corrects for the weights and
derives E[x] from batch norms; here both means are taken from the calibration samples, in one pass, because
E[W x] − E[Ŵ x̂] = W E[x] − Ŵ E[x̂]. Padding at the borders of a convolution is counted like the inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgemm.data import Samples
from edgemm.quant import arithmetic
from edgemm.quant.fold import Folder, Tensor
from edgemm.quant.joins import SCALES, SHARED
from edgemm.quant.plan import INT8, Decision, QuantPlan
from edgemm.quant.stats import channel_statistics
from edgemm.quant.table import CalibrationTable
from edgemm.quant.tensors import constant_array, int_attribute, named_nodes, table_key, weight_axis


@dataclass(frozen=True, slots=True)
class _Layer:
    decision: Decision
    node: ir.Node
    tensor: Tensor
    axis: int
    bias: ir.Value


def correct_biases(
    folder: Folder, plan: QuantPlan, table: CalibrationTable, samples: Samples
) -> dict[tuple[str, str], float]:
    """Changes the biases of static int8 layers so that their mean output is that of float.

    Returns:
        (stage, node) -> largest shift of a channel, relative to the largest bias or shift.
    """
    layers = _layers(folder, plan, table)
    axes = {layer.tensor: layer.axis for layer in layers}
    scales = {t: arithmetic.activation_scale(table.ranges[table_key(*t)]) for t in axes}
    exact = channel_statistics(folder.stage_graph, folder.io, samples, axes)
    rounded = channel_statistics(
        folder.stage_graph, folder.io, samples, axes, lambda tap, v: arithmetic.fake_quantize(v, scales[tap])
    )
    bits = int(plan.calibration.get("weight_bits", 8))
    result = {}
    for layer in layers:
        weight = constant_array(layer.node.inputs[1])
        bias = folder.weight(layer.bias)
        if weight is None or bias is None or layer.tensor not in exact:
            continue
        axis = weight_axis(layer.node)
        channel_scales = arithmetic.weight_scales(weight, axis, bits)
        shape = [1] * weight.ndim
        shape[axis] = -1
        q = arithmetic.quantize_weight(weight, channel_scales, axis, bits) * channel_scales.reshape(shape)
        shift = _mean_output(layer.node, weight, exact[layer.tensor].mean) - _mean_output(
            layer.node, q, rounded[layer.tensor].mean
        )
        if bias.size != shift.size or not np.isfinite(shift).all():
            continue
        largest = max(float(np.abs(bias).max()), float(np.abs(shift).max()), 1e-30)
        folder.weights[str(layer.bias.name)] = (bias + shift.reshape(bias.shape)).astype(np.float32)
        result[layer.decision.stage, layer.decision.node] = float(np.abs(shift).max()) / largest
    return result


def _layers(folder: Folder, plan: QuantPlan, table: CalibrationTable) -> list[_Layer]:
    result = []
    for stage in folder.stage_graph.stages:
        nodes = named_nodes(stage.model.graph)
        for decision in plan.stage(stage.name):
            node = nodes.get(decision.node)
            if node is None or decision.precision != INT8 or node.op_type not in ("Conv", "MatMul", "Gemm"):
                continue
            data, weight = node.inputs[0], constant_array(node.inputs[1])
            bias = _bias(node)
            if data is None or weight is None or bias is None or decision.options.get(SCALES, SHARED) != SHARED:
                continue
            tensor = stage.name, str(data.name)
            if table_key(*tensor) in table.ranges and folder.weight(bias) is not None:
                axis = 1 - weight.ndim if node.op_type == "Conv" else -1
                result.append(_Layer(decision, node, tensor, axis, bias))
    return result


def _bias(node: ir.Node) -> ir.Value | None:
    """The bias of a node: its own, or the constant that the only reader of a MatMul adds."""
    if node.op_type != "MatMul":
        return node.inputs[2] if len(node.inputs) > 2 else None
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output() or uses[0].node.op_type not in ("Add", "Sum"):
        return None
    other = uses[0].node.inputs[1 - uses[0].idx] if len(uses[0].node.inputs) == 2 else None
    array = constant_array(other)
    return other if array is not None and array.ndim == 1 else None


def _mean_output(node: ir.Node, weight: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Returns the mean of each output channel, without bias, for this mean of each input channel."""
    if node.op_type != "Conv":
        rows = weight.T if int_attribute(node, "transB", 0) else weight
        return mean @ rows.astype(np.float64)
    taps = weight.reshape(*weight.shape[:2], -1).sum(axis=2, dtype=np.float64)  # [filters, channels of the group]
    groups = int_attribute(node, "group", 1)
    by_group = mean.reshape(groups, -1)
    result: np.ndarray = np.einsum("gfc,gc->gf", taps.reshape(groups, -1, taps.shape[1]), by_group).ravel()
    return result
