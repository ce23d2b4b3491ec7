"""From points of the search to variants that can be built: which graph is integer, and what runs it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgemm.pipeline.candidates import Layout
from edgemm.pipeline.engines import EngineKind
from edgemm.pipeline.lineup import NONE, Accept, Lane, LineUp, anything, exact, onnxruntime
from edgemm.pipeline.mending import Mended
from edgemm.quant.plan import FLOAT, QuantPlan
from edgemm.quant.search import Point


@dataclass(frozen=True, slots=True)
class Proposal:
    """A variant that may ship.

    Attributes:
        name: For people and temporary files.
        layout: Its graphs.
        kinds: The engine of each.
        plan: What is integer; None is nothing.
        ms: Expected latency.
        drop: Worst drop on the search samples as the search measured it; 0 for float.
        mended: The weights and ranges that go with the plan, where it was repaired.
    """

    name: str
    layout: Layout
    kinds: tuple[EngineKind, ...]
    plan: QuantPlan | None
    ms: float
    drop: float = 0.0
    mended: Mended | None = None

    def __str__(self) -> str:
        what = "repaired integer plan" if self.mended is not None else "integer plan" if self.integer else "float"
        return f"{what}, {self.layout.name}, on {' + '.join(dict.fromkeys(map(str, self.kinds)))}"

    @property
    def integer(self) -> bool:
        """Whether anything is integer."""
        return self.plan is not None

    @property
    def plain(self) -> bool:
        """Whether ONNX Runtime runs all of it."""
        return all(onnxruntime(k) for k in self.kinds)


@dataclass(frozen=True, slots=True)
class Started:
    """Where the search started: graph of the layout -> (form, engine). Float graphs are not listed."""

    forms: Mapping[str, tuple[str, EngineKind]]


def float_proposal(lineup: LineUp, accept: Accept, name: str) -> Proposal | None:
    """Returns the model in float on the fastest accepted engines; None when a graph has none."""
    kinds, total = [], 0.0
    for lane in lineup.lanes.values():
        best = lane.best([NONE], accept)
        if best is None:
            return None
        kinds.append(best[1])
        total += lane.ms(*best)
    return Proposal(name, lineup.layout, tuple(kinds), None, total)


def float_proposals(lineups: Sequence[LineUp], *, rounded: bool) -> list[Proposal]:
    """Returns the model in float on any engines (if `rounded`), on exact ones, and on ONNX Runtime alone.

    Args:
        lineups: The preferred layout first; another one where that has no such engine.
        rounded: Whether floats may be rounded to bf16.
    """
    found: dict[object, Proposal] = {}
    for accept in (anything, exact, onnxruntime) if rounded else (exact, onnxruntime):
        for lineup in lineups:
            proposal = float_proposal(lineup, accept, f"float-{accept.__name__}-{lineup.layout.name}")
            if proposal is not None:
                found.setdefault((proposal.layout.name, proposal.kinds), proposal)
                break
    return list(found.values())


def integer_proposals(
    lineup: LineUp,
    started: Started,
    points: Iterable[tuple[Point, Mended | None]],
    best_ms: float,
    *,
    forced: bool,
) -> list[Proposal]:
    """Returns a variant per point and per kind of engine that is allowed: any, exact, ONNX Runtime alone.

    In a variant, a graph whose float is faster on an allowed engine than its integers are goes back to float,
    unless integers are `forced`.
    """
    result: dict[object, Proposal] = {}
    for number, (point, mended) in enumerate(points):
        extra = point.ms - best_ms if math.isfinite(point.ms) and math.isfinite(best_ms) else 0.0
        for accept in (anything, exact, onnxruntime):
            made = _assign(lineup, started, point.plan, accept, forced=forced or mended is not None)
            if made is None:
                continue
            kinds, plan, ms = made
            key = kinds, mended is None, frozenset((d.stage, d.node, d.precision) for d in plan.decisions)
            name = f"int8-{number}-{accept.__name__}-{lineup.layout.name}"
            result.setdefault(
                key, Proposal(name, lineup.layout, kinds, plan, ms + extra, point.accuracy.worst, mended)
            )
    return list(result.values())


def _assign(
    lineup: LineUp, started: Started, plan: QuantPlan, accept: Accept, *, forced: bool
) -> tuple[tuple[EngineKind, ...], QuantPlan, float] | None:
    kinds: list[EngineKind] = []
    total = 0.0
    for (name, lane), covers in zip(lineup.lanes.items(), lineup.layout.covers, strict=True):
        integer = any(d.precision != FLOAT for stage in covers for d in plan.stage(stage))
        floating = lane.best([NONE], accept)
        best = _integer_engine(lane, started.forms.get(name), accept) if integer else None
        if best is not None and (forced or floating is None or lane.ms(*best) < lane.ms(*floating)):
            kinds.append(best[1])
            total += lane.ms(*best)
            continue
        if floating is None:
            return None
        if integer:
            reason = f"its float graph is faster on {floating[1]} than its integers anywhere"
            plan = plan.with_stages_float(covers, "float-is-faster", reason)
        kinds.append(floating[1])
        total += lane.ms(*floating)
    if not any(d.precision != FLOAT for d in plan.decisions):
        return None
    return tuple(kinds), plan, total


def _integer_engine(
    lane: Lane, started: tuple[str, EngineKind] | None, accept: Accept
) -> tuple[str, EngineKind] | None:
    if started is None:
        return None
    return started if accept(started[1]) else lane.best([started[0]], accept)


def in_order(proposals: Iterable[Proposal], objective: str) -> list[Proposal]:
    """Returns the fastest first, the most accurate first for that objective; as they are where none was timed."""
    found = list(proposals)
    if objective == "accuracy":
        return sorted(found, key=lambda p: (p.drop, p.ms))
    if math.isnan(sum(p.ms for p in found)):
        return found
    return sorted(found, key=lambda p: (p.ms, p.drop))
