"""Scales where branches meet: one for all of them, or one each.

A tensor has one scale. Behind a Concat or an Add that is a scale which branches share, and a branch that is small
beside the others gets few of its 256 levels:

    effective bits of a branch = log2(256 · range of the branch / shared range)

From `MIN_BITS` on the branches share the scale. Below, a MatMul or Gemm behind a Concat is split by branch, which
is exact in float and gives every branch a scale of its own (`split`); any other reader stays float. Where the
ratio can be folded into weights on both sides, `equalize` makes the shared scale good enough for nothing.
An attention join has two activations as operands and stays float; each has its own scale in front.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgemm.partition import Stage, StageGraph
from edgemm.quant.kernels import Verdict, verdict
from edgemm.quant.plan import FLOAT, INT8, Decision
from edgemm.quant.split import branch_sizes
from edgemm.quant.table import CalibrationTable
from edgemm.quant.tensors import JOINS, MOVES, constant_array, named_nodes, table_key

MIN_BITS = 6.0
"""Fewer effective bits than this are a reason for scales of their own, and for a warning."""

Rule = Callable[[ir.Node], "Verdict | None"]
"""What a node can be on a target."""

SCALES, SEPARATE, SHARED = "scales", "separate", "shared"
"""The option of a decision and its values: does a node that reads a Concat have one input scale per branch?"""


@dataclass(frozen=True, slots=True)
class Branch:
    """One input of a join.

    Attributes:
        tensor: Its name in the stage's graph.
        source: The stages or inputs that it comes from, for people.
        width: Its calibrated range, high − low.
        bits: What it has left of 8 bits in a scale for all branches.
    """

    tensor: str
    source: str
    width: float
    bits: float


@dataclass(frozen=True, slots=True)
class JoinScales:
    """A Concat or Add of branches, with what a shared scale would leave of each.

    Attributes:
        stage: Name of the stage.
        node: Name of the join in the stage's graph.
        op: `"Concat"` or `"Add"`.
        width: The shared range.
        branches: In the order of the inputs.
        readers: Int8 nodes that would read all branches with one scale.
        separable: Those of them that can have one scale per branch.
    """

    stage: str
    node: str
    op: str
    width: float
    branches: tuple[Branch, ...]
    readers: tuple[str, ...]
    separable: tuple[str, ...]

    @property
    def bits(self) -> float:
        """Effective bits of the branch that has the fewest."""
        return min(b.bits for b in self.branches)

    def text(self) -> str:
        """Returns the numbers in words: who has how many bits, and the ratio of the ranges."""
        shares = ", ".join(f"{b.source} {b.bits:.1f}" for b in self.branches)
        widths = [b.width for b in self.branches]
        ratio = max(widths) / max(min(widths), 1e-30)
        return f"effective bits with a shared scale: {shares} (ranges differ {ratio:.3g} ×)"


def join_scales(stage_graph: StageGraph, table: CalibrationTable, rule: Rule = verdict) -> tuple[JoinScales, ...]:
    """Returns every Concat and Add of branches in front of int8 nodes whose branches have calibrated ranges.

    Args:
        stage_graph: The float stages.
        table: Ranges.
        rule: What a node can be on the target.
    """
    made_by = {(e.consumer, e.tensor): e.producer for e in stage_graph.edges}
    result = []
    for stage in stage_graph.stages:
        reached = _reached(stage)
        for name, node, readers in _joins_in(stage, reached, rule):
            found = [table.ranges.get(table_key(stage.name, str(v.name))) for v in node.inputs if v is not None]
            known = [r for r in found if r is not None and r.high > r.low]
            if len(known) != len(node.inputs):
                continue
            width = max(r.high for r in known) - min(r.low for r in known)
            branches = []
            for value, r in zip(node.inputs, known, strict=True):
                assert value is not None
                inputs = sorted(reached.get(value, frozenset()))
                source = "+".join(dict.fromkeys(made_by.get((stage.name, i), i) for i in inputs)) or "a constant"
                share = (r.high - r.low) / width
                branches.append(Branch(str(value.name), source, r.high - r.low, 8 + math.log2(share)))
            able = tuple(n for n, reader in readers.items() if branch_sizes(reader) is not None)
            result.append(JoinScales(stage.name, name, node.op_type, width, tuple(branches), tuple(readers), able))
    return tuple(result)


def join_tensors(stage: Stage) -> list[str]:
    """Returns the tensors whose ranges `join_scales` needs."""
    return [
        str(v.name)
        for _, node, _ in _joins_in(stage, _reached(stage), verdict)
        for v in node.inputs
        if v is not None
    ]


def join_warnings(stage_graph: StageGraph, table: CalibrationTable) -> list[str]:
    """Returns a sentence for every branch that a shared scale would leave fewer than `MIN_BITS` bits."""
    result = []
    for join in join_scales(stage_graph, table):
        largest = max(join.branches, key=lambda b: b.width)
        for branch in join.branches:
            if branch.bits < MIN_BITS:
                what = "gets a scale of its own" if join.separable == join.readers else "stays float"
                result.append(
                    f"{join.stage}, {join.op} '{join.node}': {branch.source} ('{branch.tensor}') would keep "
                    f"{branch.bits:.1f} of 8 bits in a scale shared with {largest.source}: its range is "
                    f"{branch.width:.3g}, that of '{largest.tensor}' {largest.width:.3g}; it {what}."
                )
    return result


def decide_scales(
    joins: tuple[JoinScales, ...], decisions: Mapping[str, Decision], fixed: frozenset[str]
) -> dict[str, Decision]:
    """Returns the decisions of int8 readers that change because of the scales of their branches.

    Args:
        joins: Of one stage.
        decisions: That stage's decisions by node.
        fixed: Nodes whose precision somebody chose: they do not turn float.
    """
    changed: dict[str, Decision] = {}
    for join in joins:
        if join.bits >= MIN_BITS:
            continue
        for name in join.readers:
            decision = decisions[name]
            if decision.precision != INT8:
                continue
            if name in join.separable:
                changed[name] = replace(
                    decision,
                    options={**decision.options, SCALES: SEPARATE},
                    reason=f"{decision.reason}; one input scale per branch of '{join.node}'",
                )
            elif name not in fixed:
                changed[name] = replace(decision, precision=FLOAT, rule="join-bits", reason=join.text())
    return changed


def explain_joins(
    stage_graph: StageGraph, stage: Stage, joins: tuple[JoinScales, ...], decisions: Mapping[str, Decision]
) -> list[Decision]:
    """Returns decisions that say how the branches of a stage's joins are scaled; they change no precision."""
    result = []
    scaled = {j.node: j for j in joins}
    for join in joins:
        readers = [decisions[n] for n in join.readers if decisions[n].precision == INT8]
        floats = any(decisions[n].rule == "join-bits" for n in join.readers)
        if join.node in decisions or not (readers or floats):
            continue
        separate = any(d.options.get(SCALES) == SEPARATE for d in readers)
        rule = "separate-scales" if separate else "join-float" if floats and not readers else "shared-scale"
        result.append(Decision(join.node, join.op, stage.name, FLOAT, rule, join.text()))
    for meeting in stage_graph.joins:
        if meeting.stage == stage.name and meeting.kind == "attention" and meeting.node not in scaled:
            old = decisions.get(meeting.node)
            if old is not None and old.rule == "no-constant-weight":
                sources = " and ".join(meeting.sources)
                reason = f"product of activations of {sources}; each has its own scale in front, this stays float"
                result.append(replace(old, rule="attention-join", reason=reason))
    return result


def _joins_in(
    stage: Stage, reached: Mapping[ir.Value, frozenset[str]], rule: Rule
) -> Iterator[tuple[str, ir.Node, dict[str, ir.Node]]]:
    names = {node: name for name, node in named_nodes(stage.model.graph).items()}
    for node, name in names.items():
        if node.op_type not in JOINS or node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
            continue
        if any(v is None or constant_array(v) is not None for v in node.inputs):
            continue
        if node.op_type == "Add" and len({reached.get(v, frozenset()) for v in node.inputs if v is not None}) == 1:
            continue  # a residual: both sides are the same branch
        readers = {names[r]: r for r in _readers(node.outputs[0], names, rule)}
        if readers:
            yield name, node, readers


def _readers(value: ir.Value, names: Mapping[ir.Node, str], rule: Rule) -> list[ir.Node]:
    """The nodes with an int8 kernel that read `value` with its scale, through nodes that only move values."""
    result = []
    for user, index in value.uses():
        if index == 0 and user in names:
            found = rule(user)
            if found is not None and INT8 in found.kernels:
                result.append(user)
            elif user.op_type in (*MOVES, "Relu"):
                result += _readers(user.outputs[0], names, rule)
    return result


def _reached(stage: Stage) -> dict[ir.Value, frozenset[str]]:
    """Returns for every value the inputs of the stage that it depends on."""
    result: dict[ir.Value, frozenset[str]] = {v: frozenset([str(v.name)]) for v in stage.model.graph.inputs}
    for node in stage.model.graph:
        found = frozenset[str]().union(*(result.get(v, frozenset()) for v in node.inputs if v is not None))
        result |= dict.fromkeys(node.outputs, found)
    return result
