"""A limit between convolutions becomes part of one, so that ONNX Runtime keeps its blocked layout across it.

    Conv → f → Max(·, c) → Conv  ->  Conv → f → Conv(depthwise, 1×1, weights 1) → Clip(min = c) → Conv

ONNX Runtime computes float convolutions in blocks of channels (NCHWc). Convolutions, poolings and a few
activations stay in that layout; Max, Min and Clip with a constant behind another activation f do not, and each
costs two copies into another layout. A Clip right behind a Conv is fused into it, and multiplying by 1 is exact.
Declined where the limit is behind a Conv itself (a Clip alone is fused then), where f is none of the activations
that are fused, and where anything but a convolution or a pooling reads the result.

Source: onnxruntime/core/optimizer/nchwc_transformer.cc.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemm.rewrite import build, dims
from edgemm.tensors import IOSpec

_ACTIVATIONS = frozenset({"LeakyRelu", "Relu", "Sigmoid", "Tanh", "HardSigmoid", "Clip"})
_READERS = frozenset({"Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
_CHANNELS = 16
"""Fewer channels do not fill a block."""


def apply(model: ir.Model, io: IOSpec) -> int:
    """Moves limits of the main graph into convolutions; returns how many."""
    opset = model.graph.opset_imports.get("", 1)
    if opset < 11:  # Clip takes its limits as inputs from here on
        return 0
    return sum(_move(n) for n in list(model.graph) if n.op_type in ("Max", "Min", "Clip") and n.domain == "")


def _move(node: ir.Node) -> bool:
    value, output = node.inputs[0], node.outputs[0]
    limits = _limits(node)
    shape = dims.of(value)
    if value is None or limits is None or shape is None or len(shape) != 4 or value.dtype != ir.DataType.FLOAT:
        return False
    channels = shape[1].fixed
    if channels is None or channels < _CHANNELS or not build.only_use(value) or not _is_convolved(value):
        return False
    readers = [u.node for u in output.uses()]
    if output.is_graph_output() or not readers or any(n.op_type not in _READERS for n in readers):
        return False
    builder = build.Builder(node)
    weight = builder.constant(np.ones((channels, 1, 1, 1), np.float32))
    copy = builder.node("Conv", [value, weight], {"group": channels, "kernel_shape": [1, 1]}, like=value)
    bounds = [None if n is None else builder.constant(np.array(n, np.float32)) for n in limits]
    while bounds[-1] is None:
        bounds.pop()
    build.replace(output, builder.node("Clip", [copy, *bounds], like=output))
    build.remove_dead(builder.graph, node)
    return True


def _limits(node: ir.Node) -> tuple[float | None, float | None] | None:
    """Returns the lower and the upper limit that `node` puts on its first input."""
    given = [v for v in node.inputs[1:] if v is not None]
    numbers = [build.scalar(v) for v in given]
    if not given or any(n is None for n in numbers):
        return None
    if node.op_type == "Max":
        return max(n for n in numbers if n is not None), None
    if node.op_type == "Min":
        return None, min(n for n in numbers if n is not None)
    lower, upper = [build.scalar(v) for v in (*node.inputs[1:], None)][:2]
    return lower, upper


def _is_convolved(value: ir.Value) -> bool:
    """Whether `value` is an activation behind a Conv that ONNX Runtime fuses with it."""
    activation = value.producer()
    if activation is None or activation.op_type not in _ACTIVATIONS or activation.domain != "":
        return False
    before = activation.inputs[0]
    ahead = before.producer() if before is not None else None
    return ahead is not None and ahead.op_type == "Conv" and before is not None and build.only_use(before)
