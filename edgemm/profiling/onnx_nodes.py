"""Reads the nodes of an ONNX file: what a layer of an engine was made of. No onnx package is needed.

The path of the torch module that a node comes from is what exporters keep: `torch.onnx.export` in the node's
metadata (`pkg.torch.onnx.name_scopes`, `namespace`), its older exporter in the node's name (`/encoder/fc/Gemm`).
"""

from __future__ import annotations

import ast
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

from edgemm.errors import BackendError
from edgemm.runtime.onnx_signature import DTYPES, read_dim
from edgemm.runtime.protobuf import fields, last, messages, number, numbers, text
from edgemm.tensors import Dim

_NAMES = DTYPES | {8: "string", 14: "complex64", 15: "complex128", 16: "bfloat16", 21: "uint4", 22: "int4"}
_NAMES |= {17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz"}

_BITS = {"bool": 8, "bfloat16": 16, "uint4": 4, "int4": 4, "complex64": 64, "complex128": 128}
_BITS |= {f"{kind}int{bits}": bits for kind in ("", "u") for bits in (8, 16, 32, 64)}
_BITS |= {"float16": 16, "float32": 32, "float64": 64, "float": 32, "double": 64, "half": 16, "f32": 32, "f16": 16}
_BITS |= {"bf16": 16, "boolean": 8, "f64": 64, "i4": 4, "u4": 4}
_BITS |= {f"{kind}{bits}": bits for kind in ("i", "u") for bits in (8, 16, 32, 64)}

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of a node: the paths of the torch modules around it, the outer ones first, as a list in text."""

NAMESPACE = "namespace"


@dataclass(frozen=True, slots=True)
class Tensor:
    """What is known of a tensor: the name of its dtype, as whoever told it writes it, and its sizes."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory; 0 of a dtype without a size (strings)."""
        bits = 8 if self.dtype.startswith("float8") or self.dtype.startswith("f8") else _BITS.get(self.dtype, 0)
        return -(-self.size * bits // 8)


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the graph.

    Attributes:
        name: Empty where the exporter gave none.
        op: Type of the operator.
        domain: Empty for ONNX's own operators.
        inputs: Tensor names; empty for an optional one that is left out.
        outputs: Likewise.
        attributes: Whole numbers and texts alone.
        module: Path in the torch module that it comes from, as `named_modules` has it (empty: the module's own
            `forward`), or None where nothing tells.
    """

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, int | str] = field(default_factory=dict)
    module: str | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """The nodes of an ONNX file, those in subgraphs left out.

    Attributes:
        nodes: In the file's order.
        constants: Initializers, and outputs of Constant nodes.
        declared: Tensor -> dtype and sizes as the file declares them, with names for symbolic sizes.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]
    declared: Mapping[str, tuple[str, tuple[Dim, ...]]]

    def producers(self) -> dict[str, Node]:
        """Returns tensor -> the node that gives it."""
        return {output: node for node in self.nodes for output in node.outputs if output}


def read_graph(file: Path) -> Graph:
    """Returns the nodes of an ONNX file. It is mapped, not read; weights stay where they are.

    Raises:
        BackendError: It cannot be read, or is no ONNX file.
    """
    try:
        with file.open("rb") as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return _graph(messages(memoryview(content), 7)[-1])
    except (OSError, IndexError, TypeError, ValueError) as error:
        raise BackendError(
            f"{file.name} is no ONNX file whose nodes can be read: {error}.", hint="convert the model again"
        ) from error


def _graph(graph: memoryview) -> Graph:
    nodes: list[Node] = []
    constants: dict[str, Tensor] = {}
    declared: dict[str, tuple[str, tuple[Dim, ...]]] = {}
    modules: dict[str, str | None] = {}
    for number_, value in fields(graph):
        if not isinstance(value, memoryview):
            continue
        if number_ == 1:
            node = _node(value)
            if node.op == "Constant" and node.domain == "":
                constants[node.outputs[0]] = _constant(value)
            else:
                nodes.append(_with_module(node, modules))
        elif number_ == 5:
            constants[text(value, 8)] = _tensor(value)
        elif number_ in (11, 12, 13):
            name, told = _declared(value)
            if told is not None:
                declared[name] = told
    return Graph(tuple(nodes), constants, declared)


def _node(message: memoryview) -> Node:
    strings: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: [], 7: []}
    attributes: dict[str, int | str] = {}
    metadata: dict[str, str] = {}
    for number_, value in fields(message):
        if not isinstance(value, memoryview):
            continue
        if number_ in strings:
            strings[number_].append(str(value, "utf-8"))
        elif number_ == 5:
            attributes |= _attribute(value)
        elif number_ == 9:
            metadata[text(value, 1)] = text(value, 2)
    name = "".join(strings[3][-1:])
    return Node(
        name,
        "".join(strings[4][-1:]),
        "" if strings[7][-1:] == ["ai.onnx"] else "".join(strings[7][-1:]),
        tuple(strings[1]),
        tuple(strings[2]),
        attributes,
        module_path(name, metadata),
    )


def _attribute(message: memoryview) -> dict[str, int | str]:
    kind = number(message, 20)
    if kind == 2:
        value = number(message, 3)
        return {text(message, 1): value - (1 << 64) if value >> 63 else value}
    return {text(message, 1): text(message, 4)} if kind == 3 else {}


def _constant(message: memoryview) -> Tensor:
    values = [last(attribute, 5) for attribute in messages(message, 5) if text(attribute, 1) == "value"]
    return _tensor(values[0]) if values else Tensor("unknown", ())


_QUANTIZING = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


def _with_module(node: Node, modules: dict[str, str | None]) -> Node:
    """Returns a node with its module noted for its outputs; what quantizes a tensor belongs to who gives that."""
    if node.module is None and node.op in _QUANTIZING and node.inputs:
        node = replace(node, module=modules.get(node.inputs[0]))
    modules.update(dict.fromkeys(node.outputs, node.module))
    return node


def _tensor(message: memoryview) -> Tensor:
    return Tensor(_NAMES.get(number(message, 2), "unknown"), tuple(numbers(message, 1)))


def _declared(info: memoryview) -> tuple[str, tuple[str, tuple[Dim, ...]] | None]:
    name, tensor = text(info, 1), last(last(info, 2), 1)
    shapes = messages(tensor, 2)
    if not shapes:
        return name, None
    dims = tuple(read_dim(dim, f"{name}:{axis}") for axis, dim in enumerate(messages(shapes[-1], 1)))
    return name, (_NAMES.get(number(tensor, 1), "unknown"), dims)


def module_path(name: str, metadata: Mapping[str, str]) -> str | None:
    """Returns the path of the torch module that a node comes from, or None where nothing tells.

    Args:
        name: Of the node.
        metadata: Of the node.
    """
    if SCOPES in metadata:
        try:
            scopes = ast.literal_eval(metadata[SCOPES])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            scopes = None
        if isinstance(scopes, list) and len(scopes) > 1:
            return str(scopes[-2])
    parts = metadata.get(NAMESPACE, "").split("/")
    if len(parts) > 1:  # "scope: class/scope: class/node: target"
        return parts[-2].partition(": ")[0]
    parts = name.split("/")
    if len(parts) > 2 and not parts[0]:  # "/encoder/fc/Gemm"
        return ".".join(parts[1:-1])
    return None


def known_tensors(graph: Graph, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Returns every tensor whose sizes are known when symbolic ones have the values in `sizes`.

    What the file does not declare is taken from operators that keep the shape of their first input: rewritten and
    quantized graphs do not declare every tensor.

    Args:
        graph: As read.
        sizes: Name of a symbolic size -> its value.
    """
    known = dict(graph.constants)
    dtypes = {}
    for name, (dtype, dims) in graph.declared.items():
        dtypes[name] = dtype
        shape = tuple(d if isinstance(d, int) else sizes.get(d, -1) for d in dims)
        if -1 not in shape:
            known[name] = Tensor(dtype, shape)
    for nodes, forward in ((graph.nodes, True), (tuple(reversed(graph.nodes)), False)):
        _spread(nodes, known, dtypes, forward=forward)
    return known


_KEEPING = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "Cast", "Clip", "Softmax", "LayerNormalization", "BatchNormalization"}
    | {
        "Relu",
        "LeakyRelu",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Tanh",
        "Gelu",
        "Erf",
        "Elu",
        "Softplus",
        "Mish",
    }
    | {"Swish", "Neg", "Abs", "Sqrt", "Exp", "Log", "Identity", "Dropout"}
)


_TURNS = {
    ("QuantizeLinear", True): "int8",
    ("QuantizeLinear", False): "float32",
    ("DequantizeLinear", True): "float32",
    ("DequantizeLinear", False): "int8",
}
"""(operator, forward) -> dtype on the other side of it."""


def _spread(nodes: Iterable[Node], known: dict[str, Tensor], dtypes: Mapping[str, str], *, forward: bool) -> None:
    for node in nodes:
        if node.op not in _KEEPING or not node.inputs or not node.outputs:
            continue
        source, target = (node.inputs[0], node.outputs[0]) if forward else (node.outputs[0], node.inputs[0])
        if source in known and target not in known:
            dtype = _TURNS.get((node.op, forward), known[source].dtype)
            known[target] = Tensor(dtypes.get(target, dtype), known[source].shape)
