"""Interleaved measurement, percentiles with their validity, ratios with their interval."""

from __future__ import annotations

import gc
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemm.errors import DataError
from edgemm.runtime.latency import Latencies, measure, peak_memory, ratio, samples_needed

TIMES = st.lists(st.floats(1e-7, 10), min_size=1, max_size=200).map(lambda x: Latencies(np.array(x)))


@pytest.mark.parametrize(("percentile", "runs"), [(50, 1), (90, 64), (99, 662), (99.9, 6636)])
def test_percentiles_need_the_runs_that_mlperf_asks_for(percentile: float, runs: int) -> None:
    assert samples_needed(percentile) == runs
    values = np.linspace(1, 2, runs)
    assert Latencies(values).percentile(percentile) == pytest.approx(np.percentile(values, percentile))
    if runs > 1:
        assert Latencies(values[:-1]).percentile(percentile) is None


def test_json_says_what_each_percentile_needs() -> None:
    data = Latencies(np.array([0.001, 0.002, 0.003])).to_json()
    assert data["p50_ms"] == 2
    assert data["p90_ms"] is data["p99_ms"] is data["p99_9_ms"] is None
    assert data["needs"] == {"p90": 64, "p95": 130, "p99": 662, "p99.9": 6636}
    assert (data["runs"], data["min_ms"], data["mean_ms"], data["max_ms"]) == (3, 1, 2, 3)
    assert data["std_ms"] == pytest.approx(0.816497)
    assert data["cv"] == pytest.approx(0.4082)
    full = Latencies(np.linspace(0.001, 0.002, 7000)).to_json()
    assert full["needs"] == {}
    assert json.loads(json.dumps(full)) == full


@settings(deadline=None)
@given(TIMES, st.floats(0, 99.99), st.floats(0, 99.99))
def test_percentiles_are_monotone_and_inside_the_range(times: Latencies, p: float, q: float) -> None:
    low, high = times.percentile(min(p, q)), times.percentile(max(p, q))
    assert samples_needed(min(p, q)) <= samples_needed(max(p, q))
    if low is not None and high is not None:
        assert low <= high
    for value in (low, high):
        assert value is None or times.seconds.min() <= value <= times.seconds.max()
    if high is not None:
        assert low is not None


@settings(deadline=None)
@given(TIMES, TIMES)
def test_ratio_lies_in_its_interval(a: Latencies, b: Latencies) -> None:
    found = ratio(a, b)
    assert 0 < found.low <= found.value <= found.high
    assert found.paired == (a.runs == b.runs)


@settings(deadline=None)
@given(TIMES, st.floats(0.1, 10))
def test_ratio_of_scaled_times_is_the_scale(times: Latencies, scale: float) -> None:
    found = ratio(Latencies(times.seconds * scale), times)
    assert found.value == pytest.approx(scale)
    assert found.low == pytest.approx(scale)
    assert found.high == pytest.approx(scale)


def test_paired_ratio_does_not_see_a_drift() -> None:
    random = np.random.default_rng(1)
    drift = np.linspace(1, 5, 999)
    noise = random.normal(1, 0.01, (2, 999))
    found = ratio(Latencies(0.5e-3 * drift * noise[0]), Latencies(1e-3 * drift * noise[1]))
    assert found.value == pytest.approx(0.5, rel=0.01)
    assert found.high - found.low < 0.01


def test_unpaired_ratio_covers_the_truth() -> None:
    random = np.random.default_rng(2)
    found = ratio(Latencies(random.normal(2, 0.1, 20_000)), Latencies(random.normal(1, 0.1, 300)))
    assert not found.paired
    assert found.low < 2 < found.high
    assert found.high - found.low < 0.1


def test_calls_are_interleaved_in_rotating_order() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    result = measure(calls, runs=4, warmup=1)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert {name: latencies.runs for name, latencies in result.items()} == {"a": 4, "b": 4, "c": 4}


def test_times_are_those_of_the_calls() -> None:
    result = measure({"slow": lambda: time.sleep(0.004), "fast": lambda: None}, runs=10, warmup=0)
    assert result["slow"].seconds.min() >= 0.004
    assert result["fast"].median < 0.004
    assert ratio(result["fast"], result["slow"]).value < 0.5


def test_seconds_bound_the_measurement() -> None:
    start = time.perf_counter()
    result = measure({"a": lambda: time.sleep(0.001)}, seconds=0.05, warmup=0)
    assert 0.04 < time.perf_counter() - start < 5
    assert result["a"].runs >= 1
    assert measure({"a": lambda: time.sleep(0.01)}, seconds=0.0001)["a"].runs == 1


def test_collector_is_restored_even_when_a_call_fails() -> None:
    states = []

    def fail() -> None:
        states.append(gc.isenabled())
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measure({"a": fail}, runs=1, warmup=0)
    assert states == [False]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize(
    "arguments",
    [{}, {"runs": 1, "seconds": 1}, {"runs": 0}, {"seconds": 0}, {"runs": -1}, {"runs": 1, "warmup": -1}],
)
def test_contradicting_arguments_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(DataError, match="measure: got") as caught:
        measure({"a": lambda: None}, **arguments)
    assert caught.value.hint


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to measure"):
        measure({}, runs=1)
    with pytest.raises(DataError, match="latencies of no runs"):
        Latencies(np.array([]))
    with pytest.raises(DataError, match="percentile 100"):
        samples_needed(100)


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory()
    block = np.ones(60_000_000, np.uint8)
    assert peak_memory() >= before
    assert peak_memory() > block.nbytes // 2
    assert before > 5_000_000
