"""Intervals by order statistics against published ranks and exact sums, early stopping, histograms."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemm.errors import DataError
from edgemm.profiling.times import (
    drift,
    histogram_json,
    interval,
    interval_ranks,
    queries_needed,
    times_json,
)
from edgemm.runtime.latency import samples_needed


def at_most(k: int, n: int, p: Fraction) -> Fraction:
    """P(B <= k), exactly."""
    return sum((comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)), Fraction(0))


@pytest.mark.parametrize(
    ("runs", "ranks"),
    [(5, None), (6, (1, 6)), (10, (2, 9)), (20, (6, 15)), (25, (8, 18)), (50, (18, 33)), (100, (40, 61))],
)
def test_ranks_of_the_median_are_those_of_the_tables(runs: int, ranks: tuple[int, int] | None) -> None:
    """Conover, Practical Nonparametric Statistics, table A3; the same as those of the sign test."""
    assert interval_ranks(runs, 50) == ranks


@pytest.mark.parametrize("percentile", [50, 90, 95, 99])
@pytest.mark.parametrize("runs", [7, 64, 130, 400, 662])
def test_ranks_are_the_closest_of_the_level(runs: int, percentile: int) -> None:
    p, tail = Fraction(percentile, 100), Fraction(25, 1000)
    found = interval_ranks(runs, percentile)
    if found is None:
        assert at_most(0, runs, p) > tail or 1 - at_most(runs - 1, runs, p) > tail
        return
    low, high = found
    assert at_most(low - 1, runs, p) <= tail < at_most(low, runs, p)
    assert 1 - at_most(high - 1, runs, p) <= tail < 1 - at_most(high - 2, runs, p)


def test_ranks_of_many_runs_are_those_of_the_normal_approximation() -> None:
    low, high = interval_ranks(4_000_000, 99.9) or (0, 0)
    mean, deviation = 4_000_000 * 0.999, (4_000_000 * 0.999 * 0.001) ** 0.5
    assert low == pytest.approx(mean - 1.96 * deviation, abs=3)
    assert high == pytest.approx(mean + 1.96 * deviation, abs=3)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        found = interval(np.sort(random.exponential(size=300)), 90)
        assert found is not None
        held += found[0] <= np.log(10) <= found[1]
    assert 0.94 <= held / 1000 <= 0.985


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=900), st.sampled_from([50.0, 90.0, 95.0, 99.0]))
def test_interval_holds_the_percentile(values: list[float], percentile: float) -> None:
    ordered = np.sort(values)
    found = interval(ordered, percentile)
    if found is not None:
        assert ordered[0] <= found[0] <= np.percentile(ordered, percentile) <= found[1] <= ordered[-1]


@pytest.mark.parametrize(("percentile", "level"), [(0, 0.95), (100, 0.95), (50, 0), (50, 1)])
def test_interval_out_of_range_is_refused(percentile: float, level: float) -> None:
    with pytest.raises(DataError, match="interval of percentile"):
        interval_ranks(10, percentile, level)


@pytest.mark.parametrize(("percentile", "over", "runs"), [(90, 1, 64), (99, 1, 662), (99, 0, 459), (90, 0, 44)])
def test_early_stopping_counts_are_those_that_mlperf_publishes(percentile: float, over: int, runs: int) -> None:
    """64 and 662: floors of single-stream and multi-stream; 459: LoadGen's for p99 without one above."""
    assert queries_needed(percentile, over) == runs


@pytest.mark.parametrize("percentile", [90, 95, 97, 99])
@pytest.mark.parametrize("over", [0, 1, 2, 5, 20])
def test_early_stopping_counts_are_the_smallest(percentile: int, over: int) -> None:
    runs, p = queries_needed(percentile, over), 1 - Fraction(percentile, 100)
    assert at_most(over, runs, p) <= Fraction(1, 100) < at_most(over, runs - 1, p)


def test_percentiles_are_given_from_the_early_stopping_count_on() -> None:
    for percentile in (90, 95, 99, 99.9):
        assert queries_needed(percentile, 1) == samples_needed(percentile)
    with pytest.raises(DataError, match="early stopping"):
        queries_needed(100, 1)


@given(st.lists(st.floats(1e-6, 1e5), min_size=1, max_size=200))
def test_histogram_counts_every_value_in_its_bucket(values: list[float]) -> None:
    found = histogram_json(np.array(values))
    edges, counts = np.array(found["edges_ms"]), np.array(found["counts"])
    assert edges.size == counts.size + 1
    assert counts.sum() == len(values)
    assert counts[0] > 0
    assert counts[-1] > 0
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        assert sum(low <= value < high for value in values) == count
        assert high / low == pytest.approx(10 ** (1 / 40), rel=1e-4)


def test_histograms_share_their_edges() -> None:
    a, b = (set(histogram_json(np.array(x))["edges_ms"]) for x in ([0.1, 1.0], [0.5, 20.0]))
    assert {edge for edge in a | b if 0.6 < edge < 0.9} == {edge for edge in a & b if 0.6 < edge < 0.9}
    assert 1.0 in a


def test_times_say_how_sure_they_are() -> None:
    few = times_json(np.linspace(0.001, 0.002, 100))
    assert set(few["intervals"]) == {"p50", "p90"}
    assert few["p95_ms"] is few["p99_ms"] is None
    assert few["needs"] == {"p95": 130, "p99": 662, "p99.9": 6636}
    assert few["intervals"]["p50"][0] == pytest.approx(1 + 39 / 99)
    assert few["intervals"]["p50"][1] == pytest.approx(1 + 60 / 99)
    one = times_json(np.array([0.001]), histogram=False)
    assert one["intervals"] == {}
    assert "histogram" not in one


def test_drift() -> None:
    assert drift(np.concatenate([np.full(50, 1.0), np.full(50, 1.2)])) == pytest.approx(1.2)
    assert drift(np.linspace(1, 2, 20)) == 1.0
