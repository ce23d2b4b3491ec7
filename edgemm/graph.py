"""ONNX graphs as values: the exported model with its signature. `onnx_ir` is imported here and below only."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemm.tensors import IOSpec


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
    proto = ir.to_proto(model)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


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
            if tensor is None or tensor.nbytes < _LARGE or tensor.dtype == ir.DataType.STRING:
                continue
            sha.update(f"{name}\0{tensor.dtype.name}\0{tuple(tensor.shape)}\0".encode())
            sha.update(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data)
            value.const_value = ir.tensor(np.zeros(0, np.uint8), name=name)
    sha.update(serialize(skeleton))
    return sha.hexdigest()


@contextmanager
def on_disk(model: ir.Model) -> Iterator[Path]:
    """Yields a temporary `.onnx` file of `model` with large weights beside it; both go when the block ends.

    A session that opens it maps the weights instead of parsing, copying and keeping them: opening a model of
    140 MB takes 90 MB of memory this way and 400 MB from bytes. What is mapped stays readable after the block.

    Raises:
        OSError: There is no room in the temporary folder (`TMPDIR`).
    """
    with tempfile.TemporaryDirectory(prefix="edgemm-") as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model.clone(), path, external_data="model.data", size_threshold_bytes=_LARGE)
        yield path


def load(path: Path) -> ir.Model:
    """Returns the ONNX model at `path` with external data resolved into memory-mapped tensors."""
    return ir.load(path)
