"""Which of two builds is faster, as far as measurements can say.

Both run interleaved, so that a slow spell of the machine meets both. A session that is opened again takes other
pages of memory and other cores, and is a little faster or slower for as long as it is open: an interval that looks
at runs alone is too narrow (Mytkowicz et al., "Producing wrong data without doing anything obviously wrong!",
2009). So both are opened several times, and the interval holds what differs between the openings as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import numpy as np

from edgemm.errors import DataError
from edgemm.profiling.record import Recorder, cycle
from edgemm.profiling.report import BACK_TO_BACK
from edgemm.runtime.fusion import FusionSession
from edgemm.runtime.latency import Latencies, Ratio, measure, ratio
from edgemm.tensors import Feed, check_feed

KIND = "edgemm-latency-comparison"
SCHEMA = 1

THRESHOLD = 0.03
THRESHOLD_MS = 0.002
"""Practical thresholds, relative and in milliseconds: a smaller difference is none, however sure it is."""

OPENINGS = 6
"""Times that both are opened."""

REOPEN_SECONDS = 4.0
"""A pair that takes longer than this to open is opened once."""

WARMUP = 20
"""Rounds after each opening that are not counted."""

Verdict = Literal["faster", "slower", "no difference"]

Part = tuple[str, Sequence[str], float]
"""An engine: its name, the stages inside, the median of its times in milliseconds."""

_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}
"""Quantile 0.975 of Student's t distribution, by the number of openings."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What one build took.

    Attributes:
        engines: Engine name -> names of the stages inside.
        totals: Times of whole calls, one entry per opening.
        parts: Engine name -> its times inside these calls, one entry per opening.
        load_ms: Opening it, the median.
        about: `{variant, target, layout, backend}`.
    """

    engines: Mapping[str, tuple[str, ...]]
    totals: tuple[Latencies, ...]
    parts: Mapping[str, tuple[Latencies, ...]]
    load_ms: float
    about: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Returns what the comparison says of this build."""
        return {**self.about, "load_ms": self.load_ms, "end_to_end": joined(self.totals).to_json()}


def joined(times: Sequence[Latencies]) -> Latencies:
    """Returns the times of several openings as one."""
    return Latencies(np.concatenate([t.seconds for t in times]))


def pooled_ratio(a: Sequence[Latencies], b: Sequence[Latencies]) -> Ratio:
    """Returns the time of `a` over that of `b`, each measured in several openings, in pairs.

    The value is that of `_balanced` over all runs. The 95 % interval is the wider of two: that of order statistics
    over the runs, and Student's over the openings (over the logarithms of their ratios).
    """
    runs = _balanced(a, b)
    if len(a) not in _T:
        return runs
    logs = np.log([_balanced([x], [y]).value for x, y in zip(a, b, strict=True)])
    half = _T[len(logs)] * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    middle = float(logs.mean())
    return Ratio(
        runs.value, min(runs.low, math.exp(middle - half)), max(runs.high, math.exp(middle + half)), paired=True
    )


def _balanced(a: Sequence[Latencies], b: Sequence[Latencies]) -> Ratio:
    """Returns the geometric mean of two ratios: of the rounds in which `a` is called first, and of the others.

    Who is called second runs behind another engine and its data in the caches. Taken together, the ratios of equal
    builds would lie on both sides of 1, and their median anywhere in between.
    """
    if min(times.runs for times in a) < 2:
        return ratio(joined(a), joined(b))
    orders = [
        ratio(*(joined([Latencies(times.seconds[at::2]) for times in side]) for side in (a, b))) for at in (0, 1)
    ]
    middle = sum(math.log(r.value) for r in orders) / 2
    below = math.hypot(*(math.log(r.value / r.low) for r in orders)) / 2
    above = math.hypot(*(math.log(r.high / r.value) for r in orders)) / 2
    return Ratio(math.exp(middle), math.exp(middle - below), math.exp(middle + above), paired=True)


def verdict(found: Ratio, a_ms: float, b_ms: float, threshold: float = THRESHOLD) -> Verdict:
    """Returns what a ratio says: the interval excludes 1, and the difference exceeds both thresholds.

    Args:
        found: A over B.
        a_ms: Median of A.
        b_ms: Median of B.
        threshold: The relative one.
    """
    if abs(a_ms - b_ms) < THRESHOLD_MS:
        return "no difference"
    if found.low > 1 and found.value > 1 + threshold:
        return "slower"
    if found.high < 1 and found.value < 1 / (1 + threshold):
        return "faster"
    return "no difference"


def measure_pair(
    opens: tuple[Callable[[], FusionSession], Callable[[], FusionSession]],
    feeds: Callable[[FusionSession], Sequence[Feed]],
    *,
    runs: int | None = None,
    seconds: float | None = None,
    reset_every: int | None = None,
    warmup: int = WARMUP,
) -> tuple[Opened, Opened]:
    """Returns the times of two builds of one model, opened several times and run interleaved on the same inputs.

    Args:
        opens: Open the first and the second build.
        feeds: What both are called with, over and over, from the first session.
        runs: Runs of each in all.
        seconds: How long to measure in all, both together, instead.
        reset_every: Forget kept states before every so many runs.
        warmup: Rounds after each opening that are not counted.

    Raises:
        DataError: The second build does not take the inputs of the first.
        EdgemmError: One does not open, or fails while running.
    """
    loads: list[tuple[float, float]] = []
    taken: list[dict[str, Latencies]] = []
    parts: list[tuple[dict[str, Latencies], dict[str, Latencies]]] = []
    about: list[tuple[Mapping[str, Any], Mapping[str, tuple[str, ...]]]] = []
    given: Sequence[Feed] | None = None
    openings = min(OPENINGS, runs or OPENINGS)
    at = 0
    while at < openings:
        sessions, load = _open_both(opens, swapped=at % 2 == 1)
        loads.append(load)
        if at == 0 and sum(load) > REOPEN_SECONDS:
            openings = 1
        with sessions[0], sessions[1]:
            if given is None:
                given = feeds(sessions[0])
                _check_same_inputs(sessions, given)
                about = [_about(s) for s in sessions]
            share = None if runs is None else runs // openings + (at < runs % openings)
            found, inside = _measure_once(
                sessions,
                given,
                runs=share,
                seconds=seconds and seconds / openings,
                every=reset_every,
                warmup=warmup,
            )
        taken.append(found)
        parts.append(inside)
        at += 1
    first, second = (
        Opened(
            about[side][1],
            tuple(t["ab"[side]] for t in taken),
            {name: tuple(p[side][name] for p in parts) for name in about[side][1]},
            float(np.median([load[side] for load in loads])) * 1e3,
            about[side][0],
        )
        for side in (0, 1)
    )
    return first, second


def _open_both(
    opens: tuple[Callable[[], FusionSession], Callable[[], FusionSession]], *, swapped: bool
) -> tuple[tuple[FusionSession, FusionSession], tuple[float, float]]:
    """Returns both sessions and the seconds that each took to open; `swapped` opens the second one first."""
    sessions: dict[int, FusionSession] = {}
    seconds: dict[int, float] = {}
    try:
        for side in (1, 0) if swapped else (0, 1):
            start = perf_counter()
            sessions[side] = opens[side]()
            seconds[side] = perf_counter() - start
    except BaseException:
        for session in sessions.values():
            session.close()
        raise
    return (sessions[0], sessions[1]), (seconds[0], seconds[1])


def _check_same_inputs(sessions: tuple[FusionSession, FusionSession], feeds: Sequence[Feed]) -> None:
    """Refuses builds of different models.

    Raises:
        DataError: The second one does not take what the first one does.
    """
    try:
        check_feed(sessions[1].io, feeds[0])
    except DataError as error:
        names = " and ".join(f"'{s.manifest.name}' ({s.variant.name})" for s in sessions)
        raise DataError(
            f"{names} do not take the same inputs: {error}",
            hint="compare two builds of one model",
        ) from error


def _about(session: FusionSession) -> tuple[Mapping[str, Any], Mapping[str, tuple[str, ...]]]:
    variant = session.variant
    about = {"variant": variant.name, "target": variant.target, "layout": variant.layout}
    about["backend"] = session.backend
    return about, {entry.name: entry.stages for entry in variant.engines}


def _measure_once(
    sessions: tuple[FusionSession, FusionSession],
    feeds: Sequence[Feed],
    *,
    runs: int | None,
    seconds: float | None,
    every: int | None,
    warmup: int,
) -> tuple[dict[str, Latencies], tuple[dict[str, Latencies], dict[str, Latencies]]]:
    """Returns the times of whole calls as `a` and `b`, and those of each engine, of one opening.

    Who is called first takes turns, so each feed meets both orders in a cycle that is odd: the last of an even
    number of feeds runs twice in it.
    """
    odd = [*feeds, *feeds[-1:]] if len(feeds) % 2 == 0 else feeds
    recorders = [Recorder(session, every or 0) for session in sessions]
    calls = {side: cycle(recorder.call, odd) for side, recorder in zip("ab", recorders, strict=True)}
    found = measure(calls, runs=runs, seconds=seconds, warmup=warmup)
    kept = [recorder.runs(BACK_TO_BACK, "").engine_seconds() for recorder in recorders]
    a, b = ({name: Latencies(values[-found["a"].runs :]) for name, values in side.items()} for side in kept)
    return found, (a, b)


def compare_stages(a: Opened, b: Opened) -> list[dict[str, Any]]:
    """Returns one row per engine, as `stage_rows`."""
    first, second = (
        [(name, stages, joined(side.parts[name]).median * 1e3) for name, stages in side.engines.items()]
        for side in (a, b)
    )
    return stage_rows(first, second, lambda own, other: pooled_ratio(a.parts[own], b.parts[other]))


def stage_rows(
    a: Sequence[Part],
    b: Sequence[Part],
    ratio_of: Callable[[str, str], Ratio | None],
    judge: Callable[[Ratio, float, float], Verdict] | None = verdict,
) -> list[dict[str, Any]]:
    """Returns one row per engine: `{name, stages, a_p50_ms, b_p50_ms, difference_ms, ratio, verdict}`.

    Engines are matched by the stages inside; one that the other build has not has no ratio and no verdict.

    Args:
        a: The engines of A.
        b: The engines of B.
        ratio_of: Engine of A, engine of B -> the time of the one over that of the other, None if it is not known.
        judge: Ratio, median of A, median of B -> what they say; None where no verdict is to be given.
    """
    partner = {frozenset(stages): (name, ms) for name, stages, ms in b}
    rows, met = [], set()
    for name, stages, own in a:
        other, theirs = partner.get(frozenset(stages), (None, None))
        row: dict[str, Any] = {"name": name, "stages": list(stages), "a_p50_ms": own, "b_p50_ms": theirs}
        if other is not None and theirs is not None:
            met.add(other)
            row["difference_ms"] = own - theirs
            if (found := ratio_of(name, other)) is not None:
                row |= {"ratio": found.to_json(), "verdict": judge and judge(found, own, theirs)}
        rows.append(row)
    rows += [
        {"name": name, "stages": list(stages), "a_p50_ms": None, "b_p50_ms": theirs}
        for name, stages, theirs in b
        if name not in met
    ]
    return rows


def culprit(rows: Sequence[Mapping[str, Any]], found: Verdict | None) -> str | None:
    """Returns the stage or layer that the verdict comes from: the one that changed most in its direction.

    Args:
        rows: From `compare_stages`, or `edgemm.profiling.saved`.
        found: Verdict on whole calls, None where there is none.
    """
    same = [row for row in rows if row.get("verdict") == found]
    if found in (None, "no difference") or not same:
        return None
    return str(max(same, key=lambda row: abs(row["difference_ms"]))["name"])
