"""What a bundle keeps of a contest: variants, engine files, latencies, the plan, the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgemm.bundle import Variant
from edgemm.compare import ParityReport
from edgemm.partition import StageGraph
from edgemm.pipeline.candidates import TARGET, Candidate
from edgemm.pipeline.front import front_files
from edgemm.pipeline.integers import Integers
from edgemm.pipeline.json_file import json_file
from edgemm.pipeline.lineup import LineUp
from edgemm.pipeline.proposals import Proposal
from edgemm.quant.plan import FLOAT, INT8, QuantPlan
from edgemm.recipe import Recipe
from edgemm.runtime.tuning import Tuning
from edgemm.runtime.turns import Timing

BASELINE = "baseline"
"""Name of the candidate that is the exported graph, unchanged, in ONNX Runtime."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a bundle holds of its variants.

    Attributes:
        variants: The shipped ones, the preferred one first, then a refused one.
        files: Path in the bundle -> bytes, or the draft of an engine.
        latency: Variant name -> `{float_ms, variant_ms, ratio, ...}`; measured, so different in every run.
        precision: Stage name -> what runs there, for people: `"int8"`, `"int8, 2 float"`, `"float"`; of the first.
        notes: What people should know.
        engines: Variant name -> engine -> what is known of its build.
        lint: Variant name -> severity -> number of findings.
        layouts: Variant that is one engine -> the one with stages: `{variant, parity, whole_ms, staged_ms}`.
    """

    variants: tuple[Variant, ...]
    files: Mapping[str, bytes | Path]
    latency: Mapping[str, Any]
    precision: Mapping[str, str]
    notes: tuple[str, ...] = ()
    engines: Mapping[str, Any] = field(default_factory=dict)
    lint: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    layouts: Mapping[str, Any] = field(default_factory=dict)

    def plus(self, other: Outcome) -> Outcome:
        """Returns what both hold: variants that ship first, refused ones behind them."""
        both = (*self.variants, *other.variants)
        ships = [v for v in both if v.refused is None]
        return Outcome(
            (*ships, *(v for v in both if v.refused is not None)),
            {**self.files, **other.files},
            {**self.latency, **other.latency},
            self.precision or other.precision,
            (*self.notes, *other.notes),
            {**self.engines, **other.engines},
            {**self.lint, **other.lint},
            {**self.layouts, **other.layouts},
        )


@dataclass(slots=True)
class Judged:
    """A proposal that was built, with its accuracy, its latency and why it may not ship.

    Attributes:
        proposal: What was to be built.
        candidate: What it came to.
        timings: By name of the candidates that were timed together.
        objection: Why it may not ship, or None.
        tuning: What was measured of its schedules.
        staged: Of one engine for the whole graph: the same with one per stage, which ships with it.
        parity: How far the outputs of these two are apart.
    """

    proposal: Proposal
    candidate: Candidate
    timings: Mapping[str, Timing] = field(default_factory=dict)
    objection: str | None = None
    tuning: Tuning | None = None
    staged: Judged | None = None
    parity: ParityReport | None = None

    @property
    def ms(self) -> float:
        """Measured latency, infinite when it was not timed.

        Where single calls after a pause compare worse with the baseline than steady use does, as much worse.
        """
        timing = self.timings.get(self.candidate.variant.name)
        base = self.timings.get(BASELINE)
        return timing.ratio(base) * base.ms if timing is not None and base is not None else math.inf


def assemble(
    recipe: Recipe,
    stages: StageGraph,
    lineups: Sequence[LineUp],
    integers: Integers | None,
    shipped: Sequence[Judged],
    refused: Judged | None,
) -> Outcome:
    """Returns what the bundle holds.

    Args:
        recipe: What was asked for.
        stages: The float stages.
        lineups: Latencies of single graphs.
        integers: The search, where there was one.
        shipped: What ships; the first is preferred, another one is for devices with ONNX Runtime alone.
        refused: The integer variant that does not ship, where one was built.
    """
    target, chosen = TARGET, shipped[0]
    variants: list[Variant] = []
    files: dict[str, bytes | Path] = {}
    latency: dict[str, Any] = {}
    layouts: dict[str, Any] = {}
    for number, judged in enumerate(shipped):
        name = f"{target}-{judged.candidate.variant.precision}" + ("-onnxruntime" if number else "")
        candidate = judged.candidate.renamed(name)
        beside = judged.staged.candidate.renamed(f"{name}-staged") if judged.staged is not None else None
        variants.append(replace(candidate.variant, reuse=beside.variant.name if beside is not None else ""))
        files |= dict(candidate.files)
        latency |= _latency(judged, lineups, name)
        if beside is not None and judged.staged is not None:
            variants.append(beside.variant)
            files |= dict(beside.files)
            latency |= _latency(judged.staged, lineups, beside.variant.name)
            layouts[name] = _layouts(judged, judged.staged, beside.variant.name)
    if refused is not None:
        name = f"{target}-{INT8}"
        variants.append(replace(refused.candidate.variant, name=name).refuse(refused.objection or ""))
        latency |= _latency(refused, lineups, name)
    elif integers is not None and not chosen.proposal.integer:
        name = f"{target}-{INT8}"
        empty = replace(chosen.candidate.variant, name=name, precision=INT8, decisions={}, accuracy=None)
        variants.append(empty.refuse(integers.nothing()))
    if integers is not None:
        files |= _report(recipe, integers, chosen, refused)
    return Outcome(tuple(variants), files, latency, _precision(stages, chosen), layouts=layouts)


def _report(recipe: Recipe, integers: Integers, chosen: Judged, refused: Judged | None) -> dict[str, bytes]:
    files = {f"plans/{TARGET}-{INT8}.json": json_file(_final_plan(integers, chosen, refused).to_json())}
    if integers.table is not None:
        files["calibration.json"] = json_file(integers.table.to_json())
    if integers.result is not None:
        unit = "MB" if recipe.quantize.objective == "size" else "ms"
        plan = chosen.proposal.plan
        files |= front_files(integers.result, integers.groups, plan, recipe.evaluate.max_drop, unit)
    return files


def _final_plan(integers: Integers, chosen: Judged, refused: Judged | None) -> QuantPlan:
    """Returns the plan with what each decision costs and gains."""
    result = integers.result
    plan = chosen.proposal.plan or (refused.proposal.plan if refused is not None else None)
    plan = plan or (result.points[0].plan if result and result.points else integers.plan({}))
    if result is None:
        return plan
    group = {(g.stage, node): g for g in integers.groups for node in g.nodes}
    decisions = tuple(
        replace(d, cost=_number(result.cost.get(g.name)), gain=_number(result.gain.get(g.name)))
        if (g := group.get((d.stage, d.node))) is not None
        else d
        for d in plan.decisions
    )
    return replace(plan, decisions=decisions)


def _latency(judged: Judged, lineups: Sequence[LineUp], shipped: str) -> dict[str, Any]:
    """Returns what was measured of a variant under the name that it ships by; nothing if nothing was."""
    name = judged.candidate.variant.name
    if name not in judged.timings:
        return {}
    base, timing = judged.timings[BASELINE], judged.timings[name]
    lineup = next((u for u in lineups if u.layout.name == judged.proposal.layout.name), None)
    engines = {}
    for entry in judged.candidate.variant.engines:
        lane = lineup.lanes.get(entry.name) if lineup is not None else None
        engines[entry.name] = {
            "float_ms": _number(lane.float_ms) if lane is not None else None,
            "variant_ms": timing.engine_ms(entry.name),
        }
    found = {
        "float_ms": base.ms,
        "variant_ms": timing.ms,
        "ratio": timing.ms / base.ms,
        "paced": {
            "float_ms": base.paced_ms,
            "variant_ms": timing.paced_ms,
            "ratio": timing.paced_ms / base.paced_ms,
        },
        "runs": timing.total.runs,
        "batch": 1,
        "engines": engines,
    }
    if judged.tuning is not None and judged.tuning.ratios:
        found["schedules"] = dict(judged.tuning.ratios)
    return {shipped: found}


def _layouts(whole: Judged, staged: Judged, name: str) -> dict[str, Any]:
    """Returns what is known of a variant and the one with an engine per stage beside it."""
    times = [j.timings[j.candidate.variant.name].ms for j in (whole, staged)]
    parity = whole.parity.to_json() if whole.parity is not None else None
    return {"variant": name, "parity": parity, "whole_ms": times[0], "staged_ms": times[1]}


def _precision(stages: StageGraph, chosen: Judged) -> dict[str, str]:
    """Returns stage name -> what runs there, for people."""
    kind = {
        stage: kind
        for kind, covers in zip(chosen.proposal.kinds, chosen.proposal.layout.covers, strict=True)
        for stage in covers
    }
    result = {}
    for stage in stages.stages:
        decisions = chosen.proposal.plan.stage(stage.name) if chosen.proposal.plan is not None else ()
        kinds = list(dict.fromkeys(d.precision for d in decisions if d.precision != FLOAT))
        floating = "float" if kind[stage.name].exact else kind[stage.name].precision
        floats = sum(d.precision == FLOAT for d in decisions)
        result[stage.name] = (
            ", ".join([*kinds, *([f"{floats} {floating}"] if floats else [])]) if kinds else floating
        )
    return result


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
