"""Nodes, initializers and operator sets that no output needs go; inputs stay, used or not."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedOpsetsPass

from edgemm.partition import prepare
from edgemm.tensors import IOSpec


def apply(model: ir.Model, io: IOSpec) -> int:
    """Removes what is unused; returns how many nodes and initializers went."""
    count = prepare.remove_unused(model)
    RemoveUnusedOpsetsPass()(model)
    return count
