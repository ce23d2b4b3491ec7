"""Recurrent states: zeros at first, kept between calls, overridden by the feed, reset on request."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemm.errors import BackendError, BundleError, DataError
from edgemm.runtime import FusionSession, open_session
from edgemm.runtime.stream import Stream

Bundle = Callable[..., Path]

COUNTER = """g (float[batch,2] x, float[1,batch,2] h) => (float[batch,2] y, float[1,batch,2] h_out)
<int64[1] zero = {0}> { u = Unsqueeze(x, zero)  h_out = Add(u, h)  y = Squeeze(h_out, zero) }"""
CACHE = """g (float[batch,1,2] x, float[batch,past,2] cache) => (float[batch,total,2] cache_out, float[batch,2] y)
<int64[1] one = {1}> { cache_out = Concat<axis=1>(cache, x)  y = ReduceSum<keepdims=0>(cache_out, one) }"""


def ones(batch: int) -> np.ndarray:
    return np.ones((batch, 2), np.float32)


@pytest.fixture
def counter(make_bundle: Bundle) -> FusionSession:
    """A session whose output is the sum of all inputs so far."""
    return open_session(make_bundle({"g": COUNTER}, states={"h": "h_out"}))


def test_state_is_kept_between_calls_and_is_no_result(counter: FusionSession) -> None:
    assert counter.state == {}
    for call in range(1, 4):
        out = counter.run({"x": ones(2)})
        assert list(out) == ["y"]
        np.testing.assert_array_equal(out["y"], ones(2) * call)
    np.testing.assert_array_equal(counter.state["h"], np.full((1, 2, 2), 3))


def test_reset_starts_from_zeros_with_any_batch(counter: FusionSession) -> None:
    counter.run({"x": ones(2)})
    counter.reset_state()
    assert counter.state == {}
    np.testing.assert_array_equal(counter.run({"x": ones(3)})["y"], ones(3))


def test_state_in_the_feed_overrides_the_kept_one(counter: FusionSession) -> None:
    counter.run({"x": ones(1)})
    given = np.full((1, 1, 2), 10, np.float32)
    np.testing.assert_array_equal(counter.run({"x": ones(1), "h": given})["y"], ones(1) * 11)
    np.testing.assert_array_equal(given, np.full((1, 1, 2), 10))
    np.testing.assert_array_equal(counter.run({"x": ones(1)})["y"], ones(1) * 12)


def test_state_in_the_feed_may_change_the_batch(counter: FusionSession) -> None:
    counter.run({"x": ones(1)})
    out = counter.run({"x": ones(3), "h": np.full((1, 3, 2), 5, np.float32)})
    np.testing.assert_array_equal(out["y"], ones(3) * 6)


def test_another_batch_with_a_kept_state_is_refused(counter: FusionSession) -> None:
    counter.run({"x": ones(2)})
    for _ in range(2):
        with pytest.raises(
            DataError, match=r"the kept state 'h' has shape \(1, 2, 2\); this call needs 3"
        ) as caught:
            counter.run({"x": ones(3)})
        assert "call reset_state()" in caught.value.hint
    np.testing.assert_array_equal(counter.run({"x": ones(2)})["y"], ones(2) * 2)


def test_returned_state_is_a_copy(counter: FusionSession) -> None:
    counter.run({"x": ones(1)})
    counter.state["h"][:] = 99
    np.testing.assert_array_equal(counter.run({"x": ones(1)})["y"], ones(1) * 2)


@pytest.mark.parametrize("warm", [False, True])
def test_wrong_feeds_are_refused_and_change_nothing(counter: FusionSession, warm: bool) -> None:
    if warm:
        counter.run({"x": ones(2)})
    for feed, message in (
        ({}, "input 'x' is missing"),
        ({"x": ones(2).astype(np.float64)}, "got dtype float64"),
        ({"x": ones(2), "hh": ones(2)}, "no input 'hh'"),
        ({"x": ones(2), "h": ones(2)}, "input 'h': got shape"),
        ({"x": ones(2), "h": np.zeros((1, 3, 2), np.float32)}, "'h': axis 1 .'batch'. is 3"),
    ):
        with pytest.raises(DataError, match=message):
            counter.run(feed)
    np.testing.assert_array_equal(counter.run({"x": ones(2)})["y"], ones(2) * (2 if warm else 1))


def test_growing_cache_starts_empty(make_bundle: Bundle) -> None:
    session = open_session(make_bundle({"g": CACHE}, states={"cache": "cache_out"}))
    for call in range(1, 5):
        out = session.run({"x": np.full((2, 1, 2), call, np.float32)})
        np.testing.assert_array_equal(out["y"], np.full((2, 2), call * (call + 1) / 2))
        assert session.state["cache"].shape == (2, call, 2)


def test_failing_call_leaves_every_state_as_it_was(make_bundle: Bundle) -> None:
    first = "a (float[batch,2] x, float[batch,2] h) => (float[batch,2] h_out) { h_out = Add(x, h) }"
    second = """b (float[batch,2] h_out, int64[k] i) => (float[k,2] y) { y = Gather<axis=0>(h_out, i) }"""
    bundle = make_bundle({"a": first, "b": second}, outputs=("h_out", "y"), states={"h": "h_out"})
    session = open_session(bundle)
    good, bad = np.array([0]), np.array([9])
    session.run({"x": ones(1), "i": good})
    with pytest.raises(BackendError, match=r"engine 'b\.onnx' failed"):
        session.run({"x": ones(1), "i": bad})
    np.testing.assert_array_equal(session.state["h"], ones(1))
    np.testing.assert_array_equal(session.run({"x": ones(1), "i": good})["y"], ones(1) * 2)


def test_calls_from_several_threads_follow_one_another(counter: FusionSession) -> None:
    with ThreadPoolExecutor(8) as pool:
        totals = list(pool.map(lambda _: float(counter.run({"x": ones(1)})["y"][0, 0]), range(400)))
    assert sorted(totals) == [float(n) for n in range(1, 401)]


def test_fixed_batch_with_states_takes_exactly_that(make_bundle: Bundle) -> None:
    text = COUNTER.replace("batch", "2")
    session = open_session(make_bundle({"g": text}, states={"h": "h_out"}, batch=2))
    np.testing.assert_array_equal(session.run({"x": ones(2)})["y"], ones(2))
    with pytest.raises(DataError, match="with states and a fixed batch takes exactly 2"):
        session.run({"x": ones(3)})


def test_state_that_cannot_be_fed_back_is_refused(make_bundle: Bundle) -> None:
    text = "g (float[batch,2] x, float[batch,2] h) => (float[batch,2] y, float[batch] h_out)"
    text += "<int64[1] one = {1}> { y = Add(x, h)  h_out = ReduceSum<keepdims=0>(y, one) }"
    with pytest.raises(BundleError, match=r"the state 'h' takes h\[batch,2\] float32, but 'h_out' gives"):
        open_session(make_bundle({"g": text}, states={"h": "h_out"}))


def test_session_without_states_has_nothing_to_reset(fusion_bundle: Path) -> None:
    session = open_session(fusion_bundle)
    session.reset_state()
    assert session.state == {}


def test_a_snapshot_is_gone_on_from_and_is_a_copy(counter: FusionSession) -> None:
    counter.run({"x": ones(2)})
    snapshot = counter.snapshot()
    counter.run({"x": ones(2)})
    for _ in range(2):
        counter.restore(snapshot)
        assert counter.run({"x": ones(2)})["y"].tolist() == [[2, 2], [2, 2]]
    counter.restore(snapshot)
    snapshot["h"][:] = 99
    assert counter.run({"x": ones(2)})["y"].tolist() == [[2, 2], [2, 2]]
    counter.restore({})
    assert counter.run({"x": ones(3)})["y"].tolist() == ones(3).tolist()


def test_a_snapshot_is_plain_arrays_for_another_process(counter: FusionSession, tmp_path: Path) -> None:
    counter.run({"x": ones(2)})
    np.savez(tmp_path / "state.npz", **counter.snapshot())
    counter.reset_state()
    with np.load(tmp_path / "state.npz", allow_pickle=False) as states:
        counter.restore(states)
    assert counter.run({"x": ones(2)})["y"].tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize(
    ("states", "message", "hint"),
    [
        ({"g": np.zeros((1, 1, 2), np.float32)}, "there is no state 'g' .states: h.", "did you mean|restore what"),
        ({"x": ones(1)}, "there is no state 'x'", "snapshot"),
        ({"h": np.zeros((1, 1, 2))}, "'h': got dtype float64, expected float32", "astype"),
        ({"h": np.zeros((2, 1, 2), np.float32)}, r"'h': got shape \(2, 1, 2\)", "axis 0 must be 1"),
        ({"h": np.zeros((1, 2), np.float32)}, r"'h': got shape \(1, 2\)", "3 axes"),
        ({"h": None}, "'h' is missing", "feed an array"),
        ({"h": np.full((1, 1, 2), np.nan, np.float32)}, "'h' has NaN", "every later call"),
        ([ones(1)], "restore: got a list, expected arrays by state", "snapshot"),
    ],
)
def test_wrong_states_are_refused_and_change_nothing(
    counter: FusionSession, states: Any, message: str, hint: str
) -> None:
    counter.run({"x": ones(1)})
    with pytest.raises(DataError, match=message) as caught:
        counter.restore(states)
    assert re.search(hint, caught.value.hint)
    assert counter.run({"x": ones(1)})["y"].tolist() == [[2, 2]]


def test_every_state_must_be_there_with_one_batch(make_bundle: Bundle) -> None:
    text = """g (float[batch,2] x, float[batch,2] a, float[batch,2] b) => (float[batch,2] y, float[batch,2] a_out,
    float[batch,2] b_out) { a_out = Add(x, a)  b_out = Add(a_out, b)  y = Identity(b_out) }"""
    session = open_session(make_bundle({"g": text}, states={"a": "a_out", "b": "b_out"}))
    with pytest.raises(DataError, match="'b' is missing"):
        session.restore({"a": ones(1)})
    with pytest.raises(DataError, match=r"'b': axis 0 \('batch'\) is 2, but input 'a' has 1"):
        session.restore({"a": ones(1), "b": ones(2)})
    session.restore({"a": ones(1), "b": ones(1)})
    assert session.run({"x": ones(1)})["y"].tolist() == [[3, 3]]


def test_a_model_without_states_has_nothing_to_restore(fusion_bundle: Path) -> None:
    session = open_session(fusion_bundle)
    session.restore(session.snapshot())
    with pytest.raises(DataError, match=r"there is no state 'h' .states: none."):
        session.restore({"h": ones(1)})


def test_a_stream_has_snapshots_of_its_own(counter: FusionSession) -> None:
    def push(stream: Stream) -> float:
        stream.push("x", np.ones(2, np.float32))
        return float(next(stream).outputs["y"][0, 0])

    counter.run({"x": ones(1)})
    with counter.stream(trigger="x") as one, counter.stream(trigger="x") as other:
        assert one.snapshot() == {}
        assert [push(one), push(one)] == [1, 2]
        snapshot = one.snapshot()
        assert push(one) == 3
        other.restore(snapshot)
        one.restore(snapshot)
        snapshot["h"][:] = 99
        assert (push(one), push(other)) == (3, 3)
        one.restore(counter.snapshot())
        assert push(one) == 2
        one.reset_state()
        assert push(one) == 1
        with pytest.raises(DataError, match="got dtype float64"):
            one.restore({"h": np.zeros((1, 1, 2))})
        with pytest.raises(DataError, match="states of 2 samples, a stream runs 1 at a time"):
            one.restore({"h": np.zeros((1, 2, 2), np.float32)})
        assert (push(one), push(other)) == (2, 4)
    assert counter.run({"x": ones(1)})["y"].tolist() == [[2, 2]]


VIEW = "view (float[batch,1] image) => (float[batch,1] i) <float k = {K}> { i = Mul(image, k) }"
CELL = """cell (float[batch,1] audio, float[batch,1] h) => (float[batch,1] h_out, float[batch,1] a)
<float k = {K}> { u = Mul(audio, k)  h_out = Add(u, h)  a = Identity(h_out) }"""
HEAD = "head (float[batch,1] i, float[batch,1] a) => (float[batch,2] y) { y = Concat<axis=1>(i, a) }"

OPERATIONS = (
    st.tuples(st.just("run"), st.frozensets(st.sampled_from(("image", "audio"))))
    | st.tuples(st.sampled_from(("reset", "snapshot", "restore")), st.none())
    | st.tuples(st.just("swap"), st.tuples(st.sampled_from((1, 2, 3)), st.booleans()))
)


@pytest.mark.parametrize("cache", ["content", "marks", "off"])
def test_whatever_happens_results_are_those_of_the_state_and_the_bundle_of_now(
    make_bundle: Bundle, tmp_path: Path, cache: Any
) -> None:
    bundles = {}
    for k in (1, 2, 3):
        texts = {n: t.replace("{K}", f"{{{k}}}") for n, t in (("view", VIEW), ("cell", CELL), ("head", HEAD))}
        bundles[k] = make_bundle(texts, states={"h": "h_out"}).rename(tmp_path / f"{k}.edgemm")

    @settings(max_examples=25, deadline=None)
    @given(operations=st.lists(OPERATIONS, min_size=3, max_size=14))
    def check(operations: list[tuple[str, Any]]) -> None:
        k, h, kept, saved, numbers = 1, 0.0, 0.0, {}, itertools.count(1)
        feed = {"image": np.ones((1, 1), np.float32), "audio": np.ones((1, 1), np.float32)}
        with open_session(bundles[1], cache=cache) as session:
            session.run(feed)
            h = 1.0
            for operation, argument in operations:
                if operation == "run":
                    for name in argument:
                        feed[name] = np.full((1, 1), next(numbers), np.float32)
                    h += k * float(feed["audio"][0, 0])
                    got = session.run(feed, changed=argument)["y"][0].tolist()
                    assert got == [k * float(feed["image"][0, 0]), h]
                elif operation == "reset":
                    session.reset_state()
                    h = 0.0
                elif operation == "snapshot":
                    saved, kept = session.snapshot(), h
                elif operation == "restore":
                    session.restore(saved)
                    h = kept
                else:
                    k, keep = argument
                    session.swap(bundles[k], keep_state=keep)
                    h = h if keep else 0.0

    check()
