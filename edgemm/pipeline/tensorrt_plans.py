"""Plans for TensorRT that are within the budget: int8 with half, then with fewer int8 nodes, then half alone.

Where fp8 or int4 weights are demanded they take the place of int8.

Accuracy is that of rehearsals of the planned graphs (`quant.tensorrt.rehearse`) on ONNX Runtime's CPU provider.
Nothing is timed: the order is by what is int8, and which groups go back to half precision is decided by the error
that each causes, against what a cost model says that it saves. A few plans with whole stages in half precision are
scored before anything else, so that the time limit does not end the search without one.

bf16 is not proposed: ONNX Runtime has no CPU kernels for it, so nothing would say what it costs. What fp16 cannot
hold stays float32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import onnx_ir as ir

from edgemm.data import Samples
from edgemm.partition import Stage, StageGraph
from edgemm.pipeline.evidence import calibrate, search_measure
from edgemm.pipeline.forms import limits_of
from edgemm.pipeline.progress import Clock, Progress
from edgemm.pipeline.silence import Silence
from edgemm.pipeline.splits import Splits
from edgemm.quant.cache import key_of
from edgemm.quant.chain import OpenStage
from edgemm.quant.coarse import coarse_points
from edgemm.quant.groups import Group, group_nodes
from edgemm.quant.measure import ChainMeasure
from edgemm.quant.plan import FLOAT, HALF, QuantPlan
from edgemm.quant.ruled import Node, Ruled, find_ruled
from edgemm.quant.search import Accuracy, Limits, Point, SearchResult, search
from edgemm.quant.table import CalibrationTable
from edgemm.quant.tensorrt.apply import apply_tensorrt
from edgemm.quant.tensorrt.cost import savings
from edgemm.quant.tensorrt.formats import BY_NAME, FORMATS, Format
from edgemm.quant.tensorrt.placement import plan_half, plan_tensorrt, tensors_to_watch
from edgemm.quant.tensorrt.rehearse import rehearse
from edgemm.recipe import Recipe
from edgemm.tensors import IOSpec

MILDER = 3
"""Plans with fewer quantized nodes that are tried after the one that the rules make."""


@dataclass(frozen=True, slots=True)
class TrtProposal:
    """A plan that may ship.

    Attributes:
        precision: `"int8"`, `"fp8"` or `"int4"` (the rest is half), `"fp16"` or `"fp32"`.
        plan: The decisions; None is plain float32.
        table: What the plan is applied with; None for plain float32.
        objection: Why it is not worth building, or None.
        which: Which of several plans of its precision it is, in words.
    """

    precision: str
    plan: QuantPlan | None = None
    table: CalibrationTable | None = None
    objection: str | None = None
    which: str = ""


class SimulatedMeasure(ChainMeasure):
    """Accuracy of plans for TensorRT, simulated on the CPU."""

    __slots__ = ()

    def applied(self, stage: Stage, plan: QuantPlan) -> ir.Model:
        """Returns the graph of a stage under a plan, made quick for a CPU."""
        return rehearse(apply_tensorrt(stage, plan, self.table))

    def opened(self, name: str, model: ir.Model) -> OpenStage:
        """Returns a session that computes every node as it is written."""
        return OpenStage.open(name, model, as_written=True)

    def milliseconds(self, plan: QuantPlan, other: QuantPlan, stage: str) -> tuple[float, float]:
        """Returns no numbers: nothing is timed without the GPU."""
        return math.nan, math.nan

    def context(self) -> str:
        """Returns a digest of everything but the plan that accuracy depends on."""
        return key_of("tensorrt", ChainMeasure.context(self))


@dataclass
class TrtPlans:
    """Makes the plans of one model, each once, for however many targets.

    Attributes:
        recipe: What the user wants.
        stages: The float stages.
        io: The model's signature.
        splits: The samples; calibration and search ones are there.
        progress: Told about every step.
        clock: Seconds by step.
        given: The user's own plan, or None.
        result: What the search found, where there was one.
        groups: What it decided about.
        notes: What the calibration data lacks.
    """

    recipe: Recipe
    stages: StageGraph
    io: IOSpec
    splits: Splits
    progress: Progress
    clock: Clock
    given: QuantPlan | None = None
    result: SearchResult | None = None
    groups: tuple[Group, ...] = ()
    notes: list[str] = field(default_factory=list)
    _quantized: dict[tuple[str, str], list[TrtProposal]] = field(default_factory=dict)
    _searched: set[tuple[str, str]] = field(default_factory=set)
    _halves: dict[str, TrtProposal] = field(default_factory=dict)

    def proposals(self, half: str | None, low: Format | None) -> Iterator[TrtProposal]:
        """Yields plans with a low precision, then half precision alone; those over the budget with a reason.

        Args:
            half: Half precision that the target has, or None.
            low: Low precision that may be used and that it has, or None.
        """
        wanted = self.recipe.quantize.precision
        if self.given is not None:
            yield self._known(self.given)
            return
        if low is not None and wanted in ("auto", *BY_NAME):
            key = low.precision, half or FLOAT
            if key not in self._quantized:
                self._quantized[key] = [self._by_rules(half, low)]
            known = self._quantized[key]
            yield known[0]
            if known[0].plan is not None and key not in self._searched:
                self._searched.add(key)
                known += self._milder(half, low, known[0])
            yield from known[1:]
        if half is not None and wanted in ("auto", HALF):
            if half not in self._halves:
                self._halves[half] = self._half_alone(half)
            yield self._halves[half]

    # -- the plans -------------------------------------------------------------------------------------------

    def _known(self, plan: QuantPlan) -> TrtProposal:
        kinds = {d.precision for d in plan.decisions}
        low = next((f.name for p, f in FORMATS.items() if p in kinds), None)
        return self._scored(low or (HALF if HALF in kinds else FLOAT), plan)

    def _by_rules(self, half: str | None, low: Format) -> TrtProposal:
        """Returns the plan with everything quantized that the placement rules would have so."""
        plan = self._planned(half, low.precision, {})
        if low.precision in plan.counts():
            return replace(self._scored(low.name, plan), which="the plan by the rules")
        reasons = dict.fromkeys(f"{d.op} {d.node}: {d.reason}" for d in plan.decisions if d.rule not in _OTHER)
        text = "; ".join(list(reasons)[:3]) + ("; ..." if len(reasons) > 3 else "")
        text = text or f"no {'Gemm' if low.weights_only else 'Conv, Gemm'} or MatMul gains from it"
        return TrtProposal(low.name, objection=f"nothing is {low.name}: {text}")

    def _planned(self, half: str | None, low: str, no_low: Mapping[Node, tuple[str, str]]) -> QuantPlan:
        """Returns the plan by the placement rules and the recipe's; nodes of `no_low` are not quantized."""
        mine = self.ruled
        no_low = {**no_low, **mine.of(HALF)}
        plan = plan_tensorrt(self.stages, self.table, half, low=low, keep_float=mine.of(FLOAT), no_low=no_low)
        return mine.marked(plan)

    @cached_property
    def ruled(self) -> Ruled:
        """What the recipe's rules decide."""
        return find_ruled(self.recipe.quantize.rules, self.stages)

    def _milder(self, half: str | None, low: Format, first: TrtProposal) -> list[TrtProposal]:
        """Returns plans with fewer quantized nodes that are within the budget, those with most of them first."""
        assert first.plan is not None
        kind = low.precision
        options = {(d.stage, d.node): (kind, FLOAT) for d in first.plan.decisions if d.precision == kind}
        groups = group_nodes(self.stages, options)
        limits = replace(self._limits, modelled=savings(self.stages, groups))

        def bar(done: int, total: int) -> None:
            self.progress.bar("search", done, total)

        def plan_of(setting: Mapping[str, str], why: Mapping[str, tuple[str, str]]) -> QuantPlan:
            gone = {
                (g.stage, node): why.get(g.name, ("accuracy-budget", f"{half or FLOAT} keeps the budget"))
                for g in groups
                if g.name not in setting
                for node in g.nodes
            }
            return self._planned(half, kind, gone)

        start = {g.name: kind for g in groups}
        with self.clock("search"):
            began = time.monotonic()
            early = coarse_points(groups, start, plan_of, self._measure, limits, began)
            result = search(groups, start, plan_of, self._measure, limits, progress=bar, began=began)
        result = _with_points(result, early)
        self.result, self.groups = result, groups
        for step in result.steps:
            self.progress.step("search", step)
        fitting = [p for p in result.points if p.fits and kind in p.plan.counts() and p.setting != start]
        self.progress.step(
            "search",
            f"{len(result.points)} plans scored for TensorRT, {len(fitting)} milder ones within the budget",
        )
        return [
            TrtProposal(low.name, self._with_costs(p, groups), self.table, which=f"milder plan {number}")
            for number, p in enumerate(fitting[:MILDER], 1)
        ]

    def _with_costs(self, point: Point, groups: tuple[Group, ...]) -> QuantPlan:
        assert self.result is not None
        cost = {(g.stage, node): self.result.cost.get(g.name) for g in groups for node in g.nodes}
        decisions = tuple(replace(d, cost=cost.get((d.stage, d.node))) for d in point.plan.decisions)
        return replace(point.plan, decisions=decisions)

    def _half_alone(self, half: str) -> TrtProposal:
        plan = self.ruled.marked(plan_half(self.stages, self.table, half, self.ruled.of(FLOAT)))
        if half not in plan.counts():
            reasons = dict.fromkeys(d.reason for d in plan.decisions if d.rule == "overflow")
            text = "; ".join(list(reasons)[:2]) or "no node has it"
            return TrtProposal(half, objection=f"nothing is {half}: {text}")
        return self._scored(half, plan)

    def _scored(self, precision: str, plan: QuantPlan) -> TrtProposal:
        """Returns the proposal of a plan, with what the search samples say against it."""
        self.progress.status("search", f"{precision} on {len(self._search)} samples, simulated")
        with self.clock("search"):
            accuracy = self._measure.accuracy(plan)
            error = self._measure.output_error(plan) if self._limits.output_error is not None else 0.0
        objection = _over(accuracy, error, self._limits, len(self._search))
        return TrtProposal(precision, plan, self.table, objection)

    # -- what they rest on -----------------------------------------------------------------------------------

    @cached_property
    def silence(self) -> Silence:
        """What a silent modality looks like."""
        assert self.splits.calibration is not None
        return Silence(self.recipe, self.io, self.splits.calibration)

    @cached_property
    def table(self) -> CalibrationTable:
        """Ranges and peaks of every float tensor; the samples are run when it is first asked for."""
        with self.clock("calibrate"):
            table, lacking = calibrate(
                self.stages, self.silence, self.progress, "for TensorRT: ", tensors_to_watch
            )
        self.notes += lacking
        return table

    @property
    def _search(self) -> Samples:
        assert self.splits.search is not None
        return self.splits.search

    @property
    def _limits(self) -> Limits:
        return replace(limits_of(self.recipe, self.io), timed=False)

    @cached_property
    def _measure(self) -> SimulatedMeasure:
        return search_measure(SimulatedMeasure, self.stages, self.table, self.splits, self.silence)

    def rest(self) -> None:
        """Closes every session."""
        if "_measure" in self.__dict__:
            self._measure.rest()


_OTHER = ("half", "no-half", "overflow", "geometry")


def _with_points(result: SearchResult, early: Sequence[Point]) -> SearchResult:
    """Returns the result with plans that were scored before, those with most groups first."""
    known = [p.setting for p in result.points]
    points = [*result.points, *(p for p in early if p.setting not in known)]
    return replace(result, points=tuple(sorted(points, key=lambda p: -len(p.setting))))


def _over(accuracy: Accuracy, error: float, limits: Limits, count: int) -> str | None:
    """Returns what search samples say against a plan, or None."""
    if not accuracy.within(limits.drop):
        worst = max(accuracy.blank.items(), key=lambda item: item[1], default=("", 0.0))
        blank = f" with {worst[0]} blank" if accuracy.blank and worst[1] > accuracy.drop else ""
        few = f"; one sample is {1 / count:.2g}: give more" if accuracy.worst * count < 5 else ""
        drops = f"the metric drops by {accuracy.worst:.4g} on {count} search samples{blank}"
        return f"{drops}, budget {limits.drop:.4g}{few}"
    if limits.output_error is not None and error > limits.output_error:
        return f"the output error of {error:.3g} feeds back through the state, limit {limits.output_error:.3g}"
    return None
