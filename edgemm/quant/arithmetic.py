"""The numbers behind Q/DQ: scales, zero points and pre-quantized weights, as ONNX defines them.

    quantize:    q = clip(round_half_even(x / scale) + zero_point)
    dequantize:  x' = (q - zero_point) · scale

Activations: uint8, asymmetric, one scale per tensor. Weights: int8, symmetric, one scale per output channel.
Bias: int32 with scale `activation scale · weight scale`. This (U8S8) is the fast path of ONNX Runtime on CPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgemm.quant.table import TensorRange

_SMALLEST_SCALE = np.float32(1e-30)
_INT32_LIMIT = 2**30
"""Half of int32, so that the accumulated products beside the bias have room."""


@dataclass(frozen=True, slots=True)
class ActivationScale:
    """Scale and zero point of a uint8 tensor."""

    scale: np.float32
    zero_point: int


def activation_scale(tensor: TensorRange) -> ActivationScale:
    """Returns the uint8 scale that covers `[low, high]` and represents zero exactly.

    Inside the range, quantizing and dequantizing moves a value by at most half a scale.
    """
    low, high = min(tensor.low, 0.0), max(tensor.high, 0.0)
    scale = np.float32(max(np.float32((high - low) / 255), _SMALLEST_SCALE))
    zero_point = int(np.clip(np.rint(-low / float(scale)), 0, 255))
    # Rounding the zero point shifts the range; stretch the scale until both ends are inside it again.
    need = max(high / max(255 - zero_point, 1), -low / max(zero_point, 1))
    if zero_point == 0:
        need = high / 255
    elif zero_point == 255:
        need = -low / 255
    return ActivationScale(np.float32(max(scale, np.float32(need))), zero_point)


def weight_scales(weight: np.ndarray, axis: int, bits: int = 8) -> np.ndarray:
    """Returns one symmetric scale per channel along `axis`, float32 `[channels]`.

    `bits` 7 keeps products of two pairs inside int16, for CPUs whose instructions saturate there (no VNNI).
    A channel of zeros gets scale 1.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    largest = np.abs(weight).max(axis=others) if weight.size else np.zeros(weight.shape[axis])
    limit = 2 ** (bits - 1) - 1
    scales = (largest.astype(np.float64) / limit).astype(np.float32)
    usable: np.ndarray = np.where(scales > _SMALLEST_SCALE, scales, np.float32(1.0))
    return usable.astype(np.float32)


def widen_for_bias(scales: np.ndarray, bias: np.ndarray, activation: np.float32) -> np.ndarray:
    """Returns weight scales large enough that `bias / (activation · scale)` fits int32.

    Only channels with nearly no weight and a large bias change; their weights lose precision that is below the
    resolution of the output.
    """
    need = np.abs(bias.astype(np.float64)) / (float(activation) * _INT32_LIMIT)
    wide: np.ndarray = np.maximum(scales, need.astype(np.float32))
    return wide.astype(np.float32)


def quantize_weight(weight: np.ndarray, scales: np.ndarray, axis: int, bits: int = 8) -> np.ndarray:
    """Returns int8 weights for `scales` along `axis`."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    limit = 2 ** (bits - 1) - 1
    q: np.ndarray = np.rint(weight / scales.reshape(shape))
    return q.clip(-limit, limit).astype(np.int8)


def quantize_bias(bias: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Returns int32 bias for `scales = activation · weight scales`."""
    q: np.ndarray = np.rint(bias.astype(np.float64) / scales.astype(np.float64))
    return q.clip(-(2**31), 2**31 - 1).astype(np.int32)


def fake_quantize(array: np.ndarray, scale: ActivationScale) -> np.ndarray:
    """Returns `array` after QuantizeLinear and DequantizeLinear, float32."""
    q = np.clip(np.rint(array / scale.scale) + scale.zero_point, 0, 255)
    result: np.ndarray = ((q - scale.zero_point) * scale.scale).astype(np.float32)
    return result


def quantize_over(weight: np.ndarray, axes: tuple[int, ...], bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Returns scales (float32, size 1 along `axes`) and int8 weights; each scale covers the elements of `axes`."""
    limit = 2 ** (bits - 1) - 1
    scales = (np.abs(weight).max(axis=axes, keepdims=True).astype(np.float64) / limit).astype(np.float32)
    scales = np.where(scales > _SMALLEST_SCALE, scales, np.float32(1.0)).astype(np.float32)
    return scales, np.rint(weight / scales).clip(-limit, limit).astype(np.int8)


def quantize_rows(weight: np.ndarray, bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Returns scales (float32, last axis 1) and int8 weights; one scale per row of the last axis."""
    return quantize_over(weight, (weight.ndim - 1,), bits)


def quantize_blocks(rows: np.ndarray, bits: int, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the arrays that MatMulNBits and GatherBlockQuantized read: asymmetric, one scale per block of a row.

    A row whose length is no multiple of `block` is filled up with zeros.

    Args:
        rows: Weights `[n, k]`.
        bits: 4 (two values per byte, the first in the low half) or 8.
        block: Weights per scale.

    Returns:
        Packed values, uint8 `[n, blocks, block · bits / 8]`; scales, float32 `[n, blocks]`; zero points, packed
        like the values, uint8 `[n, ceil(blocks · bits / 8)]`.
    """
    n, k = rows.shape
    blocks = -(-k // block)
    padded = np.zeros((n, blocks * block), np.float32)
    padded[:, :k] = rows
    parts = padded.reshape(n, blocks, block)
    low, high = np.minimum(parts.min(-1), 0.0), np.maximum(parts.max(-1), 0.0)
    limit = 2**bits - 1
    scales = ((high - low) / limit).astype(np.float32)
    scales = np.where(scales > _SMALLEST_SCALE, scales, np.float32(1.0)).astype(np.float32)
    zeros = np.rint(-low / scales).clip(0, limit).astype(np.uint8)
    q = (np.rint(parts / scales[..., None]) + zeros[..., None]).clip(0, limit).astype(np.uint8)
    return (q, scales, zeros) if bits == 8 else (_pack(q), scales, _pack(zeros))


def _pack(values: np.ndarray) -> np.ndarray:
    """Two 4-bit values per byte along the last axis, the first in the low half."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    packed: np.ndarray = values[..., 0::2] | (values[..., 1::2] << 4)
    return packed
