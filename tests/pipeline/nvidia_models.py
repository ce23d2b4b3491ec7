"""Small ONNX models, each with what makes a target from NVIDIA hard, and their samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from builders import onnx_graph
from onnx_ir import to_proto

ROWS, WIDTH = 4, 32
RANDOM = np.random.default_rng(7)


def weights(*shape: int) -> np.ndarray:
    """Returns weights that keep the scale of what they are multiplied with."""
    return (RANDOM.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


PAIR = """pair (float[batch,4,32] a, float[batch,4,32] b) => (float[batch,5] scores)
{ fa = MatMul(a, wa)  ra = Relu(fa)  fb = MatMul(b, wb)  rb = Relu(fb)  both = Concat <axis=2> (ra, rb)
  mean = ReduceMean <keepdims=0> (both, axes)  scores = MatMul(mean, head) }"""
"""Two products of 32 × 32, joined: both are worth int8."""

LOUD = """loud (float[batch,4,32] a, float[batch,4,32] b) => (float[batch,5] scores)
{ fa = MatMul(a, wa)  ra = Relu(fa)  large = Mul(b, factor)  fb = MatMul(large, wb)  small = Div(fb, factor)
  rb = Relu(small)  both = Concat <axis=2> (ra, rb)  mean = ReduceMean <keepdims=0> (both, axes)
  scores = MatMul(mean, head) }"""
"""Between `large` and `small` there are values that fp16 does not hold."""

VOLUME = """volume (float[batch,4,32] a, float[batch,4,32] b) => (float[batch,5] scores)
{ fa = MatMul(a, wa)  turned = Transpose <perm=[0,2,1]> (fa)  square = MatMul(fa, turned)  volume = Det(square)
  tall = Unsqueeze(volume, axes)  size = Tanh(tall)  fb = MatMul(b, wb)  both = Concat <axis=2> (fa, fb)
  mean = ReduceMean <keepdims=0> (both, axes)  plain = MatMul(mean, head)  scores = Add(plain, size) }"""
"""Has a Det, which no TensorRT has."""

STRIDED = """strided (float[batch,16,time] sound, float[batch,32] motion) => (float[batch,8] scores)
{ c1 = Conv <strides=[2], kernel_shape=[3]> (sound, k1)  r1 = Relu(c1)
  c2 = Conv <strides=[2], kernel_shape=[3]> (r1, k2)  m = MatMul(motion, wm)  ones = Unsqueeze(m, last)
  gated = Mul(c2, ones)  mean = ReduceMean <keepdims=0> (gated, last)  scores = MatMul(mean, head) }"""
"""A sequence of any length that two strided convolutions shorten in front of the join."""

AXES = {"axes": np.array([1], np.int64)}
PRODUCTS = {"wa": weights(32, 32), "wb": weights(32, 32), "head": weights(64, 5)} | AXES
WIDE_PAIR = PAIR.replace("batch,4,32", "batch,4,128")
"""The same with products of 128 × 64."""

WIDE_PRODUCTS = {"wa": weights(128, 64), "wb": weights(128, 64), "head": weights(128, 5)} | AXES
FACTOR = {"factor": np.float32(20_000)}
CONVOLUTIONS = {
    "k1": weights(32, 16, 3),
    "k2": weights(32, 32, 3),
    "wm": weights(32, 32),
    "head": weights(32, 8),
    "last": np.array([2], np.int64),
}


def save(text: str, arrays: Mapping[str, np.ndarray], path: Path) -> Path:
    """Writes the model of `text` with its weights."""
    proto = to_proto(onnx_graph(text, weights=arrays).model)
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def rows(count: int, seed: int, width: int = WIDTH, **outliers: float) -> dict[str, np.ndarray]:
    """Returns arrays for `a` and `b`; one element of each row of an input in `outliers` is that large."""
    random = np.random.default_rng(seed)
    found = {n: random.standard_normal((count, ROWS, width)).astype(np.float32) for n in ("a", "b")}
    for name, value in outliers.items():
        found[name][:, :, 0] = value
    return found


def strided(count: int, length: int) -> dict[str, np.ndarray]:
    """Returns arrays for `sound` of one length and `motion`."""
    random = np.random.default_rng(length)
    return {
        "sound": random.standard_normal((count, 16, length)).astype(np.float32),
        "motion": random.standard_normal((count, 32)).astype(np.float32),
    }
