"""ONNX nodes of the steps for images. uint8 travels as float32 that holds integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemm.bake.tape import Tape
from edgemm.preprocess import image
from edgemm.preprocess.resampling import Band, bands
from edgemm.preprocess.step import refuse
from edgemm.tensors import TensorSpec


def bgr_to_rgb(tape: Tape, value: ir.Value, step: image.BgrToRgb, spec: TensorSpec) -> ir.Value:
    """Gathers the channels 2, 1, 0."""
    return tape.op("Gather", [value, tape.integers(2, 1, 0)], axis=3)


def nv12_to_rgb(tape: Tape, value: ir.Value, step: image.Nv12ToRgb, spec: TensorSpec) -> ir.Value:
    """Repeats Cb and Cr over the four pixels that they are for, then one product with three columns."""
    rows, width = _size(step, spec)
    height = rows * 2 // 3
    luma, chroma = tape.ops("Split", [value, tape.integers(height, height // 2)], 2, axis=1)
    luma = tape.op("Reshape", [luma, tape.integers(0, height, width, 1)])
    chroma = tape.op("Reshape", [chroma, tape.integers(0, height // 2, 1, width // 2, 1, 2)])
    chroma = tape.op("Expand", [chroma, tape.integers(1, height // 2, 2, width // 2, 2, 2)])
    chroma = tape.op("Reshape", [chroma, tape.integers(0, height, width, 2)])
    planes = tape.op("Concat", [luma, chroma], axis=3)
    shift = np.array([0 if step.full_range else 16, 128, 128], np.float32)
    planes = tape.op("Sub", [planes, tape.constant(shift)])
    weights = np.ascontiguousarray(image.nv12_weights(step).T)
    return _rounded(tape, tape.op("MatMul", [planes, tape.constant(weights)]))


def resize(tape: Tape, value: ir.Value, step: image.Resize, spec: TensorSpec) -> ir.Value:
    """Products with constant weights, the width first, a few for each axis: most weights are zero."""
    height, width = _size(step, spec)
    tall, wide = step.sizes(height, width)
    value = tape.op("Transpose", [value], perm=[0, 3, 1, 2])
    for axis, size, wanted in ((3, width, wide), (2, height, tall)):
        if size == wanted:
            continue
        parts = [_band(tape, value, b, axis) for b in bands(size, wanted, antialias=step.antialias)]
        value = tape.op("Concat", parts, axis=axis) if len(parts) > 1 else parts[0]
        value = _rounded(tape, value) if spec.dtype == "uint8" else value
    return tape.op("Transpose", [value], perm=[0, 2, 3, 1])


def _band(tape: Tape, value: ir.Value, band: Band, axis: int) -> ir.Value:
    own = tape.op("Slice", [value, tape.integers(band.start), tape.integers(band.end), tape.integers(axis)])
    if axis == 2:
        return tape.op("MatMul", [tape.constant(band.weights), own])
    return tape.op("MatMul", [own, tape.constant(np.ascontiguousarray(band.weights.T))])


def center_crop(tape: Tape, value: ir.Value, step: image.CenterCrop, spec: TensorSpec) -> ir.Value:
    """A Slice over both axes."""
    top, left = step.corner(*_size(step, spec))
    return _box(tape, value, top, left, top + step.size[0], left + step.size[1])


def crop(tape: Tape, value: ir.Value, step: image.Crop, spec: TensorSpec) -> ir.Value:
    """A Slice over both axes."""
    left, top, right, bottom = step.box
    return _box(tape, value, top, left, bottom, right)


def grayscale(tape: Tape, value: ir.Value, step: image.Grayscale, spec: TensorSpec) -> ir.Value:
    """A product with one column."""
    result = tape.op("MatMul", [value, tape.constant(image.GRAY[:, None].copy())])
    return _rounded(tape, result) if spec.dtype == "uint8" else result


def sobel(tape: Tape, value: ir.Value, step: image.Sobel, spec: TensorSpec) -> ir.Value:
    """Every channel by itself through one Conv of two kernels over the padded image."""
    channels = spec.shape[3]
    if not isinstance(channels, int):
        raise refuse(step, spec, "a known number of channels", "give the shape of raw images in `raw`")
    down = np.array([[-1, -2, -1], [0, 0, 0], [1, 2, 1]], np.float32)
    kernels = np.tile(np.stack([down.T, down])[:, None], (channels, 1, 1, 1))  # [2 C, 1, 3, 3]
    value = tape.op("Transpose", [value], perm=[0, 3, 1, 2])
    value = tape.op("Pad", [value, tape.integers(0, 0, 1, 1, 0, 0, 1, 1)], mode="edge")
    value = tape.op("Conv", [value, tape.constant(kernels)], group=channels, kernel_shape=[3, 3])
    value = tape.op("Mul", [value, value])
    parts = tape.op("Gather", [value, tape.integers(*range(0, 2 * channels, 2))], axis=1)
    others = tape.op("Gather", [value, tape.integers(*range(1, 2 * channels, 2))], axis=1)
    value = tape.op("Sqrt", [tape.op("Add", [parts, others])])
    return tape.op("Transpose", [value], perm=[0, 2, 3, 1])


def to_chw(tape: Tape, value: ir.Value, step: image.ToChw, spec: TensorSpec) -> ir.Value:
    """A Transpose, and a Mul unless the scale is 1."""
    value = tape.op("Transpose", [value], perm=[0, 3, 1, 2])
    return value if step.scale == 1 else tape.op("Mul", [value, tape.constant(step.scale)])


def normalize(tape: Tape, value: ir.Value, step: image.Normalize, spec: TensorSpec) -> ir.Value:
    """Sub and Div with constants."""
    mean, std = step.constants(len(spec.shape))
    if spec.dtype not in ("float32", "uint8"):
        value = tape.cast(value)
    value = tape.op("Sub", [value, tape.constant(mean)]) if mean.any() else value
    return tape.op("Div", [value, tape.constant(std)])


def _rounded(tape: Tape, value: ir.Value) -> ir.Value:
    """Rounds half up and keeps to 0 to 255, as `edgemm.preprocess.image.rounded` does."""
    value = tape.op("Floor", [tape.op("Add", [value, tape.constant(0.5)])])
    return tape.op("Clip", [value, tape.constant(0.0), tape.constant(255.0)])


def _box(tape: Tape, value: ir.Value, top: int, left: int, bottom: int, right: int) -> ir.Value:
    starts, ends, axes = tape.integers(top, left), tape.integers(bottom, right), tape.integers(1, 2)
    return tape.op("Slice", [value, starts, ends, axes])


def _size(step: image.Resize | image.CenterCrop | image.Nv12ToRgb, spec: TensorSpec) -> tuple[int, int]:
    height, width = spec.shape[1:3]
    if isinstance(height, str) or isinstance(width, str):
        hint = "give the size of raw images in `raw`, or `bake: false`"
        raise refuse(step, spec, "images of known height and width in a graph", hint)
    return height, width
