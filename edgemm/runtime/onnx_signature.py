"""Reads the inputs and outputs of an ONNX file: the names of symbolic sizes, which OpenVINO does not keep.

Only the few fields that hold the signature are looked at (protobuf wire format; field numbers from onnx.proto3),
so that a device needs no onnx package.
"""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap

from edgemm.errors import BackendError
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
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_signature(model: bytes | mmap, engine: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Returns the inputs (without initializers) and outputs of an ONNX model.

    A size without a name gets the name `NAME:AXIS`.

    Raises:
        BackendError: No ONNX file, or an input or output that is no number or has no rank; `engine` names it.
    """
    try:
        graph = _messages(memoryview(model), _GRAPH)[-1]
        constants = {_text(initializer, 8) for initializer in _messages(graph, _INITIALIZER)}
        inputs = [_tensor(info, engine, "input") for info in _messages(graph, _INPUT)]
        outputs = [_tensor(info, engine, "output") for info in _messages(graph, _OUTPUT)]
    except (IndexError, TypeError, ValueError) as error:
        raise BackendError(
            f"engine '{engine}' is no ONNX file: {error}.",
            hint="convert the model again",
        ) from error
    return tuple(i for i in inputs if i.name not in constants), tuple(outputs)


def _tensor(info: memoryview, engine: str, kind: str) -> TensorSpec:
    """Returns the spec in a ValueInfoProto."""
    name = _text(info, 1)
    tensor = _last(_last(info, 2), 1)
    dtype = DTYPES.get(_number(tensor, 1))
    if dtype is None:
        raise BackendError(
            f"engine '{engine}': {kind} '{name}' is no tensor of numbers that edgemm runs.",
            hint="leave tokenizers, text, maps and sequences outside of the model",
        )
    shapes = _messages(tensor, 2)
    if not shapes:
        raise BackendError(
            f"engine '{engine}': {kind} '{name}' has no shape.", hint="run shape inference over the graph first"
        )
    dims = (_dim(dim, f"{name}:{axis}") for axis, dim in enumerate(_messages(shapes[-1], 1)))
    return TensorSpec(name, dtype, tuple(dims))


def _dim(dim: memoryview, unnamed: str) -> Dim:
    for number, value in _fields(dim):
        if number == 1 and isinstance(value, int):
            return value
        if number == 2 and isinstance(value, memoryview):
            return str(value, "utf-8") or unnamed
    return unnamed


def _last(message: memoryview, number: int) -> memoryview:
    """Returns the submessage in field `number`, empty when it is not there."""
    found = _messages(message, number)
    return found[-1] if found else memoryview(b"")


def _messages(message: memoryview, number: int) -> list[memoryview]:
    """Returns the submessages, strings or bytes in field `number`."""
    return [value for n, value in _fields(message) if n == number and isinstance(value, memoryview)]


def _text(message: memoryview, number: int) -> str:
    return str(_last(message, number), "utf-8")


def _number(message: memoryview, number: int) -> int:
    return next((value for n, value in _fields(message) if n == number and isinstance(value, int)), 0)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yields the field number and value of every field of a message; fixed-size values are skipped."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
        elif kind == _BYTES:
            size, at = _varint(message, at)
            if at + size > end:
                raise ValueError("it ends in the middle of a field")
            yield key >> 3, message[at : at + size]
            at += size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} does not exist")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
