"""Constant nodes become initializers, so that every constant of a graph is found in one place.

y = Constant(c) -> initializer y = c. The tensor's memory is shared, its name is not: the exported graph still
owns the tensor in the node's attribute.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from edgemm.tensors import IOSpec


def apply(model: ir.Model, io: IOSpec) -> int:
    """Lifts every Constant that is no output; returns how many."""
    known = {id(v) for g in model.graphs() for v in g.initializers.values()}
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    lifted = [v for g in model.graphs() for v in g.initializers.values() if id(v) not in known]
    for value in lifted:
        tensor = value.const_value
        if tensor is not None and not isinstance(tensor, ir.StringTensor):
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
    return len(lifted)
