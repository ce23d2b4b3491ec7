"""Which variant ships: float and int8, staged and whole are built, scored and timed against each other.

The baseline of every latency is the exported graph, unchanged, in one ONNX Runtime session with default options:
what a user has without edgemm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edgemm.bundle import Variant
from edgemm.data import Samples, with_blanks
from edgemm.errors import QuantizationError
from edgemm.partition import StageGraph
from edgemm.pipeline import candidates as make
from edgemm.pipeline.candidates import Candidate, Layout, Workbench
from edgemm.pipeline.progress import Clock, Progress
from edgemm.pipeline.scoring import Scorer, choose_metric, score_float
from edgemm.pipeline.splits import Splits
from edgemm.pipeline.timing import Timing, latency_feeds, time_sessions
from edgemm.quant.collect import collect
from edgemm.quant.measure import ChainMeasure, Scoring
from edgemm.quant.placement import plan_quantization
from edgemm.quant.plan import FLOAT, INT8, QuantPlan
from edgemm.quant.search import Limits, choose
from edgemm.quant.table import CalibrationTable
from edgemm.recipe import Recipe
from edgemm.runtime.fusion import FusionSession

BASELINE = "baseline"
MARGIN = 1.03
"""Two latencies within this factor count as equal: then one engine per stage is preferred to a whole one."""

SECONDS = 6.0
"""How long the final measurement takes."""


STATE_ERROR = 0.1
"""Largest output error, relative to the output's scale, of int8 in a model with a state: it feeds back."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a bundle holds of its variants.

    Attributes:
        variants: The shipped one first, then a refused one.
        files: Path in the bundle -> bytes.
        latency: Variant name -> `{float_ms, variant_ms, ratio, ...}`; measured, so different in every run.
        precision: Stage name -> what runs there, for people: `"int8"`, `"int8, 2 float"`, `"float"`.
        float_size_bytes: Size of the exported float graph.
        notes: What the user should know.
    """

    variants: tuple[Variant, ...]
    files: Mapping[str, bytes]
    latency: Mapping[str, Any]
    precision: Mapping[str, str]
    float_size_bytes: int
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Contest:
    """Chooses the variant; `layouts` holds those that may ship, the preferred one first."""

    recipe: Recipe
    stages: StageGraph
    baseline: Layout
    layouts: tuple[Layout, ...]
    splits: Splits
    bench: Workbench
    progress: Progress
    clock: Clock
    candidates: dict[str, Candidate] = field(default_factory=dict)
    sessions: dict[str, FusionSession] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def run(self) -> Outcome:
        """Returns the variants of the bundle.

        Raises:
            QuantizationError: int8 was demanded and cannot be had within the budget.
        """
        with self.clock("build"):
            self._enter(make.build(BASELINE, FLOAT, self.baseline, make.float_models))
            for layout in self.layouts:
                self._enter(make.build(f"{FLOAT}-{layout.name}", FLOAT, layout, make.float_models))
        plan, table = self._plan()
        if plan is not None and table is not None and plan.counts().get(INT8):
            with self.clock("build"):
                for layout in self.layouts:
                    models = make.planned_models(plan, table, layout)
                    self._enter(make.build(f"{INT8}-{layout.name}", INT8, layout, models))
        with self.clock("measure"):
            timings = self._time()
        with self.clock("verify"):
            scorer = self._scorer(self.splits.evaluation, self.splits.label)
            chosen, refused = self._choose(plan, timings, scorer)
        return self._outcome(chosen, refused, plan, table, timings)

    def _enter(self, candidate: Candidate) -> None:
        self.candidates[candidate.variant.name] = candidate
        self.sessions[candidate.variant.name] = self.bench.open(candidate)

    def _plan(self) -> tuple[QuantPlan | None, CalibrationTable | None]:
        """Returns what becomes int8 and its ranges; None where no int8 is wanted or no data allows it."""
        if self.recipe.quantize.precision == FLOAT:
            return None, None
        if self.splits.calibration is None or self.splits.search is None:
            self.notes.append("no calibration samples (--calib): everything stays float")
            self.progress.step("note", self.notes[-1])
            return None, None
        data = self.recipe.data
        samples, blank = with_blanks(self.splits.calibration, self.bench.io, data.blank_share, data.seed)
        with self.clock("calibrate"):
            table = collect(
                self.stages,
                self.bench.io,
                samples,
                self.recipe.quantize.calibrator,
                lambda done, total: self.progress.bar("calibrate", done, total),
            )
        blanks = "".join(f", {count} with {name} blank" for name, count in blank.items())
        self.progress.step(
            "calibrate", f"{table.samples} samples{blanks}; {len(table.ranges)} tensors, {table.calibrator}"
        )
        with self.clock("search"):
            plan = self._search(table, self.splits.search)
        int8 = plan.counts().get(INT8, 0)
        self.progress.step("search", f"{int8} of {len(plan.decisions)} nodes that could be int8 are")
        return plan, table

    def _search(self, table: CalibrationTable, samples: Samples) -> QuantPlan:
        """Returns the plan with everything turned back to float that does not pay on the search samples."""
        evaluate = self.recipe.evaluate
        label = self.splits.search_label
        scoring = Scoring(choose_metric(evaluate, samples, label), label, evaluate.output)
        measure = ChainMeasure(self.stages, self.bench.io, table, samples, scoring)
        self.progress.status("search", f"int8 against float, stage by stage, on {len(samples)} samples")
        plan = plan_quantization(self.stages, table, self.recipe.target)
        limits = Limits(
            drop=evaluate.max_drop,
            output_error=STATE_ERROR if self.bench.io.states else None,
            slower=self.recipe.quantize.precision == INT8,
        )
        result = choose(self.stages, table, plan, measure, limits)
        for step in result.steps:
            self.progress.step("search", step)
        return result.plan

    def _scorer(self, samples: Samples | None, label: str | None) -> Scorer | None:
        if samples is None:
            return None
        return score_float(self.sessions[BASELINE], samples, label, self.recipe.evaluate)

    def _time(self) -> dict[str, Timing]:
        samples = self.splits.evaluation if self.splits.evaluation is not None else self.splits.any
        feeds = latency_feeds(self.bench.io, samples, self.bench.sizes)
        self.progress.status("measure", f"{len(self.sessions)} candidates, interleaved")
        return time_sessions(self.sessions, feeds, seconds=SECONDS)

    def _pick(self, precision: str, timings: Mapping[str, Timing]) -> str:
        """Returns the name of the fastest candidate of `precision`, the preferred layout where it is no slower.

        The graph as it was exported competes with its rewritten forms: a runtime may know it better.
        """
        names = [f"{precision}-{layout.name}" for layout in self.layouts]
        if precision == FLOAT and (self.layouts[-1].name == make.WHOLE or len(self.stages.stages) == 1):
            names.append(BASELINE)
        best = min(timings[name].ms for name in names)
        return next(name for name in names if timings[name].ms <= MARGIN * best)

    def _choose(
        self, plan: QuantPlan | None, timings: Mapping[str, Timing], scorer: Scorer | None
    ) -> tuple[Candidate, Candidate | None]:
        """Returns the candidate that ships, scored, and the int8 one that was refused."""
        float_name = self._pick(FLOAT, timings)
        floating = self._scored(self.candidates[float_name], scorer)
        if plan is None:
            return floating, None
        if not plan.counts().get(INT8):
            return floating, self._never_built(plan)
        name = self._pick(INT8, timings)
        integer = self._scored(self.candidates[name], scorer)
        reason = self._objection(integer, timings[name].ms / timings[float_name].ms)
        if reason is None:
            return integer, None
        if self.recipe.quantize.precision == INT8:
            raise QuantizationError(f"int8 was demanded and cannot ship: {reason}.", hint=_REMEDY)
        return floating, integer.refuse(reason)

    def _objection(self, candidate: Candidate, ratio: float) -> str | None:
        """Returns why an int8 candidate must not ship, or None. Demanded int8 may be slower than float."""
        accuracy = candidate.variant.accuracy
        if accuracy is not None:
            where = f"{accuracy['samples']} {accuracy['split']} samples"
            drop, budget = accuracy["drop"], accuracy["budget"]
            if drop is None:
                return f"{accuracy['metric']} is no number on {where}"
            if drop > budget:
                few = (
                    f"; one sample is {1 / accuracy['samples']:.2g}: give more"
                    if drop * accuracy["samples"] < 5
                    else ""
                )
                return f"{accuracy['metric']} drops by {drop:.4g} on {where}, budget {budget:.4g}{few}"
            lost = 1 - (accuracy["cosine"] or 0.0)
            if accuracy["metric"] == "agreement" and lost > budget:
                return f"cosine with the float output drops by {lost:.4g} on {where}, budget {budget:.4g}"
        if ratio >= 1 and self.recipe.quantize.precision != INT8:
            return f"{ratio:.2f} × slower than float on this machine"
        return None

    def _never_built(self, plan: QuantPlan) -> Candidate:
        """Returns the record of an int8 variant in which the search left nothing int8."""
        reasons = list(dict.fromkeys(f"{d.op} {d.node}: {d.reason}" for d in plan.decisions))
        text = (
            "; ".join(reasons[:3]) + ("; ..." if len(reasons) > 3 else "")
            if reasons
            else "no Conv, Gemm or MatMul"
        )
        if self.recipe.quantize.precision == INT8:
            raise QuantizationError(
                f"int8 was demanded and nothing can be int8: {text}.",
                hint="use --precision auto: int8 cannot make this model faster or keep it within the budget",
            )
        variant = self.candidates[f"{FLOAT}-{self.layouts[0].name}"].variant
        empty = Candidate(replace(variant, name=INT8, precision=INT8, decisions=plan.counts(), accuracy=None), {})
        return empty.refuse(f"nothing stays int8: {text}")

    def _scored(self, candidate: Candidate, scorer: Scorer | None) -> Candidate:
        if scorer is None:
            return candidate
        accuracy = scorer.measure(self.sessions[candidate.variant.name])
        accuracy["budget"] = self.recipe.evaluate.max_drop
        return replace(candidate, variant=replace(candidate.variant, accuracy=accuracy))

    def _outcome(
        self,
        chosen: Candidate,
        refused: Candidate | None,
        plan: QuantPlan | None,
        table: CalibrationTable | None,
        timings: Mapping[str, Timing],
    ) -> Outcome:
        target = self.recipe.target
        shipped = chosen.renamed(f"{target}-{chosen.variant.precision}")
        variants, files = [shipped.variant], dict(shipped.files)
        if refused is not None:
            variants.append(refused.renamed(f"{target}-{INT8}").variant)
        if plan is not None:
            files[f"plans/{target}-{INT8}.json"] = _json(plan.to_json())
        if table is not None:
            files["calibration.json"] = _json(table.to_json())
        return Outcome(
            tuple(variants),
            files,
            self._latency(chosen, refused, timings),
            _precision(self.stages, plan if chosen.variant.precision == INT8 else None),
            self.candidates[BASELINE].variant.size_bytes,
            tuple(self.notes),
        )

    def _latency(
        self, chosen: Candidate, refused: Candidate | None, timings: Mapping[str, Timing]
    ) -> dict[str, Any]:
        base = timings[BASELINE]
        result = {}
        for candidate in (chosen, refused):
            if candidate is None or candidate.variant.name not in timings:
                continue
            timing = timings[candidate.variant.name]
            name = f"{self.recipe.target}-{candidate.variant.precision}"
            same = timings.get(f"{FLOAT}-{candidate.variant.layout}")
            result[name] = {
                "float_ms": base.ms,
                "variant_ms": timing.ms,
                "ratio": timing.ms / base.ms,
                "runs": timing.total.runs,
                "batch": 1,
                "engines": {
                    engine: {
                        "float_ms": same.engine_ms(engine) if same else None,
                        "variant_ms": timing.engine_ms(engine),
                    }
                    for engine in timing.engines
                },
                "float_layouts_ms": {layout.name: timings[f"{FLOAT}-{layout.name}"].ms for layout in self.layouts},
            }
        return result


_REMEDY = "raise --max-drop, give more calibration samples, or use --precision auto to ship what works"


def _precision(stages: StageGraph, plan: QuantPlan | None) -> dict[str, str]:
    """Returns stage name -> what runs there, for people."""
    result = {}
    for stage in stages.stages:
        decisions = plan.stage(stage.name) if plan is not None else ()
        count = sum(d.precision == INT8 for d in decisions)
        floats = len(decisions) - count
        result[stage.name] = "float" if not count else f"int8, {floats} float" if floats else "int8"
    return result


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"
