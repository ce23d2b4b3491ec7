"""Which nodes stay integer: the cost of each group in accuracy against what it gains in measured latency.

1. *Sensitivity.* Each group alone is made integer, and the output error on a few samples is its cost.
2. *Gain.* Each group alone is made float in the fastest form of the model, and the time that this loses is its
   gain. Groups that gain nothing go back to float at once.
3. *Path.* From the fastest setting towards float, the group with the least gain per cost is turned first. Where
   another kind of integer (dynamic scales) costs less accuracy, it is tried before float.
4. *Score.* The metric is measured on the search samples along the path: at its start, and by bisection where that
   misses the budget. Then groups that went early are tried once more, the largest gain first. Two milder plans are
   scored behind the first that fits: to step back to, should it miss the budget on the evaluation samples.

Every setting that was scored is a point of the front (latency, drop); `Contest` builds points from the fastest on
until one holds on the evaluation samples. A time limit ends the search early, always with what is known so far.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edgemm.quant.groups import Group, Setting, by_stage
from edgemm.quant.plan import QuantPlan

NOISE = 0.005
"""Share of the model's latency that a group must gain; less is noise."""


TOLERANCE = 1e-9
"""A drop of 4 in 400 samples is a budget of 0.01, whatever the last bits of both say."""

MILDER = (1 / 3, 2 / 3)
"""Shares of the groups that are turned back in the milder plans that are scored behind the first that fits."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How far a plan is from float on the search samples.

    Attributes:
        drop: Of the metric on complete samples; NaN counts as unusable.
        blank: Modality -> drop of the metric on the same samples with that modality blank.
    """

    drop: float
    blank: Mapping[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> float:
        """The largest drop, infinite when one is no number."""
        return max(math.inf if math.isnan(d) else d for d in (self.drop, *self.blank.values()))

    def within(self, budget: float) -> bool:
        """Whether every drop is within a budget."""
        return self.worst <= budget + TOLERANCE


class Measure(Protocol):
    """What the search asks of the machine."""

    def accuracy(self, plan: QuantPlan) -> Accuracy:
        """Returns the drops on the search samples."""
        ...

    def output_error(self, plan: QuantPlan) -> float:
        """Returns the largest difference from float on a few samples, relative to the output's scale."""
        ...

    def milliseconds(self, plan: QuantPlan, other: QuantPlan, stage: str) -> tuple[float, float]:
        """Returns the latency of the engine that has `stage`, under both plans, interleaved."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plan must keep to.

    Attributes:
        drop: Largest drop of the metric.
        output_error: Largest output error, or None for no limit. Models with a state need one: a metric over many
            samples hides a single one that ran away.
        seconds: The search begins nothing new after this.
        timed: False asks for no latency: then equal inputs give equal plans, and nothing is turned for its time.
        modelled: Group -> what it saves by a cost model, in any unit, where no latency is asked for: the groups go
            back in the order of saving per cost. Empty: in the order of cost.
    """

    drop: float = 0.01
    output_error: float | None = None
    seconds: float = 60.0
    timed: bool = True
    modelled: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Point:
    """A setting that was scored.

    Attributes:
        setting: Group -> precision; groups that are not listed are float.
        plan: The same as decisions.
        ms: Expected latency of the model, from the gains of its groups; NaN without latencies.
        accuracy: On the search samples.
        error: Output error on a few of them.
        fits: Whether it is within the limits.
    """

    setting: Setting
    plan: QuantPlan
    ms: float
    accuracy: Accuracy
    error: float
    fits: bool


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What the search found.

    Attributes:
        points: Every setting that was scored, the fastest first.
        cost: Group -> output error when it alone is integer.
        gain: Group -> milliseconds that it saves.
        stages: Stage -> drop of the metric when only this stage is integer.
        finished: False when the time limit ended it.
        steps: What was done, one sentence each.
    """

    points: tuple[Point, ...]
    cost: Mapping[str, float]
    gain: Mapping[str, float]
    stages: Mapping[str, Accuracy]
    finished: bool
    steps: tuple[str, ...]

    @property
    def best(self) -> Point | None:
        """The fastest point within the limits, or None."""
        return next((p for p in self.points if p.fits), None)


PlanOf = Callable[[Setting, Mapping[str, tuple[str, str]]], QuantPlan]
"""Makes a plan of a setting; the second argument tells why groups are float: name -> (rule, reason)."""


def search(
    groups: Sequence[Group],
    start: Setting,
    plan_of: PlanOf,
    measure: Measure,
    limits: Limits,
    ms: float = math.nan,
    progress: Callable[[int, int], None] | None = None,
    began: float | None = None,
) -> SearchResult:
    """Returns the settings that were scored on the way from `start` towards float.

    Args:
        groups: What may be integer.
        start: The fastest form of the model: group -> precision.
        plan_of: Makes a plan of a setting.
        measure: Accuracy and latency on samples that neither calibration nor evaluation uses.
        limits: The budget.
        ms: Latency of the model under `start`.
        progress: Called with (measurements done, measurements to do).
        began: When the time limit started, by `time.monotonic()`; None: now.
    """
    began = time.monotonic() if began is None else began
    job = _Search(tuple(groups), plan_of, measure, limits, began + limits.seconds, progress)
    return job.run(dict(start), ms)


def scored(setting: Setting, plan: QuantPlan, ms: float, measure: Measure, limits: Limits) -> Point:
    """Returns a setting with its accuracy on the search samples, and whether it is within the limits."""
    accuracy, error = measure.accuracy(plan), math.nan
    fits = accuracy.within(limits.drop)
    if fits and limits.output_error is not None:
        error = measure.output_error(plan)
        fits = error <= limits.output_error
    return Point(setting, plan, ms, accuracy, error, fits)


@dataclass(slots=True)
class _Search:
    groups: tuple[Group, ...]
    plan_of: PlanOf
    measure: Measure
    limits: Limits
    deadline: float
    progress: Callable[[int, int], None] | None
    cost: dict[str, float] = field(default_factory=dict)
    gain: dict[str, float] = field(default_factory=dict)
    why: dict[str, tuple[str, str]] = field(default_factory=dict)
    points: dict[tuple[tuple[str, str], ...], Point] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)
    finished: bool = True
    stages: dict[str, Accuracy] = field(default_factory=dict)
    _done: int = 0

    @property
    def by_name(self) -> dict[str, Group]:
        return {g.name: g for g in self.groups}

    def run(self, setting: dict[str, str], ms: float) -> SearchResult:
        active = [g for g in self.groups if g.name in setting]
        self.sensitivities(active, setting)
        if self.limits.timed:
            setting, ms = self.paying(active, setting, ms)
        path = self.path(setting)
        if setting:
            turned, setting, ms = (
                (0, setting, ms) if self.score(setting, ms).fits else self.along(path, setting, ms)
            )
            self.milder_points(path[turned:], setting, ms)
        order = sorted(
            self.points.values(), key=lambda p: (math.inf if math.isnan(p.ms) else p.ms, len(p.setting) * -1)
        )
        return SearchResult(tuple(order), self.cost, self.gain, self.stages, self.finished, tuple(self.steps))

    # -- what a group costs and gains ------------------------------------------------------------------------

    def sensitivities(self, active: Sequence[Group], setting: Setting) -> None:
        for group in active:
            if self.late():
                return
            self.cost[group.name] = self.measure.output_error(self.plan({group.name: setting[group.name]}))
            self.tick(len(active))
        for stage, alone in by_stage(active, setting).items():
            if self.late():
                return
            self.stages[stage] = self.measure.accuracy(self.plan(alone))

    def paying(self, active: Sequence[Group], setting: dict[str, str], ms: float) -> tuple[dict[str, str], float]:
        """Returns `setting` without the groups that gain nothing, and its expected latency."""
        plan = self.plan(setting)
        for group in active:
            if self.late():
                break
            without = {k: v for k, v in setting.items() if k != group.name}
            fast, slow = self.measure.milliseconds(plan, self.plan(without), group.stage)
            self.gain[group.name] = slow - fast
            self.tick(len(active))
        useless = [g for g in active if self.gain.get(g.name, math.inf) <= NOISE * ms]
        if not useless or len(useless) == len(active):
            return setting, ms
        for group in useless:
            gain = self.gain[group.name]
            text = f"{setting[group.name]} saves {gain:.3g} ms of {ms:.3g} ms" if gain > 0 else "not faster"
            self.why[group.name] = "no-gain", f"{text} on this machine"
        rest = {k: v for k, v in setting.items() if k not in {g.name for g in useless}}
        # Gains do not add up where integers pass from group to group, so all of it is measured once more.
        change = 0.0
        by_name = self.by_name
        for stage in dict.fromkeys(g.stage for g in useless):
            both = {k: v for k, v in setting.items() if k in rest or by_name[k].stage != stage}
            fast, slow = self.measure.milliseconds(plan, self.plan(both), stage)
            if slow > fast * (1 + NOISE):
                for group in useless:
                    if group.stage == stage:
                        rest[group.name] = setting[group.name]
                        self.why.pop(group.name)
            else:
                change += slow - fast
        turned = [g.name for g in useless if g.name not in rest]
        if turned:
            self.steps.append(f"float, because integer saves no time: {_list(turned)}")
        return {g.name: setting[g.name] for g in active if g.name in rest}, ms + change

    def path(self, setting: Setting) -> list[str]:
        """Returns the groups in the order in which they go back to float: least gain per cost first."""

        def worth(name: str) -> float:
            cost = self.cost.get(name, 0.0)
            gain = self.gain.get(name, 0.0) if self.limits.timed else self.limits.modelled.get(name, 1.0)
            gain = max(gain, 1e-9)
            return gain / max(cost, 1e-12) if math.isfinite(cost) else 0.0

        return sorted(setting, key=lambda name: (worth(name), name))

    # -- along the path --------------------------------------------------------------------------------------

    def milder_points(self, path: Sequence[str], setting: dict[str, str], ms: float) -> None:
        """Scores settings with more groups in float than one that fits, for the front and to step back to."""
        for share in MILDER:
            count = max(1, round(share * len(path)))
            if count < len(path) and not self.late():
                self.score(*self.without(path[:count], setting, ms))

    def along(self, path: Sequence[str], setting: dict[str, str], ms: float) -> tuple[int, dict[str, str], float]:
        """Finds, by bisection, how many groups must go back, then tries each of them once more.

        Returns how many groups of the path are float in what fits (all of them: nothing fits), and the setting and
        latency that the rest of the path starts from.
        """
        setting, ms = self.milder(path, setting, ms)
        if self.score(setting, ms).fits:
            return 0, setting, ms
        low, high = 0, len(path)  # `low` groups turned is too few; `high` (nothing integer) always fits
        while high - low > 1 and not self.late():
            middle = (low + high) // 2
            if self.score(*self.without(path[:middle], setting, ms)).fits:
                high = middle
            else:
                low = middle
        if high == len(path):
            self.steps.append("no part of the integer plan was within the budget")
            return high, setting, ms
        gone = list(path[:high])
        for name in sorted(gone[:-1], key=lambda n: -self.gain.get(n, 0.0)):
            if self.late():
                break
            rest = [n for n in gone if n != name]
            if self.score(*self.without(rest, setting, ms)).fits:
                gone = rest
        self.steps.append(f"float, because the budget of {self.limits.drop:.4g} asks for it: {_list(gone)}")
        return high, *self.without(path[:high], setting, ms)

    def milder(self, path: Sequence[str], setting: dict[str, str], ms: float) -> tuple[dict[str, str], float]:
        """Returns `setting` with the costliest groups at another kind of integer where that errs less."""
        changed = dict(setting)
        total = sum(c for c in self.cost.values() if math.isfinite(c))
        for name in path:
            cost = self.cost.get(name, 0.0)
            if self.late() or (math.isfinite(cost) and cost < 0.1 * total):
                continue
            for other in self.by_name[name].options:
                if other == setting[name]:
                    continue
                error = self.measure.output_error(self.plan({name: other}))
                if error < 0.5 * self.cost.get(name, 0.0) and self.faster_than_float(name, changed, other):
                    changed[name] = other
                    self.steps.append(f"{name}: {other} instead of {setting[name]}, error {error:.2g}")
                    self.cost[name] = error
                    break
        if changed != setting and self.limits.timed:
            plans = self.plan(setting), self.plan(changed)
            for stage in dict.fromkeys(self.by_name[n].stage for n in changed if changed[n] != setting[n]):
                fast, slow = self.measure.milliseconds(*plans, stage)
                ms += slow - fast
        return changed, ms

    def faster_than_float(self, name: str, setting: Setting, precision: str) -> bool:
        if not self.limits.timed:
            return True
        without = {k: v for k, v in setting.items() if k != name}
        with_it, floating = self.measure.milliseconds(
            self.plan({**without, name: precision}), self.plan(without), self.by_name[name].stage
        )
        return with_it < floating * (1 - NOISE)

    def without(self, names: Sequence[str], setting: Setting, ms: float) -> tuple[dict[str, str], float]:
        rest = {k: v for k, v in setting.items() if k not in set(names)}
        return rest, ms + sum(max(0.0, self.gain.get(n, 0.0)) for n in names)

    # -- measurements ----------------------------------------------------------------------------------------

    def plan(self, setting: Setting) -> QuantPlan:
        why = dict(self.why)
        for group in self.groups:
            if group.name not in setting and group.name not in why and group.name in self.cost:
                why[group.name] = "accuracy-budget", self.reason(group.name)
        return self.plan_of(setting, why)

    def reason(self, name: str) -> str:
        gain = self.gain.get(name)
        saved = f", saves {gain:.3g} ms" if gain is not None else ""
        return f"output error {self.cost[name]:.2g} by itself{saved}: the budget of {self.limits.drop:.4g} is kept"

    def score(self, setting: dict[str, str], ms: float) -> Point:
        key = tuple(sorted(setting.items()))
        if key not in self.points:
            self.points[key] = scored(setting, self.plan(setting), ms, self.measure, self.limits)
        return self.points[key]

    def late(self) -> bool:
        if time.monotonic() < self.deadline:
            return False
        if self.finished:
            self.finished = False
            self.steps.append(
                f"stopped after {self.limits.seconds:g} s (of --search-seconds; repairs have the rest)"
            )
        return True

    def tick(self, groups: int) -> None:
        self._done += 1
        if self.progress is not None:
            self.progress(self._done, groups * (2 if self.limits.timed else 1))


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
