"""Calls that are not counted: until the times stay the same, by a rule that the report states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

LONG_CALL = 0.1
"""Seconds; calls that take longer are compared in windows of `SHORT_WINDOW`."""

SHORT_WINDOW = 3


@dataclass(frozen=True, slots=True)
class WarmupRule:
    """When a warm-up ends.

    Attributes:
        fixed: Number of calls, whatever they take; None goes by the times.
        window: Calls whose median is compared with that of the window before.
        within: Largest relative difference of the two medians.
        runs: Most calls.
        seconds: Most seconds.
    """

    fixed: int | None = None
    window: int = 10
    within: float = 0.05
    runs: int = 400
    seconds: float = 10.0

    def __str__(self) -> str:
        if self.fixed is not None:
            return f"{self.fixed} runs, as asked"
        return (
            f"until the medians of two windows of {self.window} runs in a row ({SHORT_WINDOW} of runs over "
            f"{LONG_CALL:g} s) differ by at most {self.within:.0%}; at most {self.runs} runs or {self.seconds:g} s"
        )


def warm_up(
    call: Callable[[], object], rule: WarmupRule, clock: Callable[[], float] = perf_counter
) -> dict[str, Any]:
    """Makes calls until `rule` is content; returns `edgemm.profiling.report.Steady`.

    With a fixed number of calls, `reached` says whether the last two windows were steady.

    Args:
        call: What to call.
        rule: When to stop.
        clock: Seconds since anything.
    """
    times: list[float] = []
    start = clock()
    steady = False
    while not _enough(times, steady, rule, clock() - start):
        begin = clock()
        call()
        times.append(clock() - begin)
        steady = _steady(times, rule)
    return {"rule": str(rule), "runs": len(times), "reached": steady}


def _enough(times: list[float], steady: bool, rule: WarmupRule, elapsed: float) -> bool:
    if rule.fixed is not None:
        return len(times) >= rule.fixed
    return steady or len(times) >= rule.runs or (bool(times) and elapsed >= rule.seconds)


def _steady(times: list[float], rule: WarmupRule) -> bool:
    """Returns whether the last two windows agree; they are looked at when a window is full."""
    window = SHORT_WINDOW if median(times[-SHORT_WINDOW:]) > LONG_CALL else rule.window
    if len(times) < 2 * window or (rule.fixed is None and len(times) % window):
        return False
    before, last = median(times[-2 * window : -window]), median(times[-window:])
    return abs(before - last) <= rule.within * max(before, last)
