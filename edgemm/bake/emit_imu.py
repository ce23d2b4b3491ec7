"""ONNX nodes of the steps for inertial sensors."""

from __future__ import annotations

import onnx_ir as ir

from edgemm.bake.tape import Tape
from edgemm.preprocess import imu
from edgemm.preprocess.step import refuse
from edgemm.tensors import TensorSpec

LONGEST = 1024
"""Samples of a window whose low-pass filter is written as one matrix."""


def units(tape: Tape, value: ir.Value, step: imu.Units, spec: TensorSpec) -> ir.Value:
    """Casts and scales."""
    value = value if spec.dtype == "float32" else tape.cast(value)
    return tape.op("Mul", [value, tape.constant(step.factor)])


def mount_axes(tape: Tape, value: ir.Value, step: imu.MountAxes, spec: TensorSpec) -> ir.Value:
    """Gathers channels and multiplies with their signs."""
    channels = spec.shape[-1]
    assert isinstance(channels, int)
    order, signs = step.order(channels)
    if order != sorted(order):
        value = tape.op("Gather", [value, tape.integers(*order)], axis=-1)
    return tape.op("Mul", [value, tape.constant(signs)]) if signs.min() < 0 else value


def gravity(tape: Tape, value: ir.Value, step: imu.Gravity, spec: TensorSpec) -> ir.Value:
    """Subtracts or divides by the mean over time; a filter is one product with a matrix over time."""
    if step.by == "low_pass":
        time = spec.shape[1]
        if isinstance(time, str) or time > LONGEST:
            hint = "give the window's length in `raw`, or set `bake: false`"
            raise refuse(step, spec, f"windows of a fixed length, at most {LONGEST} samples", hint)
        return tape.op("MatMul", [tape.constant(step.filter(time)), value])
    mean = tape.op("ReduceMean", [value, tape.integers(1)])
    if step.by == "mean":
        return tape.op("Sub", [value, mean])
    split, joined = tape.integers(0, 0, -1, 3), tape.integers(0, 0, -1)
    vectors = tape.op("Reshape", [mean, split])
    squares = tape.op("ReduceSum", [tape.op("Mul", [vectors, vectors]), tape.integers(3)])
    length = tape.op("Sqrt", [tape.op("Add", [squares, tape.constant(1e-12)])])
    return tape.op("Reshape", [tape.op("Div", [tape.op("Reshape", [value, split]), length]), joined])


def transpose(tape: Tape, value: ir.Value, step: imu.Transpose, spec: TensorSpec) -> ir.Value:
    """Transposes."""
    return tape.op("Transpose", [value], perm=list(step.order))
