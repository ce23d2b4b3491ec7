"""Times calls side by side, and says what the times support.

Calls that are to be compared run interleaved: one of each per round, in rotating order, so that a slow spell of
the machine meets all of them. Percentiles are given only from enough samples: the counts are those of MLPerf's
early stopping (MLPerf Inference rules, appendix "Early Stopping Criterion") at 99 % confidence with one outlier
allowed. Device side: numpy and the standard library.
"""

from __future__ import annotations

import contextlib
import gc
import math
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np

from edgemm.errors import DataError

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
"""What a report shows."""

CONFIDENCE = 0.99

BUCKETS_PER_DECADE = 40
"""Resolution of histograms of latencies: each edge is about 6 % above the one before."""

_BOOTSTRAPS = 1000
_BOOTSTRAP_SAMPLES = 5000
_MAX_ROUNDS = 10_000_000


@lru_cache(maxsize=64)
def samples_needed(percentile: float) -> int:
    """Returns the number of runs from which `percentile` may be given.

    The smallest n for which at most one of n runs lies above the true percentile with a probability of at most
    1 - 0.99: p^n + n (1 - p) p^(n - 1) <= 0.01. A median is given from one run on; its count is always shown.

    Raises:
        DataError: The percentile is not between 0 and 100.
    """
    if not 0 <= percentile < 100:
        raise DataError(f"percentile {percentile}: expected 0 <= p < 100.", hint="use max for the slowest run")
    if percentile <= 50:
        return 1
    p = percentile / 100
    high = 2
    while not _enough(p, high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _enough(p, middle) else (middle, high)
    return high


def _enough(p: float, n: int) -> bool:
    return bool(p**n + n * (1 - p) * p ** (n - 1) <= 1 - CONFIDENCE)


@dataclass(frozen=True, slots=True)
class Latencies:
    """The times of one call, in the order in which they were taken.

    Attributes:
        seconds: float64[runs].
    """

    seconds: np.ndarray

    def __post_init__(self) -> None:
        if self.seconds.ndim != 1 or not self.seconds.size:
            raise DataError("latencies of no runs.", hint="measure at least one run")

    @property
    def runs(self) -> int:
        """Number of runs."""
        return int(self.seconds.size)

    def percentile(self, percentile: float) -> float | None:
        """Returns the percentile in seconds, or None with fewer than `samples_needed(percentile)` runs.

        Raises:
            DataError: The percentile is not between 0 and 100.
        """
        if self.runs < samples_needed(percentile):
            return None
        return float(np.percentile(self.seconds, percentile))

    @property
    def median(self) -> float:
        """The median in seconds."""
        return float(np.median(self.seconds))

    @property
    def cv(self) -> float:
        """Standard deviation over mean: how restless the machine was."""
        mean = float(self.seconds.mean())
        return float(self.seconds.std()) / mean if mean > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Returns times in milliseconds; a percentile without enough runs is None and listed in `needs`.

        `{runs, p50_ms, p90_ms, p95_ms, p99_ms, p99_9_ms, needs: {p99: 662}, min_ms, mean_ms, std_ms, cv, max_ms}`.
        """
        names = {p: f"p{p:g}" for p in PERCENTILES}
        values = {p: self.percentile(p) for p in PERCENTILES}
        return {
            "runs": self.runs,
            **{f"{names[p].replace('.', '_')}_ms": _ms(value) for p, value in values.items()},
            "needs": {names[p]: samples_needed(p) for p, value in values.items() if value is None},
            "min_ms": _ms(float(self.seconds.min())),
            "mean_ms": _ms(float(self.seconds.mean())),
            "std_ms": _ms(float(self.seconds.std())),
            "cv": round(self.cv, 4),
            "max_ms": _ms(float(self.seconds.max())),
        }


def measure(
    calls: Mapping[str, Callable[[], object]],
    *,
    runs: int | None = None,
    seconds: float | None = None,
    warmup: int = 10,
) -> dict[str, Latencies]:
    """Returns the latencies of every call, measured interleaved.

    Each round makes every call once; the order rotates from round to round. Python's garbage collector rests
    meanwhile.

    Args:
        calls: Name -> what to time; its result is dropped.
        runs: Number of rounds.
        seconds: How long to measure instead; at least one round.
        warmup: Rounds that are made first and not counted.

    Raises:
        DataError: No calls, or not exactly one of `runs` and `seconds`, or one that is not positive.
    """
    if not calls:
        raise DataError("nothing to measure.", hint="give at least one call")
    if (runs is None) == (seconds is None) or (runs or seconds or 0) <= 0 or warmup < 0:
        raise DataError(
            f"measure: got runs={runs}, seconds={seconds}, warmup={warmup}.",
            hint="give either runs (1 or more) or seconds (above 0), and a warm-up of 0 or more",
        )
    names = list(calls)
    orders = [[(n, calls[n]) for n in names[k:] + names[:k]] for k in range(len(names))]
    for _ in range(warmup):
        for call in calls.values():
            call()
    taken: dict[str, list[int]] = {name: [] for name in names}
    limit = runs if runs is not None else _MAX_ROUNDS
    with collector_resting():
        end = perf_counter() + seconds if seconds is not None else math.inf
        for at in range(limit):
            for name, call in orders[at % len(orders)]:
                start = perf_counter_ns()
                call()
                taken[name].append(perf_counter_ns() - start)
            if perf_counter() >= end:
                break
    return {name: Latencies(np.array(values, np.float64) * 1e-9) for name, values in taken.items()}


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times longer one call takes than another.

    Attributes:
        value: Median ratio; below 1 the first call is the faster one.
        low: Lower end of the 95 % confidence interval.
        high: Upper end of it.
        paired: Whether round was compared with round (one interleaved measurement).
    """

    value: float
    low: float
    high: float
    paired: bool

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as they are."""
        return {"value": self.value, "low": self.low, "high": self.high, "paired": self.paired}


def ratio(a: Latencies, b: Latencies) -> Ratio:
    """Returns the time of `a` over the time of `b` with a 95 % confidence interval.

    With equally many runs they are taken for one interleaved measurement: the median of the ratios round by round
    (a drift of the machine cancels out), its interval from order statistics. Else the ratio of the medians, its
    interval by bootstrap.
    """
    floor = 1e-9
    if a.runs == b.runs:
        ratios = np.sort(np.maximum(a.seconds, floor) / np.maximum(b.seconds, floor))
        half = 1.96 * math.sqrt(ratios.size) / 2
        low = max(math.floor(ratios.size / 2 - half) - 1, 0)
        high = min(math.ceil(ratios.size / 2 + half), ratios.size - 1)
        return Ratio(float(np.median(ratios)), float(ratios[low]), float(ratios[high]), paired=True)
    random = np.random.default_rng(0)
    drawn = [_medians(random, x.seconds) for x in (a, b)]
    low, high = np.percentile(np.maximum(drawn[0], floor) / np.maximum(drawn[1], floor), [2.5, 97.5])
    value = max(a.median, floor) / max(b.median, floor)
    return Ratio(value, min(float(low), value), max(float(high), value), paired=False)


def _medians(random: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """Returns the medians of resamples; long measurements are thinned to bound the memory."""
    if values.size > _BOOTSTRAP_SAMPLES:
        values = values[:: -(-values.size // _BOOTSTRAP_SAMPLES)]
    block = max(1, 1_000_000 // values.size)
    sizes = [min(block, _BOOTSTRAPS - done) for done in range(0, _BOOTSTRAPS, block)]
    return np.concatenate([np.median(random.choice(values, (n, values.size)), axis=1) for n in sizes])


def edge_ms(bucket: int) -> float:
    """Returns the lower edge of a bucket in milliseconds, to six digits; bucket 0 begins at one."""
    return float(f"{10 ** (bucket / BUCKETS_PER_DECADE):.6g}")


def peak_memory() -> int:
    """Returns the most memory that this process has held so far, in bytes (resident set, high-water mark)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def collector_resting() -> Iterator[None]:
    """Keeps the garbage collector out of the measurement and restores it after."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 6)
