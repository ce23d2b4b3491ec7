"""What a node can be on a CPU, and the first guess: one verdict per node, from the graph alone.

A precision is listed where a kernel exists for it. Whether it pays is a guess here (sizes below which quantizing
the input costs more than it saves) and is measured later; the search may choose any other listed precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgemm.graph import PREPROCESS
from edgemm.quant.plan import DYNAMIC, FLOAT, INT8, WEIGHT4, WEIGHT8
from edgemm.quant.tensors import RECURRENT, WEIGHTED, constant_array, int_attribute

MIN_CONV_CHANNELS = 16
"""Fewer input channels do not fill an integer dot product."""

MIN_CONV_FILTERS = 8
MIN_MATMUL_SIDE = 32
MIN_MATMUL_WEIGHTS = 8192
MIN_GEMM_WEIGHTS = 65536
"""Below this a Gemm on a few rows takes less time than quantizing its input."""

MIN_STORED_WEIGHTS = 4096
"""A smaller weight is not worth storing in fewer bits."""

STEP = "a step of preprocessing: its constants are exact in float32"

ORDER = (INT8, DYNAMIC, FLOAT, WEIGHT8, WEIGHT4)
"""In which alternatives are listed behind the guess."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The guess for a node, why, and every precision that it has a kernel for (`"fp32"` always)."""

    precision: str
    rule: str
    reason: str
    kernels: frozenset[str] = frozenset({FLOAT})

    @property
    def alternatives(self) -> tuple[str, ...]:
        """The admissible precisions, the guess first."""
        return (self.precision, *(p for p in ORDER if p in self.kernels and p != self.precision))


def verdict(node: ir.Node) -> Verdict | None:
    """Returns what `node` can be, or None for operators that no rule is about."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if PREPROCESS in node.metadata_props and node.op_type in WEIGHTED:
        return Verdict(FLOAT, "preprocessing", STEP)
    if node.op_type in RECURRENT:
        return _recurrent(node)
    if node.op_type == "Gather":
        return _embedding(node)
    return _weighted(node) if node.op_type in WEIGHTED else None


def _recurrent(node: ir.Node) -> Verdict:
    reason = f"errors add up over the steps of a {node.op_type}"
    kernels = {FLOAT}
    weights = [constant_array(v) for v in node.inputs[1:3]]
    if len(weights) == 2 and all(w is not None and w.dtype == np.float32 for w in weights):
        kernels.add(WEIGHT8)
        if node.op_type == "LSTM" and int_attribute(node, "layout", 0) == 0:
            kernels.add(DYNAMIC)
    return Verdict(FLOAT, "recurrent", reason, frozenset(kernels))


def _embedding(node: ir.Node) -> Verdict | None:
    table = constant_array(node.inputs[0])
    if table is None or table.ndim != 2 or table.dtype != np.float32 or table.size < MIN_STORED_WEIGHTS:
        return None
    kernels = {FLOAT}
    if int_attribute(node, "axis", 0) == 0:
        kernels.add(WEIGHT8)
        if table.shape[1] % 16 == 0:
            kernels.add(WEIGHT4)
    return Verdict(FLOAT, "embedding", "a table lookup; int8 would not make it faster", frozenset(kernels))


def _weighted(node: ir.Node) -> Verdict:
    weight = constant_array(node.inputs[1])
    if weight is None:
        if constant_array(node.inputs[0]) is not None:
            reason = "the weight is the first input, which has no per-channel kernel"
        else:
            reason = "both inputs are activations"
        return Verdict(FLOAT, "no-constant-weight", reason)
    if weight.dtype != np.float32:
        return Verdict(FLOAT, "not-float32", f"the weight is {weight.dtype.name}")
    if constant_array(node.inputs[0]) is not None:
        return Verdict(FLOAT, "constant-input", "the input is a constant")
    stored = frozenset({FLOAT, WEIGHT8}) if weight.size >= MIN_STORED_WEIGHTS else frozenset({FLOAT})
    if len(node.inputs) > 2 and node.inputs[2] is not None and constant_array(node.inputs[2]) is None:
        reason = "the bias is an activation; integer kernels need a constant"
        return Verdict(FLOAT, "no-constant-bias", reason, stored)
    if node.op_type == "ConvTranspose":
        reason = "ONNX Runtime has no integer ConvTranspose on CPUs"
        return Verdict(FLOAT, "no-integer-kernel", reason, stored)
    return _conv(node, weight, stored) if node.op_type == "Conv" else _matmul(node, weight, stored)


def _conv(node: ir.Node, weight: np.ndarray, stored: frozenset[str]) -> Verdict:
    filters, channels = weight.shape[:2]
    groups = int_attribute(node, "group", 1)
    kernels = stored | {INT8}
    if groups > 1:
        # ONNX Runtime's float kernels have a blocked layout for 2-D depthwise convolutions, not for 1-D ones.
        if channels == 1 and filters == groups and weight.ndim == 3 and groups >= MIN_CONV_CHANNELS:
            reason = f"{groups} channels, one filter each, along one axis"
            return Verdict(INT8, "depthwise-1d", reason, kernels)
        reason = f"{groups} groups of {channels} channels; float kernels are faster"
        return Verdict(FLOAT, "grouped-conv", reason, kernels)
    for count, least, side in ((channels, MIN_CONV_CHANNELS, "input"), (filters, MIN_CONV_FILTERS, "output")):
        if count < least:
            reason = f"{count} {side} channels, fewer than {least}"
            return Verdict(FLOAT, "too-few-channels", reason, kernels)
    reason = f"{filters} filters of {weight[0].size} weights, one scale each"
    return Verdict(INT8, "conv-per-channel", reason, kernels)


def _matmul(node: ir.Node, weight: np.ndarray, stored: frozenset[str]) -> Verdict:
    if weight.ndim != 2:
        reason = f"the weight has {weight.ndim} axes; the integer kernel takes 2"
        return Verdict(FLOAT, "weight-rank", reason, stored)
    columns, depth = weight.shape if int_attribute(node, "transB", 0) else weight.shape[::-1]
    if node.op_type == "Gemm" and not is_plain_product(node):
        return Verdict(FLOAT, "gemm-form", "transA, alpha or beta is in use; the integer kernel has none", stored)
    bias = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None and bias.size not in (1, columns):
        reason = f"the bias has shape {bias.shape}; the integer kernel takes one per column"
        return Verdict(FLOAT, "gemm-form", reason, stored)
    kernels = stored | {INT8, DYNAMIC}
    if weight.size >= MIN_STORED_WEIGHTS and min(depth, columns) >= MIN_MATMUL_SIDE and has_rows(node):
        kernels |= {WEIGHT4}
    small = f"{depth} × {columns} weights; quantizing the input would cost more"
    if node.op_type == "Gemm" and weight.size < MIN_GEMM_WEIGHTS:
        return Verdict(FLOAT, "too-small", small, kernels)
    if min(depth, columns) < MIN_MATMUL_SIDE:
        reason = f"{depth} × {columns} weights, a side below {MIN_MATMUL_SIDE}"
        return Verdict(FLOAT, "too-few-channels", reason, kernels)
    if weight.size < MIN_MATMUL_WEIGHTS:
        return Verdict(FLOAT, "too-small", small, kernels)
    reason = f"{depth} × {columns} weights, one scale per column"
    return Verdict(INT8, f"{node.op_type.lower()}-per-channel", reason, kernels)


def is_plain_product(node: ir.Node) -> bool:
    """Says whether a MatMul or Gemm is `x · W + b`, W transposed or not."""
    alpha, beta = (node.attributes[k].as_float() if k in node.attributes else 1.0 for k in ("alpha", "beta"))
    return not int_attribute(node, "transA", 0) and alpha == 1.0 and beta == 1.0


def has_rows(node: ir.Node) -> bool:
    """Says whether the data of a MatMul may have two axes or more, as the block kernels need."""
    data = node.inputs[0]
    return data is None or data.shape is None or len(data.shape) >= 2
