"""Tries repairs on a plan that misses the budget, one after the other, and keeps those that pay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from edgemm.data import Samples
from edgemm.partition import StageGraph
from edgemm.quant.measure import ChainMeasure
from edgemm.quant.plan import FLOAT, QuantPlan
from edgemm.quant.repairs import METHODS, REPAIRS, repairs
from edgemm.quant.table import CalibrationTable
from edgemm.quant.tensors import constant_array, named_nodes
from edgemm.tensors import IOSpec

PAYS = 0.95
"""Output error after a repair over that before it which counts as a gain."""


MOST_ROUNDED = 2_000_000
"""Integer weights beyond which rounding is left out: its time grows with the cube of a side."""


@dataclass(frozen=True, slots=True)
class Mended:
    """A plan with what its repairs changed.

    Attributes:
        plan: Its decisions name the repairs.
        stages: The float stages with new weights.
        table: Ranges for them.
        weights: Initializer name -> new array.
        steps: What was kept, one sentence each.
    """

    plan: QuantPlan
    stages: StageGraph
    table: CalibrationTable
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    steps: tuple[str, ...] = ()


def mend(
    plan: QuantPlan, measure: ChainMeasure, samples: Samples, io: IOSpec, late: Callable[[], bool]
) -> Mended | None:
    """Returns the plan with every repair that made the output error smaller, or None when none did.

    Args:
        plan: Which nodes are integer.
        measure: Of the plan as it is, on the search samples.
        samples: The calibration samples.
        io: The model's signature.
        late: Asked before every repair; True ends it.
    """
    state = Mended(plan, measure.stage_graph, measure.table)
    error = measure.output_error(plan)
    for name in METHODS:
        if late():
            break
        if name == "round" and _integer_weights(state) > MOST_ROUNDED:
            continue
        found = _apply(state, name, samples, io)
        if found is None:
            continue
        after = on_mended(measure, found).output_error(found.plan)
        if after < PAYS * error:
            text = f"{name}: output error {error:.3g} → {after:.3g}"
            error, state = after, replace(found, steps=(*state.steps, text))
    return state if state.steps else None


def redo(plan: QuantPlan, stages: StageGraph, table: CalibrationTable, samples: Samples, io: IOSpec) -> Mended:
    """Returns a saved plan with the repairs that its decisions name, made again in their order."""
    named = [name for d in plan.decisions for name in d.options.get(REPAIRS, [])]
    bare = tuple(replace(d, options={k: v for k, v in d.options.items() if k != REPAIRS}) for d in plan.decisions)
    state = Mended(replace(plan, decisions=bare), stages, table)
    for name in (n for n in METHODS if n in named):
        state = _apply(state, name, samples, io) or state
    return state


def on_mended(measure: ChainMeasure, mended: Mended) -> ChainMeasure:
    """Returns `measure` for mended weights, against the float model as it was."""
    return replace(
        measure,
        stage_graph=mended.stages,
        table=mended.table,
        reference=measure.reference or measure.stage_graph,
        _open={},
        _sizes={},
        _context="",
    )


def _integer_weights(state: Mended) -> int:
    """Returns how many weights the plan makes integer."""
    total = 0
    for stage in state.stages.stages:
        nodes = named_nodes(stage.model.graph)
        for decision in state.plan.stage(stage.name):
            if decision.precision != FLOAT and decision.node in nodes:
                arrays = [constant_array(v) for v in nodes[decision.node].inputs]
                total += max((a.size for a in arrays if a is not None), default=0)
    return total


def _apply(state: Mended, name: str, samples: Samples, io: IOSpec) -> Mended | None:
    proposals = repairs(state.stages, state.table, state.plan, samples, io, [name])
    if not proposals:
        return None
    repair = proposals[0]
    weights = {**state.weights, **repair.weights}
    return Mended(repair.plan, repair.stage_graph, repair.table, weights, state.steps)
