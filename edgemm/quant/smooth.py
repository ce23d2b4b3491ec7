"""Scale migration: outlier channels of an activation made smaller, and the weights that read them larger.

SmoothQuant (Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", 2022): with s_j = max|x_j|^a / max|w_j|^(1 − a) per input channel j,

    x · W  =  (x / s) · (s · W)

One uint8 scale for all of x then wastes fewer levels. s is folded into whatever makes x (LayerNorm, a linear layer
in front of a Relu, ...), so the migrated graph costs nothing and gives the same float answers.

The strength a is chosen per tensor: the one with the least expected noise from rounding x and W, none at all
included. The paper's largest magnitudes decide s; the noise is counted with the scales that are used here, one per
tensor of activations and one per output channel of weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from edgemm.data import Samples
from edgemm.partition import StageGraph
from edgemm.quant.fold import Folder, Tensor
from edgemm.quant.plan import DYNAMIC, INT8, QuantPlan
from edgemm.quant.stats import Channels, channel_statistics
from edgemm.quant.tensors import int_attribute, named_nodes

STRENGTHS = (0.5, 0.65, 0.8)
"""How much of an outlier moves into the weights; the paper uses 0.5 to 0.8."""

LARGEST_FACTOR = 1e4
WORTH = 0.9
"""Expected noise after over before, above which a migration is left alone."""


def smooth(folder: Folder, plan: QuantPlan, samples: Samples) -> dict[Tensor, tuple[float, float]]:
    """Migrates outliers of the inputs of int8 products (MatMul, Gemm) into their weights.

    Args:
        folder: Takes the moves.
        plan: Which nodes are int8.
        samples: Calibration samples, for the range of each channel.

    Returns:
        Tensor -> (strength, expected noise power over that before), for those that moved.
    """
    return migrate(folder, samples, int8_inputs(folder.stage_graph, plan, ("MatMul", "Gemm")))


def int8_inputs(stage_graph: StageGraph, plan: QuantPlan, ops: Iterable[str]) -> dict[Tensor, int]:
    """Returns the data inputs of integer nodes of these operators, with their channel axis from the end."""
    result: dict[Tensor, int] = {}
    for stage in stage_graph.stages:
        nodes = named_nodes(stage.model.graph)
        for decision in plan.stage(stage.name):
            node = nodes.get(decision.node)
            if node is None or node.op_type not in ops or decision.precision not in (INT8, DYNAMIC):
                continue
            data, weight = node.inputs[0], node.inputs[1]
            if data is not None and weight is not None and weight.shape is not None:
                axis = 1 - len(weight.shape) if node.op_type == "Conv" else -1
                result[stage.name, str(data.name)] = axis
    return result


def migrate(folder: Folder, samples: Samples, tensors: Mapping[Tensor, int]) -> dict[Tensor, tuple[float, float]]:
    """Moves each of `tensors` (with its channel axis) by the strength with the least noise, where that pays."""
    able = {t: axis for t, axis in tensors.items() if can_move(folder, t, axis)}
    found = channel_statistics(folder.stage_graph, folder.io, samples, able)
    result = {}
    for tensor, channels in found.items():
        weights = input_weights(folder, tensor)
        if weights is None or channels.count == 0:
            continue
        before = noise(channels, weights, np.ones(len(channels.low)))
        best = None
        for strength in STRENGTHS:
            factor = factors(channels.largest, np.abs(weights).max(axis=(1, 2)), strength)
            ratio = noise(channels, weights, factor) / max(before, 1e-300)
            if best is None or ratio < best[1]:
                best = strength, ratio, factor
        if best is not None and best[1] < WORTH and folder.move(tensor, best[2], able[tensor]):
            result[tensor] = best[0], best[1]
    return result


def can_move(folder: Folder, tensor: Tensor, axis: int) -> bool:
    """Says whether a factor per channel of `tensor` can be folded on both sides; changes nothing."""
    shape = folder.value(tensor).shape
    if shape is None or len(shape) < -axis:
        return False
    weights = input_weights(folder, tensor)
    if weights is None:
        return False
    trial = Folder(folder.stage_graph, folder.io, dict(folder.weights))
    return trial.move(tensor, np.linspace(1.0, 2.0, len(weights)), axis)


def input_weights(folder: Folder, tensor: Tensor) -> np.ndarray | None:
    """Returns the weights of all readers side by side, `[channels, kernel, outputs]`; None if one has none.

    Kernels of different sizes are filled up with zeros.
    """
    readers = folder.readers(tensor)
    if not readers:
        return None
    found = [_by_input(folder, node) for _, node, _ in readers]
    if any(w is None for w in found):
        return None
    arrays = [w for w in found if w is not None]
    kernel = max(w.shape[1] for w in arrays)
    if len({len(w) for w in arrays}) > 1:
        return None
    filled = [np.pad(w, ((0, 0), (0, kernel - w.shape[1]), (0, 0))) for w in arrays]
    return np.concatenate(filled, axis=2)


def _by_input(folder: Folder, node: ir.Node) -> np.ndarray | None:
    weight = folder.weight(node.inputs[1]) if len(node.inputs) > 1 else None
    if weight is None or node.op_type not in ("Conv", "MatMul", "Gemm"):
        return None
    if node.op_type == "Conv":
        flat = weight.reshape(*weight.shape[:2], -1)
        if int_attribute(node, "group", 1) > 1:  # depthwise: one filter per channel
            return flat.transpose(0, 2, 1) if weight.shape[1] == 1 else None
        return flat.transpose(1, 2, 0)
    if weight.ndim != 2:
        return None
    rows = weight.T if int_attribute(node, "transB", 0) else weight
    return rows[:, None, :]


def factors(activation: np.ndarray, weight: np.ndarray, strength: float) -> np.ndarray:
    """Returns what each channel is multiplied by: `1 / s` of the paper. Dead channels move like the smallest."""
    a = np.maximum(activation, 1e-5 * max(float(activation.max()), 1e-30)).astype(np.float64)
    w = np.maximum(weight, 1e-5 * max(float(weight.max()), 1e-30)).astype(np.float64)
    s = a**strength / w ** (1 - strength)
    s = s / np.exp(np.log(s).mean())
    result: np.ndarray = np.clip(1 / s, 1 / LARGEST_FACTOR, LARGEST_FACTOR)
    return result


def noise(channels: Channels, weights: np.ndarray, factor: np.ndarray) -> float:
    """Returns the expected noise power of all outputs with x · factor and weights / factor rounded to 8 bits."""
    high, low = (channels.high * factor).max(), (channels.low * factor).min()
    step = float(max(high, 0.0) - min(low, 0.0)) / 255
    scaled = weights / factor[:, None, None]
    steps = np.abs(scaled).max(axis=(0, 1)) / 127
    from_data = step**2 / 12 * float((scaled**2).sum())
    from_weights = float((steps**2).sum()) / 12 * float((channels.power * factor**2).sum()) * weights.shape[1]
    return float(from_data + from_weights)
