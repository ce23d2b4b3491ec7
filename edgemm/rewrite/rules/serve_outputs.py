"""An output that is a weight gets an Identity of its own: w -> y = Identity(w), so that a node makes it."""

from __future__ import annotations

import onnx_ir as ir

from edgemm.partition import prepare
from edgemm.tensors import IOSpec


def apply(model: ir.Model, io: IOSpec) -> int:
    """Puts an Identity behind each initializer that is an output; returns how many."""
    return prepare.serve_initializer_outputs(model)
