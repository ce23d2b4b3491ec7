"""A guard against rows that a mask blanks goes where none can be: Where(IsNaN(s), 0, s), s = Softmax(x + m) -> s.

Softmax gives NaN for a row of −inf alone. A mask of finite numbers, and a constant mask with a finite number in
every row, leave no such row. Declined for a mask that may be −inf everywhere, or of which nothing is known.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemm.rewrite import build
from edgemm.tensors import IOSpec

_CARRIES = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Expand", "Identity", "Slice", "Transpose"})


def apply(model: ir.Model, io: IOSpec) -> int:
    """Drops guards in the main graph; returns how many."""
    return sum(_drop(n) for n in list(model.graph) if n.op_type == "Where" and n.graph is model.graph)


def _drop(node: ir.Node) -> bool:
    condition, instead, value = node.inputs
    test = condition.producer() if condition is not None else None
    softmax = value.producer() if value is not None else None
    if test is None or softmax is None or test.op_type != "IsNaN" or softmax.op_type != "Softmax":
        return False
    if value is None or test.inputs[0] is not value or build.scalar(instead) != 0.0:
        return False
    output, rank = node.outputs[0], len(value.shape or ())
    if output.is_graph_output() or not rank or softmax.attributes.get_int("axis", -1) not in (-1, rank - 1):
        return False
    if not _leaves_rows(softmax.inputs[0]):
        return False
    ir.convenience.replace_all_uses_with(output, value)
    assert isinstance(node.graph, ir.Graph)
    build.remove_dead(node.graph, node)
    return True


def _leaves_rows(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    if node is None:
        return False
    if node.op_type == "MatMul":
        return True
    if node.op_type in ("Mul", "Div"):
        return any(_leaves_rows(v) for v in node.inputs) and any(build.scalar(v) is not None for v in node.inputs)
    if node.op_type != "Add":
        return False
    a, b = node.inputs
    return (_leaves_rows(a) and _has_finite_rows(b)) or (_leaves_rows(b) and _has_finite_rows(a))


def _has_finite_rows(value: ir.Value | None) -> bool:
    if value is None:
        return False
    found = build.array(value)
    if found is not None and found.ndim:
        only_blanks = not (np.isnan(found) | np.isposinf(found)).any()
        return bool(only_blanks and np.isfinite(found).any(axis=-1).all())
    return _is_finite(value)


def _is_finite(value: ir.Value | None) -> bool:
    found = build.array(value)
    if found is not None:
        return bool(np.isfinite(found).all())
    node = value.producer() if value is not None else None
    if node is None or node.domain != "":
        return False
    if node.op_type == "Where":
        return _is_finite(node.inputs[1]) and _is_finite(node.inputs[2])
    return node.op_type in _CARRIES and _is_finite(node.inputs[0])
