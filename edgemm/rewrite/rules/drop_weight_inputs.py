"""Weights that an old file lists as inputs become weights alone, so that they can be folded."""

from __future__ import annotations

import onnx_ir as ir

from edgemm.partition import prepare
from edgemm.tensors import IOSpec


def apply(model: ir.Model, io: IOSpec) -> int:
    """Drops inputs that have an initializer and are not in `io`; returns how many."""
    return prepare.drop_weight_inputs(model, io)
