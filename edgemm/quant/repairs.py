"""Ways to lose less in int8 before a layer is given up: each a proposal to be measured, and kept if it pays.

    smooth             outlier channels of a product's input move into its weights
    equalize           channels of convolution chains get equal shares of their scale
    equalize-joins     branches of a Concat get equal shares of their scale
    correct-bias       mean errors are taken off the biases
    round              weights are rounded for the layer's output

All of them change weights and ranges only: no node is added, removed or renamed. The first three leave the float
answers as they are, up to rounding. The last two make weights that are right for this plan's int8 nodes only.
They can be chained: ask again with what a proposal gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgemm.data import Samples
from edgemm.errors import QuantizationError, did_you_mean
from edgemm.partition import StageGraph
from edgemm.quant.correct import correct_biases
from edgemm.quant.equalize import equalize, equalize_branches
from edgemm.quant.fold import Folder, Tensor, with_stage_weights
from edgemm.quant.joins import MIN_BITS, SCALES, join_scales
from edgemm.quant.plan import FLOAT, Decision, QuantPlan
from edgemm.quant.rounding import round_weights
from edgemm.quant.smooth import smooth
from edgemm.quant.stats import recalibrate
from edgemm.quant.table import CalibrationTable
from edgemm.quant.tensors import named_nodes
from edgemm.tensors import IOSpec

REPAIRS = "repairs"
"""The option of a decision that lists what was done for its node."""

EXACT = ("smooth", "equalize", "equalize-joins")
"""Those that leave the float answers as they are: factors move from one weight into another."""

Node = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Repair:
    """A plan with repaired weights, ready for `apply_plan`.

    Attributes:
        name: A key of `METHODS`.
        stage_graph: The float stages with new weights.
        table: Ranges for them.
        plan: The given plan; the decisions of repaired nodes say so in options and reason.
        weights: Initializer name -> new array; `fold.with_weights` takes them over into the model in one piece.
        nodes: What was repaired.
        exact: Whether the float answers stay.
    """

    name: str
    stage_graph: StageGraph
    table: CalibrationTable
    plan: QuantPlan
    weights: Mapping[str, np.ndarray]
    nodes: tuple[Node, ...]
    exact: bool


@dataclass(frozen=True, slots=True)
class _Job:
    folder: Folder
    table: CalibrationTable
    plan: QuantPlan
    samples: Samples


def repairs(
    stage_graph: StageGraph,
    table: CalibrationTable,
    plan: QuantPlan,
    samples: Samples,
    io: IOSpec,
    names: Iterable[str] | None = None,
) -> list[Repair]:
    """Returns what could make `plan` more exact, each on its own; repairs that find nothing to do are left out.

    Args:
        stage_graph: The float stages that the plan is for.
        table: Their ranges.
        plan: Which nodes are quantized.
        samples: The calibration samples.
        io: The model's signature.
        names: Which of `METHODS`, in this order; all of them by default.

    Raises:
        QuantizationError: There is no such repair.
        BackendError: ONNX Runtime fails in a stage.
    """
    result = []
    for name in METHODS if names is None else names:
        if name not in METHODS:
            raise QuantizationError(
                f"no repair '{name}' (repairs: {', '.join(METHODS)}).",
                hint=did_you_mean(name, METHODS, "leave it out"),
            )
        folder = Folder(stage_graph, io)
        notes = METHODS[name](_Job(folder, table, plan, samples))
        if not notes or not folder.weights:
            continue
        stages = with_stage_weights(stage_graph, folder.weights)
        ranges = recalibrate(stages, io, samples, table, folder.moved) if folder.moved else table
        marked = _marked(plan, name, notes)
        if name == "equalize-joins":
            marked = _shared_again(marked, stages, ranges)
        result.append(Repair(name, stages, ranges, marked, dict(folder.weights), tuple(notes), name in EXACT))
    return result


def _readers(folder: Folder, plan: QuantPlan, notes: Mapping[Tensor, str]) -> dict[Node, str]:
    """Returns the notes on tensors as notes on the quantized nodes that read them."""
    names = {
        (s.name, id(node)): name
        for s in folder.stage_graph.stages
        for name, node in named_nodes(s.model.graph).items()
    }
    planned = {(d.stage, d.node) for d in plan.decisions if d.precision != FLOAT}
    result = {}
    for tensor, note in notes.items():
        for stage, node, _ in folder.readers(tensor) or []:
            key = stage, names[stage, id(node)]
            if key in planned:
                result[key] = note
    return result


def _smooth(job: _Job) -> dict[Node, str]:
    moved = smooth(job.folder, job.plan, job.samples)
    notes = {
        t: f"outliers moved into the weights (strength {a:g}, expected noise {r:.2g} ×)"
        for t, (a, r) in moved.items()
    }
    return _readers(job.folder, job.plan, notes)


def _equalize(job: _Job) -> dict[Node, str]:
    moved = equalize(job.folder, job.plan, job.samples)
    notes = {
        t: f"input channels equalised (strength {a:g}, expected noise {r:.2g} ×)" for t, (a, r) in moved.items()
    }
    return _readers(job.folder, job.plan, notes)


def _equalize_joins(job: _Job) -> dict[Node, str]:
    moved = equalize_branches(job.folder, join_scales(job.folder.stage_graph, job.table))
    notes = {t: f"branches multiplied by {', '.join(f'{g:.3g}' for g in gains)}" for t, gains in moved.items()}
    return _readers(job.folder, job.plan, notes)


def _correct(job: _Job) -> dict[Node, str]:
    found = correct_biases(job.folder, job.plan, job.table, job.samples)
    return {n: f"bias corrected by up to {share:.2g} of the largest" for n, share in found.items()}


def _round(job: _Job) -> dict[Node, str]:
    found = round_weights(job.folder, job.plan, job.table, job.samples)
    return {n: f"weights rounded for the output (error power {ratio:.2g} ×)" for n, ratio in found.items()}


METHODS: dict[str, Callable[[_Job], dict[Node, str]]] = {
    "smooth": _smooth,
    "equalize": _equalize,
    "equalize-joins": _equalize_joins,
    "correct-bias": _correct,
    "round": _round,
}


def _marked(plan: QuantPlan, name: str, notes: Mapping[Node, str]) -> QuantPlan:
    def mark(decision: Decision) -> Decision:
        note = notes.get((decision.stage, decision.node))
        if note is None:
            return decision
        done = [*decision.options.get(REPAIRS, []), name]
        return replace(decision, options={**decision.options, REPAIRS: done}, reason=f"{decision.reason}; {note}")

    return replace(plan, decisions=tuple(mark(d) for d in plan.decisions))


def _shared_again(plan: QuantPlan, stages: StageGraph, table: CalibrationTable) -> QuantPlan:
    """Takes the separate scales off readers of joins whose branches now have enough bits in a shared one."""
    enough = {(j.stage, r) for j in join_scales(stages, table) if j.bits >= MIN_BITS for r in j.readers}

    def share(decision: Decision) -> Decision:
        if (decision.stage, decision.node) not in enough or SCALES not in decision.options:
            return decision
        return replace(decision, options={k: v for k, v in decision.options.items() if k != SCALES})

    return replace(plan, decisions=tuple(share(d) for d in plan.decisions))
