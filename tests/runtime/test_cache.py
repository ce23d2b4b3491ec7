"""What a session reuses: exactly what running every engine would give, whatever changes."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemm.errors import BackendError, DataError
from edgemm.runtime import FusionSession, open_session
from edgemm.runtime.cache import ONE_ENGINE, CacheMode, StageCache, same_bytes
from edgemm.runtime.opening import open_variant
from edgemm.runtime.schedule import Chain

Bundle = Callable[..., Path]

CELL = """cell (float[batch,2] motion, float[batch,2] h) => (float[batch,2] h_out)
{ s = Add(motion, h)  h_out = Tanh(s) }"""
VIEW = "view (float[batch,2] image) => (float[batch,2] seen) { seen = Exp(image) }"
POSE = "pose (float[batch,2] seen, float[batch,2] h_out) => (float[batch,2] pose) { pose = Add(seen, h_out) }"


def feed_of(batch: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(batch, 4)).astype(np.float32),
        "audio": rng.normal(size=(batch, 2, 2)).astype(np.float32),
    }


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        (a[n].dtype, a[n].shape, a[n].tobytes()) == (b[n].dtype, b[n].shape, b[n].tobytes()) for n in a
    )


def ran(session: FusionSession, call: Callable[[], Any]) -> set[str]:
    """Returns the engines that `call` ran."""
    before = session.cache_info()
    call()
    after = session.cache_info()
    assert all((after.ran[n] - before.ran[n]) + (after.reused[n] - before.reused[n]) == 1 for n in after.ran)
    return {n for n in after.ran if after.ran[n] > before.ran[n]}


@pytest.fixture
def full(fusion_bundle: Path) -> FusionSession:
    """Runs everything, always."""
    return open_session(fusion_bundle, cache="off")


@pytest.fixture
def session(fusion_bundle: Path) -> FusionSession:
    return open_session(fusion_bundle, cache="content")


ALL = {"image", "audio", "fusion"}


def test_engines_of_what_is_unchanged_do_not_run(session: FusionSession, full: FusionSession) -> None:
    first, second = feed_of(seed=1), feed_of(seed=2)
    for feed, expected in (
        (first, ALL),
        (first, set()),
        ({**first, "audio": second["audio"]}, {"audio", "fusion"}),
        (second, {"image", "fusion"}),
        (first, ALL),
    ):
        assert ran(session, lambda feed=feed: session.run(feed)) == expected
        assert same(session.run(feed), full.run(feed))


def test_marks_decide_without_a_look_at_the_content(fusion_bundle: Path, full: FusionSession) -> None:
    session = open_session(fusion_bundle, cache="marks")
    first, second = feed_of(seed=1), feed_of(seed=2)
    assert ran(session, lambda: session.run(first)) == ALL
    assert ran(session, lambda: session.run(first)) == ALL  # nothing is marked: everything is new
    mixed = {"image": second["image"], "audio": first["audio"]}
    assert ran(session, lambda: session.run(mixed, changed={"image"})) == {"image", "fusion"}
    assert ran(session, lambda: session.run(mixed, changed=())) == set()
    assert same(session.run(mixed, changed=()), full.run(mixed))
    assert same(session.run(second, changed=["audio"]), full.run(second))
    lie = session.run(first, changed=())  # the caller said so
    assert same(lie, full.run(second))


@pytest.mark.parametrize("mode", ["content", "auto"])
def test_marks_and_content_may_take_turns(fusion_bundle: Path, full: FusionSession, mode: CacheMode) -> None:
    session = open_session(fusion_bundle, cache=mode)
    rng = np.random.default_rng(0)
    feed = feed_of()
    session.run(feed)
    for call in range(60):
        changed = {n for n in feed if rng.random() < 0.5}
        feed = {n: feed_of(seed=call)[n] if n in changed else a for n, a in feed.items()}
        marks = changed if rng.random() < 0.5 else None
        assert same(session.run(feed, marks), full.run(feed))


def test_one_buffer_that_is_refilled_is_new(session: FusionSession, full: FusionSession) -> None:
    buffers = feed_of()
    for seed in (1, 2, 2, 3):
        for name, array in feed_of(seed=seed).items():
            np.copyto(buffers[name], array)
        assert same(session.run(buffers), full.run(buffers))
    before = session.run(buffers)
    value = buffers["image"][0, -1]
    buffers["image"][0, -1] = np.nextafter(value, np.float32(9))  # one bit, at the end
    assert ran(session, lambda: session.run(buffers)) == {"image", "fusion"}
    buffers["image"][0, -1] = value + 1
    assert same(session.run(buffers), full.run(buffers))
    assert not same(session.run(buffers), before)


def test_one_sample_of_a_batch_that_changes_is_seen(session: FusionSession, full: FusionSession) -> None:
    feed = feed_of(4)
    session.run(feed)
    for row in (3, 1, 0):
        feed["audio"][row] += 1
        assert same(session.run(feed), full.run(feed))


def test_results_may_be_written_to(session: FusionSession, full: FusionSession) -> None:
    feed = feed_of()
    for _ in range(3):
        out = session.run(feed)
        assert same(out, full.run(feed))
        for array in out.values():
            array[:] = 7


def test_nan_equals_itself_and_zero_has_a_sign() -> None:
    nan, zero = np.full(3, np.nan, np.float32), np.zeros((2, 2), np.float16)
    assert same_bytes(nan, nan.copy())
    assert not same_bytes(zero, -zero)
    assert same_bytes(np.empty((0, 3), np.float32), np.empty((0, 3), np.float32))
    assert same_bytes(np.array(1, np.int64), np.array(1, np.int64))
    for size in (1, 7, 16384 * 8, 16384 * 8 + 3, 16384 * 24):
        a = np.zeros(size, np.uint8)
        for at in {0, size // 2, size - 1}:
            b = a.copy()
            b[at] = 1
            assert same_bytes(a, a.copy())
            assert not same_bytes(a, b)


def test_another_batch_runs_everything(session: FusionSession, full: FusionSession) -> None:
    for batch in (1, 3, 3, 0, 1):
        feed = {n: np.zeros_like(a) for n, a in feed_of(batch).items()}
        assert same(session.run(feed), full.run(feed))
        assert same(session.run(feed, changed=()), full.run(feed))
    one, two = feed_of(1), feed_of(2)
    session.run(one)
    assert same(session.run(two, changed={"image"}), full.run(two))  # whatever the marks say


def test_calls_that_run_everything_come_between_marks(session: FusionSession, full: FusionSession) -> None:
    first, second = feed_of(seed=1), feed_of(seed=2)
    session.run(first)
    out, seconds = session.run_timed(second)
    assert same(out, full.run(second))
    assert all(s > 0 for s in seconds.values())
    assert same(session.run(second, changed=()), full.run(second))


def test_failing_call_leaves_nothing_that_a_mark_could_mean(make_bundle: Bundle) -> None:
    encoder = "a (float[batch,2] x) => (float[batch,2] f) { f = Exp(x) }"
    head = "b (float[batch,2] f, int64[k] i) => (float[k,2] y) { y = Gather<axis=0>(f, i) }"
    bundle = make_bundle({"a": encoder, "b": head})
    session, full = open_session(bundle, cache="marks"), open_session(bundle, cache="off")
    old, new = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    good, bad = np.array([0]), np.array([9])
    session.run({"x": old, "i": good})
    with pytest.raises(BackendError, match=r"engine 'b\.onnx' failed"):
        session.run({"x": new, "i": bad}, changed={"x", "i"})
    with pytest.raises(DataError, match="'x': got shape"):
        session.run({"x": new[0], "i": good}, changed={"x", "i"})
    feed = {"x": new, "i": good}
    assert same(session.run(feed, changed={"i"}), full.run(feed))  # x has not changed since the call that failed


def test_states_decide_too(make_bundle: Bundle) -> None:
    bundle = make_bundle(
        {"cell": CELL, "view": VIEW, "pose": POSE}, states={"h": "h_out"}, outputs=("pose", "h_out")
    )
    full, rng = open_session(bundle, cache="off"), np.random.default_rng(0)
    modes: tuple[CacheMode, ...] = ("content", "marks", "auto")
    sessions = [open_session(bundle, cache=mode) for mode in modes]
    feed = {n: rng.normal(size=(1, 2)).astype(np.float32) for n in ("motion", "image")}
    changed = {"motion", "image"}
    for call in range(40):
        expected = full.run(feed)
        for session in sessions:
            given = feed if call % 7 else {**feed, "h": full.state["h"] * 0 + call}
            if "h" in given and session is sessions[0]:
                full.reset_state()
                expected = full.run(given)
            marks = changed if session.cache_info().mode == "marks" or call % 3 == 0 else None
            assert same(session.run(given, marks), expected)
            assert session.state["h"].tobytes() == full.state["h"].tobytes()
        if call == 20:
            for each in (full, *sessions):
                each.reset_state()
        changed = {n for n in feed if rng.random() < 0.4}
        feed = {n: rng.normal(size=(1, 2)).astype(np.float32) if n in changed else a for n, a in feed.items()}
    info = sessions[0].cache_info()
    assert info.reused["cell"] == info.reused["pose"] == 0
    assert info.reused["view"] > 0


def test_what_is_held_is_bounded_and_reported(fusion_bundle: Path, full: FusionSession) -> None:
    session = open_session(fusion_bundle, cache="content", cache_bytes=100_000)
    for batch in (1, 100, 1000, 5000, 1):
        feed = feed_of(batch)
        for _ in range(2):
            assert same(session.run(feed), full.run(feed))
        info = session.cache_info()
        held = sum(a.nbytes for a in feed.values())
        held += batch * 4 * (3 + 2 + 1 + 5)
        assert info.bytes == held if held <= 100_000 else info.bytes < 100_000
        assert info.max_bytes == 100_000
    assert info.not_kept > 0
    nothing = open_session(fusion_bundle, cache="content", cache_bytes=0)
    assert ran(nothing, lambda: nothing.run(feed)) == ALL
    assert ran(nothing, lambda: nothing.run(feed)) == ALL
    assert nothing.cache_info().bytes == 0


def test_use_cache_forgets(session: FusionSession) -> None:
    session.run(feed_of())
    assert session.cache_info().bytes > 0
    session.use_cache("marks")
    assert session.cache_info().bytes == 0
    assert ran(session, lambda: session.run(feed_of(), changed=())) == ALL
    session.use_cache("off")
    session.run(feed_of(), changed=())
    assert session.cache_info().ran == {}


def test_fixed_batch_runs_chunks_without_a_cache(make_bundle: Bundle) -> None:
    texts = {
        "image": "image (float[2,4] image) => (float[2,4] f) { f = Tanh(image) }",
        "fusion": "fusion (float[2,4] f, float[2,4] audio) => (float[2,4] y) { y = Add(f, audio) }",
    }
    bundle = make_bundle(texts, batch=2)
    session, full = open_session(bundle, cache="content"), open_session(bundle, cache="off")
    for samples in (2, 5, 5, 2, 2):
        feed = {n: np.full((samples, 4), samples, np.float32) for n in ("image", "audio")}
        assert same(session.run(feed), full.run(feed))
        assert same(session.run(feed, changed=()), full.run(feed))
    assert session.cache_info().reused["image"] > 0


def test_one_engine_says_that_nothing_can_be_kept(make_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    bundle = make_bundle({"g": "g (float[batch,2] x) => (float[batch,2] y) { y = Exp(x) }"})
    with caplog.at_level(logging.WARNING, "edgemm"):
        assert open_session(bundle).cache_info().note == ONE_ENGINE
        assert not caplog.records
        session = open_session(bundle, cache="marks")
    assert "cache='marks' does nothing: the whole model is one engine" in caplog.text
    x = np.ones((1, 2), np.float32)
    session.run({"x": x})
    np.testing.assert_array_equal(session.run({"x": x * 0}, changed=())["y"], x)
    with pytest.raises(DataError, match="there is no modality 'y'"):
        session.run({"x": x}, changed={"y"})


def test_wrong_marks_and_modes_are_refused(session: FusionSession, fusion_bundle: Path) -> None:
    with pytest.raises(DataError, match="there is no modality 'imge'") as caught:
        session.run(feed_of(), changed={"imge"})
    assert caught.value.hint == "did you mean 'image'?"
    for wrong in ("image", 3):
        with pytest.raises(DataError, match=f"got {wrong!r}, expected a set"):
            session.run(feed_of(), changed=wrong)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="threads: got 'two', expected 0 or more"):
        open_session(fusion_bundle, threads="two")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="cache: got 'digest', expected one of auto, content, marks, off"):
        open_session(fusion_bundle, cache="digest")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="cache_bytes: got -1"):
        open_session(fusion_bundle, cache_bytes=-1)


def test_sessions_that_conversions_open_reuse_nothing(fusion_bundle: Path, full: FusionSession) -> None:
    session = open_variant(fusion_bundle, full.manifest, full.variant)
    assert session.cache_info().mode == "off"
    assert open_session(fusion_bundle).cache_info().mode == "auto"


class Timed:
    """A session's engines, of which some take as long as a test says."""

    def __init__(self, session: FusionSession, seconds: dict[str, float], clock: list[float]) -> None:
        self.steps = [
            step._replace(run=self._slow(step, seconds.get(step.name, 0.0), clock)) for step in session._steps
        ]

    @staticmethod
    def _slow(step: Any, seconds: float, clock: list[float]) -> Any:
        def run(feed: Any) -> Any:
            clock[0] += seconds
            return step.run(feed)

        return run


@pytest.mark.parametrize(
    ("seconds", "compared"),
    [
        ({"image": 5e-3, "audio": 5e-3}, ("image", "audio")),
        ({"image": 5e-3}, ("image",)),
        ({"audio": 5e-3}, ("audio",)),
        ({"fusion": 5e-3}, ()),
        ({}, ()),
    ],
)
def test_auto_compares_where_the_encoder_takes_longer(
    full: FusionSession, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], compared: tuple[str, ...]
) -> None:
    clock = [0.0]

    def now() -> float:
        clock[0] += 1e-4  # what anything takes, comparing included
        return clock[0]

    monkeypatch.setattr("edgemm.runtime.cache_gauge.perf_counter", now)
    cache = StageCache(full.io, Chain(Timed(full, seconds, clock).steps), "auto")
    assert cache.info().compared == ("image", "audio")
    for call in range(8):
        values: dict[str, Any] = feed_of(seed=call)
        cache.chain(values, None)
    assert cache.info().compared == compared
    assert cache.active == bool(compared)
    assert bool(cache.info().note) != bool(compared)


def test_auto_with_fast_encoders_ends_as_a_plain_session(fusion_bundle: Path, full: FusionSession) -> None:
    """Whatever this machine decides, the results are those of a full run."""
    session = open_session(fusion_bundle)
    for call in range(30):
        feed = feed_of(seed=call // 3)
        assert same(session.run(feed), full.run(feed))


def test_threads_share_a_session(session: FusionSession, full: FusionSession) -> None:
    feeds = [
        {"image": feed_of(seed=i)["image"], "audio": feed_of(seed=j)["audio"]} for i in (1, 2) for j in (1, 2)
    ]
    expected = [full.run(feed) for feed in feeds]
    turns = itertools.count()
    barrier = threading.Barrier(4)

    def work(_: int) -> bool:
        barrier.wait()
        return all(same(session.run(feeds[k % 4]), expected[k % 4]) for k in (next(turns) for _ in range(200)))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    info = session.cache_info()
    assert all(info.ran[n] + info.reused[n] == 800 for n in ALL)
