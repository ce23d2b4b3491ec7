"""The live histogram of a session: what it counts, what it says, and what it holds back."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgemm.errors import DataError
from edgemm.profiling.times import histogram_json
from edgemm.runtime import FusionSession, open_session
from edgemm.runtime.live import LiveLatency

Bundle = Callable[..., Path]
TIMES = st.lists(st.integers(1_000, 10**11), min_size=1, max_size=300)


def feed_of(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "image": random.normal(size=(1, 4)).astype(np.float32),
        "audio": random.normal(size=(1, 2, 2)).astype(np.float32),
    }


def counted(times: list[int]) -> LiveLatency:
    live = LiveLatency()
    for value in times:
        live.record(value)
    return live


@given(TIMES)
def test_the_histogram_is_that_of_a_report(times: list[int]) -> None:
    found = counted(times).snapshot().to_json()
    expected = histogram_json(np.array(times) * 1e-6)
    assume(
        not any(abs(t * 1e-6 / edge - 1) < 1e-5 for t in times for edge in expected["edges_ms"])
    )  # edges are rounded
    assert sum(found["histogram"]["counts"]) == found["runs"] == len(times)
    assert found["histogram"] == expected
    assert found["total_ms"] == pytest.approx(sum(times) / 1e6)
    assert found["max_ms"] == max(times) / 1e6


@given(st.lists(st.integers(1_000, 10**9), min_size=64, max_size=200), st.sampled_from([50.0, 90.0]))
def test_percentiles_are_right_within_a_bucket(times: list[int], percentile: float) -> None:
    found = counted(times).percentile(percentile)
    exact = [np.percentile(times, percentile, method=m) * 1e-9 for m in ("lower", "higher")]
    assert found is not None
    assert exact[0] / 1.0594 <= found <= exact[1] * 1.0594


def test_percentiles_without_enough_calls_are_held_back() -> None:
    live = counted([1_000_000] * 63)
    assert live.percentile(50) == pytest.approx(1e-3, rel=0.06)
    assert live.percentile(90) is None
    live.record(1_000_000)
    assert live.percentile(90) is not None
    told = live.snapshot().to_json()
    assert told["needs"] == {"p95": 130, "p99": 662, "p99.9": 6636}
    assert told["p99_ms"] is None
    with pytest.raises(DataError, match="percentile 100"):
        live.percentile(100)


def test_nothing_was_called_yet(make_bundle: Bundle, fusion_bundle: Path) -> None:
    with open_session(fusion_bundle) as session:
        assert repr(session.latency) == "<LiveLatency: no calls>"
        report = session.report()
    assert report["latency"]["runs"] == 0
    assert report["latency"]["p50_ms"] is report["latency"]["mean_ms"] is None
    assert report["latency"]["histogram"] == {"edges_ms": [], "counts": []}


def test_every_call_of_run_is_counted_once(fusion_bundle: Path) -> None:
    feed = feed_of()
    for cache in ("off", "content", "marks", "auto"):
        with open_session(fusion_bundle, cache=cache) as session:
            for _ in range(5):
                session.run(feed)
            session.run(feed, changed={"image"})
            with pytest.raises(DataError):
                session.run({"image": feed["image"]})
            snapshot = session.latency.snapshot()
            assert (snapshot.runs, snapshot.failed) == (6, 1), cache
            session.latency.reset()
            assert session.latency.snapshot().runs == session.latency.failed == 0


def test_a_lone_engine_is_counted(make_bundle: Bundle) -> None:
    path = make_bundle({"image": "image (float[batch,4] image) => (float[batch,4] y) { y = Neg(image) }"})
    with open_session(path) as session:
        for _ in range(7):
            session.run({"image": np.ones((1, 4), np.float32)})
        assert session.latency.snapshot().runs == 7
        assert session.report()["latency"]["total_ms"] > 0


def test_streams_are_counted(fusion_bundle: Path) -> None:
    with open_session(fusion_bundle) as session, session.stream(trigger="image") as stream:
        for at in range(4):
            feed = feed_of(at)
            stream.push("audio", feed["audio"][0], t=float(at))
            stream.push("image", feed["image"][0], t=float(at))
            assert stream.poll() is not None
        assert session.latency.snapshot().runs == 4


def test_no_call_of_many_threads_is_lost(fusion_bundle: Path) -> None:
    live = LiveLatency()

    def many(_: int) -> None:
        for value in range(1, 20_001):
            live.record(value)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(many, range(8)))
    snapshot = live.snapshot()
    assert (snapshot.runs, snapshot.total_ns, snapshot.max_ns) == (160_000, 8 * 20_000 * 20_001 // 2, 20_000)


def test_report_says_what_ran_and_what_was_reused(fusion_bundle: Path) -> None:
    with open_session(fusion_bundle, cache="marks") as session:
        feed = feed_of()
        session.run(feed, changed={"image", "audio"})
        session.run(feed, changed={"image"})
        session.run_timed(feed)
        report = session.report()
    assert json.loads(json.dumps(report)) == report
    assert (report["kind"], report["model"], report["variant"]) == ("edgemm-session-report", "tiny", "cpu-fp32")
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert (stages["image"]["reused"], stages["image"]["of_calls"]) == (0, 2)
    assert (stages["audio"]["reused"], stages["audio"]["of_calls"]) == (1, 2)
    assert all(stage["times"]["runs"] == 1 and stage["times"]["p50_ms"] > 0 for stage in stages.values())
    assert report["cache"]["mode"] == "marks"
    assert report["latency"]["runs"] == 2
    assert 0 < report["seconds"] < 600


def test_slow_calls_are_seen_as_slow(make_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call is timed from its beginning to its outputs, checks included."""
    path = make_bundle({"image": "image (float[batch,4] image) => (float[batch,4] y) { y = Neg(image) }"})
    ticks = iter([1_000, 5_001_000, 6_000_000, 6_100_000])
    monkeypatch.setattr("edgemm.runtime.live.perf_counter_ns", lambda: next(ticks))
    with open_session(path) as session:
        for _ in range(2):
            session.run({"image": np.ones((1, 4), np.float32)})
        snapshot = session.latency.snapshot()
    assert (snapshot.total_ns, snapshot.max_ns) == (5_100_000, 5_000_000)


def test_run_keeps_its_name_and_documentation() -> None:
    assert FusionSession.run.__name__ == "run"
    assert (FusionSession.run.__doc__ or "").startswith("Returns the result outputs by name")
