"""Variants for NVIDIA targets: planned and judged here, without their GPU; built here where that needs none.

    shapes ─▶ calibrate ─▶ plans (int8 + fp16, milder, fp16, fp32) ─▶ per target: lint ─▶ evaluate ─▶ build ─▶ ship

The first plan that holds ships. Its accuracy is that of rehearsals of its Q/DQ + Cast graphs on ONNX Runtime's CPU
provider with graph optimizations off (`quant.tensorrt.rehearse`: the same rounding, weights unpacked, sums in
another order): reported as `simulated`. Latency is nobody's guess: it stays unmeasured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgemm.backends.targets import Target, module_version
from edgemm.bundle import EngineEntry, Variant
from edgemm.errors import EdgemmError, MissingExtraError, QuantizationError
from edgemm.partition import StageGraph
from edgemm.pipeline import candidates as make
from edgemm.pipeline.candidates import Candidate, Layout, Workbench
from edgemm.pipeline.engines import ONNXRUNTIME, EngineKind
from edgemm.pipeline.front import search_json
from edgemm.pipeline.json_file import json_file
from edgemm.pipeline.objections import inaccurate
from edgemm.pipeline.outcome import Outcome
from edgemm.pipeline.progress import Clock, Progress
from edgemm.pipeline.saved_plan import read_plan
from edgemm.pipeline.scoring import Scorers
from edgemm.pipeline.shapes import Shapes
from edgemm.pipeline.splits import Splits
from edgemm.pipeline.tensorrt_graphs import (
    PlannedGraph,
    build_engines,
    describe,
    in_words,
    objection,
    rehearsals,
    tally,
    warnings,
    write_graphs,
)
from edgemm.pipeline.tensorrt_plans import TrtPlans, TrtProposal
from edgemm.quant.plan import FLOAT, HALF, INT8
from edgemm.quant.tensorrt.formats import BY_NAME, FORMATS
from edgemm.recipe import Recipe

TABLE = "calibration-tensorrt.json"
"""Ranges and peaks of every float tensor; all NVIDIA targets share them."""


@dataclass
class TrtContest:
    """Chooses a variant for every NVIDIA target.

    Attributes:
        recipe: What the user wants.
        targets: NVIDIA targets.
        stages: The float stages.
        baseline: The exported graph, unchanged.
        layout: The graphs that become engines.
        splits: The samples.
        shapes: Sizes that engines accept; None where no target has optimization profiles.
        bench: Opens sessions; its folder holds files until the bundle is written.
        progress: Told about every step.
        clock: Seconds by step.
    """

    recipe: Recipe
    targets: Sequence[Target]
    stages: StageGraph
    baseline: Layout
    layout: Layout
    splits: Splits
    shapes: Shapes | None
    bench: Workbench
    progress: Progress
    clock: Clock
    notes: list[str] = field(default_factory=list)
    _plans: TrtPlans | None = None
    _float: TrtProposal = field(default_factory=lambda: TrtProposal(FLOAT))
    _scorers: Scorers | None = None
    _graphs: dict[int, tuple[TrtProposal, tuple[PlannedGraph, ...]]] = field(default_factory=dict)
    _accuracy: dict[int, Mapping[str, Any] | None] = field(default_factory=dict)

    def run(self) -> Outcome:
        """Returns the variants of every target, with their graphs and engines.

        Raises:
            QuantizationError: A precision was demanded that a target cannot have within the budget.
        """
        if self.shapes is not None:
            self.progress.step("shapes", f"engines accept {self.shapes}")
            for text in self.shapes.notes():
                self._note(text)
        self._prepare()
        outcome = Outcome((), {}, {}, {}, ())
        for target in self.targets:
            outcome = outcome.plus(self._for_target(target))
        if self._plans is not None:
            self._plans.rest()
            for text in self._plans.notes:
                self._note(text)
        if self.recipe.quantize.max_latency_ms is not None:
            self.notes.append("--max-latency-ms is not checked for NVIDIA targets: nothing is timed there")
        return replace(outcome, files={**outcome.files, **self._shared()}, notes=tuple(self.notes))

    # -- what may ship ---------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Opens what scores the evaluation samples, and makes the plans' source where there are samples."""
        data = self.splits
        if data.calibration is not None and data.search is not None and self.recipe.quantize.precision != FLOAT:
            path = self.recipe.quantize.plan
            given = read_plan(path, self.stages) if path is not None else None
            self._plans = TrtPlans(
                self.recipe, self.stages, self.bench.io, self.splits, self.progress, self.clock, given
            )
        elif self.recipe.quantize.precision != FLOAT:
            self._note(
                "no calibration samples (--calib): NVIDIA targets get float32, for fp16 may overflow where nobody "
                "has looked"
            )
        if data.evaluation is None:
            return
        with self.clock("verify"):
            folder = self.bench.folder
            base = make.build("reference", self.baseline, make.float_models, (EngineKind(),), folder, raw=True)
            session = self.bench.open(base)
            twins = self._plans.silence.twins(data.evaluation) if self._plans is not None else {}
            self._scorers = Scorers.of_float(session, data.evaluation, twins, data.label, self.recipe.evaluate)
            self.bench.discard(session, base)

    def _proposals(self, target: Target) -> Iterator[TrtProposal]:
        wanted = self.recipe.quantize.precision
        if self._plans is not None:
            half = HALF if HALF in target.precisions else None
            low = BY_NAME.get(wanted, FORMATS[INT8])
            yield from self._plans.proposals(half, low if low.name in target.precisions else None)
        if wanted in ("auto", FLOAT):
            yield self._float

    def _for_target(self, target: Target) -> Outcome:
        """Returns the first variant that holds, and what was refused on the way to it."""
        refused: dict[str, Variant] = {}
        for proposal in self._proposals(target):
            found = self._judged(target, proposal)
            if isinstance(found, Outcome):
                others = tuple(v for p, v in refused.items() if p != proposal.precision)
                return replace(found, variants=(*found.variants, *others))
            which = f" ({proposal.which})" if proposal.which else ""
            self.progress.step("verify", f"{found.name}{which}: refused, {found.refused}")
            refused.setdefault(proposal.precision, found)
        wanted = self.recipe.quantize.precision
        if wanted in (*BY_NAME, HALF):
            reason = refused[wanted].refused if wanted in refused else f"{target.name} has no {wanted}"
            raise QuantizationError(
                f"{wanted} was demanded and cannot ship for {target.name}: {reason}.", hint=_REMEDY
            )
        return Outcome(tuple(refused.values()), {}, {}, {})

    def _judged(self, target: Target, proposal: TrtProposal) -> Outcome | Variant:
        """Returns what ships of a proposal, or the record of its refusal."""
        if proposal.objection is not None:
            variant, _ = describe(proposal, (), self.layout, target)
            counts = proposal.plan.counts() if proposal.plan is not None else {}
            return replace(variant, decisions=counts).refuse(proposal.objection)
        made = self._written(proposal)
        variant, files = describe(proposal, made, self.layout, target)
        findings = {graph.stage.name: graph.check(target) for graph in made}
        if (problem := objection(findings)) is not None:
            return variant.refuse(problem)
        variant = replace(variant, accuracy=self._scored(proposal, variant, made))
        if (problem := inaccurate(self.recipe, variant.accuracy)) is not None:
            return variant.refuse(problem)
        outcome = Outcome((variant,), files, {}, self._precision(proposal), lint={variant.name: tally(findings)})
        outcome = replace(outcome, files={**outcome.files, **self._plan_file(proposal, variant)})
        try:
            outcome = self._with_engines(outcome, variant, made, target)
        except EdgemmError as error:
            return variant.refuse(in_words(error))
        for text in warnings(findings):
            self._note(f"{target.name}: {text}")
        return outcome

    def _with_engines(
        self, outcome: Outcome, variant: Variant, made: Sequence[PlannedGraph], target: Target
    ) -> Outcome:
        """Returns the outcome with engines, where they can be built without their GPU.

        Raises:
            EdgemmError: The builder refuses a graph.
        """
        if target.kind == "cuda":
            return outcome  # ONNX Runtime takes the graphs
        if target.kind != "rtx" or module_version(target.module or "") is None:
            why = "its TensorRT builds on the device only"
            if target.kind == "rtx":
                why = f"{target.module} is not installed here (pip install 'edgemm[rtx]')"
            self._note(f"{target.name}: no engines yet, {why}; `edgemm build BUNDLE` makes them there")
            return outcome
        tell = lambda text: self.progress.status("build", text)  # noqa: E731
        try:
            with self.clock("engines"):
                built = build_engines(variant, made, target, self.bench.folder, tell)
        except MissingExtraError as error:
            self._note(f"{target.name}: no engines yet, {error}; `edgemm build BUNDLE` makes them on the device")
            return outcome
        sizes = sum(s.size for _, s in built.sidecars.values())
        seconds = sum(s.seconds for _, s in built.sidecars.values())
        count = len(built.sidecars)
        self.progress.step(
            "build", f"{variant.name}: {count} engine{'s' * (count != 1)}, {sizes:,} bytes, {seconds:.1f} s"
        )
        return replace(outcome, files={**outcome.files, **built.files}, engines={variant.name: built.to_json()})

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.progress.step("note", text)

    # -- graphs and accuracy, once for all targets that share a plan -------------------------------------------

    def _written(self, proposal: TrtProposal) -> tuple[PlannedGraph, ...]:
        key = id(proposal)
        if key not in self._graphs:  # the proposal is kept with its graphs: its id stays its own
            with self.clock("build"):
                made = write_graphs(proposal, self.layout, self.shapes, self.bench.folder)
            self._graphs[key] = proposal, made
        return self._graphs[key][1]

    def _scored(
        self, proposal: TrtProposal, variant: Variant, made: Sequence[PlannedGraph]
    ) -> Mapping[str, Any] | None:
        """Returns the accuracy of rehearsals of the graphs that ship; None without evaluation samples."""
        if self._scorers is None:
            return None
        key = id(proposal)
        if key not in self._accuracy:
            with self.clock("verify"):
                self._accuracy[key] = self._measured(self._scorers, variant, made)
        return self._accuracy[key]

    def _measured(self, scorers: Scorers, variant: Variant, made: Sequence[PlannedGraph]) -> Mapping[str, Any]:
        candidate = Candidate(simulated(variant), rehearsals(variant, made, self.bench.folder))
        session = self.bench.open(candidate)
        accuracy = scorers.measure(
            session, lambda blank: self.progress.status("verify", f"{variant.precision}, simulated{blank}")
        )
        self.bench.discard(session, candidate)
        return accuracy | {"simulated": True}

    # -- files -----------------------------------------------------------------------------------------------

    def _precision(self, proposal: TrtProposal) -> dict[str, str]:
        """Returns stage name -> its precisions, for people."""
        plan = proposal.plan
        result = {}
        for stage in self.stages.stages:
            decided = [d.precision for d in plan.stage(stage.name)] if plan is not None else []
            kinds = [p for p in (*FORMATS, HALF) if p in decided]
            left = stage.nodes - sum(d in kinds for d in decided)
            counts = [f"{decided.count(p)} {p}" for p in kinds] + ([f"{left} float"] if left else [])
            result[stage.name] = ", ".join(counts) if kinds else "float"
        return result

    def _plan_file(self, proposal: TrtProposal, variant: Variant) -> dict[str, bytes]:
        if proposal.plan is None:
            return {}
        return {f"plans/{variant.name}.json": json_file(proposal.plan.to_json())}

    def _shared(self) -> dict[str, bytes]:
        """Returns the files that are not one target's: ranges, and the search where there was one."""
        plans = self._plans
        if plans is None or "table" not in plans.__dict__:
            return {}
        files = {TABLE: json_file(plans.table.to_json())}
        if plans.result is not None:
            budget = self.recipe.evaluate.max_drop
            found = search_json(plans.result, plans.groups, None, budget, "not timed")
            files["report/search-tensorrt.json"] = json_file(found)
        return files


def simulated(variant: Variant) -> Variant:
    """Returns the variant with its graphs run by ONNX Runtime, as they are written."""

    def here(entry: EngineEntry) -> EngineEntry:
        return replace(entry, backend=ONNXRUNTIME)

    return replace(variant, backend=ONNXRUNTIME, engines=tuple(map(here, variant.engines)))


_REMEDY = "raise --max-drop, give more calibration samples, or use --precision auto to ship what works"
