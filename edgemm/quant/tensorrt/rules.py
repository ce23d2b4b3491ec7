"""What a node can be on TensorRT, and the first guess, from the graph alone.

Source of the sizes: NVIDIA TensorRT documentation, "Best Practices" (alignment, int8 GEMV, grouped convolutions)
and "Working with Quantized Types" (which layers have scales).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemm.graph import PREPROCESS
from edgemm.quant.kernels import STEP, Verdict, is_plain_product
from edgemm.quant.plan import FLOAT, FP8, INT8, WEIGHT4
from edgemm.quant.tensorrt.formats import BLOCK_SIZE
from edgemm.quant.tensors import RECURRENT, WEIGHTED, constant_array, int_attribute

MIN_SIDE = 16
"""Fewer input or output channels do not fill a tensor core's integer tile."""

GROUP = 4
"""Channels per group of a grouped convolution must be a multiple of this for an integer kernel that pays."""

_KERNELS = frozenset({FLOAT, INT8})


def verdict_in(precision: str, node: ir.Node) -> Verdict | None:
    """Returns what `node` can be in a precision of `formats.FORMATS`, or None where no rule is about it."""
    return {INT8: verdict, FP8: fp8_verdict, WEIGHT4: int4_verdict}[precision](node)


def verdict(node: ir.Node) -> Verdict | None:
    """Returns what `node` can be in int8, or None for operators that no rule is about."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in RECURRENT:
        return Verdict(FLOAT, "recurrent", f"TensorRT has no integer {node.op_type}")
    if node.op_type not in WEIGHTED:
        return None
    if PREPROCESS in node.metadata_props:
        return Verdict(FLOAT, "preprocessing", STEP)
    weight = constant_array(node.inputs[1])
    if weight is None:
        return Verdict(
            FLOAT, "no-constant-weight", "both inputs are activations; attention stays in high precision"
        )
    if weight.dtype != np.float32:
        return Verdict(FLOAT, "not-float32", f"the weight is {weight.dtype.name}")
    if constant_array(node.inputs[0]) is not None:
        return Verdict(FLOAT, "constant-input", "the input is a constant")
    return _product(node, weight) if node.op_type in ("Gemm", "MatMul") else _convolution(node, weight)


def fp8_verdict(node: ir.Node) -> Verdict | None:
    """Returns what `node` can be in fp8: as in int8, but for grouped and transposed convolutions."""
    found = verdict(node)
    if found is None or INT8 not in found.kernels:
        return found
    kernels = frozenset({FLOAT, FP8})
    if node.op_type == "ConvTranspose":
        return Verdict(FLOAT, "no-fp8", "fp8 is for Conv, Gemm and MatMul")
    if node.op_type == "Conv" and int_attribute(node, "group", 1) > 1:
        groups = int_attribute(node, "group", 1)
        return Verdict(FLOAT, "grouped-conv", f"{groups} groups leave little to sum in fp8", kernels)
    if found.rule == "gemv":
        reason = "a vector times a matrix for one sample (GEMV); memory bounds it, and half is as quick"
        return Verdict(FLOAT, found.rule, reason, kernels)
    return Verdict(FP8 if found.precision == INT8 else FLOAT, found.rule, found.reason, kernels)


def int4_verdict(node: ir.Node) -> Verdict | None:
    """Returns what `node` can be with its weight in int4 blocks: a MatMul or plain Gemm of whole blocks."""
    if node.op_type not in ("Gemm", "MatMul"):
        return verdict(node) if node.op_type in RECURRENT else None
    found = verdict(node)
    if found is None or INT8 not in found.kernels:
        return found
    weight = constant_array(node.inputs[1])
    assert weight is not None
    columns, depth = weight.shape if int_attribute(node, "transB", 0) else weight.shape[::-1]
    if found.rule == "too-few-channels":
        return Verdict(FLOAT, found.rule, found.reason)
    if depth % BLOCK_SIZE:
        return Verdict(FLOAT, "block-size", f"{depth} weights per column are no blocks of {BLOCK_SIZE}")
    kernels = frozenset({FLOAT, WEIGHT4})
    reason = f"{depth} × {columns} weights, one scale per {BLOCK_SIZE} of a column; a quarter of the bytes to read"
    return Verdict(WEIGHT4, f"{node.op_type.lower()}-blocks", reason, kernels)


def _convolution(node: ir.Node, weight: np.ndarray) -> Verdict:
    groups = int_attribute(node, "group", 1)
    transposed = node.op_type == "ConvTranspose"
    channels, filters = (weight.shape[0], weight.shape[1] * groups) if transposed else weight.shape[1::-1]
    if groups > 1:
        per_group = channels // groups if transposed else channels
        if transposed:
            return Verdict(FLOAT, "grouped-conv", f"{groups} groups; scales of a weight go along one axis")
        if per_group % GROUP:
            reason = f"{groups} groups of {per_group} channels; integer kernels want a multiple of {GROUP}"
            return Verdict(FLOAT, "grouped-conv", reason, _KERNELS)
    elif min(channels, filters) < MIN_SIDE:
        reason = f"{channels} channels in, {filters} out; fewer than {MIN_SIDE} do not fill a tile"
        return Verdict(FLOAT, "too-few-channels", reason, _KERNELS)
    reason = f"{filters} filters of {weight.size // filters} weights, one scale each"
    return Verdict(INT8, "conv-per-channel", reason, _KERNELS)


def _product(node: ir.Node, weight: np.ndarray) -> Verdict:
    if weight.ndim != 2:
        return Verdict(FLOAT, "weight-rank", f"the weight has {weight.ndim} axes; scales go along one of 2")
    if node.op_type == "Gemm" and not is_plain_product(node):
        return Verdict(FLOAT, "gemm-form", "transA, alpha or beta is in use")
    columns, depth = weight.shape if int_attribute(node, "transB", 0) else weight.shape[::-1]
    if min(depth, columns) < MIN_SIDE:
        reason = f"{depth} × {columns} weights, a side below {MIN_SIDE}"
        return Verdict(FLOAT, "too-few-channels", reason, _KERNELS)
    if _rows(node) == 1:
        reason = (
            "a vector times a matrix for one sample (GEMV); memory bounds it, and int8 has no kernel that pays"
        )
        return Verdict(FLOAT, "gemv", reason, _KERNELS)
    reason = f"{depth} × {columns} weights, one scale per column"
    return Verdict(INT8, f"{node.op_type.lower()}-per-channel", reason, _KERNELS)


def _rows(node: ir.Node) -> int | None:
    """Returns how many rows the data has for a batch of one, or None where a size is open."""
    data = node.inputs[0]
    if data is None or data.shape is None or len(data.shape) < 2:
        return None
    rows = 1
    for size in list(data.shape)[1:-1]:
        if not isinstance(size, int):
            return None
        rows *= size
    first = data.shape[0]
    return rows * (first if isinstance(first, int) else 1)
