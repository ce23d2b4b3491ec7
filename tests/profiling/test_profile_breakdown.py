"""Recorded runs, the engines inside them, what they add up to, and calls in which a modality stays as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemm.bundle import EngineEntry, Schedule, StageEntry
from edgemm.errors import DataError
from edgemm.profiling.breakdown import critical_path, modality_shares, timeline
from edgemm.profiling.cached import cached
from edgemm.profiling.record import Recorder, Runs, Spans, back_to_back, cycle
from edgemm.profiling.warmup import WarmupRule
from edgemm.runtime import FusionSession, SessionOptions, open_session

ENTRIES = (
    EngineEntry("camera", ("camera",), "a.onnx", ("image",), ("seen",), {}),
    EngineEntry("lidar", ("lidar",), "b.onnx", ("points",), ("near",), {}),
    EngineEntry("fusion", ("fusion",), "c.onnx", ("seen", "near"), ("logits",), {}),
)
STAGES = (
    StageEntry("camera", ("camera",), "encoder", (), (), 1, 0),
    StageEntry("lidar", ("lidar",), "encoder", (), (), 1, 0),
    StageEntry("fusion", ("camera", "lidar"), "fusion head", (), (), 1, 0),
)
SECONDS = {"camera": np.array([1.0, 1.0, 4.0]), "lidar": np.array([2.0, 3.0, 1.0]), "fusion": np.full(3, 1.0)}


def runs_of(spans: list[tuple[int, int, float, float]], seconds: list[float]) -> Runs:
    """Runs that begin every 10 seconds; spans are (run, engine, start inside the run, seconds)."""
    due = np.arange(len(seconds)) * 10.0
    run, engine, start, took = (np.array(column) for column in zip(*spans, strict=True))
    names = ("camera", "lidar", "fusion")
    return Runs(
        "back-to-back",
        "back to back",
        due,
        np.zeros(due.size),
        np.array(seconds),
        np.zeros(due.size, np.int64),
        names,
        Spans(run, engine, start + due[run], took),
    )


def test_the_critical_path_is_the_slower_encoder_and_the_head() -> None:
    assert critical_path(ENTRIES, SECONDS) == (["lidar", "fusion"], 3.0)
    slower = SECONDS | {"camera": np.full(3, 9.0)}
    assert critical_path(ENTRIES, slower) == (["camera", "fusion"], 10.0)


def test_modalities_share_the_time_of_their_engines() -> None:
    camera, lidar, both = modality_shares(ENTRIES, STAGES, SECONDS)
    assert (camera["name"], lidar["name"], both["name"]) == ("camera", "lidar", "camera + lidar")
    assert [m["share"] for m in (camera, lidar, both)] == pytest.approx([6 / 15, 6 / 15, 3 / 15])
    assert [m["on_critical_path"] for m in (camera, lidar, both)] == [False, True, True]
    assert (lidar["p50_ms"], both["modalities"], both["engines"]) == (2000, ["camera", "lidar"], ["fusion"])


def test_an_engine_of_several_stages_belongs_to_all_their_modalities() -> None:
    whole = EngineEntry("whole", ("camera", "lidar", "fusion"), "w.onnx", ("image", "points"), ("logits",), {})
    (only,) = modality_shares((whole,), STAGES, {"whole": np.ones(2)})
    assert (only["name"], only["share"], only["on_critical_path"]) == ("camera + lidar", 1.0, True)


def test_the_timeline_is_that_of_the_median_run() -> None:
    spans = [(0, 0, 0.1, 5.0), (1, 0, 0.2, 1.0), (1, 2, 1.5, 0.5), (2, 0, 0.3, 0.5)]
    found = timeline(runs_of(spans, [6.0, 2.0, 1.0]))
    assert found == [
        {"engine": "camera", "start_ms": 200, "duration_ms": 1000},
        {"engine": "fusion", "start_ms": 1500, "duration_ms": 500},
    ]


def test_time_of_engines_side_by_side_is_counted_once() -> None:
    spans = [(0, 0, 0.0, 2.0), (0, 1, 0.5, 3.0), (0, 2, 4.0, 1.0), (1, 0, 0.0, 2.0), (1, 1, 0.5, 0.5)]
    runs = runs_of(spans, [6.0, 2.5])
    np.testing.assert_allclose(runs.covered(), [4.5, 2.0])
    np.testing.assert_allclose(runs.engine_seconds()["lidar"], [3.0, 0.5])
    np.testing.assert_allclose(runs.engine_seconds()["fusion"], [1.0, 0.0])


def test_engines_add_up_to_the_call(session: FusionSession, feeds: list[dict[str, np.ndarray]]) -> None:
    recorder = Recorder(session)
    found = back_to_back(recorder, cycle(recorder.call, feeds), runs=200)
    assert found.count == 200
    np.testing.assert_array_equal(found.samples, np.arange(200) % 3)
    assert (found.seconds > 0).all()
    inside = np.sum(list(found.engine_seconds().values()), axis=0)
    np.testing.assert_allclose(inside, found.covered(), atol=1e-8)
    assert (inside <= found.seconds + 1e-8).all()
    assert np.median(found.seconds - inside) < np.median(found.seconds)
    for run in (0, 199):
        names = [name for name, _, _ in found.spans_of(run)]
        assert names == ["camera", "lidar", "fusion"]
        for _, start, took in found.spans_of(run):
            assert start >= 0
            assert start + took <= found.seconds[run] + 1e-8
    assert (np.diff(found.due) >= found.seconds[:-1]).all()


def test_states_are_reset_as_often_as_asked(session: FusionSession, feeds, monkeypatch) -> None:
    resets: list[int] = []
    recorder = Recorder(session, reset_every=3)
    monkeypatch.setattr(session, "reset_state", lambda: resets.append(len(recorder.began)))
    back_to_back(recorder, cycle(recorder.call, feeds), runs=9)
    assert resets == [2, 5, 8]


def test_what_does_not_change_does_not_run(session: FusionSession, feeds: list[dict[str, np.ndarray]]) -> None:
    found = cached(session, feeds, ["lidar"], WarmupRule(fixed=5), runs=30)
    assert (found.changed, found.unchanged, found.reused) == (("camera",), ("lidar",), ("lidar",))
    assert found.runs.count == 30
    report = found.to_json()
    assert report["comparable"] is False
    assert report["label"] == "cached lidar"
    assert session.cache_info().mode == "off"


def test_held_inputs_are_those_of_the_first_sample(session: FusionSession, feeds, monkeypatch) -> None:
    seen: list[tuple[float, float]] = []
    run = session.run

    def spy(feed, changed=None):
        seen.append((float(feed["image"][0, 0]), float(feed["points"][0, 0])))
        return run(feed, changed=changed)

    monkeypatch.setattr(session, "run", spy)
    cached(session, feeds, ["lidar"], WarmupRule(fixed=0), runs=6)
    assert seen[1:] == [(0, 0), (1, 0), (2, 0)] * 2


@pytest.mark.parametrize(
    ("names", "message"),
    [(["lidr"], "there is no modality 'lidr'"), (["lidar", "camera"], "no modality is left that changes")],
)
def test_what_cannot_be_held_is_refused(session: FusionSession, feeds, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        cached(session, feeds, names, WarmupRule(fixed=0), runs=1)


def test_engines_side_by_side_are_recorded_as_they_ran(sensors: Path, feeds: list[dict[str, np.ndarray]]) -> None:
    beside = SessionOptions(schedule=Schedule("parallel"))
    with open_session(sensors, cache="off", threads=2, options=beside) as session:
        recorder = Recorder(session)
        found = back_to_back(recorder, cycle(recorder.call, feeds), runs=50)
    assert (np.bincount(found.spans.run) == 3).all()
    assert (found.covered() <= found.seconds + 1e-8).all()
    for run in range(50):
        ran = {name: (start, start + took) for name, start, took in found.spans_of(run)}
        assert ran["fusion"][0] >= max(ran["camera"][1], ran["lidar"][1]) - 1e-8
