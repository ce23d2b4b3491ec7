"""Every node gets a unique name and every value a name unique in its scope; inputs and outputs keep theirs."""

from __future__ import annotations

import onnx_ir as ir

from edgemm.partition import prepare
from edgemm.tensors import IOSpec


def apply(model: ir.Model, io: IOSpec) -> int:
    """Names nodes and values; returns how many nodes got another name."""
    return prepare.name_uniquely(model)
