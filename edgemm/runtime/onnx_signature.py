"""Reads the inputs and outputs of an ONNX file: the names of symbolic sizes, which OpenVINO does not keep.

Only the few fields that hold the signature are looked at (protobuf wire format; field numbers from onnx.proto3),
so that a device needs no onnx package.
"""

from __future__ import annotations

from mmap import mmap

from edgemm.errors import BackendError
from edgemm.runtime.protobuf import fields, last, messages, number, text
from edgemm.tensors import Dim, TensorSpec

DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
"""ONNX element types that numpy has a dtype for (TensorProto.DataType)."""

_GRAPH, _INITIALIZER, _INPUT, _OUTPUT = 7, 5, 11, 12


def read_signature(model: bytes | mmap, engine: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Returns the inputs (without initializers) and outputs of an ONNX model.

    A size without a name gets the name `NAME:AXIS`.

    Raises:
        BackendError: No ONNX file, or an input or output that is no number or has no rank; `engine` names it.
    """
    try:
        graph = messages(memoryview(model), _GRAPH)[-1]
        constants = {text(initializer, 8) for initializer in messages(graph, _INITIALIZER)}
        inputs = [_tensor(info, engine, "input") for info in messages(graph, _INPUT)]
        outputs = [_tensor(info, engine, "output") for info in messages(graph, _OUTPUT)]
    except (IndexError, TypeError, ValueError) as error:
        raise BackendError(
            f"engine '{engine}' is no ONNX file: {error}.",
            hint="convert the model again",
        ) from error
    return tuple(i for i in inputs if i.name not in constants), tuple(outputs)


def _tensor(info: memoryview, engine: str, kind: str) -> TensorSpec:
    """Returns the spec in a ValueInfoProto."""
    name = text(info, 1)
    tensor = last(last(info, 2), 1)
    dtype = DTYPES.get(number(tensor, 1))
    if dtype is None:
        raise BackendError(
            f"engine '{engine}': {kind} '{name}' is no tensor of numbers that edgemm runs.",
            hint="leave tokenizers, text, maps and sequences outside of the model",
        )
    shapes = messages(tensor, 2)
    if not shapes:
        raise BackendError(
            f"engine '{engine}': {kind} '{name}' has no shape.", hint="run shape inference over the graph first"
        )
    dims = (read_dim(dim, f"{name}:{axis}") for axis, dim in enumerate(messages(shapes[-1], 1)))
    return TensorSpec(name, dtype, tuple(dims))


def read_dim(dim: memoryview, unnamed: str) -> Dim:
    """Returns the size or the symbol in a TensorShapeProto.Dimension, `unnamed` where it has neither."""
    for field, value in fields(dim):
        if field == 1 and isinstance(value, int):
            return value
        if field == 2 and isinstance(value, memoryview):
            return str(value, "utf-8") or unnamed
    return unnamed
