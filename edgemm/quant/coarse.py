"""Milder plans that cost few measurements: whole stages go back, then halves of the last one.

A model of millions of parameters takes seconds to score. The search looks at every group before it scores a plan,
and its time limit may end it there. So a few plans are scored first, the milder the later, until two are within
the limits; the first is scored however little time there is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

from edgemm.quant.groups import Group, Setting, by_stage
from edgemm.quant.search import Limits, Measure, PlanOf, Point, scored

ENOUGH = 2
"""Plans within the limits that are found here; the second is to step back to."""

SHARE = 0.5
"""Of the time limit; the rest is for the search."""


def coarse_points(
    groups: Sequence[Group], start: Setting, plan_of: PlanOf, measure: Measure, limits: Limits, began: float
) -> tuple[Point, ...]:
    """Returns plans that are milder than `start`, as scored: at least one, where there are two groups or more.

    Args:
        groups: What `start` is about.
        start: Group -> precision; more than these rules is not tried.
        plan_of: Makes a plan of a setting.
        measure: Accuracy on the search samples.
        limits: The budget, the time, and what a group saves by a cost model.
        began: When the time started, by `time.monotonic()`.
    """
    end = began + SHARE * limits.seconds
    points: list[Point] = []
    order = _order(groups, start, plan_of, measure, limits, end)
    for gone in _cuts(by_stage(groups, start), order):
        if points and time.monotonic() >= end:
            break
        setting = {name: precision for name, precision in start.items() if name not in gone}
        points.append(scored(setting, plan_of(setting, {}), math.nan, measure, limits))
        if sum(p.fits for p in points) == ENOUGH:
            break
    return tuple(points)


def _order(
    groups: Sequence[Group], start: Setting, plan_of: PlanOf, measure: Measure, limits: Limits, end: float
) -> list[str]:
    """Returns the stages, those first whose error by themselves is largest; without time, that save the least."""
    parts = by_stage(groups, start)
    errors = dict.fromkeys(parts, 0.0)
    for stage, alone in parts.items():
        if len(parts) == 1 or time.monotonic() >= end:
            errors = dict.fromkeys(parts, 0.0)  # some of them only would say nothing
            break
        errors[stage] = measure.output_error(plan_of(alone, {}))
    saved = {stage: sum(limits.modelled.get(name, 1.0) for name in part) for stage, part in parts.items()}
    return sorted(parts, key=lambda stage: (-errors[stage], saved[stage]))


def _cuts(parts: dict[str, dict[str, str]], order: Sequence[str]) -> Iterator[frozenset[str]]:
    """Yields the groups that go back: one stage, two stages, ..., all but the last and the halves of that."""
    gone: frozenset[str] = frozenset()
    for stage in order[:-1]:
        gone |= parts[stage].keys()
        yield gone
    for stage in order[-1:]:
        names = list(parts[stage])  # in graph order
        half = len(names) // 2
        if half:
            yield gone | set(names[half:])
            yield gone | set(names[:half])
