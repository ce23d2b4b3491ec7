"""Int8 that is right and gains nothing (NVIDIA, Working with Quantized Types; TensorRT best practices)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgemm.lint.findings import NOTE, Finding
from edgemm.lint.quantization import DEQUANTIZE
from edgemm.lint.view import View, attribute, dims, input_of, is_constant

if TYPE_CHECKING:
    from edgemm.backends.targets import Target

NARROW = 16
"""Smallest number of input or output features whose product is worth int8."""

GROUP = 4
"""A grouped convolution in int8 wants a multiple of this many channels per group."""


def check_worth(view: View, target: Target) -> Iterator[Finding]:
    """Yields int8 layers that are no faster than in float."""
    for site in view.of("Conv", "Gemm", "MatMul"):
        if not all(_dequantized(input_of(site.node, i)) for i in (0, 1)):
            continue
        why = _grouped(site.node) if site.node.op_type == "Conv" else _product(site.node)
        if why:
            yield Finding(
                "not-worth-int8",
                NOTE,
                f"{why}: int8 is rarely faster than float here",
                "leave it in float unless it was measured",
                site.name,
                site.op,
                next((o.name for o in site.node.outputs if o.name), ""),
                site.scope,
            )


def _grouped(node: ir.Node) -> str:
    groups, weight = attribute(node, "group", 1), dims(input_of(node, 1))
    if groups == 1 or not weight or len(weight) < 2 or weight[0] is None or weight[1] is None:
        return ""
    inside, outside = weight[1], weight[0] // groups
    if inside == outside == 1 or (inside % GROUP == 0 and outside % GROUP == 0):
        return ""  # depthwise convolutions have kernels of their own
    return f"{inside} input and {outside} output channels per group, and multiples of {GROUP} are wanted"


def _product(node: ir.Node) -> str:
    left, right = dims(input_of(node, 0)), dims(input_of(node, 1))
    if not left or not right or len(right) < 2 or not is_constant(input_of(node, 1)):
        return ""
    turned = node.op_type == "Gemm" and attribute(node, "transB", 0)
    inner, outer = (right[-1], right[-2]) if turned else (right[-2], right[-1])
    if inner is not None and inner < NARROW:
        return f"{inner} input features, fewer than {NARROW}"
    if outer is not None and outer < NARROW:
        return f"{outer} output features, fewer than {NARROW}"
    rows = left[:-1] or (1,)
    if all(r == 1 for r in rows):
        return "a product with one row"
    return ""


def _dequantized(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    while producer is not None and producer.op_type in ("Transpose", "Reshape"):
        value = producer.inputs[0]
        producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == DEQUANTIZE
