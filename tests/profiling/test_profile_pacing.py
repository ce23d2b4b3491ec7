"""Open-loop pacing: latencies count from scheduled arrivals, so that a slow call delays those behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from edgemm.errors import DataError
from edgemm.profiling.pacing import Paced, make_schedule, paced
from edgemm.profiling.record import Recorder
from edgemm.runtime import FusionSession


class FakeClock:
    """Time that only calls and waiting move on; `oversleeps` is how late it wakes."""

    def __init__(self, oversleeps: float = 0.0) -> None:
        self.time, self._oversleeps = 100.0, oversleeps

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds + self._oversleeps


class Taking:
    """A real session whose calls take what a test says on a fake clock."""

    def __init__(self, session: FusionSession, clock: FakeClock, takes: Callable[[int], float]) -> None:
        self.variant, self._session, self._clock, self._takes = session.variant, session, clock, takes
        self.feeds: list[Mapping[str, np.ndarray]] = []

    def run_spans(self, feed: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[Any]]:
        start = self._clock.time
        outputs, _ = self._session.run_spans(feed)
        self._clock.time += self._takes(len(self.feeds))
        self.feeds.append(feed)
        return outputs, [("camera", start, self._clock.time)]


@pytest.fixture
def run(session: FusionSession, feeds: list[dict[str, np.ndarray]]):
    def call(
        rates: dict[str, float], calls: int, takes: Callable[[int], float], oversleeps: float = 0.0
    ) -> tuple[Paced, Taking]:
        clock = FakeClock(oversleeps)
        taking = Taking(session, clock, takes)
        recorder = Recorder(taking, clock=clock.now)  # type: ignore[arg-type]
        return paced(recorder, session.io, feeds, make_schedule(session.io, rates), calls, clock), taking

    return call


def test_a_stall_delays_the_samples_behind_it(run) -> None:
    """A closed loop sees one slow call in a thousand; the sensors see more than a hundred late outputs."""
    found, _ = run({"camera": 100}, 1000, lambda at: 1.005 if at == 500 else 0.001)
    closed = found.runs.seconds - found.runs.waited
    assert np.count_nonzero(closed > 0.01) == 1
    assert np.percentile(closed, 99) == pytest.approx(0.001)
    report = found.to_json()
    assert report["missed"] == np.count_nonzero(found.runs.seconds > 0.01) == 111
    assert np.percentile(found.runs.seconds, 90) > 0.1
    assert report["times"]["max_ms"] == pytest.approx(1005)
    assert report["kept_up"]


def test_latencies_are_those_of_a_queue(run) -> None:
    random = np.random.default_rng(0)
    takes = random.exponential(0.008, 300)
    found, _ = run({"camera": 100}, 300, lambda at: float(takes[at]))
    end, expected = -np.inf, []
    for at, seconds in enumerate(takes):
        end = max(at / 100, end) + seconds
        expected.append(end - at / 100)
    np.testing.assert_allclose(found.runs.seconds, expected, atol=1e-9)
    np.testing.assert_allclose(found.runs.due, np.arange(300) / 100, atol=1e-9)
    np.testing.assert_allclose(found.runs.seconds - found.runs.waited, takes, atol=1e-9)


def test_every_call_reads_the_newest_samples_that_arrived(run) -> None:
    found, taking = run({"camera": 30, "lidar": 10}, 9, lambda at: 0.002)
    camera = [int(feed["image"][0, 0]) for feed in taking.feeds]
    lidar = [int(feed["points"][0, 0]) for feed in taking.feeds]
    assert camera == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert lidar == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    np.testing.assert_allclose(found.ages["camera"], 0.002, atol=1e-9)
    np.testing.assert_allclose(found.ages["lidar"], 0.002 + np.tile([0, 1, 2], 3) / 30, atol=1e-9)
    report = found.to_json()
    assert report["trigger"] == "camera"
    assert report["rate_hz"] == {"camera": 30, "lidar": 10}
    assert report["deadline_ms"] == pytest.approx(1000 / 30)
    assert report["ages"]["lidar"]["max_ms"] == pytest.approx(2 + 2000 / 30, abs=1e-3)


def test_a_modality_without_a_rate_comes_with_the_trigger(run) -> None:
    found, taking = run({"lidar": 20}, 4, lambda at: 0.001)
    assert [int(feed["image"][0, 0]) for feed in taking.feeds] == [0, 1, 2, 0]
    np.testing.assert_allclose(found.ages["camera"], 0.001, atol=1e-9)


def test_jitter_is_that_of_the_outputs(run) -> None:
    steady, _ = run({"camera": 50}, 100, lambda at: 0.003)
    assert steady.to_json()["jitter_ms"] == pytest.approx(0, abs=1e-6)
    swinging, _ = run({"camera": 50}, 101, lambda at: 0.003 + 0.004 * (at % 2))
    assert swinging.to_json()["jitter_ms"] == pytest.approx(4)


def test_late_waking_is_part_of_the_latency_and_told(run) -> None:
    found, _ = run({"camera": 50}, 20, lambda at: 0.003, oversleeps=0.0005)
    report = found.to_json()
    assert report["wake_ms"] == pytest.approx(0.5)
    assert report["times"]["p50_ms"] == pytest.approx(3.5)


def test_a_machine_that_cannot_keep_up(run) -> None:
    report = run({"camera": 100}, 50, lambda at: 0.02)[0].to_json()
    assert not report["kept_up"]
    assert report["missed"] == report["deadlines"] == 50
    assert report["times"]["max_ms"] == pytest.approx(50 * 20 - 49 * 10)


def test_real_calls_at_a_real_rate(session: FusionSession, feeds: list[dict[str, np.ndarray]]) -> None:
    schedule = make_schedule(session.io, {"camera": 400})
    found = paced(Recorder(session), session.io, feeds, schedule, 40)
    np.testing.assert_allclose(found.runs.due, np.arange(40) / 400, atol=1e-9)
    assert (found.runs.seconds > 0).all()
    assert (found.runs.waited >= 0).all()
    assert set(found.runs.engine_seconds()) == {"camera", "lidar", "fusion"}
    assert (found.runs.covered() <= found.runs.seconds - found.runs.waited + 1e-9).all()
    assert found.runs.due[-1] + found.runs.seconds[-1] >= 39 / 400


@pytest.mark.parametrize(
    ("rates", "message", "hint"),
    [
        ({"camra": 30}, "there is no modality 'camra' .modalities: camera, lidar.", "did you mean 'camera'"),
        ({"camera": 0}, "expected a number above 0", "samples a second"),
        ({"camera": float("inf")}, "expected a number above 0 and up to 100,000", "samples a second"),
        ({"camera": float("nan")}, "expected a number above 0", "samples a second"),
        ({}, "no rates", "--rate camera=30"),
    ],
)
def test_wrong_rates(session: FusionSession, rates: dict[str, float], message: str, hint: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        make_schedule(session.io, rates)
    assert hint in caught.value.hint
