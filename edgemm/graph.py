"""ONNX graphs as values: the exported model with its signature. `onnx_ir` is imported here and below only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


def digest(model: ir.Model) -> str:
    """Returns the sha256 of `serialize(model)` in hex."""
    return hashlib.sha256(serialize(model)).hexdigest()


def load(path: Path) -> ir.Model:
    """Returns the ONNX model at `path` with external data resolved into memory-mapped tensors."""
    return ir.load(path)
