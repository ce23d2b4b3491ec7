"""Weights rounded so that the layer's output changes least, not each weight: GPTQ.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022): the
weights of a layer are rounded one input at a time, and what is lost is made up for by the inputs still to come,
with H = Σ x xᵀ over the calibration samples saying which changes the output does not feel. H is summed as the
samples stream by; inputs with the most power come first.

The rounded weights stay float here, but lie on the grid that `apply` will choose: the weights that fix a scale
(the largest of a column, the extremes of a block) keep their place. So nothing needs to be stored beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemm.data import Samples
from edgemm.quant import arithmetic
from edgemm.quant.chain import Tap
from edgemm.quant.fold import Folder
from edgemm.quant.joins import SCALES, SHARED
from edgemm.quant.plan import DYNAMIC, INT8, WEIGHT4, Decision, QuantPlan
from edgemm.quant.stats import watch
from edgemm.quant.table import CalibrationTable
from edgemm.quant.tensors import given_constant, int_attribute, named_nodes, table_key
from edgemm.quant.weight_only import BLOCK_SIZE

LARGEST_DEPTH = 4096
"""Inputs of a layer beyond which H is too large to invert."""

HESSIANS = 256 * 2**20
"""Bytes of H that one pass over the samples may sum up."""

ROWS = 512
"""Input rows, or patches of a convolution, that are taken from one sample."""

DAMPING = 0.01


@dataclass(frozen=True, slots=True)
class _Layer:
    decision: Decision
    node: ir.Node
    tap: Tap
    depth: int


def round_weights(
    folder: Folder, plan: QuantPlan, table: CalibrationTable, samples: Samples
) -> dict[tuple[str, str], float]:
    """Puts the weights of quantized layers on their grids where that makes the layer's output error smaller.

    Returns:
        (stage, node) -> output error power over that of rounding each weight to the nearest, for changed layers.
    """
    result = {}
    bits = int(plan.calibration.get("weight_bits", 8))
    for group in _groups(_layers(folder, plan)):
        hessians = _hessians(folder, group, table, samples)
        for layer in group:
            node, h = layer.node, hessians.get((layer.tap, _shape_key(layer.node)))
            source = node.inputs[1]
            weight = folder.weight(source)
            if source is None or weight is None or h is None:
                continue
            rows = _as_rows(node, weight)
            grid = (
                Grid.blocks(rows, layer.decision.options) if _is_blocks(layer.decision) else Grid.rows(rows, bits)
            )
            rounded = gptq(rows, h, grid)
            before, after = (output_error(rows, candidate, h) for candidate in (grid.round(rows), rounded))
            if after < before:
                folder.weights[str(source.name)] = _from_rows(node, rounded, weight.shape)
                result[layer.decision.stage, layer.decision.node] = after / before
    return result


@dataclass(frozen=True, slots=True)
class Grid:
    """The values that each weight may take: `(k − zero) · scale` for k from `low` to `high`.

    Attributes:
        scale: Float `[n, k]`.
        zero: Float `[n, k]`.
        low: Smallest k.
        high: Largest k.
        pinned: True for weights that the scale was made from, `[n, k]`.
    """

    scale: np.ndarray
    zero: np.ndarray
    low: int
    high: int
    pinned: np.ndarray

    @classmethod
    def rows(cls, rows: np.ndarray, bits: int) -> Grid:
        """Returns the symmetric grid of one scale per row, as static and dynamic int8 use it."""
        scales = arithmetic.weight_scales(rows, 0, bits)[:, None]
        limit = 2 ** (bits - 1) - 1
        pinned = np.abs(rows) == np.abs(rows).max(axis=1, keepdims=True)
        wide = np.broadcast_to(scales.astype(np.float64), rows.shape)
        return cls(wide, np.zeros_like(wide), -limit, limit, pinned)

    @classmethod
    def blocks(cls, rows: np.ndarray, options: Mapping[str, Any]) -> Grid:
        """Returns the 4-bit grid of one scale and zero point per block of a row."""
        block = int(options.get("block_size", BLOCK_SIZE))
        n, k = rows.shape
        _, scales, zeros = arithmetic.quantize_blocks(rows, 4, block)
        unpacked = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(n, -1)[:, : scales.shape[1]]
        padded = np.zeros((n, scales.shape[1] * block), rows.dtype)
        padded[:, :k] = rows
        parts = padded.reshape(n, -1, block)
        extremes = (parts == parts.max(-1, keepdims=True)) | (parts == parts.min(-1, keepdims=True))
        wide = [np.repeat(a.astype(np.float64), block, axis=1)[:, :k] for a in (scales, unpacked)]
        return cls(wide[0], wide[1], 0, 15, extremes.reshape(n, -1)[:, :k])

    def round(self, weights: np.ndarray, columns: slice | int = slice(None)) -> np.ndarray:
        """Returns the nearest grid values of these columns."""
        scale, zero = self.scale[:, columns], self.zero[:, columns]
        q = np.clip(np.rint(weights / scale) + zero, self.low, self.high)
        result: np.ndarray = (q - zero) * scale
        return result


def gptq(rows: np.ndarray, hessian: np.ndarray, grid: Grid, block: int = 128) -> np.ndarray:
    """Returns `rows` on `grid`, rounded one column at a time with the error passed on.

    Args:
        rows: Weights `[n, k]`, one row per output.
        hessian: Σ x xᵀ `[k, k]`.
        grid: Where the weights may go.
        block: Columns between updates of all that is left.

    Returns:
        Float32 `[n, k]`.
    """
    k = rows.shape[1]
    order = np.argsort(-np.diag(hessian), kind="stable")
    h = hessian[np.ix_(order, order)].copy()
    dead = np.diag(h) <= 0
    h[dead, dead] = 1.0
    h[np.diag_indices(k)] += DAMPING * float(np.mean(np.diag(h)))
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    w = rows.astype(np.float64)[:, order]
    nearest = grid.round(rows.astype(np.float64))[:, order]
    pinned = grid.pinned[:, order]
    result = np.empty_like(w)
    for start in range(0, k, block):
        stop = min(start + block, k)
        errors = np.zeros((len(w), stop - start))
        for column in range(start, stop):
            q = np.where(pinned[:, column], nearest[:, column], grid.round(w[:, column], int(order[column])))
            errors[:, column - start] = (w[:, column] - q) / upper[column, column]
            result[:, column] = q
            w[:, column + 1 : stop] -= np.outer(errors[:, column - start], upper[column, column + 1 : stop])
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    back = np.empty_like(result)
    back[:, order] = result
    return back.astype(np.float32)


def output_error(rows: np.ndarray, rounded: np.ndarray, hessian: np.ndarray) -> float:
    """Returns the summed squared change of the outputs over the samples in `hessian`."""
    delta = (rounded - rows).astype(np.float64)
    return float(np.einsum("nk,nk->", delta @ hessian, delta))


def _is_blocks(decision: Decision) -> bool:
    return decision.precision == WEIGHT4


def _layers(folder: Folder, plan: QuantPlan) -> list[_Layer]:
    result = []
    for stage in folder.stage_graph.stages:
        nodes = named_nodes(stage.model.graph)
        for decision in plan.stage(stage.name):
            node = nodes.get(decision.node)
            if node is None or decision.precision not in (INT8, DYNAMIC, WEIGHT4):
                continue
            if node.op_type not in ("MatMul", "Gemm", "Conv") or decision.options.get(SCALES, SHARED) != SHARED:
                continue
            weight, data = folder.weight(node.inputs[1]), node.inputs[0]
            if weight is None or data is None or weight.ndim < 2:
                continue
            if node.op_type == "Conv" and (int_attribute(node, "group", 1) > 1 or "auto_pad" in node.attributes):
                continue
            depth = math.prod(weight.shape[1:]) if node.op_type == "Conv" else _as_rows(node, weight).shape[1]
            if depth <= LARGEST_DEPTH:
                result.append(_Layer(decision, node, (stage.name, str(data.name)), depth))
    return result


def _groups(layers: list[_Layer]) -> list[list[_Layer]]:
    groups: list[list[_Layer]] = []
    total = HESSIANS
    for layer in layers:
        size = 8 * layer.depth**2
        if total + size > HESSIANS:
            groups.append([])
            total = 0
        groups[-1].append(layer)
        total += size
    return groups


_Key = tuple[Tap, tuple[int, ...]]


def _shape_key(node: ir.Node) -> tuple[int, ...]:
    """What tells inputs of layers on one tensor apart: the geometry of a convolution."""
    if node.op_type != "Conv":
        return ()
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    sizes = [d for d in (shape or []) if isinstance(d, int)][2:]
    geometry = [
        list(node.attributes[k].as_ints()) if k in node.attributes else []
        for k in ("pads", "strides", "dilations")
    ]
    return (*sizes, -1, *geometry[0], -1, *geometry[1], -1, *geometry[2])


def _hessians(
    folder: Folder, layers: list[_Layer], table: CalibrationTable, samples: Samples
) -> dict[_Key, np.ndarray]:
    """Σ x xᵀ of the rounded inputs of each layer, float64 `[depth, depth]`."""
    by_tap: dict[Tap, dict[tuple[int, ...], _Layer]] = {}
    for layer in layers:
        by_tap.setdefault(layer.tap, {})[_shape_key(layer.node)] = layer
    result: dict[_Key, np.ndarray] = {}

    def observe(tap: Tap, value: np.ndarray, count: int) -> None:
        for key, layer in by_tap[tap].items():
            x = value
            found = table.ranges.get(table_key(*tap))
            if layer.decision.precision == INT8 and found is not None:
                x = arithmetic.fake_quantize(x, arithmetic.activation_scale(found))
            rows = (
                _patches(layer.node, x, ROWS * count) if layer.node.op_type == "Conv" else _rows(x, ROWS * count)
            )
            rows = rows[np.isfinite(rows).all(axis=1)].astype(np.float64)
            if rows.shape[1] == layer.depth:
                result[tap, key] = result.get((tap, key), 0.0) + rows.T @ rows

    watch(folder.stage_graph, folder.io, samples, by_tap, observe)
    return result


def _rows(value: np.ndarray, most: int) -> np.ndarray:
    rows = value.reshape(-1, value.shape[-1])
    return rows[:: max(1, len(rows) // most)]


def _patches(node: ir.Node, value: np.ndarray, most: int) -> np.ndarray:
    """Returns what a filter is multiplied with: rows `[places, channels · kernel]`, evenly thinned."""
    spatial = value.ndim - 2
    kernel = given_constant(node, 1)[1].shape[2:]

    def ints(name: str, default: int, count: int) -> list[int]:
        return list(node.attributes[name].as_ints()) if name in node.attributes else [default] * count

    pads, strides = ints("pads", 0, 2 * spatial), ints("strides", 1, spatial)
    dilations = ints("dilations", 1, spatial)
    padded = np.pad(value, [(0, 0), (0, 0), *zip(pads[:spatial], pads[spatial:], strict=True)])
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    axes = tuple(range(2, value.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
    every = slice(None)
    steps = [every, every, *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations)]
    windows = windows[tuple(steps)]
    rows = np.moveaxis(windows, 1, spatial + 1)  # [batch, positions..., channels, kernel...]
    positions = math.prod(rows.shape[: spatial + 1])
    chosen = np.unravel_index(np.arange(0, positions, max(1, positions // most)), rows.shape[: spatial + 1])
    return rows[chosen].reshape(len(chosen[0]), -1)


def _as_rows(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    if node.op_type == "Conv":
        return weight.reshape(len(weight), -1)
    return weight if int_attribute(node, "transB", 0) else weight.T


def _from_rows(node: ir.Node, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if node.op_type == "Conv" or int_attribute(node, "transB", 0):
        return np.ascontiguousarray(rows.reshape(shape))
    return np.ascontiguousarray(rows.T)
