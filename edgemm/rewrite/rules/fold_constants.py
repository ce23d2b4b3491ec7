"""What depends on constants alone is computed now: f(c1, c2) -> c.

Also shapes whose dimensions are fixed, branches whose condition is known, and operators that do nothing (a
Dropout outside training, a Cast to the same type). Large results stay nodes, so that a file does not grow by an
expanded constant; random numbers stay random; the result of folding is never an output itself. Declined for
graphs with tensor lists in operator sets before 18.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript.optimizer import fold_constants_ir

from edgemm.partition.modalities import is_random
from edgemm.tensors import IOSpec

INPUT_LIMIT = 65_536
"""Elements of the largest constant that is folded into something else."""

OUTPUT_LIMIT = 65_536
"""Elements of the largest result that is kept in place of its node."""

# the folder turns these into forms of Split and Unsqueeze that older operator sets do not have
_SEQUENCE_OPS = frozenset({"ConcatFromSequence", "SplitToSequence"})
_SEQUENCE_OPSET = 18


def apply(model: ir.Model, io: IOSpec) -> int:
    """Folds constants; returns how many nodes went."""
    opset = model.graph.opset_imports.get("", 1)
    if opset < _SEQUENCE_OPSET and any(n.op_type in _SEQUENCE_OPS for n in model.graph.all_nodes()):
        return 0
    before = _count(model)
    with np.errstate(all="ignore"):
        fold_constants_ir(
            model,
            onnx_shape_inference=True,
            input_size_limit=INPUT_LIMIT,
            output_size_limit=OUTPUT_LIMIT,
            should_fold=_should_fold,
        )
    return max(before - _count(model), 0)


def _should_fold(node: ir.Node) -> bool | None:
    if is_random(node) or any(o.is_graph_output() for o in node.outputs):
        return False
    return None


def _count(model: ir.Model) -> int:
    return sum(1 for _ in ir.traversal.RecursiveGraphIterator(model.graph))
