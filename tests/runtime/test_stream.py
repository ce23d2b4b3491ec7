"""Sets of samples under a clock that the test sets: what is paired, filled, dropped, refused and counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemm.errors import BackendError, BundleError, DataError, StreamError
from edgemm.runtime import FusionSession, open_session
from edgemm.runtime.stream import Stream

Bundle = Callable[..., Path]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def session(fusion_bundle: Path) -> FusionSession:
    return open_session(fusion_bundle)


def image(value: float = 0.5) -> np.ndarray:
    return np.full(4, value, np.float32)


def audio(value: float = 0.5) -> np.ndarray:
    return np.full((2, 2), value, np.float32)


def full(session: FusionSession, x: np.ndarray, y: np.ndarray) -> bytes:
    return session.run({"image": x[None], "audio": y[None]})["logits"].tobytes()


def adds_up(stream: Stream) -> bool:
    return all(
        c.pushed == c.used + c.dropped + c.late + c.rejected + c.pending
        for c in stream.counters.modalities.values()
    )


def test_each_sample_of_the_trigger_makes_a_set(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(trigger="image", clock=clock)
    assert stream.poll() is None
    stream.push("audio", audio(1), t=99.0)
    stream.push("image", image(1), t=99.5)
    stream.push("image", image(2), t=99.75)
    clock.now = 101
    first, second = stream.poll(), stream.poll()
    assert stream.poll() is None
    assert first is not None
    assert second is not None
    assert first.outputs["logits"].tobytes() == full(session, image(1), audio(1))
    assert second.outputs["logits"].tobytes() == full(session, image(2), audio(1))
    assert (first.time, first.ages, first.latency) == (99.5, {"image": 0.0, "audio": 0.5}, 1.5)
    assert (second.time, second.ages, second.number) == (99.75, {"image": 0.0, "audio": 0.75}, 1)
    assert (set(first.encoded), first.cached) == ({"image", "audio", "fusion"}, ())
    assert (second.encoded, second.cached) == (("image", "fusion"), ("audio",))
    assert adds_up(stream)


def test_a_pushed_sample_is_new_and_is_copied(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(trigger="image", clock=clock)
    buffer, sound = image(1), audio(1)
    stream.push("audio", sound)
    stream.push("image", buffer)
    sound[:] = 9
    buffer[:] = 2
    stream.push("image", buffer)
    buffer[:] = 9
    results = [stream.poll(), stream.poll()]
    stream.push("audio", audio(1))  # equal, and new all the same
    stream.push("image", image(2))
    results.append(stream.poll())
    for result, x in zip(results, (1, 2, 2), strict=True):
        assert result is not None
        assert result.outputs["logits"].tobytes() == full(session, image(x), audio(1))
    assert results[2] is not None
    assert results[2].cached == ()


def test_a_sample_may_have_the_batch_axis_and_any_strides(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(trigger="image", clock=clock)
    stream.push("audio", audio().T)
    stream.push("image", np.arange(8, dtype=np.float32)[None, ::2])
    result = stream.poll()
    assert result is not None
    x = np.array([0, 2, 4, 6], np.float32)
    assert result.outputs["logits"].tobytes() == full(session, x, audio())


def test_a_window_takes_the_nearest(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(trigger="image", window=0.05, clock=clock)
    for value, t in enumerate((99.90, 99.98, 100.03, 100.2)):
        stream.push("audio", audio(value), t=t)
    stream.push("image", image(), t=100.0)
    result = stream.poll()
    assert result is not None
    assert result.outputs["logits"].tobytes() == full(session, image(), audio(1))
    assert result.ages["audio"] == pytest.approx(0.02)
    stream.push("image", image(), t=100.1)
    clock.now = 110
    assert stream.poll() is None
    counters = stream.counters
    assert counters.incomplete == 1
    assert counters.modalities["audio"].dropped == 1
    assert counters.modalities["audio"].pending == 2
    assert adds_up(stream)


def test_without_a_window_nothing_from_after_the_set_is_taken(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(trigger="image", clock=clock)
    stream.push("audio", audio(1), t=99.0)
    stream.push("audio", audio(2), t=100.5)
    stream.push("image", image(), t=100.0)
    result = stream.poll()
    assert result is not None
    assert result.ages["audio"] == 1.0


def test_an_offset_corrects_capture_times(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(trigger="image", window=0.01, offset={"audio": -0.2}, clock=clock)
    stream.push("audio", audio(), t=100.2)
    stream.push("image", image(), t=100.0)
    clock.now = 100.3
    result = stream.poll()
    assert result is not None
    assert result.ages["audio"] == pytest.approx(0)
    assert result.latency == pytest.approx(0.3)


@pytest.mark.parametrize("timeout", [None, 0.02])
def test_a_set_waits_for_what_is_still_to_come(
    session: FusionSession, clock: Clock, timeout: float | None
) -> None:
    stream = session.stream(
        trigger="image", window=0.05, timeout=timeout, optional={"audio": "zeros"}, clock=clock
    )
    wait = 0.05 if timeout is None else timeout
    stream.push("image", image(), t=100.0)
    clock.now = 100 + wait - 0.001
    assert stream.poll() is None
    stream.push("audio", audio(), t=100.01)
    result = stream.poll()
    assert result is not None
    assert result.filled == {}
    stream.push("image", image(), t=100.2)
    clock.now = 100 + 2 * wait
    result = stream.poll()
    assert result is not None
    assert result.filled == {"audio": "zeros"}
    assert result.outputs["logits"].tobytes() == full(session, image(), audio(0))
    assert result.ages == {"image": 0.0, "audio": None}


def test_max_age_ends_the_use_of_a_sample(session: FusionSession, clock: Clock) -> None:
    results: dict[str, Any] = {}
    for fill in ("zeros", "last", "fail", "constant:0.25"):
        stream = session.stream(trigger="image", max_age={"audio": 0.5}, optional={"audio": fill}, clock=clock)
        stream.push("audio", audio(1), t=100.0)
        stream.push("image", image(), t=100.5)
        stream.push("image", image(), t=100.6)
        first = stream.poll()
        assert first is not None
        assert (first.stale, first.filled) == ((), {})
        results[fill] = stream.poll()
        counters = stream.counters
        assert counters.incomplete == (fill == "fail")
        assert counters.modalities["audio"].stale == (fill == "last")
        assert counters.modalities["audio"].filled == (fill in ("zeros", "constant:0.25"))
        assert adds_up(stream)
    assert results["fail"] is None
    assert results["last"].stale == ("audio",)
    assert results["last"].cached == ("audio",)
    assert results["last"].outputs["logits"].tobytes() == full(session, image(), audio(1))
    assert results["zeros"].outputs["logits"].tobytes() == full(session, image(), audio(0))
    assert results["constant:0.25"].outputs["logits"].tobytes() == full(session, image(), audio(0.25))


def test_an_array_stands_for_a_silent_sensor(session: FusionSession, clock: Clock) -> None:
    silence = np.arange(4, dtype=np.float64).reshape(2, 2)
    stream = session.stream(trigger="image", optional={"audio": silence}, clock=clock)
    for expected in (("image", "audio", "fusion"), ("image", "fusion")):
        stream.push("image", image())
        result = stream.poll()
        assert result is not None
        assert result.outputs["logits"].tobytes() == full(session, image(), silence.astype(np.float32))
        assert result.encoded == expected  # a fixed value is encoded once


def test_last_before_the_first_sample_is_nothing(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(trigger="image", optional={"audio": "last"}, max_age=0.1, clock=clock)
    stream.push("image", image())
    assert stream.poll() is None
    assert stream.counters.incomplete == 1


def test_any_sample_makes_a_set(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(trigger="any", clock=clock)
    stream.push("image", image(1), t=100.0)
    assert stream.poll() is None  # no audio yet
    stream.push("audio", audio(1), t=100.1)
    first = stream.poll()
    stream.push("audio", audio(2), t=100.2)
    stream.push("image", image(2), t=100.15)  # captured before, came after
    second, third = stream.poll(), stream.poll()  # the set of the audio took the image as well
    assert [r.time for r in (first, second, third) if r] == [100.1, 100.2]
    assert first is not None
    assert first.outputs["logits"].tobytes() == full(session, image(1), audio(1))
    assert second is not None
    assert second.outputs["logits"].tobytes() == full(session, image(2), audio(2))
    stream.push("image", image(3), t=100.18)
    fourth = stream.poll()
    assert fourth is not None
    assert (fourth.time, fourth.cached) == (100.2, ("audio",))
    assert adds_up(stream)


def test_a_rate_ticks(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(trigger=10.0, optional={"audio": "zeros"}, clock=clock)
    assert stream.poll() is None
    assert stream.counters.incomplete == 1  # the first tick, before any sample
    clock.now = 100.05
    stream.push("image", image(1))
    assert stream.poll() is None
    clock.now = 100.14
    result = stream.poll()
    assert result is not None
    assert result.time == pytest.approx(100.1)
    assert result.ages["image"] == pytest.approx(0.05)
    assert result.latency == pytest.approx(0.09)
    clock.now = 100.55
    result = stream.poll()
    assert result is not None
    assert result.time == pytest.approx(100.5)
    assert result.encoded == ()
    assert stream.counters.skipped == 3
    assert stream.poll() is None


def test_infer_takes_what_is_there(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(trigger="image", clock=clock)
    stream.push("image", image(1), t=99.0)
    stream.push("image", image(2), t=99.5)
    with pytest.raises(StreamError, match="no sample fits for audio at 100 s"):
        stream.infer()
    stream.push("audio", audio(1), t=99.2)
    result = stream.infer()
    assert result.outputs["logits"].tobytes() == full(session, image(2), audio(1))
    assert (result.time, result.ages) == (100.0, {"image": 0.5, "audio": pytest.approx(0.8)})
    assert stream.poll() is None  # image 1 is older than what was taken
    assert stream.infer().encoded == ()
    assert stream.infer(now=102.0).ages["image"] == 2.5
    assert adds_up(stream)


def test_infer_does_not_go_back_before_a_set_from_the_future(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(trigger="image", offset={"image": 0.5}, optional={"audio": "zeros"}, clock=clock)
    stream.push("image", image())
    result = stream.poll()
    assert result is not None
    assert result.time == 100.5
    assert stream.infer().time == 100.5
    assert stream.infer(now=101.0).time == 101.0


@pytest.mark.parametrize(("drop", "left"), [("keep-newest", [3]), ("drop-oldest", [2, 3])])
def test_a_full_queue_drops(session: FusionSession, clock: Clock, drop: Any, left: list[int]) -> None:
    stream = session.stream(trigger="image", queue=2, drop=drop, clock=clock)
    stream.push("audio", audio(), t=99.0)
    for value in (1, 2, 3):
        assert stream.push("image", image(value), t=100.0 + value)
    for value in left:
        result = stream.poll()
        assert result is not None
        assert result.outputs["logits"].tobytes() == full(session, image(value), audio())
    assert stream.poll() is None
    assert stream.counters.modalities["image"].dropped == 3 - len(left)
    assert adds_up(stream)


def test_a_flood_is_bounded(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(trigger="image", queue=4, clock=clock)
    for at in range(1000):
        stream.push("audio", audio(), t=100 + at / 1000)
    stream.push("image", image(), t=101.0)
    assert stream.poll() is not None
    found = stream.counters.modalities["audio"]
    assert (found.pushed, found.used, found.dropped, found.pending) == (1000, 1, 999, 0)


def test_a_sensor_that_stops(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(trigger="image", max_age=0.25, optional={"audio": "zeros"}, clock=clock)
    filled = []
    for at in range(10):
        t = 100 + at / 10
        if at < 3:
            stream.push("audio", audio(), t=t)
        stream.push("image", image(), t=t)
        result = stream.poll()
        assert result is not None
        filled.append(bool(result.filled))
    assert filled == [False] * 5 + [True] * 5
    stream.push("audio", audio(), t=101.0)
    stream.push("image", image(), t=101.0)
    result = stream.poll()
    assert result is not None
    assert result.filled == {}


def test_late_samples_are_counted(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(trigger="image", clock=clock)
    stream.push("audio", audio(), t=99.0)
    assert stream.push("image", image(1), t=100.0)
    assert not stream.push("image", image(2), t=99.9)
    assert not stream.push("image", image(2), t=90.0)  # one that was long under way
    assert stream.push("image", image(3), t=100.0)
    assert not stream.push("image", image(2), t=95.0)
    assert [r.time for r in (stream.poll(), stream.poll()) if r] == [100.0, 100.0]
    assert stream.counters.modalities["image"].late == 3
    assert stream.counters.clock_jumps == 0
    assert adds_up(stream)


def test_a_clock_that_is_set_back_begins_an_epoch(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(trigger="image", clock=clock)
    stream.push("audio", audio(1), t=1000.0)
    stream.push("image", image(1), t=1000.0)
    first = stream.poll()
    stream.push("audio", audio(2), t=1000.1)
    for at in range(4):
        stream.push("image", image(at), t=10 + at / 10)
        stream.push("audio", audio(at), t=10 + at / 10)
    results = [stream.poll(), stream.poll(), stream.poll()]
    assert first is not None
    assert first.epoch == 0
    last = next(r for r in reversed(results) if r)
    assert last.epoch == 1
    assert last.outputs["logits"].tobytes() == full(session, image(3), audio(3))
    assert stream.counters.clock_jumps == 1
    assert adds_up(stream)


def test_the_clock_of_the_stream_is_set_back(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(trigger=10.0, optional={"image": "zeros", "audio": "zeros"}, clock=clock)
    times = []
    for now in (100.0, 100.1, 50.0, 50.05, 50.1, 50.2):
        clock.now = now
        result = stream.poll()
        times.append(result and (result.epoch, round(result.time, 3)))
    assert times == [(0, 100.0), (0, 100.1), (1, 50.0), None, (1, 50.1), (1, 50.2)]


def test_nan_is_rejected_and_counted(session: FusionSession, clock: Clock) -> None:
    bad = image()
    bad[2] = np.nan
    stream = session.stream(trigger="image", clock=clock)
    stream.push("audio", audio(), t=99.0)
    assert not stream.push("image", bad)
    assert stream.poll() is None
    assert stream.counters.modalities["image"].rejected == 1
    assert adds_up(stream)
    stream = session.stream(trigger="image", reject_nan=False, clock=clock)
    stream.push("audio", audio())
    assert stream.push("image", bad)
    result = stream.poll()
    assert result is not None
    assert np.isnan(result.outputs["logits"]).any()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"trigger": "imge"}, "trigger: there is no modality 'imge'"),
    ({"trigger": 0}, "trigger: got 0, expected a modality, 'any' or a rate"),
    ({"trigger": float("nan")}, "trigger: got nan"),
    ({"trigger": True}, "trigger: got True"),
    ({"window": -1}, "window of 'image': got -1"),
    ({"window": {"sound": 1}}, "window: there is no modality 'sound'"),
    ({"max_age": "1"}, "max_age of 'image': got '1'"),
    ({"offset": {"audio": float("inf")}}, "offset of 'audio': got inf"),
    ({"timeout": -0.1}, "timeout: got -0.1"),
    ({"queue": 0}, "queue: got 0"),
    ({"drop": "oldest"}, "drop: got 'oldest', expected one of keep-newest, drop-oldest, block"),
    ({"optional": {"sound": "zeros"}}, "optional: there is no modality 'sound'"),
    ({"optional": {"audio": "zeroes"}}, "'audio' is 'zeroes', expected fail, last, zeros"),
    ({"optional": {"audio": "constant:x"}}, "constant:VALUE with a number"),
    ({"optional": {"audio": np.zeros(3)}}, r"got 'shape \(3,\)', expected \[2, 2\]"),
    ({"optional": {"audio": "constant:nan"}}, "the fill of 'audio': got 'NaN'"),
    ({"optional": {"audio": np.full((2, 2), np.nan, np.float32)}}, "the fill of 'audio': got 'NaN'"),
    ({"optional": {"audio": 0.5}}, "the fill of 'audio' is the number 0.5"),
    ({"reject_nan": "no"}, "reject_nan: got 'no', expected True or False"),
    ({"triger": "image"}, "there is no 'triger' .*\n.*did you mean 'trigger'"),
]


@pytest.mark.parametrize(("policy", "message"), WRONG)
def test_wrong_policies_are_refused(session: FusionSession, policy: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        session.stream(**policy)


def test_numbers_of_numpy_are_numbers(session: FusionSession, clock: Clock) -> None:
    policy = {"trigger": np.float32(2), "queue": np.int64(3), "max_age": np.float64(9), "reject_nan": np.True_}
    stream = session.stream(clock=clock, optional={"audio": "zeros"}, **policy)
    assert stream.push("image", image(), np.float64(100))
    clock.now += 1
    assert stream.poll() is not None


def test_nan_may_be_filled_in_where_it_is_not_rejected(session: FusionSession) -> None:
    session.stream(optional={"audio": "constant:nan"}, reject_nan=False)


def test_a_clock_that_shows_no_time_is_refused(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(trigger="image", clock=clock)
    clock.now = float("nan")
    with pytest.raises(DataError, match="the clock of the stream shows nan"):
        stream.push("image", image())


@pytest.mark.parametrize("fill", ["mean", "learned", "head:image_only", "blank"])
def test_a_fill_that_the_bundle_lacks_is_refused(session: FusionSession, fill: str) -> None:
    with pytest.raises(BundleError, match=f"the bundle holds no '{fill}' for 'audio'") as caught:
        session.stream(optional={"audio": fill})
    assert "zeros" in caught.value.hint


def test_wrong_samples_are_refused_where_they_are_pushed(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(clock=clock)
    for modality, sample, t, message in (
        ("imge", image(), None, "there is no modality 'imge'"),
        ("image", image().astype(np.float64), None, "'image': got dtype float64"),
        ("image", np.zeros(5, np.float32), None, "'image': got shape"),
        ("image", [0.0] * 4, None, "got list, expected a numpy array"),
        ("image", {"image": image(), "x": image()}, None, "no input 'x'"),
        ("image", {}, None, "input 'image' is missing"),
        ("image", np.zeros((2, 4), np.float32), None, r"push\('image'\): got 2 samples in 'image', expected 1"),
        ("image", image(), float("nan"), "got the time nan"),
        ("image", image(), "1", "got the time '1'"),
    ):
        with pytest.raises(DataError, match=message):
            stream.push(modality, sample, t=t)  # type: ignore[arg-type]
    assert stream.counters.modalities["image"].pushed == 0


TEXT = """text (int64[batch,tokens] ids, float[batch,tokens] mask) => (float[batch,tokens] f)
{ c = Cast<to=1>(ids)  f = Mul(c, mask) }"""
HEAD = """head (float[batch,tokens] f, float[batch,2] image) => (float[batch,2] y)
<int64[1] one = {1}> { s = ReduceSum<keepdims=1>(f, one)  y = Add(s, image) }"""


def text_bundle(make_bundle: Bundle) -> Path:
    """A bundle in which `ids` and `mask` are one modality of any length."""
    from dataclasses import replace

    from edgemm.bundle import read_manifest, write_bundle

    path = make_bundle({"text": TEXT, "head": HEAD})
    manifest = read_manifest(path)
    io = replace(manifest.io, modalities={"ids": "text", "mask": "text", "image": "image"})
    files = {name: (path / name).read_bytes() for name in manifest.files}
    write_bundle(path.with_name("text.edgemm"), replace(manifest, io=io), files)
    return path.with_name("text.edgemm")


def test_a_modality_of_several_inputs_takes_a_dict(make_bundle: Bundle, clock: Clock) -> None:
    session = open_session(text_bundle(make_bundle))
    silence = {"ids": np.array([7]), "mask": np.array([1.0])}
    with pytest.raises(DataError, match="'zeros' for 'text' has no size for 'tokens' of 'ids'"):
        session.stream(optional={"text": "zeros"})
    with pytest.raises(DataError, match="expected a dict of ids, mask"):
        session.stream(optional={"text": np.zeros(3)})
    stream = session.stream(trigger="image", optional={"text": silence}, max_age=1.0, clock=clock)
    zero = np.zeros(2, np.float32)
    stream.push("image", zero, t=100.0)
    ids = np.array([1, 2, 3])
    with pytest.raises(DataError, match="expected a mapping"):
        stream.push("text", ids)
    stream.push("text", {"ids": ids, "mask": np.ones(3, np.float32)}, t=101.0)
    for t in (101.0, 102.5):
        stream.push("image", zero, t=t)
    results = [stream.poll() for _ in range(3)]
    assert [float(r.outputs["y"][0, 0]) for r in results if r] == [7, 6, 7]
    assert [r.filled for r in results if r] == [{"text": "array"}, {}, {"text": "array"}]


def test_a_run_that_fails_is_counted_and_the_stream_goes_on(make_bundle: Bundle, clock: Clock) -> None:
    texts = {
        "a": "a (float[batch,2] x) => (float[batch,2] f) { f = Exp(x) }",
        "b": "b (float[batch,2] f, int64[batch] i) => (float[batch,2] y) { y = Gather<axis=0>(f, i) }",
    }
    session = open_session(make_bundle(texts))
    stream = session.stream(trigger="i", clock=clock)
    stream.push("x", np.zeros(2, np.float32))
    for index in (0, 9, 0):
        stream.push("i", np.array(index))
    assert stream.poll() is not None
    with pytest.raises(BackendError, match=r"engine 'b\.onnx' failed"):
        stream.poll()
    result = stream.poll()
    assert result is not None
    assert result.encoded == ("a", "b")
    assert stream.counters.failed == 1
    assert stream.counters.results == 2
    assert adds_up(stream)


CELL = """cell (float[batch,2] motion, float[batch,2] h) => (float[batch,2] h_out, float[batch,2] pose)
{ h_out = Add(motion, h)  pose = Identity(h_out) }"""


def test_each_stream_has_its_own_states(make_bundle: Bundle, clock: Clock) -> None:
    bundle = make_bundle({"cell": CELL}, states={"h": "h_out"}, outputs=("h_out", "pose"))
    session = open_session(bundle)
    one, two = session.stream(clock=clock), session.stream(clock=clock)

    def step(stream: Stream) -> float:
        stream.push("motion", np.ones(2, np.float32))
        result = stream.poll()
        assert result is not None
        return float(result.outputs["pose"][0, 0])

    assert [step(one), step(one), step(two), step(one)] == [1, 2, 1, 3]
    one.reset_state()
    assert [step(one), step(two)] == [1, 2]
    assert session.state == {}


def test_whole_layout_reuses_where_nothing_is_new(make_bundle: Bundle, clock: Clock) -> None:
    graph = "g (float[batch,2] x, float[batch,2] z) => (float[batch,2] y) { y = Add(x, z) }"
    session = open_session(make_bundle({"g": graph}))
    stream = session.stream(trigger="x", clock=clock)
    one = np.ones(2, np.float32)
    stream.push("x", one)
    stream.push("z", one)
    assert stream.infer().encoded == ("g",)
    assert stream.infer().cached == ("g",)
    stream.push("z", one * 2)
    result = stream.infer()
    assert result.outputs["y"].tolist() == [[3, 3]]
    assert result.encoded == ("g",)


def test_a_fixed_batch_takes_that_many_at_a_time(make_bundle: Bundle, clock: Clock) -> None:
    texts = {
        "x": "x (float[2,3] x) => (float[2,3] f) { f = Neg(x) }",
        "y": "y (float[2,3] f, float[2,3] z) => (float[2,3] y) { y = Add(f, z) }",
    }
    session = open_session(make_bundle(texts, batch=2))
    for fill, expected in (("zeros", -1), ("constant:1", 0), (np.ones(3), 0)):
        stream = session.stream(trigger="x", optional={"z": fill}, clock=clock)
        with pytest.raises(DataError, match="got 1 samples in 'x', expected 2"):
            stream.push("x", np.zeros((1, 3), np.float32))
        stream.push("x", np.ones((2, 3), np.float32))
        result = stream.poll()
        assert result is not None
        np.testing.assert_array_equal(result.outputs["y"], np.full((2, 3), expected))


def test_what_a_stream_keeps_is_bounded_and_reported(fusion_bundle: Path, clock: Clock) -> None:
    for cache, held in (("auto", True), ("off", False)):
        session = open_session(fusion_bundle, cache=cache)  # type: ignore[arg-type]
        stream = session.stream(clock=clock)
        stream.push("image", image())
        stream.push("audio", audio())
        stream.infer()
        assert bool(stream.infer().cached) == held
        assert (stream.cache_info().bytes > 0) == held
        assert sum(stream.cache_info().reused.values()) == (3 if held else 0)


def test_closed_streams(session: FusionSession, clock: Clock) -> None:
    with session.stream(clock=clock) as stream:
        stream.push("image", image())
    stream.close()
    for call in (lambda: stream.push("image", image()), stream.poll, stream.infer, lambda: stream.start(print)):
        with pytest.raises(StreamError, match="the stream is closed"):
            call()
    assert list(stream) == []
    assert stream.counters.modalities["image"].dropped == 1
    assert adds_up(stream)
    session.run({"image": image()[None], "audio": audio()[None]})  # the session is open still


def test_a_stream_that_has_ended_is_worked_off(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(trigger="image", window=10.0, timeout=1e9, optional={"audio": "zeros"}, clock=clock)
    for value in (1, 2, 3):
        stream.push("image", image(value), t=100.0 + value)
    stream.end()
    with pytest.raises(StreamError, match=r"closed for samples: end\(\) was called"):
        stream.push("image", image())
    assert [r.time for r in stream] == [101.0, 102.0, 103.0]
    assert list(stream) == []


def test_a_closed_session_is_told(session: FusionSession, clock: Clock) -> None:
    stream = session.stream(trigger="image", optional={"audio": "zeros"}, clock=clock)
    stream.push("image", image())
    session.close()
    with pytest.raises(StreamError, match="the stream is closed"):
        stream.poll()
