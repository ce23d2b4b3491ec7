"""Compares baked steps with their reference, on ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemm._optional import require
from edgemm.bake.front import bake
from edgemm.errors import DataError, ParityError
from edgemm.graph import ExportedGraph, serialize
from edgemm.preprocess.front import InputSteps
from edgemm.preprocess.step import run
from edgemm.tensors import IOSpec, TensorSpec

TOLERANCE = 1e-3
"""Largest difference between a graph and its reference, as a part of the largest value."""

SIZES = (16, 1024, 65_536)
"""Sizes that are tried where one is open: a spectrum of 16 samples of sound has no frame."""

OPSET = 18
"""Operator set that baked steps need at least."""


def steps_graph(way: InputSteps, opset: int = OPSET) -> ExportedGraph:
    """Returns a graph of nothing but the steps; its output is `made`."""
    spec = way.made
    dtype = ir.DataType.from_numpy(np.dtype(spec.dtype))
    value = ir.Value(name=way.input, shape=ir.Shape(spec.shape), type=ir.TensorType(dtype))
    node = ir.node("Identity", [value], name="made")
    made = node.outputs[0]
    made.name, made.type, made.shape = "made", value.type, value.shape
    graph = ir.Graph([value], [made], nodes=[node], opset_imports={"": opset}, name="steps")
    io = IOSpec(
        (TensorSpec(way.input, spec.dtype, spec.shape),),
        (TensorSpec("made", spec.dtype, spec.shape),),
        {way.input: way.input},
        batch=spec.shape[0],
    )
    return bake(ExportedGraph(ir.Model(graph, ir_version=10), io), [way])


def check_baked(way: InputSteps, rows: np.ndarray | None = None) -> float:
    """Returns the largest difference between the baked steps and their reference, over the largest value.

    Args:
        way: The steps; the batch is not fixed, or of the size of `rows`.
        rows: Raw data `[B, ...]`; None takes random ones.

    Raises:
        DataError: No random ones of the sizes that are tried fit the steps.
        ParityError: The difference is larger than `TOLERANCE`.
        MissingExtraError: ONNX Runtime is not installed.
    """
    runtime = require("onnxruntime", extra="cpu", why="compare baked preprocessing with its reference")
    if rows is None or (isinstance(way.raw.shape[0], int) and len(rows) != way.raw.shape[0]):
        rows = fitting_rows(way)
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = runtime.InferenceSession(
        serialize(steps_graph(way).model), options, providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(["made"], {way.raw.name: rows})
    want = run(way.steps, rows)
    error = difference(got, want)
    if not error <= TOLERANCE:
        raise ParityError(
            f"input '{way.input}': the baked steps differ from their reference by {error:.1e} of the largest "
            f"value ({way}).",
            hint=f"set inputs.{way.input}.bake to false, and report it",
        )
    return error


def difference(got: np.ndarray, want: np.ndarray) -> float:
    """Returns the largest absolute difference over the largest absolute value; infinity where NaN differs."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf")
    a, b = got.astype(np.float64), want.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    finite = np.isfinite(b)
    if not finite.any():
        return 0.0
    return float(np.abs(a[finite] - b[finite]).max() / max(np.abs(b[finite]).max(), 1e-12))


def fitting_rows(way: InputSteps) -> np.ndarray:
    """Returns random raw data that the steps take: with the first of `SIZES` that does where sizes are open.

    Raises:
        DataError: None does.
    """
    for size in SIZES:
        rows = random_rows(way.raw, size=size)
        try:
            run(way.steps, rows)
        except DataError:
            if size == SIZES[-1]:
                raise
        else:
            break
    return rows


def random_rows(spec: TensorSpec, batch: int = 2, size: int = 16) -> np.ndarray:
    """Returns seeded random data of a raw array: integers over their whole range, floats from -1 to 1."""
    shape = [d if isinstance(d, int) else batch if i == 0 else size for i, d in enumerate(spec.shape)]
    random, dtype = np.random.default_rng(0), np.dtype(spec.dtype)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return random.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    return random.uniform(-1, 1, shape).astype(dtype)
