"""From samples to plans worth building: calibrate, race the integer forms, search over groups of nodes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import onnx_ir as ir

from edgemm.partition import StageGraph
from edgemm.pipeline.candidates import TARGET
from edgemm.pipeline.engines import EngineKind
from edgemm.pipeline.evidence import calibrate, search_measure
from edgemm.pipeline.forms import GIVEN, by_size, limits_of, settings_of, timed
from edgemm.pipeline.judge import Judge, SizeJudge
from edgemm.pipeline.lineup import MARGIN, NONE, LineUp, anything, best_lineup, exact, race_forms
from edgemm.pipeline.mending import Mended, mend, on_mended, redo
from edgemm.pipeline.progress import Clock, Progress
from edgemm.pipeline.proposals import Proposal, Started, integer_proposals
from edgemm.pipeline.race import Track
from edgemm.pipeline.saved_plan import read_plan
from edgemm.pipeline.silence import Silence
from edgemm.pipeline.splits import Splits
from edgemm.quant.cache import key_of
from edgemm.quant.groups import Group, by_stage, choices_of, group_nodes
from edgemm.quant.measure import ChainMeasure
from edgemm.quant.placement import alternatives, plan_quantization
from edgemm.quant.plan import FLOAT, QuantPlan
from edgemm.quant.ruled import Node, Ruled, find_ruled
from edgemm.quant.search import Accuracy, Limits, Point, SearchResult, search
from edgemm.quant.table import CalibrationTable
from edgemm.recipe import Recipe
from edgemm.runtime.machine import describe_machine
from edgemm.tensors import IOSpec

SEARCHING = 0.75
"""Share of the time limit that the search has; repairs have what it leaves."""


@dataclass
class Integers:
    """Finds the plans of one model. `find` is the story; the fields below `clock` are what it came to.

    Attributes:
        recipe: What the user wants.
        stages: The float stages.
        io: The model's signature.
        splits: The samples.
        lineups: Float times of every layout; the times of integer forms are added here.
        tracks: What times a graph, by its name.
        threads: What the user asked for.
        progress: Told about every step.
        clock: Seconds by step.
        table: Ranges.
        lineup: The layout that was chosen.
        groups: What the search decides about.
        result: What it found.
        warnings: What the calibration data lacks.
        searched: Whether groups were searched over.
    """

    recipe: Recipe
    stages: StageGraph
    io: IOSpec
    splits: Splits
    lineups: Sequence[LineUp]
    tracks: Mapping[str, Track]
    threads: int
    progress: Progress
    clock: Clock
    table: CalibrationTable | None = None
    lineup: LineUp | None = None
    groups: tuple[Group, ...] = ()
    result: SearchResult | None = None
    warnings: list[str] = field(default_factory=list)
    searched: bool = False
    _by_rule: dict[Node, str] = field(default_factory=dict)
    _plans: dict[str, QuantPlan] = field(default_factory=dict)
    _started: Started = field(default_factory=lambda: Started({}))

    def find(self, float_holds: Callable[[ChainMeasure], bool]) -> list[Proposal]:
        """Returns the proposals with integers that are within the budget on the search samples.

        Args:
            float_holds: Asked where a float engine that rounds beats every integer form: whether it is within the
                budget. Then one integer plan is scored, for devices without that engine, and none searched for.

        Raises:
            QuantizationError: The plan that was given does not fit this model.
        """
        path = self.recipe.quantize.plan
        given = read_plan(path, self.stages) if path is not None else None
        with self.clock("calibrate"):
            self._calibrate()
        options = alternatives(self.stages, self._table)
        self._by_rule = self.ruled.choices(options)
        self.groups = group_nodes(self.stages, self.ruled.without(options))
        plans = self._plans = self._forms() if given is None else {GIVEN: given}
        with self.clock("race"):
            self._started = self._race(plans)
        with self.clock("search"):
            if self._beaten() and float_holds(self._measure):
                points = self._one()
                self._measure.rest()
                return points
        return self.search()

    def search(self) -> list[Proposal]:
        """Returns the proposals of the whole search; `find` may have left it out.

        Raises:
            QuantizationError: The plan that was given does not fit this model.
        """
        self.searched = True
        with self.clock("search"):
            points = self._search()
            self._measure.rest()
            return points

    def nothing(self) -> str:
        """Returns why nothing is integer."""
        given = self._plans.get(GIVEN)
        if given is not None and all(d.precision == FLOAT for d in given.decisions):
            return f"{self.recipe.quantize.plan} leaves all of its nodes float"
        if self.result is not None and self.result.best is not None:
            return "the float model is faster on this machine than every plan within the budget"
        if self.result is not None and self.result.points:
            worst = min(self.result.points, key=lambda p: p.accuracy.worst)
            assert self.splits.search is not None
            count = len(self.splits.search)
            few = worst.accuracy.worst * count < 5
            return (
                f"no plan keeps the budget of {self._limits.drop:.4g} on {count} search samples; "
                f"the closest drops by {worst.accuracy.worst:.4g}"
                + (f"; one sample is {1 / count:.2g}: give more" if few else "")
            )
        decisions = self.plan({g.name: g.guess for g in self.groups if g.guess != FLOAT}).decisions
        reasons = list(dict.fromkeys(f"{d.op} {d.node}: {d.reason}" for d in decisions if d.precision == FLOAT))
        text = "; ".join(reasons[:3]) + ("; ..." if len(reasons) > 3 else "")
        return f"nothing stays int8: {text or 'no Conv, Gemm or MatMul gains from it on this machine'}"

    def plan(self, setting: Mapping[str, str], why: Mapping[str, tuple[str, str]] | None = None) -> QuantPlan:
        """Returns the plan of a setting; `why` tells why groups are float: name -> (rule, reason)."""
        keep = {
            (g.stage, node): reason
            for g in self.groups
            if g.name not in setting and (reason := (why or {}).get(g.name)) is not None
            for node in g.nodes
        }
        keep |= self.ruled.of(FLOAT)
        choices = choices_of(self.groups, setting) | self._by_rule
        plan = plan_quantization(self.stages, self._table, TARGET, keep_float=keep, choices=choices)
        return self.ruled.marked(plan)

    @cached_property
    def ruled(self) -> Ruled:
        """What the recipe's rules decide."""
        return find_ruled(self.recipe.quantize.rules, self.stages)

    @cached_property
    def silence(self) -> Silence:
        """What a silent modality looks like."""
        assert self.splits.calibration is not None
        return Silence(self.recipe, self.io, self.splits.calibration)

    @cached_property
    def _measure(self) -> ChainMeasure:
        """Accuracy of plans on the search samples, complete and blank."""
        return search_measure(ChainMeasure, self.stages, self._table, self.splits, self.silence)

    @property
    def _table(self) -> CalibrationTable:
        assert self.table is not None
        return self.table

    @property
    def _limits(self) -> Limits:
        return limits_of(self.recipe, self.io)

    @property
    def _raced(self) -> bool:
        """Whether integer forms are timed on every engine."""
        return timed(self.recipe) and not by_size(self.recipe)

    @property
    def _forced(self) -> bool:
        """Whether a graph stays integer where its float is faster."""
        section = self.recipe.quantize
        return section.integers_demanded or section.plan is not None or by_size(self.recipe) or not self._raced

    def _calibrate(self) -> None:
        self.table, warnings = calibrate(self.stages, self.silence, self.progress)
        self.warnings += warnings
        for text in self.warnings:
            self.progress.step("note", text)

    def _forms(self) -> dict[str, QuantPlan]:
        """Returns the integer forms of the model. One that decides like an earlier one is left out."""
        forms: dict[str, QuantPlan] = {}
        settings = settings_of(self.groups, self.recipe, self._limits)
        for name, setting in settings.items():
            if (setting or self._by_rule) and all(setting != settings[other] for other in forms):
                forms[name] = self.plan(setting)
        return forms

    def _race(self, plans: Mapping[str, QuantPlan]) -> Started:
        """Times the forms, chooses the layout, and returns the form that each of its graphs starts from."""
        for lineup in self.lineups:
            judge = self._judge(lineup, {})

            def model(graph: str, form: str, judge: Judge = judge) -> ir.Model | None:
                return judge.model(plans[form], graph) if judge.integer(plans[form], graph) else None

            if self._raced:
                bar = _bar(self.progress, f"race {lineup.layout.name}")
                race_forms(lineup, self.tracks, list(plans), model, bar)
                continue
            for name, lane in lineup.lanes.items():
                kind = next(k for form, k in lane.ratios if form == NONE)
                lane.ratios |= {(f, kind): 1.0 for f in plans if judge.integer(plans[f], name)}
        lineup = self.lineup = best_lineup(self.lineups)
        if self._raced:
            self.progress.step("race", str(lineup))
        return self._start(lineup, list(plans))

    def _start(self, lineup: LineUp, forms: list[str]) -> Started:
        """Returns the integer form of every graph of a layout that is faster in integers than in exact float."""
        started = {}
        for name, lane in lineup.lanes.items():
            floating = lane.best([NONE], exact)
            for best in (lane.best(forms, anything), lane.best(forms, exact)):
                if best is None or name in started:
                    continue
                if self._forced or floating is None or lane.ms(*best) < lane.ms(*floating or best):
                    started[name] = best
        return Started(started)

    def _proposals(
        self, forms: list[str], points: list[tuple[Point, Mended | None]], best_ms: float
    ) -> list[Proposal]:
        """Returns what the points come to in every layout."""
        result = []
        for lineup in self.lineups:
            started = self._start(lineup, forms)
            result += integer_proposals(lineup, started, points, best_ms, forced=self._forced)
        return result

    def _judge(self, lineup: LineUp, kinds: Mapping[str, EngineKind]) -> Judge:
        machine = key_of(describe_machine(), self.threads)
        judge = SizeJudge if by_size(self.recipe) else Judge
        return judge(self._measure, lineup.layout, self.tracks, kinds, machine)

    def _beaten(self) -> bool:
        """Whether integers save no time anywhere, and what ships is to be the fastest."""
        section = self.recipe.quantize
        if self._forced or section.objective != "latency" or section.max_latency_ms is not None:
            return False
        if not self._started.forms:
            return False
        return min(u.ms([NONE]) for u in self.lineups) <= MARGIN * min(u.ms() for u in self.lineups)

    def _one(self) -> list[Proposal]:
        """Returns the proposals of the fastest integer plan alone, with what each stage costs."""
        judge, start, best_ms = self._beginning()
        point = self._scored(judge.accuracies, Mended(self.plan(start), self.stages, self._table), start, best_ms)
        alone = by_stage(self.groups, start)
        stages = {name: judge.accuracy(self.plan(setting)) for name, setting in alone.items()}
        steps = ("a rounding float engine is faster than every integer form; one plan is kept for other devices",)
        self.result = SearchResult((point,), {}, {}, stages, True, steps)
        self._tell(self.result)
        return self._proposals(list(self._plans), [(point, None)] if point.fits else [], best_ms)

    def _beginning(self) -> tuple[Judge, dict[str, str], float]:
        """Returns what judges the chosen layout, the setting of its fastest form, and its expected latency."""
        assert self.lineup is not None
        lineup, started = self.lineup, self._started.forms
        judge = self._judge(lineup, {name: kind for name, (_, kind) in started.items()})
        best_ms = 0.0 if self._raced else math.nan
        for name, lane in lineup.lanes.items():
            best = started.get(name) or lane.best([NONE], anything)
            best_ms += lane.ms(*best) if best is not None else math.nan
        settings = settings_of(self.groups, self.recipe, self._limits)
        start = {
            g.name: settings[form][g.name]
            for name, (form, _) in started.items()
            if form != GIVEN
            for g in self.groups
            if g.stage in lineup.layout.covered_by(name) and g.name in settings[form]
        }
        if isinstance(judge, SizeJudge):
            best_ms = judge.total(self.plan(start))
        return judge, start, best_ms

    def _search(self) -> list[Proposal]:
        plans, limits = self._plans, self._limits
        judge, start, best_ms = self._beginning()
        if GIVEN in plans:
            plan = plans[GIVEN]
            assert self.splits.calibration is not None
            mended = redo(plan, self.stages, self._table, self.splits.calibration, self.io)
            point = self._scored(judge.accuracies, mended, {}, best_ms)
            self.result = SearchResult((point,), {}, {}, {}, True, ("the plan that was given",))
            return self._proposals([GIVEN], [(point, mended)] if point.fits else [], best_ms)
        assert self.splits.search is not None
        end = time.monotonic() + limits.seconds
        limits = replace(limits, seconds=SEARCHING * limits.seconds)
        self.progress.status("search", f"{len(start)} groups of nodes, {len(self.splits.search)} samples")
        result = self.result = search(
            self.groups, start, self.plan, judge, limits, best_ms, _bar(self.progress, "search")
        )
        if self._by_rule and not any(p.fits for p in result.points):
            mended = Mended(self.plan({}), self.stages, self._table)  # nothing is integer but what rules say
            alone = self._scored(judge.accuracies, mended, {}, best_ms)
            result = self.result = replace(result, points=(*result.points, alone))
        points: list[tuple[Point, Mended | None]] = [(p, None) for p in result.points if p.fits]
        first = result.points[0] if result.points else None
        if first is not None and not first.fits:
            points = [*self._mend(first, judge.accuracies, end), *points]
        self._tell(self.result)
        return self._proposals(list(plans), points, best_ms)

    def _mend(self, point: Point, measure: ChainMeasure, end: float) -> list[tuple[Point, Mended | None]]:
        """Returns the fastest point repaired, if that brings it within the budget; nothing begins after `end`."""
        assert self.splits.calibration is not None
        assert self.result is not None
        self.progress.status("search", "repairs of the fastest plan")
        found = mend(point.plan, measure, self.splits.calibration, self.io, lambda: time.monotonic() > end)
        if found is None:
            steps = (*self.result.steps, "no repair made the output error of the fastest plan smaller")
            self.result = replace(self.result, steps=steps)
            return []
        better = self._scored(measure, found, point.setting, point.ms)
        steps = (*self.result.steps, *(f"repair, {s}" for s in found.steps))
        steps += (f"repaired, the fastest plan drops by {better.accuracy.worst:.4g}",)
        self.result = replace(self.result, points=(better, *self.result.points), steps=steps)
        return [(better, found)] if better.fits else []

    def _scored(self, measure: ChainMeasure, mended: Mended, setting: Mapping[str, str], ms: float) -> Point:
        """Returns a plan with what its repairs changed as a point of the front."""
        measure, limits = on_mended(measure, mended), self._limits
        accuracy, error = measure.accuracy(mended.plan), math.nan
        fits = accuracy.within(limits.drop)
        if fits and limits.output_error is not None:
            error = measure.output_error(mended.plan)
            fits = error <= limits.output_error
        return Point(setting, mended.plan, ms, accuracy, error, fits)

    def _tell(self, result: SearchResult) -> None:
        for step in result.steps:
            self.progress.step("search", step)
        costs = "; ".join(f"{stage} {_drops(a)}" for stage, a in result.stages.items())
        if costs:
            self.progress.step("search", f"drop with one stage integer: {costs}")
        fitting = sum(p.fits for p in result.points)
        self.progress.step(
            "search", f"{len(result.points)} plans scored, {fitting} within {self._limits.drop:.4g}"
        )


def _drops(accuracy: Accuracy) -> str:
    blanks = "".join(f", {name} blank {drop:.4g}" for name, drop in accuracy.blank.items())
    return f"{accuracy.drop:.4g}{blanks and f' ({blanks[2:]})'}"


def _bar(progress: Progress, step: str) -> Callable[[int, int], None]:
    return lambda done, total: progress.bar(step, done, total)
