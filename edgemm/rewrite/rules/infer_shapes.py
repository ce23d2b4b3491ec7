"""Types and dimensions that ONNX can infer are filled in; known ones and their symbols stay."""

from __future__ import annotations

import onnx_ir as ir

from edgemm.partition import prepare
from edgemm.tensors import IOSpec


def apply(model: ir.Model, io: IOSpec) -> int:
    """Infers shapes; returns how many values gained a type or a dimension."""
    return prepare.fill_shapes(model)
