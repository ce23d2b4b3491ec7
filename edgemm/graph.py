"""ONNX graphs as values: the exported model with its signature. `onnx_ir` is imported here and below only."""

from __future__ import annotations

import hashlib
import io
import mmap
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import onnx_ir as ir

from edgemm.errors import BackendError
from edgemm.tensors import IOSpec

PREPROCESS = "edgemm.preprocess"
"""Metadata of nodes that a step of preprocessing became: its name. They compute in float32 on every target."""


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """A float ONNX model with its signature.

    Attributes:
        model: The graph. Functions that change it return a new ExportedGraph over a clone.
        io: Names, shapes, modalities, states; names equal those of the graph's inputs and outputs.
        provenance: Where it came from: source file, kind, sha256, exporter, opset, torch version.
    """

    model: ir.Model
    io: IOSpec
    provenance: Mapping[str, Any] = field(default_factory=dict)


def serialize(model: ir.Model) -> bytes:
    """Returns the model as deterministic protobuf bytes (equal graphs give equal bytes)."""
    file = io.BytesIO()
    write(model, file)
    return file.getvalue()


def write(model: ir.Model, file: IO[bytes]) -> None:
    """Writes the model as deterministic protobuf, with its weights inside, one at a time.

    The proto objects hold the graph without its large weights; those go straight from where they lie into the
    file, behind the other fields of their graph: parsers take them in any order there (protobuf, "Encoding").
    """
    skeleton = model.clone()
    weights: dict[str, tuple[bytes, ir.TensorProtocol]] = {}
    for name, value in list(skeleton.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or not _apart(tensor):
            continue
        header = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
        start = header.SerializeToString(deterministic=True) + _field(_RAW_DATA, tensor.nbytes)
        weights[name] = _field(_INITIALIZER, len(start) + tensor.nbytes) + start, tensor
        value.const_value = ir.tensor(np.zeros(0, np.float32), name=name)
    proto = ir.to_proto(skeleton)
    kept = [t for t in proto.graph.initializer if t.name not in weights]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    graph: bytes = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    before, after = onnx.ModelProto(), proto  # in the order of the field numbers: OpenVINO's reader insists
    for part, value in proto.ListFields():
        if part.number < _GRAPH:
            setattr(before, part.name, value)
            after.ClearField(part.name)
    file.write(before.SerializeToString(deterministic=True))
    file.write(_field(_GRAPH, len(graph) + sum(len(start) + tensor.nbytes for start, tensor in weights.values())))
    file.write(graph)
    for start, tensor in weights.values():
        file.write(start)
        file.write(_raw(tensor))
        _let_go(tensor)
    file.write(after.SerializeToString(deterministic=True))


def size(model: ir.Model) -> int:
    """Returns how many bytes `write` would write."""
    counter = _Counter()
    write(model, counter)
    return counter.size


def is_of_preprocessing(value: ir.Value) -> bool:
    """Returns whether nothing but steps of preprocessing reads a value: a mel filter bank is no weight."""
    readers = value.consumers()
    return bool(readers) and all(PREPROCESS in node.metadata_props for node in readers)


def preprocessing_bytes(model: ir.Model) -> int:
    """Returns how many bytes of constants the steps of preprocessing have in a model."""
    values = [v for v in model.graph.initializers.values() if is_of_preprocessing(v)]
    return sum(v.const_value.nbytes for v in values if v.const_value is not None)


class _Counter(io.BytesIO):
    """A file that keeps nothing."""

    size = 0

    def write(self, data: Any, /) -> int:
        self.size += len(data)
        return len(data)


def _apart(tensor: ir.TensorProtocol) -> bool:
    """Returns whether a weight is handled apart from the proto objects of its graph."""
    if tensor.dtype == ir.DataType.STRING:
        return False
    return tensor.nbytes >= _LARGE or isinstance(tensor, ir.ExternalTensor)


_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
"""Field numbers in ModelProto, GraphProto and TensorProto (onnx.proto)."""


def _field(number: int, length: int) -> bytes:
    """Returns tag and length of a length-delimited protobuf field."""
    result = bytearray()
    for value in (number << 3 | 2, length):
        while value > 0x7F:
            result.append(value & 0x7F | 0x80)
            value >>= 7
        result.append(value)
    return bytes(result)


def _raw(tensor: ir.TensorProtocol) -> bytes | memoryview:
    """Returns the little-endian bytes of a tensor, without a copy where memory has them as they are."""
    if sys.byteorder == "little" and tensor.nbytes == tensor.size * tensor.dtype.itemsize:
        array = tensor.numpy()
        if array.nbytes == tensor.nbytes:
            return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return tensor.tobytes()


_LARGE = 1 << 16
"""Bytes from which on a weight is hashed and stored apart from the graph."""


def digest(model: ir.Model) -> str:
    """Returns a sha256 in hex over the graph and every weight: equal graphs have equal digests.

    Weights are read one at a time where they lie; nothing is copied.
    """
    sha = hashlib.sha256()
    skeleton = model.clone()
    for graph in skeleton.graphs():
        for name, value in list(graph.initializers.items()):
            tensor = value.const_value
            if tensor is None or not _apart(tensor):
                continue
            sha.update(f"{name}\0{tensor.dtype.name}\0{tuple(tensor.shape)}\0".encode())
            sha.update(_raw(tensor))
            _let_go(tensor)
            value.const_value = ir.tensor(np.zeros(0, np.uint8), name=name)
    sha.update(serialize(skeleton))
    return sha.hexdigest()


@contextmanager
def on_disk(model: ir.Model) -> Iterator[Path]:
    """Yields a temporary `.onnx` file of `model` with large weights beside it; both go when the block ends.

    A session that opens it maps the weights instead of parsing, copying and keeping them: opening a model of
    140 MB takes 90 MB of memory this way and 400 MB from bytes. What is mapped stays readable after the block.

    Raises:
        BackendError: There is no room in the temporary folder (`TMPDIR`).
    """
    with tempfile.TemporaryDirectory(prefix="edgemm-") as temporary:
        folder = _home(model) or Path(temporary)
        path = folder / f"{Path(temporary).name}.onnx"
        with room_in(folder, "a temporary copy of the model"):
            write_mapped(model, path)
        try:
            yield path
        finally:
            remove_mapped(path)


@contextmanager
def room_in(folder: Path, what: str) -> Iterator[None]:
    """Says what there is no room for when the block cannot write.

    Raises:
        BackendError: The block could not write.
    """
    try:
        yield
    except OSError as error:
        raise BackendError(
            f"{folder}: no room for {what}: {error.strerror or error}.",
            hint="free some space there, or name another folder in the variable TMPDIR",
        ) from error


def write_mapped(model: ir.Model, path: Path) -> None:
    """Writes the model to `path` for sessions on this machine: large weights are in files of the same folder.

    Weights that `move_weights` has put into that folder are used where they lie; the others go to `path` with
    `.data` behind its name, if there are any.

    Raises:
        OSError: There is no room in the folder.
    """
    skeleton, home = model.clone(), str(path.parent)
    with ExitStack() as stack:
        data: IO[bytes] | None = None
        for graph in skeleton.graphs():
            for name, value in graph.initializers.items():
                tensor = value.const_value
                if tensor is None or not _apart(tensor):
                    continue
                if isinstance(tensor, ir.ExternalTensor) and str(tensor.base_dir) == home:
                    continue
                if data is None:
                    data = stack.enter_context(_data_of(path).open("wb"))
                value.const_value = _append(tensor, name, data, path.parent)
    proto = ir.to_proto(skeleton)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def remove_mapped(path: Path) -> None:
    """Removes what `write_mapped` wrote to `path`; weights that lay in the folder before stay."""
    path.unlink(missing_ok=True)
    _data_of(path).unlink(missing_ok=True)


def move_weights(models: Iterable[ir.Model], folder: Path) -> None:
    """Moves the large weights of several graphs into one file in `folder`, where they are mapped when read.

    A weight that graphs share is written once. The graphs stay as they are but for where their weights lie; the
    folder must be there as long as they are used.

    Raises:
        OSError: There is no room in the folder.
    """
    moved: dict[int, tuple[ir.TensorProtocol, ir.ExternalTensor]] = {}
    with (folder / WEIGHTS).open("xb") as data:
        for model in models:
            for graph in model.graphs():
                for name, value in graph.initializers.items():
                    tensor = value.const_value
                    if tensor is None or tensor.nbytes < _LARGE or tensor.dtype == ir.DataType.STRING:
                        continue
                    if id(tensor) not in moved:
                        moved[id(tensor)] = tensor, _append(tensor, name, data, folder)
                    value.const_value = moved[id(tensor)][1]


def let_go(model: ir.Model) -> None:
    """Tells the system that the mapped weights of a graph are not needed in memory now; they can still be read."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                _let_go(value.const_value)


WEIGHTS = "weights.data"
"""Name of the file that `move_weights` writes."""

_ALIGNED = 4096
"""Weights in a file begin at a multiple of this many bytes, so that they can be mapped one by one."""


def _append(tensor: ir.TensorProtocol, name: str, data: IO[bytes], folder: Path) -> ir.ExternalTensor:
    """Returns a tensor as it lies in `data`, at whose end it is written."""
    offset = -(-data.tell() // _ALIGNED) * _ALIGNED
    data.seek(offset)
    data.write(_raw(tensor))
    _let_go(tensor)
    return ir.ExternalTensor(
        Path(data.name).name,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name,
        base_dir=folder,
    )


def _home(model: ir.Model) -> Path | None:
    """Returns the folder that `move_weights` has put weights of the graph into."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor) and value.const_value.location == WEIGHTS:
            return Path(value.const_value.base_dir)
    return None


def _data_of(path: Path) -> Path:
    return path.with_name(path.name + ".data")


def _let_go(tensor: ir.TensorProtocol) -> None:
    mapped = tensor.raw if isinstance(tensor, ir.ExternalTensor) else None
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def load(path: Path) -> ir.Model:
    """Returns the ONNX model at `path` with external data resolved into memory-mapped tensors."""
    return ir.load(path)
