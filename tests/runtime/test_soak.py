"""The soak finds what it is for: each fault that is put in is named. What is in order passes."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_swap import AUDIO, HEAD, IMAGE

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks/ stands beside the package

from benchmarks import soak
from benchmarks.soak_play import Play, Setting
from edgemm.runtime.cache import StageCache
from edgemm.runtime.feeds import FeedCheck
from edgemm.runtime.ort import OrtSession
from edgemm.runtime.stream import Stream
from edgemm.runtime.stream_sync import Synchronizer

Bundle = Callable[..., Path]

SAMPLES = {
    "image": np.arange(1, 7, dtype=np.float32)[:, None],
    "audio": np.arange(11, 17, dtype=np.float32)[:, None],
}

SHORT = Setting(seconds=1.2, swap_every=0.1, nan=0.05, late=0.05)

FAST_LEAK = 600 * 1024.0
"""KiB per minute: far more than a test process grows by itself, far less than the leak that is put in."""


@pytest.fixture
def bundles(make_bundle: Bundle, tmp_path: Path) -> list[Path]:
    paths = []
    for k in (2, 3):
        texts = {n: t.replace("{K}", f"{{{k}}}") for n, t in (("image", IMAGE), ("audio", AUDIO), ("head", HEAD))}
        paths.append(make_bundle(texts).rename(tmp_path / f"{k}.edgemm"))
    return paths


def every(times: int) -> Callable[[], bool]:
    """Returns what is true each so many times."""
    count = itertools.count(1)
    return lambda: next(count) % times == 0


def repeat_results(patch: pytest.MonkeyPatch) -> None:
    run, due, before = Stream._run, every(3), {}

    def work(self: Stream, found: Any) -> Any:
        if due() and self in before:
            return before[self]
        before[self] = run(self, found)
        return before[self]

    patch.setattr(Stream, "_run", work)


def lose_results(patch: pytest.MonkeyPatch) -> None:
    take, due = Synchronizer.take, every(20)

    def work(self: Synchronizer, now: float, elapsed: float) -> Any:
        found = take(self, now, elapsed)
        return None if found is not None and due() else found

    patch.setattr(Synchronizer, "take", work)


def renumber_results(patch: pytest.MonkeyPatch) -> None:
    run, due = Stream._run, every(30)

    def work(self: Stream, found: Any) -> Any:
        result = run(self, found)
        return replace(result, number=0) if due() else result

    patch.setattr(Stream, "_run", work)


def keep_old_outputs(patch: pytest.MonkeyPatch) -> None:
    follow = StageCache.follow

    def work(self: StageCache, fresh: StageCache, states: Any) -> None:
        snapshot = self._snapshot
        follow(self, fresh, states)
        self._snapshot = snapshot

    patch.setattr(StageCache, "follow", work)


def leave_old_engines(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Stream, "follow", lambda self, states: None)


def fail_at_times(patch: pytest.MonkeyPatch) -> None:
    check, due = FeedCheck.check, every(40)

    def work(self: FeedCheck, feed: Any) -> None:
        if due():
            raise RuntimeError("put in")
        check(self, feed)

    patch.setattr(FeedCheck, "check", work)


def leak(patch: pytest.MonkeyPatch) -> None:
    run, kept = OrtSession.run, []

    def work(self: OrtSession, feed: Any) -> Any:
        kept.append(np.ones(8_000))
        return run(self, feed)

    patch.setattr(OrtSession, "run", work)


def drop_counts(patch: pytest.MonkeyPatch) -> None:
    reject, due = Synchronizer.reject, every(2)
    patch.setattr(Synchronizer, "reject", lambda self, modality: None if due() else reject(self, modality))


def no_fault(patch: pytest.MonkeyPatch) -> None:
    """Leaves everything as it is."""


def record_of(
    bundles: list[Path],
    setting: Setting,
    enough: Callable[[dict[str, Any]], bool],
    fault: Callable[[pytest.MonkeyPatch], None] = no_fault,
) -> dict[str, Any]:
    """Returns the record of a soak that is long enough, however busy the machine is."""
    for seconds in (setting.seconds, 4 * setting.seconds, 20 * setting.seconds):
        play = Play(bundles, SAMPLES, replace(setting, seconds=seconds))
        with pytest.MonkeyPatch.context() as patch:
            fault(patch)
            record = soak.soak(play, FAST_LEAK)
        if enough(record):
            break
    return record


def test_what_is_in_order_passes(bundles: list[Path]) -> None:
    def seen(record: dict[str, Any]) -> bool:
        assert record["broken"] == []
        assert record["unexpected"] == {}
        callback, *_ = record["results"].values()
        told = {"DeliberateError": callback["raised_on_purpose"]} if callback["raised_on_purpose"] else {}
        assert callback["told"] == told
        json.dumps(record)
        counters = [c for stream in record["streams"].values() for c in stream["modalities"].values()]
        return (
            record["swaps"]["done"] > 2
            and record["swaps"]["refused"] > 0
            and callback["raised_on_purpose"] > 0
            and all(taken["results"] > 10 for taken in record["results"].values())
            and sum(taken["changes_of_bundle"] for taken in record["results"].values()) > 4
            and all(sum(c[fate] for c in counters) > 0 for fate in ("used", "dropped", "late", "rejected"))
            and "used_kib_per_minute" in record["memory"]
        )

    assert seen(record_of(bundles, replace(SHORT, seconds=2.0, raises=0.2), seen))


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (repeat_results, "results that came again or out of order"),
        pytest.param(renumber_results, "results that came again or out of order", marks=pytest.mark.slow),
        pytest.param(lose_results, "samples of the trigger", marks=pytest.mark.slow),
        (keep_old_outputs, "results that no bundle gives for their samples"),
        pytest.param(leave_old_engines, "sets failed, told of", marks=pytest.mark.slow),
        pytest.param(fail_at_times, "RuntimeError: put in", marks=pytest.mark.slow),
        pytest.param(drop_counts, "counted, ", marks=pytest.mark.slow),
        (leak, "memory grows by"),
    ],
)
def test_a_fault_is_found(bundles: list[Path], fault: Callable[[pytest.MonkeyPatch], None], named: str) -> None:
    def found(record: dict[str, Any]) -> bool:
        return any(named in what for what in record["broken"])

    record = record_of(bundles, SHORT, found, fault)
    assert found(record), record["broken"]


def run_main(patch: pytest.MonkeyPatch, bundles: list[Path], folder: Path) -> tuple[int, dict[str, Any]]:
    np.savez(folder / "samples.npz", label=np.arange(6), **SAMPLES)
    options = {"--data": folder / "samples.npz", "--minutes": 0.015, "--swap-every": 0.1, "--limit": FAST_LEAK}
    words = [*map(str, bundles), *(str(word) for option in options.items() for word in option)]
    patch.setattr(sys, "argv", ["soak", *words, "--json", str(folder / "out/soak.json")])
    code = soak.main()
    return code, json.loads((folder / "out/soak.json").read_text())


def test_the_exit_code_tells(
    bundles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, record = run_main(monkeypatch, bundles, tmp_path)
    assert (code, record["broken"]) == (0, [])
    assert record["bundles"] == ["2.edgemm", "3.edgemm"]
    assert {"created", "machine", "tools"} <= record.keys()
    assert " results, 0 wrong, 0 repeated" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        repeat_results(patch)
        code, record = run_main(patch, bundles, tmp_path)
    assert code == 1
    assert f"broken: {record['broken'][0]}" in capsys.readouterr().out


def test_one_bundle_may_be_swapped_for_itself(bundles: list[Path]) -> None:
    record = record_of(bundles[:1], SHORT, lambda record: record["swaps"]["done"] > 1)
    assert record["broken"] == []
    assert record["swaps"]["done"] > 1


def test_bundles_that_cannot_be_told_apart_are_refused(bundles: list[Path]) -> None:
    with pytest.raises(ValueError, match="give other results"):
        Play([bundles[0], bundles[0]], SAMPLES, SHORT)


@pytest.mark.parametrize("slope", [0.0, 3.0, -3.0])
def test_slope_after_the_warm_up(slope: float) -> None:
    random = np.random.default_rng(0)
    seconds = np.linspace(0, 120, 2000)
    kib = 1e5 + slope * seconds / 60 + random.normal(0, 0.5, seconds.size)
    kib[seconds < 30] += np.linspace(-5e4, 0, int((seconds < 30).sum()))
    found = soak.slope_of(list(seconds), [int(1024 * value) for value in kib])
    assert found.low < found.kib_per_minute < found.high
    assert found.kib_per_minute == pytest.approx(slope, abs=0.2)
    assert found.low - 0.1 < slope < found.high + 0.1
    steps = np.where(seconds < 100, 0, 100) + kib  # memory that is taken once is no leak
    assert soak.slope_of(list(seconds), [int(1024 * value) for value in steps]).low < 60
