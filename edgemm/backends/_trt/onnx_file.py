"""What the build has to know about an ONNX file, read without the onnx package: nodes, sizes, weights, digest.

Field numbers are those of onnx.proto. Nodes inside subgraphs and functions are not looked at.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgemm.errors import BackendError
from edgemm.runtime._trt.sidecar import sha256
from edgemm.runtime.onnx_signature import read_dim
from edgemm.runtime.protobuf import last, messages, number, numbers, text
from edgemm.tensors import TensorSpec

ELEMENTS = {
    1: ("float32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    4: ("uint16", 16),
    5: ("int16", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    8: ("string", 0),
    9: ("bool", 8),
    10: ("float16", 16),
    11: ("float64", 64),
    12: ("uint32", 32),
    13: ("uint64", 64),
    16: ("bfloat16", 16),
    17: ("float8_e4m3fn", 8),
    19: ("float8_e5m2", 8),
    21: ("uint4", 4),
    22: ("int4", 4),
    23: ("float4_e2m1fn", 4),
    24: ("float8_e8m0fnu", 8),
}
"""TensorProto.DataType -> numpy or ml_dtypes name, bits of an element."""

_GRAPH, _NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 7, 1, 5, 11, 12, 13
_BIAS = ("int32",)


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """A node of the graph; `name` may be empty."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        if self.name:
            return f"node '{self.name}' ({self.op})"
        return f"the {self.op} node that gives '{self.outputs[0] if self.outputs else ''}'"


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of the weights.

    Attributes:
        quantized: Of weights behind a DequantizeLinear, in the integers or small floats that they are stored in.
        as_float: Of the same weights in the dtype that they are dequantized to.
        other: Of all other weights.
    """

    quantized: int
    as_float: int
    other: int


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """An ONNX file as far as the build is concerned.

    Attributes:
        nodes: In graph order: the parser names nodes by their index.
        inputs: Without initializers; a size without a name is called `NAME:AXIS`.
        outputs: Alike.
        dtypes: Tensor -> dtype, where the file declares it.
        weights: Their sizes.
        dequantized: Dtype -> how many DequantizeLinear nodes read it.
        sha256: Of the file, and of the files that its weights lie in, one after the other.
    """

    nodes: tuple[OnnxNode, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dtypes: Mapping[str, str]
    weights: Weights
    dequantized: Mapping[str, int]
    sha256: str

    def named(self, name: str) -> OnnxNode | None:
        """Returns the node called `name`; the parser calls a node without a name after its first output."""
        return next((n for n in self.nodes if name and name in (n.name, f"node_of_{_first(n.outputs)}")), None)


@dataclass(frozen=True, slots=True)
class _Constant:
    dtype: str
    bits: int
    elements: int
    file: str

    @property
    def nbytes(self) -> int:
        return -(-self.elements * self.bits // 8)


def read_onnx(file: Path) -> OnnxFile:
    """Returns what `file` says.

    Raises:
        BackendError: It is not there, or no ONNX file.
    """
    try:
        with file.open("rb") as stream:
            return _read(memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)), file)
    except OSError as error:
        raise BackendError(
            f"{error.filename or file}: {error.strerror or error}.", hint="give an ONNX file that is there"
        ) from error
    except (IndexError, ValueError) as error:  # ValueError: mmap of an empty file, too
        raise BackendError(
            f"{file}: is no ONNX file: {error}.", hint="export or convert the model again"
        ) from error


def _read(view: memoryview, file: Path) -> OnnxFile:
    found = messages(view, _GRAPH)
    if not found:
        raise ValueError("it has no graph")
    graph = found[-1]
    constants = {text(t, 8): _constant(t) for t in messages(graph, _INITIALIZER)}
    nodes = []
    for message in messages(graph, _NODE):
        node = OnnxNode(text(message, 3), text(message, 4), _names(message, 1), _names(message, 2))
        nodes.append(node)
        if node.op == "Constant":
            constants |= {_first(node.outputs): _constant(last(a, 5)) for a in messages(message, 5) if last(a, 5)}
    inputs = [_spec(info) for info in messages(graph, _INPUT)]
    outputs = [_spec(info) for info in messages(graph, _OUTPUT)]
    declared = [*inputs, *outputs, *(_spec(info) for info in messages(graph, _VALUE_INFO))]
    dtypes = {n: c.dtype for n, c in constants.items()} | {s.name: s.dtype for s in declared}
    weights, dequantized = _weights(nodes, constants, dtypes)
    beside = sorted({c.file for c in constants.values() if c.file})
    return OnnxFile(
        tuple(nodes),
        tuple(i for i in inputs if i.name not in constants),
        tuple(outputs),
        dtypes,
        weights,
        dequantized,
        sha256(file, *(file.parent / name for name in beside)),
    )


def _weights(
    nodes: list[OnnxNode], constants: Mapping[str, _Constant], dtypes: Mapping[str, str]
) -> tuple[Weights, dict[str, int]]:
    """Returns the sizes of the weights and how often each dtype is dequantized.

    A weight is stored quantized, or is a float constant behind a QuantizeLinear.
    """
    bits = {name: size for name, size in ELEMENTS.values()}
    stored: dict[str, tuple[int, int]] = {}  # constant -> quantized bytes, float bytes
    count: dict[str, int] = {}
    quantizers = {_first(n.outputs): n for n in nodes if n.op == "QuantizeLinear"}
    for node in nodes:
        if node.op != "DequantizeLinear" or not node.inputs:
            continue
        source, scale = node.inputs[0], dtypes.get(node.inputs[1] if len(node.inputs) > 1 else "", "float32")
        quantizer = quantizers.get(source)
        dtype = dtypes.get(source) or dtypes.get(next(iter(node.inputs[2:]), ""))
        if dtype is None and quantizer is not None:
            dtype = dtypes.get(next(iter(quantizer.inputs[2:]), ""))
        dtype = dtype or "uint8"  # QuantizeLinear without a zero point
        count[dtype] = count.get(dtype, 0) + 1
        name = quantizer.inputs[0] if quantizer is not None else source
        constant = constants.get(name)
        if constant is not None and dtype not in _BIAS:
            stored[name] = (
                -(-constant.elements * bits[dtype] // 8),
                constant.elements * bits.get(scale, 32) // 8,
            )
    other = sum(c.nbytes for n, c in constants.items() if n not in stored)
    small, large = (sum(size[i] for size in stored.values()) for i in (0, 1))
    return Weights(small, large, other), dict(sorted(count.items()))


def _constant(tensor: memoryview) -> _Constant:
    dtype, bits = ELEMENTS.get(number(tensor, 2), ("unknown", 8))
    elements = 1
    for dim in numbers(tensor, 1):
        elements *= dim
    outside = {text(entry, 1): text(entry, 2) for entry in messages(tensor, 13)}
    return _Constant(dtype, bits, elements, outside.get("location", ""))


def _spec(info: memoryview) -> TensorSpec:
    """Returns the spec in a ValueInfoProto."""
    name, tensor = text(info, 1), last(last(info, 2), 1)
    dims = enumerate(messages(last(tensor, 2), 1))
    dtype = ELEMENTS.get(number(tensor, 1), ("unknown", 0))[0]
    return TensorSpec(name, dtype, tuple(read_dim(dim, f"{name}:{axis}") for axis, dim in dims))


def _names(message: memoryview, field: int) -> tuple[str, ...]:
    return tuple(_each(message, field))


def _each(message: memoryview, field: int) -> Iterator[str]:
    for value in messages(message, field):
        yield str(value, "utf-8")


def _first(names: tuple[str, ...]) -> str:
    return names[0] if names else ""
