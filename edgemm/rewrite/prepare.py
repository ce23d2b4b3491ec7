"""Prepares a stage's graph for its target. Comes after the plan is applied and before an engine is built.

`rewrite` keeps to ONNX's own operators, because the partition and every target read its result. What one runtime
has beyond them is put in here, and only what that runtime does not already do when it loads a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from edgemm.errors import BackendError, did_you_mean
from edgemm.partition import prepare as parts
from edgemm.rewrite.rules import fuse_attention, fuse_projections, limit_in_blocks, simplify_layout, sink_layout
from edgemm.tensors import IOSpec

_NO_IO = IOSpec((), (), {})

RULES: Mapping[str, tuple[Callable[[ir.Model, IOSpec], int], ...]] = {
    "cpu": (
        fuse_attention.apply,
        simplify_layout.apply,
        sink_layout.apply,
        simplify_layout.apply,
        fuse_projections.apply,
        limit_in_blocks.apply,
    ),
    "openvino": (),
}
"""What is done for a target, in order. Every target can run what `rewrite` leaves."""


def prepare(model: ir.Model, target: str) -> ir.Model:
    """Returns a copy of a stage's graph, float or with Q/DQ, with the operators that `target` runs fastest.

    Names, types and order of inputs and outputs stay. For `"cpu"` the graph may hold operators of `com.microsoft`,
    which ONNX Runtime alone knows; for `"openvino"` it holds none that were not there.

    Args:
        model: The graph; it is left as it is, and shares weights with the copy.
        target: Key of `RULES`.

    Raises:
        BackendError: There is no such target.
    """
    if target not in RULES:
        raise BackendError(
            f"No preparation for target '{target}' (targets: {', '.join(RULES)}).",
            hint=did_you_mean(target, RULES, "use cpu"),
        )
    result = model.clone()
    count = sum(rule(result, _NO_IO) for rule in RULES[target])
    if count:
        parts.remove_unused(result)
    return result
