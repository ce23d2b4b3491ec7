"""From a plan by rules to one that pays: stages that int8 makes slower, or too inexact, go back to float.

Greedy, bounded and deterministic for equal measurements:

1. A stage whose int8 is not faster than its float on this machine is tried with one kind of operator int8 only
   (all but Conv, all but MatMul, ...), and otherwise goes back to float.
2. While the metric drops by more than the budget, the most damaging stage (leave one out) is turned: first the
   part of it (an operator kind, its first or last layer, its first or second half) whose return to float leaves
   the smallest output error, and if that is not enough, all of it.

Every return is a decision with its rule and reason, so the plan explains itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from edgemm.partition import StageGraph
from edgemm.quant.placement import plan_quantization
from edgemm.quant.plan import INT8, Decision, QuantPlan
from edgemm.quant.table import CalibrationTable
from edgemm.quant.tensors import WEIGHTED

FASTER = 0.98
"""Int8 time over float time that counts as faster; closer to 1 is noise."""

SLOWER, BUDGET = "slower-than-float", "accuracy-budget"

Node = tuple[str, str]
"""Stage name, node name."""


@dataclass(frozen=True, slots=True)
class StageLatency:
    """Median latency of one stage, both measured in one interleaved run, in milliseconds."""

    float_ms: float
    int8_ms: float

    @property
    def ratio(self) -> float:
        """Int8 time over float time."""
        return self.int8_ms / self.float_ms if self.float_ms > 0 else math.inf


class Measure(Protocol):
    """What the search asks of the machine; `edgemm.quant.measure.ChainMeasure` answers with ONNX Runtime."""

    def latency(self, plan: QuantPlan, stages: Iterable[str]) -> Mapping[str, StageLatency]:
        """Returns the latency of each of `stages`, float against planned."""
        ...

    def drop(self, plan: QuantPlan) -> float:
        """Returns how much worse the metric is than float on the search samples; NaN counts as unusable."""
        ...

    def output_error(self, plan: QuantPlan) -> float:
        """Returns the largest difference from the float outputs over samples, relative to each output's scale."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plan must keep to.

    Attributes:
        drop: Largest drop of the metric.
        output_error: Largest output error, or None for no limit. Models with a state need one: a metric over
            many samples hides a single one that ran away.
        evaluations: How many times `Measure.drop` may be asked.
        slower: True lets int8 be slower than float; then nothing is timed, and equal inputs give equal plans.
    """

    drop: float = 0.01
    output_error: float | None = None
    evaluations: int = 40
    slower: bool = False


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The plan that is left, and what it measured on the search samples.

    Attributes:
        plan: May have nothing int8 left.
        drop: Of the metric, against float.
        max_output_error: Largest difference of an output element in any sample, relative to the output's scale.
        latency: Stage -> latency, for the stages that were measured in their final form.
        evaluations: How many plans were run over the search samples.
        steps: What was done, one sentence each.
    """

    plan: QuantPlan
    drop: float
    max_output_error: float
    latency: Mapping[str, StageLatency]
    evaluations: int
    steps: tuple[str, ...]


def choose(
    stage_graph: StageGraph, table: CalibrationTable, plan: QuantPlan, measure: Measure, limits: Limits
) -> SearchResult:
    """Returns `plan` with everything turned back to float that does not pay.

    Args:
        stage_graph: The float stages.
        table: The ranges that `plan` was made from; joins are decided again when their neighbours change.
        plan: From `plan_quantization`.
        measure: Accuracy and latency on this machine, on samples that calibration and evaluation do not use.
        limits: The budget.
    """
    search = _Search(stage_graph, table, measure, limits, plan)
    if not limits.slower:
        search.keep_faster()
    search.keep_exact()
    final = search.plan
    drop, error = search.drop(final), search.error(final)
    return SearchResult(final, drop, error, dict(search.latencies), search.evaluations, tuple(search.steps))


@dataclass(slots=True)
class _Search:
    stage_graph: StageGraph
    table: CalibrationTable
    measure: Measure
    limits: Limits
    plan: QuantPlan
    kept: dict[Node, tuple[str, str]] = field(default_factory=dict)
    latencies: dict[str, StageLatency] = field(default_factory=dict)
    evaluations: int = 0
    steps: list[str] = field(default_factory=list)
    _drops: dict[frozenset[Node], float] = field(default_factory=dict)
    _errors: dict[frozenset[Node], float] = field(default_factory=dict)

    def int8_stages(self) -> list[str]:
        return list(dict.fromkeys(d.stage for d in self.plan.decisions if d.precision == INT8))

    def with_float(self, nodes: Iterable[Node], rule: str, reason: str) -> QuantPlan:
        """The current plan with these nodes float as well; joins that depended on them go along."""
        kept = self.kept | {n: (rule, reason) for n in nodes}
        return plan_quantization(self.stage_graph, self.table, self.plan.target, keep_float=self._all(kept))

    def _all(self, kept: Mapping[Node, tuple[str, str]]) -> dict[Node, tuple[str, str]]:
        """Nodes that the first plan had float for reasons of its own stay so (an edited plan, for example)."""
        given = {(d.stage, d.node): (d.rule, d.reason) for d in self.plan.decisions if d.precision != INT8}
        return given | dict(kept)

    def turn(self, nodes: Iterable[Node], rule: str, reason: str, step: str) -> None:
        nodes = list(nodes)
        self.plan = self.with_float(nodes, rule, reason)
        self.kept |= {n: (rule, reason) for n in nodes}
        self.steps.append(step)

    def weighted(self, stage: str) -> list[Decision]:
        return [d for d in self.plan.stage(stage) if d.precision == INT8 and d.op in WEIGHTED]

    # -- latency ---------------------------------------------------------------------------------------------

    def keep_faster(self) -> None:
        """Turns stages float that int8 does not make faster."""
        stages = self.int8_stages()
        if not stages:
            return
        self.latencies |= self.measure.latency(self.plan, stages)
        for stage in stages:
            latency = self.latencies[stage]
            if latency.ratio > FASTER and not self._faster_part(stage):
                self.turn_stage(stage, SLOWER, f"{latency.ratio:.2f} × the time of float")

    def _faster_part(self, stage: str) -> bool:
        """Keeps one kind of operator int8 if that alone is faster."""
        nodes = self.weighted(stage)
        kinds = sorted({d.op for d in nodes})
        if len(kinds) < 2:
            return False
        best: tuple[float, str, StageLatency, list[Node], str] | None = None
        for kind in kinds:
            others = [(stage, d.node) for d in nodes if d.op == kind]
            reason = f"with int8 {kind} the stage takes {self.latencies[stage].ratio:.2f} × the time of float"
            latency = self.measure.latency(self.with_float(others, SLOWER, reason), [stage])[stage]
            if latency.ratio <= FASTER and (best is None or latency.ratio < best[0]):
                best = latency.ratio, kind, latency, others, reason
        if best is None:
            return False
        _, kind, self.latencies[stage], others, reason = best
        self.turn(others, SLOWER, reason, f"{stage}: {kind} float, because {reason}")
        return True

    def turn_stage(self, stage: str, rule: str, reason: str) -> None:
        nodes = [(stage, d.node) for d in self.plan.stage(stage) if d.precision == INT8]
        self.turn(nodes, rule, reason, f"{stage}: float, {reason}")

    # -- accuracy --------------------------------------------------------------------------------------------

    def keep_exact(self) -> None:
        """Turns stages, or parts of them, float until the plan is within the limits."""
        while self.int8_stages() and not self.within(self.plan):
            if self.evaluations >= self.limits.evaluations:
                reason = f"no plan within the budget was found in {self.evaluations} evaluations"
                for stage in self.int8_stages():
                    self.turn_stage(stage, BUDGET, reason)
                return
            stage = self._most_damaging()
            if not self._exact_part(stage):
                self.turn_stage(stage, BUDGET, self._over(self.plan))

    def within(self, plan: QuantPlan) -> bool:
        limit = self.limits.output_error
        return self.drop(plan) <= self.limits.drop and (limit is None or self.error(plan) <= limit)

    def _over(self, plan: QuantPlan) -> str:
        drop, limit = self.drop(plan), self.limits.output_error
        if not drop <= self.limits.drop:
            return f"int8 here loses most of a drop of {drop:.4g}, budget {self.limits.drop:.4g}"
        return f"int8 here causes most of an output error of {self.error(plan):.3g}, limit {limit:.3g}"

    def _most_damaging(self) -> str:
        """The stage without which the rest drops least; ties by output error, then by order."""
        stages = self.int8_stages()
        if len(stages) == 1:
            return stages[0]
        scores = []
        for stage in stages:
            nodes = [(d.stage, d.node) for d in self.plan.stage(stage) if d.precision == INT8]
            without = self.with_float(nodes, BUDGET, "leave one out")
            scores.append((_worse(self.drop(without)), _worse(self.error(without))))
        return stages[scores.index(min(scores))]

    def _exact_part(self, stage: str) -> bool:
        """Turns the best part of a stage float, if what is left is within the limits and still faster."""
        over = self._over(self.plan)
        parts = _parts(stage, self.weighted(stage))
        ranked = sorted(
            ((_worse(self.error(self.with_float(n, BUDGET, over))), i) for i, (_, n) in enumerate(parts)),
        )
        for _, index in ranked[:2]:
            name, nodes = parts[index]
            plan = self.with_float(nodes, BUDGET, over)
            if self.evaluations < self.limits.evaluations and self.within(plan) and self._pays(plan, stage):
                self.turn(nodes, BUDGET, over, f"{stage}: {name} float, {over}")
                return True
        return False

    def _pays(self, plan: QuantPlan, stage: str) -> bool:
        """True when the stage is faster than float as planned, or need not be."""
        if self.limits.slower:
            return True
        latency = self.measure.latency(plan, [stage])[stage]
        if latency.ratio > FASTER:
            return False
        self.latencies[stage] = latency
        return True

    def drop(self, plan: QuantPlan) -> float:
        key = _int8_nodes(plan)
        if not key:
            return 0.0
        if key not in self._drops:
            self.evaluations += 1
            self._drops[key] = self.measure.drop(plan)
        return self._drops[key]

    def error(self, plan: QuantPlan) -> float:
        key = _int8_nodes(plan)
        if not key:
            return 0.0
        if key not in self._errors:
            self._errors[key] = self.measure.output_error(plan)
        return self._errors[key]


def _int8_nodes(plan: QuantPlan) -> frozenset[Node]:
    return frozenset((d.stage, d.node) for d in plan.decisions if d.precision == INT8)


def _worse(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _parts(stage: str, decisions: list[Decision]) -> list[tuple[str, list[Node]]]:
    """Parts of a stage that may go back to float without all of it: smaller ones first."""
    nodes = [(stage, d.node) for d in decisions]
    if len(nodes) < 2:
        return []
    half = len(nodes) // 2
    parts = [
        ("its first layer", nodes[:1]),
        ("its last layer", nodes[-1:]),
        ("its first half", nodes[:half]),
        ("its second half", nodes[half:]),
    ]
    kinds = sorted({d.op for d in decisions})
    if len(kinds) > 1:
        parts += [(f"every {kind}", [(stage, d.node) for d in decisions if d.op == kind]) for kind in kinds]
    unique = {frozenset(part): (name, part) for name, part in reversed(parts)}
    return sorted(unique.values(), key=lambda item: (len(item[1]), item[0]))
