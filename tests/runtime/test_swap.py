"""Another bundle in the place of a session's: between two calls, whole, or not at all."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_load import WAIT, Held, begin, ends, waits
from test_stand_ins import extended

from edgemm.bundle import StandIn
from edgemm.errors import BackendError, BundleError, BusyError, DataError
from edgemm.runtime import FusionSession, open_session
from edgemm.runtime import swap as swapping
from edgemm.runtime.ort import OrtSession
from edgemm.runtime.stream import Result
from edgemm.runtime.swap import check_signature
from edgemm.tensors import IOSpec, StateSpec, TensorSpec

Bundle = Callable[..., Path]

IMAGE = "image (float[batch,1] image) => (float[batch,1] i) <float k = {K}> { i = Mul(image, k) }"
AUDIO = "audio (float[batch,1] audio) => (float[batch,1] a) <float k = {K}> { a = Mul(audio, k) }"
HEAD = """head (float[batch,1] i, float[batch,1] a) => (float[batch,3] used)
<float k = {K}> { z = Sub(i, i)  m = Add(z, k)  used = Concat<axis=1>(i, a, m) }"""
WHOLE = """whole (float[N,1] audio, float[N,1] image) => (float[N,3] used) <float k = {K}>
{ i = Mul(image, k)  a = Mul(audio, k)  z = Sub(i, i)  m = Add(z, k)  used = Concat<axis=1>(i, a, m) }"""
SUM = """sum (float[batch,1] image, float[batch,1] h) => (float[batch,1] h_out, float[batch,1] total)
<float k = {K}> { u = Mul(image, k)  h_out = Add(u, h)  total = Identity(h_out) }"""

ONE = np.ones((1, 1), np.float32)
FEED = {"image": ONE, "audio": ONE}

Make = Callable[..., Path]


@pytest.fixture
def make(make_bundle: Bundle, tmp_path: Path) -> Make:
    """Makes a bundle whose outputs are `k` wherever an engine of it had a part, for inputs of ones."""
    numbers = itertools.count()

    def make(k: float, *, layout: str = "staged", **changes: Any) -> Path:
        texts = {"image": IMAGE, "audio": AUDIO, "head": HEAD} if layout == "staged" else {"whole": WHOLE}
        batch = "batch" if layout == "staged" else "N"
        if layout == "state":
            texts, batch = {"sum": SUM}, "batch"
            changes = {"outputs": ("h_out", "total"), "states": {"h": "h_out"}, **changes}
        texts = {n: t.replace("{K}", f"{{{k}}}") for n, t in changes.pop("texts", texts).items()}
        path = make_bundle(texts, **{"batch": batch, **changes})
        return path.rename(tmp_path / f"{next(numbers)}.edgemm")

    return make


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[OrtSession]:
    """Every engine that is opened in this test."""
    engines: list[OrtSession] = []
    init = OrtSession.__init__

    def note(self: OrtSession, *arguments: Any) -> None:
        init(self, *arguments)
        engines.append(self)

    monkeypatch.setattr(OrtSession, "__init__", note)
    return engines


@pytest.fixture
def session(make: Make) -> Iterator[FusionSession]:
    with open_session(make(1)) as session:
        yield session


def used(session: FusionSession, feed: dict[str, np.ndarray] = FEED) -> list[float]:
    return [float(value) for value in session.run(feed)["used"][0]]


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def is_open(engine: OrtSession) -> bool:
    return engine._session is not None


def test_the_new_bundle_serves_from_the_next_call_on(
    session: FusionSession, make: Make, opened: list[OrtSession]
) -> None:
    old = session._engines
    assert used(session) == [1, 1, 1]
    session.swap(make(2))
    assert used(session) == [2, 2, 2]
    assert session.run_timed(FEED)[0]["used"][0, 0] == 2
    assert [is_open(engine) for engine in old] == [False] * 3  # type: ignore[arg-type]
    assert [is_open(engine) for engine in opened] == [True] * 3
    session.swap(make(3, layout="whole"))
    assert used(session) == [3, 3, 3]
    assert [s.name for s in session.stages] == ["whole"]
    assert session.choice is not None
    assert session.choice.engines == ("engines/cpu-fp32/whole.onnx",)
    session.swap(make(4))
    assert used(session) == [4, 4, 4]
    session.close()
    assert not any(map(is_open, opened))


def test_times_of_the_old_engines_are_not_reported_as_those_of_the_new_ones(
    session: FusionSession, make: Make
) -> None:
    session.run(FEED)
    session.run_timed(FEED)
    assert (session.latency.snapshot().runs, len(session.stage_latency)) == (1, 3)
    session.swap(make(2.0))
    assert (session.latency.snapshot().runs, len(session.stage_latency)) == (0, 0)
    session.run(FEED)
    assert session.report()["latency"]["runs"] == 1


def staged(old: str, new: str) -> dict[str, Any]:
    """Returns the staged model with a word replaced."""
    return {"texts": {n: t.replace(old, new) for n, t in (("image", IMAGE), ("audio", AUDIO), ("head", HEAD))}}


def whole(*replaced: tuple[str, str], **changes: Any) -> dict[str, Any]:
    """Returns the whole model with words replaced."""
    text = WHOLE
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    return {"layout": "whole", "texts": {"whole": text}, **changes}


IS = "its input is"
SESSION = r"that of the session image\[batch,1\] float32"
NOT_FINITE = "the output 'used' has values that are not finite"
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "input": (staged("audio", "sound"), "it has no input 'audio'"),
    "output": (staged("used", "logits"), "it has no output 'used'"),
    "more": (whole((",3] used", ",3] used, float[N,1] e"), ("m =", "e = Abs(a)  m =")), "its output 'e' is none"),
    "size": (
        whole(("N,1] image", "N,M] image"), ("N,3]", "N,L]")),
        rf"{IS} image\[N,M\] float32, {SESSION}",
    ),
    "dtype": (whole(("float[", "double["), ("<float", "<double")), rf"image\[N,1\] float64, {SESSION}"),
    "batch": (whole(("[N,", "[2,"), batch=2), rf"image\[2,1\] float32, {SESSION}"),
    "not finite": (whole(("m = Add(z, k)", "n = Sub(z, k)  m = Log(n)")), NOT_FINITE),
    "fails": (whole(("{K}>", "{K}, int64[1] nine = {9}>"), ("Add(z, k)", "Gather<axis=1>(z, nine)")), "failed: "),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_changes_nothing(
    session: FusionSession, make: Make, changes: dict[str, Any], message: str, opened: list[OrtSession]
) -> None:
    path, old = make(2, **changes), session._engines
    opened.clear()
    with pytest.raises((BundleError, BackendError), match=message) as caught:
        session.swap(path)
    assert caught.value.hint
    assert session._engines is old
    assert used(session) == [1, 1, 1]
    assert opened
    assert not any(map(is_open, opened))


def test_a_damaged_or_missing_bundle_changes_nothing(session: FusionSession, make: Make, tmp_path: Path) -> None:
    path = make(2)
    engine = path / "engines/cpu-fp32/head.onnx"
    engine.write_bytes(engine.read_bytes()[:-1] + b"x")
    for wrong in (path, tmp_path / "none.edgemm", tmp_path):
        with pytest.raises(BundleError):
            session.swap(wrong)
        assert used(session) == [1, 1, 1]


def test_real_inputs_may_be_given_where_random_ones_do_not_do(make_bundle: Bundle, tmp_path: Path) -> None:
    text = "g (float[batch,1] x) => (float[batch,1] y) { {V} }"
    old = make_bundle({"g": text.replace("{V}", "y = Abs(x)")}).rename(tmp_path / "old.edgemm")
    new = make_bundle({"g": text.replace("{V}", "r = Sqrt(x)  y = Neg(r)")})
    session = open_session(old)
    session.run({"x": np.ones((64, 1), np.float32)})
    with pytest.raises(BackendError, match="'y' has values that are not finite") as caught:
        session.swap(new)
    assert "give real ones: swap(path, feed)" in caught.value.hint
    with pytest.raises(DataError, match="got dtype float64"):
        session.swap(new, {"x": np.full((1, 1), 4.0)})
    assert session.run({"x": ONE})["y"] == 1
    session.swap(new, {"x": np.full((1, 1), 4, np.float32)})
    assert session.run({"x": ONE * 4})["y"] == -2


def test_the_new_engines_run_in_the_shapes_that_were_seen(
    session: FusionSession, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for batch in (0, 3, 5):
        session.run({"image": np.zeros((batch, 1), np.float32), "audio": np.zeros((batch, 1), np.float32)})
    seen: list[int] = []
    run = FusionSession.run

    def note(self: FusionSession, feed: Any, changed: Any = None) -> Any:
        seen.append(len(feed["image"]))
        return run(self, feed, changed)

    monkeypatch.setattr(FusionSession, "run", note)
    session.swap(make(2))
    assert seen == [3, 3, 5, 5]


def test_it_is_opened_as_the_session_was(make: Make) -> None:
    with open_session(make(1), cache="content", cache_bytes=1000, threads=1, variant="cpu-fp32") as session:
        session.run(FEED)
        session.swap(make(2))
        assert (session.cache_info().mode, session.cache_info().max_bytes) == ("content", 1000)
        assert session.reopen is not None
        assert session.reopen.keywords["threads"] == 1  # type: ignore[attr-defined]
        with pytest.raises(BundleError, match="was not shipped"):
            session.swap(make(3), variant="cpu-int8")
        with pytest.raises(TypeError, match="treads"):
            session.swap(make(3), treads=1)
        with pytest.raises(DataError, match="max_in_flight is the session's"):
            session.swap(make(3), max_in_flight=1)
        assert used(session) == [2, 2, 2]
        session.swap(make(4), cache="off")
        assert session.cache_info().mode == "off"
        session.swap(make(5))
        assert session.cache_info().mode == "off"
        assert used(session) == [5, 5, 5]


def test_a_bare_onnx_file_may_follow_another_one(tmp_path: Path) -> None:
    for k in (1, 2):
        text = '<ir_version: 10, opset_import: ["" : 20]>\n' + WHOLE.replace("{K}", f"{{{k}}}")
        ir.save(ir.from_onnx_text(text), tmp_path / f"{k}.onnx")
    with open_session(tmp_path / "1.onnx") as session:
        assert used(session) == [1, 1, 1]
        session.swap(tmp_path / "2.onnx")
        assert used(session) == [2, 2, 2]
        assert session.manifest.name == "2"
    with pytest.raises(BundleError, match="the session on '2' is closed"):
        session.run(FEED)


@pytest.mark.parametrize("cache", ["content", "marks", "off"])
def test_nothing_that_the_old_engines_gave_is_reused(make: Make, cache: Any) -> None:
    with open_session(make(1), cache=cache) as session:
        for _ in range(3):
            assert used(session) == [1, 1, 1]
        session.swap(make(2))
        assert session.run(FEED, changed=set())["used"].tolist() == [[2, 2, 2]]
        assert used(session) == [2, 2, 2]
        if cache != "off":
            assert session.run(FEED, changed=set())["used"].tolist() == [[2, 2, 2]]
            assert session.cache_info().reused["image"] > 0


def test_threads_never_see_two_bundles_nor_an_old_one_again(session: FusionSession, make: Make) -> None:
    bundles = [make(k) for k in range(2, 8)]
    seen: list[list[tuple[float, ...]]] = [[] for _ in range(4)]
    stop = threading.Event()

    def work(rows: list[tuple[float, ...]]) -> None:
        while not stop.is_set():
            rows.append(tuple(session.run(FEED)["used"][0].tolist()))

    threads = [begin(lambda rows=rows: work(rows)) for rows in seen]  # type: ignore[misc]
    for k, bundle in enumerate(bundles, 2):
        until(lambda k=k: min(map(len, seen)) >= 5 * k)  # type: ignore[misc]
        session.swap(bundle)
        assert used(session) == [k, k, k]
    stop.set()
    for thread, outcome in threads:
        ends(thread)
        assert outcome == [None]
    for rows in seen:
        assert all(len(set(row)) == 1 for row in rows)
        assert rows == sorted(rows)
    assert len({row for rows in seen for row in rows}) > 2


def test_a_swap_waits_for_the_calls_under_way_and_others_for_it(session: FusionSession, make: Make) -> None:
    held, new = Held(FEED), make(2)
    runner, first = begin(lambda: used(session, held))
    assert held.inside.wait(WAIT)
    swapper, swapped = begin(lambda: session.swap(new))
    waits(session, swapper, swapped)
    until(lambda: session._gate.attended)
    later, second = begin(lambda: used(session))
    waits(session, later, second)
    held.go.set()
    for thread in (runner, swapper, later):
        ends(thread)
    assert (first, second, swapped) == ([[1, 1, 1]], [[2, 2, 2]], [None])


def test_a_call_that_does_not_end_leaves_everything_as_it_is(
    session: FusionSession, make: Make, monkeypatch: pytest.MonkeyPatch, opened: list[OrtSession]
) -> None:
    monkeypatch.setattr(swapping, "PATIENCE", 0.05)
    held = Held(FEED)
    runner, first = begin(lambda: used(session, held))
    assert held.inside.wait(WAIT)
    with pytest.raises(BusyError, match=r"a call is under way for more than 0\.05 s, nothing was changed"):
        session.swap(make(2))
    assert used(session) == [1, 1, 1]
    held.go.set()
    ends(runner)
    assert first == [[1, 1, 1]]
    assert not any(map(is_open, opened))


def test_a_session_that_is_closed_meanwhile_opens_nothing(
    session: FusionSession, make: Make, monkeypatch: pytest.MonkeyPatch, opened: list[OrtSession]
) -> None:
    warm_up = swapping.warm_up

    def close(*arguments: Any) -> None:
        warm_up(*arguments)
        session.close()

    monkeypatch.setattr(swapping, "warm_up", close)
    with pytest.raises(BundleError, match="is closed"):
        session.swap(make(2))
    assert opened
    assert not any(map(is_open, opened))


def push_all(stream: Any, modality: str, count: int) -> None:
    for _ in range(count):
        stream.push(modality, ONE[0])


def test_streams_go_on_and_lose_nothing(session: FusionSession, make: Make) -> None:
    results: list[Result] = []
    errors: list[Exception] = []
    stop = threading.Event()
    with session.stream(trigger="image", drop="block", optional={"audio": "constant:1"}) as stream:

        def push(modality: str) -> int:
            for count in itertools.count():
                if stop.is_set():
                    return count
                stream.push(modality, ONE[0])
            raise AssertionError

        stream.start(results.append, errors.append)
        pushers = [begin(lambda m=m: push(m)) for m in ("image", "audio")]  # type: ignore[misc]
        for k in range(2, 6):
            until(lambda k=k: len(results) > 20 * k)  # type: ignore[misc]
            session.swap(make(k))
        stop.set()
        for thread, _ in pushers:
            ends(thread)
        stream.end()
        assert stream._worker is not None
        ends(stream._worker)
    (pushed,) = pushers[0][1]
    assert errors == []
    assert [r.number for r in results] == list(range(pushed))  # type: ignore[call-overload]
    rows = [r.outputs["used"][0].tolist() for r in results]
    assert all(len(set(row)) == 1 for row in rows)
    assert rows == sorted(rows)
    assert len({tuple(row) for row in rows}) >= 4
    assert stream.counters.modalities["image"].used == pushed


def test_a_stream_runs_every_engine_of_the_new_bundle(session: FusionSession, make: Make) -> None:
    with session.stream(trigger="image") as stream:
        push_all(stream, "audio", 1)
        push_all(stream, "image", 3)
        assert [next(stream).cached for _ in range(2)] == [(), ("audio",)]
        session.swap(make(2))
        result = next(stream)  # of samples that were there before
        assert result.outputs["used"].tolist() == [[2, 2, 2]]
        assert (set(result.encoded), result.cached) == ({"image", "audio", "head"}, ())
        push_all(stream, "image", 1)
        assert next(stream).cached == ("audio",)
        assert stream.cache_info().reused == {"image": 0, "audio": 1, "head": 0}
        session.swap(make(3, layout="whole"))
        push_all(stream, "image", 1)
        result = next(stream)
        assert (result.encoded, result.outputs["used"].tolist()) == (("whole",), [[3, 3, 3]])
        assert list(stream.cache_info().ran) == ["whole"]


def test_what_stands_for_a_silent_sensor_is_the_new_bundle_s(make: Make, tmp_path: Path) -> None:
    bundles = []
    for k in (1, 2):
        mean = StandIn("audio", "mean", {"a": float(k)}, "cpu-fp32")
        bundles.append(extended(make(k), mean).rename(tmp_path / f"mean {k}.edgemm"))
    with open_session(bundles[0]) as session:
        stream = session.stream(trigger="image", optional={"audio": "mean"})
        push_all(stream, "image", 1)
        assert next(stream).outputs["used"].tolist() == [[1, 1, 1]]
        session.swap(bundles[1])
        push_all(stream, "image", 1)
        result = next(stream)
        assert (result.encoded, dict(result.filled)) == (("image", "head"), {"audio": "mean"})
        assert result.outputs["used"].tolist() == [[2, 2, 2]]
        with pytest.raises(
            BundleError,
            match=r"stream of the session \(optional: the bundle holds no .mean. for .audio.*nothing was changed",
        ):
            session.swap(make(3))
        push_all(stream, "image", 1)
        assert next(stream).outputs["used"].tolist() == [[2, 2, 2]]
        stream.close()
        session.swap(make(3))
        assert used(session) == [3, 3, 3]


def test_a_callback_may_swap(session: FusionSession, make: Make) -> None:
    rows: list[list[float]] = []
    bundles = [make(2), make(3)]
    done = threading.Event()

    def callback(result: Result) -> None:
        rows.append(result.outputs["used"][0].tolist())
        if bundles:
            session.swap(bundles.pop(0))
        if len(rows) == 3:
            done.set()

    with session.stream(trigger="image", drop="block", optional={"audio": "last"}) as stream:
        push_all(stream, "audio", 1)
        stream.start(callback)
        push_all(stream, "image", 3)
        assert done.wait(WAIT)
    assert rows == [[1, 1, 1], [2, 2, 2], [3, 3, 3]]


@pytest.mark.parametrize("keep", [False, True])
def test_states_begin_again_unless_they_are_to_go_on(make: Make, keep: bool) -> None:
    with open_session(make(1, layout="state")) as session, session.stream(trigger="image") as stream:
        for _ in range(3):
            total = session.run({"image": ONE})["total"]
        push_all(stream, "image", 1)
        assert (total, next(stream).outputs["total"]) == (3, 1)
        session.swap(make(10, layout="state"), keep_state=keep)
        assert session.run({"image": ONE})["total"] == (13 if keep else 10)
        push_all(stream, "image", 1)
        assert next(stream).outputs["total"] == (11 if keep else 10)
        assert session.run({"image": ONE})["total"] == (23 if keep else 20)


def test_a_state_that_is_none_in_the_new_model_is_refused(make: Make) -> None:
    with open_session(make(1, layout="state")) as session:
        with pytest.raises(BundleError, match="'h' is no state, in the session from 'h_out'") as caught:
            session.swap(make(1, layout="state", states={}, outputs=("h_out", "total")))
        assert "--state" in caught.value.hint
        assert session.run({"image": ONE})["total"] == 1


DTYPES = ("float32", "int64", "bool")
dims = st.sampled_from(("batch", "time", 1, 4))
shapes = st.lists(dims, max_size=3).map(tuple)
specs = st.tuples(st.sampled_from(DTYPES), shapes)


@st.composite
def signatures(draw: st.DrawFn) -> IOSpec:
    """Returns a signature in which every symbolic dimension of the outputs is one of the inputs."""
    inputs = [TensorSpec(f"in{n}", *draw(specs)) for n in range(draw(st.integers(1, 4)))]
    outputs = [TensorSpec(f"out{n}", *draw(specs)) for n in range(draw(st.integers(1, 3)))]
    states = [StateSpec("in0", "out0")] if len(inputs) > 1 and len(outputs) > 1 and draw(st.booleans()) else []
    taken = {s.input for s in states}
    modalities = {i.name: draw(st.sampled_from(("image", "audio"))) for i in inputs if i.name not in taken}
    return IOSpec(
        tuple(inputs), tuple(outputs), modalities, tuple(states), draw(st.sampled_from(("batch", None, 4)))
    )


def renamed(io: IOSpec, names: dict[str, str]) -> IOSpec:
    def rename(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(t, shape=tuple(names.get(d, d) for d in t.shape)) for t in tensors)  # type: ignore

    batch = names.get(io.batch, io.batch) if isinstance(io.batch, str) else io.batch
    return replace(io, inputs=rename(io.inputs[::-1]), outputs=rename(io.outputs[::-1]), batch=batch)


@given(io=signatures(), swapped=st.booleans())
def test_order_and_names_of_sizes_may_differ(io: IOSpec, swapped: bool) -> None:
    symbols = {d for t in (*io.inputs, *io.outputs) for d in t.shape if isinstance(d, str)}
    if isinstance(io.batch, str) and io.batch not in symbols:
        io = replace(io, batch=None)
    names = {"batch": "time", "time": "batch"} if swapped else {"batch": "N", "time": "T"}
    check_signature("new.edgemm", io, renamed(io, names))


@given(io=signatures(), at=st.integers(0, 99), dtype=st.booleans(), back=st.booleans())
def test_any_other_tensor_is_named(io: IOSpec, at: int, dtype: bool, back: bool) -> None:
    kind = "inputs" if at % 2 else "outputs"
    tensors = list(getattr(io, kind))
    spec = tensors[at % len(tensors)]
    changed = replace(spec, dtype="float64") if dtype else replace(spec, shape=(*spec.shape, 7))
    tensors[at % len(tensors)] = changed
    other = replace(io, **{kind: tuple(tensors)})
    with pytest.raises(BundleError, match=spec.name):
        check_signature("new.edgemm", *((other, io) if back else (io, other)))


def test_sizes_that_must_agree_must_do_so_in_both() -> None:
    def io(*shapes: tuple[int | str, ...]) -> IOSpec:
        inputs = tuple(TensorSpec(f"in{n}", "float32", shape) for n, shape in enumerate(shapes))
        return IOSpec(inputs, (), {i.name: i.name for i in inputs}, batch=None)

    one, two = io(("n",), ("n",)), io(("n",), ("m",))
    for old, new in ((one, two), (two, one)):
        with pytest.raises(BundleError, match="in1"):
            check_signature("new.edgemm", old, new)
