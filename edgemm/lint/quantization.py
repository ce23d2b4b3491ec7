"""Q/DQ that TensorRT refuses, or takes for something else.

TensorRT quantizes symmetrically: zero points are 0, activations have one scale, weights one per output channel
(NVIDIA, Working with Quantized Types). What its parser and builder make of anything else was tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgemm.lint.findings import ERROR, WARNING, Finding
from edgemm.lint.view import Site, View, attribute, constant, dims, dtype, input_of, is_constant

if TYPE_CHECKING:
    from edgemm.backends.targets import Target

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_TYPES = frozenset(
    {ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN, ir.DataType.INT4, ir.DataType.FLOAT4E2M1, ir.DataType.UNDEFINED}
)
_INT8 = "quantize to int8 with zero point 0 (edgemm plans it so for this target)"


def quantized_type(node: ir.Node) -> ir.DataType | None:
    """Returns the type that a Q makes or a DQ reads; ONNX's default is uint8."""
    if node.op_type == DEQUANTIZE:
        return dtype(input_of(node, 0))
    given = dtype(input_of(node, 2))
    if given is not None:
        return given
    return ir.DataType(attribute(node, "output_dtype", 0)) or dtype(node.outputs[0]) or ir.DataType.UINT8


def quantized_from(value: ir.Value | None) -> bool:
    """Whether a value is made by a Q."""
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == QUANTIZE


def check_zero_points(view: View, target: Target) -> Iterator[Finding]:
    """Yields zero points that are not 0, and those that are computed; once per zero point."""
    for site, value in _each_once(view, 2):
        array = constant(value)
        if array is None:
            if not is_constant(value) and value.dtype != ir.DataType.FLOAT8E4M3FN:  # that one is not read
                yield _found(
                    site,
                    "zero-point",
                    "the builder refuses a zero point that is computed, and says so only when it builds",
                    _INT8,
                    value,
                )
        elif np.any(array.astype(np.float32) != 0):
            yield _found(
                site,
                "zero-point",
                "the parser refuses a zero point other than 0: TensorRT quantizes symmetrically",
                _INT8,
                value,
            )


def _each_once(view: View, index: int) -> Iterator[tuple[Site, ir.Value]]:
    """Yields an input of every Q and DQ, with the first of them that reads it."""
    seen = set()
    for site in view.of(QUANTIZE, DEQUANTIZE):
        value = input_of(site.node, index)
        if value is not None and value not in seen:
            seen.add(value)
            yield site, value


def check_types(view: View, target: Target) -> Iterator[Finding]:
    """Yields Q/DQ to types that TensorRT has not."""
    for site in view.of(QUANTIZE, DEQUANTIZE):
        kind = quantized_type(site.node)
        source = input_of(site.node, 0)
        if kind is None or kind in _TYPES or (site.node.op_type == DEQUANTIZE and quantized_from(source)):
            continue
        reason, fix = f"the parser refuses to (de)quantize {kind.name.lower()}", _INT8
        if kind == ir.DataType.UINT8 and site.node.op_type == QUANTIZE:
            point = constant(input_of(site.node, 2))
            if point is not None and np.any(point):
                continue  # that is refused, and said as such
            reason = (
                "TensorRT takes this uint8 for int8 without a word, so that everything above 127 steps of the "
                "scale saturates"
            )
        elif kind == ir.DataType.INT32:
            reason, fix = "the parser refuses to dequantize int32, as biases have it", "leave the bias in float"
        yield _found(site, "quantized-type", reason, fix, source)


def check_scales(view: View, target: Target) -> Iterator[Finding]:
    """Yields scales that are not above 0, and those that are computed; once per scale."""
    for site, value in _each_once(view, 1):
        array = constant(value)
        if array is None:
            if not is_constant(value):
                yield _found(
                    site,
                    "scale",
                    "TensorRT's documentation wants constant scales; TensorRT-RTX takes this one all the same",
                    "calibrate, and write the scale into the graph",
                    value,
                    WARNING,
                )
            continue
        numbers = array.astype(np.float32)
        if not np.all(np.isfinite(numbers) & (numbers > 0)):
            wrong = numbers[~(np.isfinite(numbers) & (numbers > 0))]
            yield _found(
                site,
                "scale",
                f"the parser refuses a scale that is not above 0 (it has {wrong.flat[0]:g})",
                "give constant tensors a small scale, or leave them in float",
                value,
            )


def check_weight_axes(view: View, target: Target) -> Iterator[Finding]:
    """Yields weights with a scale per something else than their output channel."""
    for site in view.of("Conv", "ConvTranspose", "Gemm", "MatMul"):
        made = _weight(site.node)
        if made is None:
            continue
        dequantize, axis = made
        rank = len(dims(input_of(site.node, 1)) or dims(dequantize.outputs[0]) or ())
        wanted = _output_axis(site.node, rank)
        if rank == 0 or axis % rank == wanted:
            continue
        owner = next((s for s in view.sites if s.node is dequantize), site)
        yield _found(
            owner,
            "weight-axis",
            f"its scales run along axis {axis % rank} of the weight of {site.op} '{site.name}', whose output "
            f"channels are axis {wanted}: the builder says nothing and computes the layer in float",
            f"quantize the weight along axis {wanted}",
            input_of(dequantize, 0),
            WARNING,
        )


def check_activation_scales(view: View, target: Target) -> Iterator[Finding]:
    """Yields activations with several scales."""
    for site in view.of(QUANTIZE, DEQUANTIZE):
        source = input_of(site.node, 0)
        if site.node.op_type == DEQUANTIZE and quantized_from(source):
            continue
        if _scales(site.node) < 2 or attribute(site.node, "block_size", 0) or is_constant(source):
            continue
        yield _found(
            site,
            "activation-scale",
            f"{_scales(site.node)} scales on an activation: the builder says nothing and computes what follows in "
            "float",
            "give activations one scale; what differs between channels goes into the weights (see "
            "repairs in `edgemm plan`)",
            source,
            WARNING,
        )


def _scales(node: ir.Node) -> int:
    """Returns how many scales a Q or DQ has."""
    shape = dims(input_of(node, 1))
    return int(np.prod([d or 1 for d in shape])) if shape else 1


def _weight(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Returns the per-channel DQ that makes the weight of `node`, and its axis as `node` sees it."""
    value, turns = input_of(node, 1), []
    producer = None if value is None else value.producer()
    while producer is not None and producer.op_type == "Transpose":
        turns.append(attribute(producer, "perm", None))
        value = producer.inputs[0]
        producer = None if value is None else value.producer()
    if producer is None or producer.op_type != DEQUANTIZE or attribute(producer, "block_size", 0):
        return None
    if _scales(producer) < 2 or not is_constant(producer.inputs[0]):
        return None
    rank = len(dims(producer.inputs[0]) or ())
    axis = attribute(producer, "axis", 1)
    axis = axis % rank if rank else axis
    for turn in reversed(turns):
        order = list(turn) if turn else list(range(rank))[::-1]
        axis = order.index(axis)
    return producer, axis


def _output_axis(node: ir.Node, rank: int) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return rank - 1


def _found(site: Site, rule: str, reason: str, fix: str, value: ir.Value | None, severity: str = ERROR) -> Finding:
    tensor = (value.name or "") if value is not None else ""
    return Finding(rule, severity, reason, fix, site.name, site.op, tensor, site.scope)
