"""Prepares a stage's graph for its target. Comes after the plan is applied and before an engine is built.

`rewrite` keeps to ONNX's own operators, because the partition and every target read its result. What one runtime
has beyond them is put in here, and only what that runtime does not already do when it loads a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from edgemm.errors import BackendError, did_you_mean
from edgemm.partition import prepare as parts
from edgemm.rewrite.rules import (
    batch_twins,
    fuse_attention,
    fuse_projections,
    limit_in_blocks,
    merge_convolutions,
    simplify_layout,
    sink_layout,
)
from edgemm.tensors import IOSpec

_NO_IO = IOSpec((), (), {})

_Rules = tuple[Callable[[ir.Model, IOSpec], int], ...]

_CPU: _Rules = (
    fuse_attention.apply,
    simplify_layout.apply,
    sink_layout.apply,
    simplify_layout.apply,
    fuse_projections.apply,
    merge_convolutions.apply,
    limit_in_blocks.apply,
)

BATCHED = "-batched"
"""Behind the name of a target: encoders that share weights run as one batch. Faster or not, by the machine."""

RULES: Mapping[str, _Rules] = {
    "cpu": _CPU,
    f"cpu{BATCHED}": (batch_twins.apply, *_CPU),
    "openvino": (),
    f"openvino{BATCHED}": (batch_twins.apply,),
}
"""What is done for a target, in order. Every target can run what `rewrite` leaves."""


def batchable(model: ir.Model) -> bool:
    """Returns whether a target's `BATCHED` form of a stage's graph differs from its plain one."""
    return batch_twins.has_twins(model)


def prepare(model: ir.Model, target: str) -> ir.Model:
    """Returns a copy of a stage's graph, float or with Q/DQ, with the operators that `target` runs fastest.

    Names, types and order of inputs and outputs stay. For `"cpu"` the graph may hold operators of `com.microsoft`,
    which ONNX Runtime alone knows; for `"openvino"` it holds none that were not there. With `BATCHED` behind the
    target, parts that apply equal weights to several inputs are joined; where there are none the form is the plain
    one.

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
