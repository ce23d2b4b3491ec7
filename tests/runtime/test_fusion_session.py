"""What an app sees: outputs, the checks of its inputs, threads, closing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgemm.bundle import read_manifest
from edgemm.errors import BackendError, BundleError, DataError
from edgemm.runtime import FusionSession, open_session

Bundle = Callable[..., Path]

WEIGHTS = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1]], np.float32)


def feed_of(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(batch, 4)).astype(np.float32),
        "audio": rng.normal(size=(batch, 2, 2)).astype(np.float32),
    }


def expected(feed: dict[str, np.ndarray]) -> np.ndarray:
    joined = np.concatenate([np.tanh(feed["image"] @ WEIGHTS), feed["audio"].sum(axis=2)], axis=1)
    return 1 / (1 + np.exp(-joined))


@pytest.fixture
def session(fusion_bundle: Path) -> FusionSession:
    return open_session(fusion_bundle)


@pytest.mark.parametrize("batch", [1, 2, 5, 0])
def test_outputs_by_name(session: FusionSession, batch: int) -> None:
    feed = feed_of(batch)
    out = session.run(feed)
    assert set(out) == {"logits", "audio_energy"}
    np.testing.assert_allclose(out["logits"], expected(feed), rtol=1e-5)
    np.testing.assert_allclose(out["audio_energy"], (feed["audio"] ** 2).sum(axis=(1, 2)), rtol=1e-5)


def test_feed_is_not_changed(session: FusionSession) -> None:
    feed = feed_of(2)
    copies = {name: value.copy() for name, value in feed.items()}
    session.run(feed)
    assert list(feed) == list(copies)
    for name, value in feed.items():
        np.testing.assert_array_equal(value, copies[name])


def test_session_describes_the_model(session: FusionSession, fusion_bundle: Path) -> None:
    assert [str(i) for i in session.io.feed_inputs] == ["image[batch,4] float32", "audio[batch,2,2] float32"]
    assert [s.name for s in session.stages] == ["image", "audio", "fusion"]
    assert session.joins == ()
    assert session.variant.name == "cpu-fp32"
    assert session.manifest == read_manifest(fusion_bundle)
    assert "image[batch,4] float32" in repr(session)


def test_intermediate_tensors_are_dropped(session: FusionSession) -> None:
    done = {step.name: step.done for step in session._steps}
    assert done == {"image": (), "audio": (), "fusion": ("image_features", "audio_features")}
    values = dict(feed_of(1))
    session._chain.run(values, None)
    assert set(values) == {"image", "audio", "logits", "audio_energy"}


def test_run_timed_gives_the_seconds_of_each_engine(session: FusionSession) -> None:
    feed = feed_of(3)
    out, seconds = session.run_timed(feed)
    np.testing.assert_array_equal(out["logits"], session.run(feed)["logits"])
    assert list(seconds) == ["image", "audio", "fusion"]
    assert all(0 < s < 10 for s in seconds.values())


GOOD = feed_of(2)
WRONG: list[tuple[str, object, str, str]] = [
    ("missing", {"image": GOOD["image"]}, "input 'audio' is missing; got image", "feed an array of float32"),
    ("empty", {}, "input 'image' is missing; got nothing", "feed an array"),
    ("unknown", {**GOOD, "imge": GOOD["image"]}, "no input 'imge' in this model", "did you mean 'image'?"),
    ("dtype", {**GOOD, "image": np.zeros((2, 4))}, "'image': got dtype float64, expected float32", "astype"),
    ("integer", {**GOOD, "image": np.zeros((2, 4), int)}, "got dtype int64", "image.astype('float32')"),
    ("half", {**GOOD, "image": np.zeros((2, 4), np.float16)}, "got dtype float16", "image.astype('float32')"),
    ("string", {**GOOD, "image": np.full((2, 4), "x")}, "'image': got dtype str", "astype"),
    ("object", {**GOOD, "image": np.full((2, 4), None)}, "'image': got dtype object", "astype"),
    ("bytes", {**GOOD, "image": GOOD["image"].astype(">f4")}, "in another machine's order", "astype"),
    ("list", {**GOOD, "image": [[1.0] * 4] * 2}, "'image': got list, expected a numpy array", "numpy.asarray"),
    ("scalar", {**GOOD, "image": np.float32(1)}, "'image': got float32, expected a numpy array", "numpy.asarray"),
    ("masked", {**GOOD, "image": np.ma.masked_less(GOOD["image"], 0)}, "got MaskedArray", "numpy.asarray"),
    ("none", {**GOOD, "image": None}, "input 'image' is missing", "feed an array"),
    ("rank", {**GOOD, "image": GOOD["image"][0]}, r"'image': got shape \(4,\), expected", "add the batch axis"),
    ("0-d", {**GOOD, "image": np.array(1, np.float32)}, r"got shape \(\)", "the model takes 2 axes"),
    ("size", {**GOOD, "image": np.zeros((2, 5), np.float32)}, r"got shape \(2, 5\)", "axis 1 must be 4"),
    (
        "batch",
        {**GOOD, "audio": feed_of(3)["audio"]},
        r"'audio': axis 0 \('batch'\) is 3",
        "must agree on 'batch'",
    ),
    ("strides", {**GOOD, "image": np.zeros((4, 2), np.float32).T}, "not C-contiguous", "numpy.ascontiguousarray"),
    ("no mapping", [GOOD["image"]], "the feed is a list, expected a mapping", "feed {'image': array"),
    ("array", GOOD["image"], "the feed is a ndarray, expected a mapping", "feed {'image': array"),
]


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(("feed", "message", "hint"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_inputs_are_refused(
    session: FusionSession, feed: dict[str, np.ndarray], message: str, hint: str, warm: bool
) -> None:
    if warm:  # a session that has accepted the right shapes looks as closely
        session.run(GOOD)
    with pytest.raises(DataError, match=message) as caught:
        session.run(feed)
    assert hint in caught.value.hint


def test_any_mapping_and_memory_mapped_arrays_will_do(session: FusionSession, tmp_path: Path) -> None:
    import types

    feed = feed_of(2)
    np.save(tmp_path / "image.npy", feed["image"])
    mapped = {**feed, "image": np.load(tmp_path / "image.npy", mmap_mode="r")}
    for given in (mapped, types.MappingProxyType(feed)):
        np.testing.assert_allclose(session.run(given)["logits"], expected(feed), rtol=1e-5)


def test_many_shapes_do_not_pile_up(session: FusionSession) -> None:
    for batch in range(1, 600):
        session._feeds.check(feed_of(batch))
    assert len(session._feeds.accepted) <= 256


def test_eight_threads_get_their_own_answers(session: FusionSession) -> None:
    feeds = [feed_of(1 + n % 3, seed=n) for n in range(8)]
    wanted = [session.run(feed) for feed in feeds]
    start = threading.Barrier(8)

    def work(n: int) -> int:
        start.wait()
        for _ in range(200):
            out = session.run(feeds[n])
            for name, value in wanted[n].items():
                np.testing.assert_array_equal(out[name], value)
        return n

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))


def test_closed_session_says_so(fusion_bundle: Path) -> None:
    with open_session(fusion_bundle) as session:
        session.run(GOOD)
    session.close()
    with pytest.raises(BundleError, match="the session on 'tiny' is closed") as caught:
        session.run(GOOD)
    assert "open it again" in caught.value.hint


def test_closing_under_load_ends_every_thread_cleanly(session: FusionSession) -> None:
    def work(_: int) -> str:
        try:
            while True:
                session.run(GOOD)
        except BundleError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(work, range(4))
        session.run(GOOD)
        session.close()
        assert all("closed" in a for a in answers)


def test_failing_engine_names_itself_and_the_node(make_bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    text = "g (float[n,4] x, int64[k] i) => (float[k,4] y) { [pick] y = Gather<axis=0>(x, i) }"
    session = open_session(make_bundle({"fusion": text}, batch=None))
    x = np.zeros((2, 4), np.float32)
    with pytest.raises(BackendError, match=r"engine 'fusion.onnx' failed: .*Name:'pick'.* bounds") as caught:
        session.run({"x": x, "i": np.array([7])})
    assert caught.value.hint
    assert session.run({"x": x, "i": np.array([1])})["y"].shape == (1, 4)
    assert capfd.readouterr() == ("", "")


def test_whole_layout_is_one_engine(make_bundle: Bundle) -> None:
    whole = """g (float[batch,4] image, float[batch,2,2] audio) => (float[batch,3] a, float[batch,2] b)
    <float[4,3] w = {1,2,3, 4,5,6, 7,8,9, 1,1,1}, int64[1] axis = {2}>
    { p = MatMul(image, w)  a = Tanh(p)  b = ReduceSum<keepdims=0>(audio, axis) }"""
    feed = feed_of(2)
    out = open_session(make_bundle({"whole": whole})).run(feed)
    np.testing.assert_allclose(out["a"], np.tanh(feed["image"] @ WEIGHTS), rtol=1e-5)
    np.testing.assert_allclose(out["b"], feed["audio"].sum(axis=2), rtol=1e-5)


def test_output_that_is_an_input_is_copied(make_bundle: Bundle) -> None:
    from edgemm.runtime.fusion import FusionSession as Session

    opened = open_session(make_bundle({"g": "g (float[batch,2] x) => (float[batch,2] y) { y = Neg(x) }"}))
    from dataclasses import replace

    io = replace(opened.io, outputs=(*opened.io.outputs, opened.io.inputs[0]))
    session = Session(replace(opened.manifest, io=io), opened.variant, opened._engines)
    x = np.ones((1, 2), np.float32)
    out = session.run({"x": x})
    x[:] = 7
    np.testing.assert_array_equal(out["x"], [[1, 1]])


def test_zero_d_half_and_bool_inputs(make_bundle: Bundle) -> None:
    text = """g (float16[batch,2] x, float16 scale, bool[batch,2] mask) => (float16[batch,2] y, float16 total)
    <float16 zero = {0}> { s = Mul(x, scale)  y = Where(mask, s, zero)  total = ReduceSum<keepdims=0>(y) }"""
    session = open_session(make_bundle({"g": text}))
    x = np.array([[1, 2], [3, 4]], np.float16)
    mask = np.array([[True, False], [True, True]])
    out = session.run({"x": x, "scale": np.array(2, np.float16), "mask": mask})
    np.testing.assert_array_equal(out["y"], np.where(mask, x * 2, 0))
    assert out["total"].shape == ()
    assert out["total"] == 16
    assert out["total"].dtype == np.float16
    with pytest.raises(DataError, match="'mask': got dtype uint8, expected bool"):
        session.run({"x": x, "scale": np.array(2, np.float16), "mask": mask.view(np.uint8)})


def test_empty_arrays_pass_through(make_bundle: Bundle) -> None:
    text = "g (float[batch,n] x, float[batch,m] y) => (float[batch,k] z) { z = Concat<axis=1>(x, y) }"
    session = open_session(make_bundle({"g": text}))
    out = session.run({"x": np.zeros((2, 0), np.float32), "y": np.ones((2, 3), np.float32)})
    np.testing.assert_array_equal(out["z"], np.ones((2, 3)))


RECURRENT = """g (float[time,batch,2] x) => (float[1,batch,3] h)
{ ws = Constant<value_ints=[1,9,2]>()  w = ConstantOfShape(ws)  rs = Constant<value_ints=[1,9,3]>()
  r = ConstantOfShape(rs)  y, h = GRU<hidden_size=3>(x, w, r) }"""


@pytest.mark.parametrize("shape", [(0, 1, 2), (4, 0, 2)])
def test_recurrent_layers_refuse_what_would_end_the_process(make_bundle: Bundle, shape: tuple[int, ...]) -> None:
    session = open_session(make_bundle({"g": RECURRENT}))
    assert session.run({"x": np.ones((4, 1, 2), np.float32)})["h"].shape == (1, 1, 3)
    for _ in range(2):  # shapes that were seen before are looked at as closely
        with pytest.raises(DataError, match="'x' is empty, its shape is"):
            session.run({"x": np.zeros(shape, np.float32)})


FIXED = """g (float[4,3] x, float[4] gain, float[3,3] matrix) => (float[4,3] y, float[4] g2)
{ p = MatMul(x, matrix)  y = Relu(p)  g2 = Mul(gain, gain) }"""


@pytest.mark.parametrize("samples", [1, 3, 4, 5, 8, 11])
def test_fixed_batch_runs_any_number_of_samples(make_bundle: Bundle, samples: int) -> None:
    session = open_session(make_bundle({"g": FIXED}, batch=4))
    rng = np.random.default_rng(0)
    x, gain, matrix = (rng.normal(size=s).astype(np.float32) for s in ((samples, 3), (samples,), (3, 3)))
    out, seconds = session.run_timed({"x": x, "gain": gain, "matrix": matrix})
    np.testing.assert_allclose(out["y"], np.maximum(x @ matrix, 0), rtol=1e-5)
    np.testing.assert_allclose(out["g2"], gain**2, rtol=1e-6)
    assert set(seconds) == {"g"}


def test_fixed_batch_checks_its_inputs(make_bundle: Bundle) -> None:
    session = open_session(make_bundle({"g": FIXED}, batch=4))
    x, gain, matrix = np.ones((5, 3), np.float32), np.ones(5, np.float32), np.ones((3, 3), np.float32)
    with pytest.raises(DataError, match=r"'gain': axis 0 .* is 4, but input 'x' has 5 there"):
        session.run({"x": x, "gain": gain[:4], "matrix": matrix})
    with pytest.raises(DataError, match=r"'matrix': got shape \(5, 3\)"):
        session.run({"x": x, "gain": gain, "matrix": np.ones((5, 3), np.float32)})
    with pytest.raises(DataError, match="got no samples, the model takes 4 at a time"):
        session.run({"x": x[:0], "gain": gain[:0], "matrix": matrix})


def test_fixed_batch_with_an_output_over_the_batch_is_not_cut_up(make_bundle: Bundle) -> None:
    text = "g (float[4,3] x) => (float mean) { mean = ReduceMean<keepdims=0>(x) }"
    session = open_session(make_bundle({"g": text}, batch=4))
    assert session.run({"x": np.ones((4, 3), np.float32)})["mean"] == 1
    with pytest.raises(DataError, match="fixed batch of 4 and its output 'mean'"):
        session.run({"x": np.ones((3, 3), np.float32)})
