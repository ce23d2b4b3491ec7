"""Runs the rewrite rules in order. Comes after the export and before the partition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgemm.graph import ExportedGraph
from edgemm.rewrite.rules import (
    clean_metadata,
    drop_nan_guards,
    drop_weight_inputs,
    drop_zero_states,
    fold_batch_norm,
    fold_batch_norm_ahead,
    fold_branches,
    fold_constants,
    fold_shapes,
    fold_weights,
    infer_shapes,
    inline_functions,
    lift_constants,
    merge_duplicates,
    name_uniquely,
    read_masks_directly,
    reduce_in_place,
    remove_identities,
    remove_unused,
    serve_outputs,
    simplify_layout,
    sink_layout,
    unpack_projections,
)
from edgemm.tensors import IOSpec


@dataclass(frozen=True, slots=True)
class Rule:
    """A rewrite: `apply` changes the model in place and returns how many things it changed.

    Every rule keeps the names, types and order of the graph's inputs and outputs, and symbolic dimensions.
    """

    name: str
    apply: Callable[[ir.Model, IOSpec], int]


DEFAULT_RULES: tuple[Rule, ...] = (
    Rule("inline functions", inline_functions.apply),
    Rule("drop weight inputs", drop_weight_inputs.apply),
    Rule("name uniquely", name_uniquely.apply),
    Rule("lift constants", lift_constants.apply),
    Rule("remove unused", remove_unused.apply),
    Rule("infer shapes", infer_shapes.apply),
    Rule("fold constants", fold_constants.apply),
    Rule("remove identities", remove_identities.apply),
    Rule("fold batch norm", fold_batch_norm.apply),
    Rule("fold batch norm ahead", fold_batch_norm_ahead.apply),
    Rule("fold shapes", fold_shapes.apply),
    Rule("fold branches", fold_branches.apply),
    Rule("drop zero states", drop_zero_states.apply),
    Rule("fold weights", fold_weights.apply),
    Rule("read masks directly", read_masks_directly.apply),
    Rule("drop NaN guards", drop_nan_guards.apply),
    Rule("unpack projections", unpack_projections.apply),
    Rule("sink layout", sink_layout.apply),
    Rule("simplify layout", simplify_layout.apply),
    Rule("reduce in place", reduce_in_place.apply),
    Rule("simplify layout", simplify_layout.apply),
    Rule("merge duplicates", merge_duplicates.apply),
    Rule("lift constants", lift_constants.apply),
    Rule("remove unused", remove_unused.apply),
    Rule("serve outputs", serve_outputs.apply),
    Rule("infer shapes", infer_shapes.apply),
    Rule("clean metadata", clean_metadata.apply),
    Rule("name uniquely", name_uniquely.apply),
)


def rewrite(
    graph: ExportedGraph, rules: tuple[Rule, ...] = DEFAULT_RULES
) -> tuple[ExportedGraph, tuple[str, ...]]:
    """Returns a simplified copy of `graph`, and what was done to it.

    Results stay the same up to the rounding of folded batch norms and of constants that are now computed here
    and not by the runtime. Weights are shared with `graph` unless a rule changed them.

    Args:
        graph: The exported graph; it is left as it is.
        rules: What to apply, in order.

    Returns:
        The new graph and one line per rule that changed something, for example `"fold batch norm: 12"`.
    """
    model = graph.model.clone()
    counts: dict[str, int] = {}
    for rule in rules:
        count = rule.apply(model, graph.io)
        if count:
            counts[rule.name] = counts.get(rule.name, 0) + count
        _check_signature(rule, model, graph.io)
    return replace(graph, model=model), tuple(f"{name}: {count}" for name, count in counts.items())


def _check_signature(rule: Rule, model: ir.Model, io: IOSpec) -> None:
    outputs = [v.name for v in model.graph.outputs]
    inputs = {v.name for v in model.graph.inputs}
    if outputs != [o.name for o in io.outputs] or not inputs >= {i.name for i in io.inputs}:
        raise RuntimeError(
            f"rewrite rule '{rule.name}' changed the signature to {sorted(map(str, inputs))} -> {outputs}"
        )
