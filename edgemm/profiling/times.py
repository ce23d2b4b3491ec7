"""What a set of run times supports: intervals of its percentiles, a histogram, the runs that a percentile needs.

The number of runs below the true percentile p is binomial with probability p, whatever the distribution of the
times. From that follow the confidence intervals by order statistics (Hahn, Meeker: Statistical Intervals, 5.2;
Conover: Practical Nonparametric Statistics, 3.2) and MLPerf's early stopping (MLPerf Inference rules, appendix
"Early Stopping Criterion", with tolerance 0).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from edgemm.errors import DataError
from edgemm.runtime.latency import (
    BUCKETS_PER_DECADE,
    CONFIDENCE,
    PERCENTILES,
    Latencies,
    edge_ms,
    samples_needed,
)

LEVEL = 0.95
"""Confidence of the intervals."""


def times_json(seconds: np.ndarray, *, histogram: bool = True) -> dict[str, Any]:
    """Returns `edgemm.profiling.report.Times`.

    Args:
        seconds: float64[runs], in any order.
        histogram: Whether to add the histogram.

    Raises:
        DataError: There are no runs.
    """
    latencies = Latencies(seconds)
    ordered = np.sort(seconds) * 1e3
    intervals = {}
    for percentile in PERCENTILES:
        found = interval(ordered, percentile) if latencies.runs >= samples_needed(percentile) else None
        if found is not None:
            intervals[f"p{percentile:g}"] = [round(value, 6) for value in found]
    report = latencies.to_json() | {"intervals": intervals}
    return report | {"histogram": histogram_json(ordered)} if histogram else report


def interval(ordered: np.ndarray, percentile: float, level: float = LEVEL) -> tuple[float, float] | None:
    """Returns a confidence interval of a percentile, or None where the runs are too few to have both ends.

    Its ends are two of the values: those of `interval_ranks`. It always holds `numpy.percentile`.

    Args:
        ordered: float64[runs], ascending.
        percentile: Between 0 and 100, both excluded.
        level: Probability that the interval holds the true percentile, at least.
    """
    ranks = interval_ranks(int(ordered.size), percentile, level)
    return None if ranks is None else (float(ordered[ranks[0] - 1]), float(ordered[ranks[1] - 1]))


@lru_cache(maxsize=256)
def interval_ranks(runs: int, percentile: float, level: float = LEVEL) -> tuple[int, int] | None:
    """Returns the ranks (from 1) of the two order statistics that hold the percentile, or None without both.

    Each tail has a probability of at most `(1 - level) / 2`; the ranks are the closest such ones.

    Raises:
        DataError: The percentile or the level is not inside its range.
    """
    if not 0 < percentile < 100 or not 0 < level < 1:
        raise DataError(
            f"interval of percentile {percentile} at {level}: expected 0 < p < 100 and 0 < level < 1.",
            hint="0.95 is the usual level",
        )
    tail = (1 - level) / 2
    low, cumulative = _binomial(runs, percentile / 100)
    # B is the number of runs below the percentile: P(B < lower) <= tail and P(B >= upper) <= tail.
    lower = low + int(np.searchsorted(cumulative, tail, side="right"))
    upper = low + int(np.searchsorted(cumulative, 1 - tail, side="left")) + 1
    return (lower, upper) if lower >= 1 and upper <= runs else None


def _binomial(n: int, p: float) -> tuple[int, np.ndarray]:
    """Returns `(k0, [P(B <= k0), P(B <= k0 + 1), ...])` for binomial B, around its mean; P(B < k0) is nothing."""
    spread = 12 * math.sqrt(n * p * (1 - p)) + 40
    low, high = max(0, math.floor(n * p - spread)), min(n, math.ceil(n * p + spread))
    k = np.arange(low, high + 1, dtype=np.float64)
    first = math.lgamma(n + 1) - math.lgamma(low + 1) - math.lgamma(n - low + 1)
    first += low * math.log(p) + (n - low) * math.log1p(-p)
    steps = np.log((n - k[:-1]) / k[1:]) + math.log(p / (1 - p))
    logs = first + np.concatenate([[0.0], np.cumsum(steps)])
    return low, np.cumsum(np.exp(logs))


def queries_needed(percentile: float, over: int) -> int:
    """Returns MLPerf's early-stopping count: the runs that it takes if `over` of them are above the percentile.

    The smallest n for which at most `over` of n runs lie above the true percentile with a probability of at most
    1 - 0.99. `samples_needed` is this with one run above.

    Raises:
        DataError: The percentile is not between 0 and 100, or `over` is negative.
    """
    if not 0 < percentile < 100 or over < 0:
        raise DataError(
            f"early stopping at percentile {percentile} with {over} above: expected 0 < p < 100 and 0 or more.",
            hint="MLPerf uses 90 and 99",
        )
    p = percentile / 100
    low, high = over, over + 1
    while _at_most(over, high, 1 - p) > 1 - CONFIDENCE:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if _at_most(over, middle, 1 - p) > 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def _at_most(k: int, n: int, p: float) -> float:
    """Returns P(B <= k) for binomial B of n trials."""
    if k >= n:
        return 1.0
    terms = (
        math.lgamma(n + 1)
        - math.lgamma(i + 1)
        - math.lgamma(n - i + 1)
        + i * math.log(p)
        + (n - i) * math.log1p(-p)
        for i in range(k + 1)
    )
    return math.fsum(math.exp(term) for term in terms)


def histogram_json(milliseconds: np.ndarray) -> dict[str, Any]:
    """Returns `edgemm.profiling.report.Histogram`: log-spaced buckets of one grid, fastest to slowest.

    The buckets have a constant relative width, as those of HdrHistogram have; a bucket holds its lower edge.

    Args:
        milliseconds: float64[runs]; times below a nanosecond are counted as one.
    """
    values = np.maximum(milliseconds, 1e-6)
    first = math.floor(math.log10(float(values.min())) * BUCKETS_PER_DECADE) - 1
    last = math.ceil(math.log10(float(values.max())) * BUCKETS_PER_DECADE) + 1
    edges = np.array([edge_ms(k) for k in range(first, last + 1)])
    at = np.searchsorted(edges, values, side="right") - 1
    counts = np.bincount(at, minlength=edges.size - 1)
    used = np.flatnonzero(counts)
    begin, end = int(used[0]), int(used[-1]) + 1
    return {"edges_ms": edges[begin : end + 1].tolist(), "counts": counts[begin:end].tolist()}


def drift(seconds: np.ndarray) -> float:
    """Returns the median of the last third of the runs over that of the first, 1.0 with fewer than 30 runs.

    Args:
        seconds: float64[runs], in the order in which they were taken.
    """
    third = seconds.size // 3
    if third < 10:
        return 1.0
    return float(np.median(seconds[-third:]) / max(float(np.median(seconds[:third])), 1e-9))
