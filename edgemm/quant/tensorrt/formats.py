"""The number formats that TensorRT reads from Q/DQ: their arithmetic, and what ONNX needs to hold them.

    int8         activations and weights; scale = largest / 127; a weight has one per output channel
    fp8          activations and weights in float8 E4M3; scale = largest / 448; a weight has one per output channel
    int4-weight  weights alone, in blocks along the dimension that is summed over; scale = largest / 7

All are symmetric: zero points are 0. E4M3 is a floating-point format: its error is relative (at most 1/16 of a
value), over 15 octaves, so that its scale only has to keep the largest value from saturating.

Sources: OCP 8-bit Floating Point Specification 1.0; ONNX, DequantizeLinear-19 (float8) and -21 (int4, blocks);
NVIDIA TensorRT documentation, "Working with Quantized Types".
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from edgemm.errors import QuantizationError
from edgemm.quant import arithmetic
from edgemm.quant.plan import FP8, INT8, WEIGHT4


@dataclass(frozen=True, slots=True)
class Format:
    """A format with Q/DQ.

    Attributes:
        precision: Of a decision.
        name: What people ask for, and what a variant is called.
        dtype: Of the quantized tensors.
        largest: The largest number that is used of it.
        opset: First ONNX opset that has it.
        smallest_scale: Scales are not below this.
    """

    precision: str
    name: str
    dtype: ir.DataType
    largest: float
    opset: int
    smallest_scale: float = 1e-30

    @property
    def weights_only(self) -> bool:
        """Whether activations stay as they are."""
        return self.precision == WEIGHT4

    @property
    def zero(self) -> np.ndarray:
        """The zero point, a scalar."""
        return np.zeros((), self.dtype.numpy())


SMALLEST_NORMAL = 2.0**-14
"""Numbers below this are subnormal in fp16 and lose digits (IEEE 754 binary16)."""

SMALLEST_SCALE = SMALLEST_NORMAL
"""So are scales."""

FORMATS = {
    INT8: Format(INT8, "int8", ir.DataType.INT8, 127.0, 10),
    FP8: Format(FP8, "fp8", ir.DataType.FLOAT8E4M3FN, 448.0, 19, SMALLEST_SCALE),
    WEIGHT4: Format(WEIGHT4, "int4", ir.DataType.INT4, 7.0, 21),
}
"""Precision of a decision -> its format."""

BY_NAME = {f.name: f for f in FORMATS.values()}
"""What people ask for -> its format."""

BLOCK_SIZE, BLOCK_SIZES = 64, (64, 128)
"""Weights per scale of int4: the default, and what a plan may say."""

_OLDEST, _IR_VERSION = 18, 10
"""First opset that onnxscript's converter raises without loss; IR version that has float8 and int4."""


def fp8_weight(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a float32 weight as float8_e4m3fn, and its scales: float32 `[channels]`, one per channel of `axis`.

    A scale is never so small that fp16 loses its digits: E4M3 has octaves to spare.
    """
    found = FORMATS[FP8]
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others) if weight.size else np.zeros(weight.shape[axis])
    scales = np.maximum(largest / found.largest, found.smallest_scale).astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    scaled = (weight / scales.reshape(shape)).clip(-found.largest, found.largest)
    return scaled.astype(ml_dtypes.float8_e4m3fn), scales


def int4_blocks(weight: np.ndarray, axis: int, block: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Returns a weight `[k, n]` or `[n, k]` as int4, and its scales: one per `block` weights along `axis`.

    The scales are `dtype`, as the graph stores them; the weights are rounded for the stored scales, so that what
    fp16 rounds off a scale is not an error of the block.

    Raises:
        QuantizationError: `axis` is no multiple of `block` long.
    """
    if weight.shape[axis] % block:
        raise QuantizationError(
            f"a weight of {weight.shape[axis]} × {weight.shape[1 - axis]}: got blocks of {block}, expected a "
            f"divisor of {weight.shape[axis]}.",
            hint=f"block_size is {' or '.join(map(str, BLOCK_SIZES))}; leave nodes in fp16 that have neither",
        )
    blocks = np.moveaxis(weight, axis, 0).reshape(-1, block, weight.shape[1 - axis])
    scales = (np.abs(blocks).max(axis=1, keepdims=True) / FORMATS[WEIGHT4].largest).astype(dtype)
    scales = np.where(scales > 0, scales, 1).astype(dtype)
    rounded = np.rint(blocks / scales.astype(np.float32)).clip(-7, 7).reshape(weight.shape[axis], -1)
    q, scales = rounded.astype(ml_dtypes.int4), scales[:, 0]
    return (q, scales) if axis == 0 else (np.ascontiguousarray(q.T), np.ascontiguousarray(scales.T))


def channel_weight(found: Format, weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a float32 weight in an 8-bit format, and its float32 scales `[channels]`."""
    if found.precision == FP8:
        return fp8_weight(weight, axis)
    scales = arithmetic.weight_scales(weight, axis)
    return arithmetic.quantize_weight(weight, scales, axis), scales


def raise_opset(model: ir.Model, opset: int) -> None:
    """Raises the ONNX opset of a graph to `opset` where it is older, in place; computes the same.

    Raises:
        QuantizationError: It is too old to be raised.
    """
    own = model.opset_imports.get("", 0)
    if own >= opset:
        return
    if own < _OLDEST:
        raise QuantizationError(
            f"the graph has ONNX opset {own}; this precision needs {opset}, expected {_OLDEST} or later, which "
            "can be raised.",
            hint=f"export with a newer opset, or convert the file with onnx.version_converter to {opset}",
        )
    from onnxscript import version_converter

    version_converter.convert_version(model, opset)
    model.ir_version = max(model.ir_version, _IR_VERSION)
