"""Whether the time of a call depends on its input: a few samples, repeated in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from edgemm.runtime.latency import collector_resting

SAMPLES = 8
"""Most samples that are repeated."""

REPEATS = 30

SECONDS = 3.0
"""No round begins after this; there are at least three."""

_PERMUTATIONS = 999


def measure_spread(call: Callable[[int], object], samples: int) -> dict[str, Any] | None:
    """Returns `edgemm.profiling.report.Spread` of evenly chosen samples, or None with fewer than two.

    Every round runs each of them once, so that a slow spell of the machine meets all of them.

    Args:
        call: Runs the sample of this index.
        samples: How many there are.
    """
    if samples < 2:
        return None
    chosen = np.unique(np.linspace(0, samples - 1, min(samples, SAMPLES)).round().astype(int)).tolist()
    for at in chosen:
        call(at)
    rounds: list[list[float]] = []
    with collector_resting():
        end = perf_counter() + SECONDS
        while len(rounds) < 3 or (len(rounds) < REPEATS and perf_counter() < end):
            rounds.append([_timed(call, at) for at in chosen])
    return spread_json(np.array(rounds), chosen)


def _timed(call: Callable[[int], object], at: int) -> float:
    start = perf_counter()
    call(at)
    return perf_counter() - start


def spread_json(times: np.ndarray, chosen: Sequence[int]) -> dict[str, Any]:
    """Returns `edgemm.profiling.report.Spread`.

    The noise of one sample is its interquartile range over that of a normal distribution (outliers do not count);
    the spread between samples is that of their medians, less what the noise explains. `p_value` is that of a
    permutation test: how often medians are at least as far apart when the times of each round are shuffled.

    Args:
        times: float64[rounds, samples], in seconds.
        chosen: Index of each of the samples.
    """
    rounds, samples = times.shape
    low, high = np.percentile(times, [25, 75], axis=0)
    within = float(np.median((high - low) / 1.349))
    medians = np.median(times, axis=0)
    # A median of n normal values has pi / 2 times the variance of their mean.
    explained = np.pi / 2 * within**2 / rounds
    between = float(np.sqrt(max(float(medians.var(ddof=1)) - explained, 0.0)))
    random = np.random.default_rng(0)
    shuffled = random.permuted(np.broadcast_to(times, (_PERMUTATIONS, rounds, samples)), axis=2)
    # The tolerance keeps equal values equal.
    as_far = np.median(shuffled, axis=1).var(axis=1) >= medians.var() * (1 - 1e-9)
    p_value = (1 + int(np.count_nonzero(as_far))) / (1 + _PERMUTATIONS)
    return {
        "between_samples_ms": round(between * 1e3, 6),
        "within_sample_ms": round(within * 1e3, 6),
        "samples": samples,
        "repeats": rounds,
        "input_dependent": p_value < 0.01,
        "p_value": p_value,
        "slowest_sample": int(chosen[int(medians.argmax())]),
        "fastest_ms": round(float(medians.min()) * 1e3, 6),
        "slowest_ms": round(float(medians.max()) * 1e3, 6),
    }
