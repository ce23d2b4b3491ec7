"""The TensorRT session against nine versions of its API, on a fake CUDA whose streams are lazy.

The engines compute what their ONNX file says, so that numbers prove the path: staging, order, shapes, dtypes.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from cuda_fake import COMPILER, FakeCuda, installed
from trt_session_fakes import VERSIONS, fake_runtime, profile, write_engine

from edgemm.errors import BackendError, BundleError, DataError, UnsupportedDeviceError
from edgemm.runtime._trt.sidecar import dumps, load_sidecar, sidecar_file
from edgemm.runtime.cuda import DeviceArray
from edgemm.runtime.session import SessionOptions
from edgemm.runtime.trt import TensorRtSession

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the fake CUDA runtime is compiled with cc")

OLDEST, ORIN, NEWEST = "tensorrt-8.6.1", "tensorrt-10.3.0", "tensorrt-11.4.0"
RTX = tuple(v for v in VERSIONS if "rtx" in v)
CLASSIC = tuple(v for v in VERSIONS if "rtx" not in v)


def model_of(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]>\n{text}')


ADD = model_of("g (float[batch,3] x, float[batch,3] y) => (float[batch,3] z) { s = Mul(x, y)  z = Add(s, x) }")
ADD_PROFILE = profile(x=((0, 3), (2, 3), (4, 3)), y=((0, 3), (2, 3), (4, 3)))
IDS = model_of(
    """g (int64[batch,n] ids) => (int64[batch,n] next, float[batch,n] value)
    <int64 one = {1}> { next = Add(ids, one)  value = Cast<to=1>(next) }"""
)
IDS_PROFILE = profile(ids=((1, 1), (1, 4), (8, 16)))
SPARSE = model_of(
    "g (float[batch,3] x) => (int64[2,found] where, float[batch,3] y) { where = NonZero(x)  y = Neg(x) }"
)
SPARSE_PROFILE = profile(x=((1, 3), (2, 3), (4, 3)))


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with installed() as fake:
        yield fake


@pytest.fixture
def open_engine(cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    opened = []

    def open_(api: str, model: onnx.ModelProto, /, *profiles: Any, **more: Any) -> TensorRtSession:
        """`machine`: of the fake runtime; `session`: options; the rest goes to `write_engine`."""
        trt = fake_runtime(api, cuda, **more.pop("machine", {}))
        monkeypatch.setitem(sys.modules, trt.__name__, trt)
        options = SessionOptions(**more.pop("session", {}))
        file = write_engine(trt, model, tmp_path, profiles=profiles, **more)
        opened.append(TensorRtSession(file, options))
        opened[-1].machine = trt.machine
        return opened[-1]

    yield open_
    for session in opened:
        session.close()
        assert session.machine.errors == []
    del opened[:]


def pair(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=(batch, 3)).astype(np.float32) for n in ("x", "y")}


def added(feed: dict[str, np.ndarray]) -> np.ndarray:
    return feed["x"] * feed["y"] + feed["x"]


# --- numbers ---


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("integrated", [False, True])
def test_dynamic_shapes(version: str, integrated: bool, open_engine: Any, cuda: FakeCuda) -> None:
    cuda.machine(integrated=integrated)
    session = open_engine(version, ADD, ADD_PROFILE)
    assert [str(s) for s in (*session.inputs, *session.outputs)] == [
        "x[batch,3] float32", "y[batch,3] float32", "z[batch,3] float32"
    ]  # fmt: skip
    for number, batch in enumerate((2, 2, 4, 1, 0, 3, 2)):
        feed = pair(batch, number)
        (z,) = session.run(feed)
        assert z.dtype == np.float32
        np.testing.assert_allclose(z, added(feed), rtol=1e-6)
    calls = cuda.counts
    assert calls["cudaMemcpyAsync"] == (0 if integrated else 3 * 6)  # no copies on shared memory; none for 0 bytes
    shapes = session.machine.called("IExecutionContext.set_input_shape")
    assert len(shapes) == 2 * 6  # not told again what it knows


def test_bytes_in_another_order_are_turned(open_engine: Any) -> None:
    session = open_engine(NEWEST, ADD, ADD_PROFILE)
    feed = pair(2)
    swapped = {n: a.astype(">f4") for n, a in feed.items()}
    np.testing.assert_allclose(session.run(swapped)[0], added(feed), rtol=1e-6)


@pytest.mark.parametrize("version", VERSIONS)
def test_int64(version: str, open_engine: Any) -> None:
    session = open_engine(version, IDS, IDS_PROFILE)
    assert [s.dtype for s in (*session.inputs, *session.outputs)] == ["int64", "int64", "float32"]
    ids = np.array([[1, -2, 2**31 - 2]], np.int64)
    following, value = session.run({"ids": ids})
    assert following.dtype == np.int64
    assert following.tolist() == [[2, -1, 2**31 - 1]]
    np.testing.assert_array_equal(value, following.astype(np.float32))
    large = np.array([[1, 2**31]], np.int64)
    if version == OLDEST:
        for wrong in (large, -large - 1):
            with pytest.raises(
                DataError, match=rf"'ids': the value {wrong[0, 1]} does not fit into int32"
            ) as caught:
                session.run({"ids": wrong})
            assert "version 10" in caught.value.hint
    else:
        assert session.run({"ids": large})[0].tolist() == [[2, 2**31 + 1]]


def test_int64_without_the_graph_is_what_the_engine_has(open_engine: Any, cuda: FakeCuda, tmp_path: Path) -> None:
    first = open_engine(OLDEST, IDS, IDS_PROFILE)
    (tmp_path / "model.onnx").unlink()
    session = TensorRtSession(tmp_path / "model.0123456789ab.engine", SessionOptions())
    assert first.inputs[0].dtype == "int64"
    assert session.inputs[0].dtype == "int32"
    assert session.run({"ids": np.array([[1]], np.int32)})[0].dtype == np.int32
    session.close()


HALF = model_of("g (float16[batch,3] x) => (float16[batch,3] y) { y = Neg(x) }")


@pytest.mark.parametrize("version", VERSIONS)
def test_float16(version: str, open_engine: Any) -> None:
    session = open_engine(version, HALF, SPARSE_PROFILE)
    x = np.array([[1.5, -2, 65504]], np.float16)
    (y,) = session.run({"x": x})
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, -x)
    with pytest.raises(DataError, match="'x': got float32, the engine takes float16") as caught:
        session.run({"x": x.astype(np.float32)})
    assert caught.value.hint == "convert it: x.astype('float16')"


@pytest.mark.parametrize("version", [v for v in VERSIONS if v != OLDEST])
@pytest.mark.parametrize("kind", ["BF16", "FP8"])
def test_dtypes_that_numpy_lacks(version: str, kind: str, open_engine: Any) -> None:
    import ml_dtypes

    model = model_of("g (float[batch,3] x) => (float[batch,3] y) { y = Neg(x) }")
    session = open_engine(version, model, SPARSE_PROFILE, dtypes={"x": kind, "y": kind})
    dtype = ml_dtypes.bfloat16 if kind == "BF16" else ml_dtypes.float8_e4m3fn
    assert session.inputs[0].dtype == np.dtype(dtype).name
    x = np.array([[1.1, -2.3, 300]], np.float32)
    (y,) = session.run({"x": x})
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, -x.astype(dtype).astype(np.float32))
    (same,) = session.run({"x": x.astype(dtype)})
    np.testing.assert_array_equal(same, y)


@pytest.mark.parametrize("version", [v for v in VERSIONS if v != OLDEST])
def test_packed_dtypes_are_refused(version: str, open_engine: Any) -> None:
    with pytest.raises(BackendError, match="input 'x' is int4, which has no array"):
        open_engine(version, HALF, SPARSE_PROFILE, dtypes={"x": "INT4"})


@pytest.mark.parametrize("version", VERSIONS)
def test_sizes_that_depend_on_values(version: str, open_engine: Any, cuda: FakeCuda) -> None:
    session = open_engine(version, SPARSE, SPARSE_PROFILE)
    for values in ([[0, 1, 0], [2, 0, 3]], [[0, 0, 0]], [[1, 1, 1]] * 4, [[5, 0, 0]]):
        x = np.array(values, np.float32)
        where, y = session.run({"x": x})
        np.testing.assert_array_equal(where, np.stack(np.nonzero(x)))
        assert where.dtype == np.int64
        np.testing.assert_array_equal(y, -x)
    kept = session.run_on_device({"x": np.ones((2, 3), np.float32)})
    later = session.run_on_device({"x": np.eye(3, dtype=np.float32)})
    none = session.run_on_device({"x": np.zeros((2, 3), np.float32)})
    assert [k[0].shape for k in (kept, later, none)] == [(2, 6), (2, 3), (2, 0)]
    np.testing.assert_array_equal(kept[0].numpy(), np.stack(np.nonzero(np.ones((2, 3)))))
    np.testing.assert_array_equal(later[0].numpy(), [[0, 1, 2], [0, 1, 2]])
    assert none[0].numpy().shape == (2, 0)
    assert len(session.machine.called("IExecutionContext.set_output_allocator")) == 1


def test_no_memory_for_an_output_of_unknown_size(open_engine: Any, cuda: FakeCuda) -> None:
    session = open_engine(ORIN, SPARSE, SPARSE_PROFILE)
    session.run({"x": np.eye(3, dtype=np.float32)[:1]})
    cuda.fail("cudaMalloc", cuda.counts["cudaMalloc"] + 1, 2)
    with pytest.raises(BackendError, match=r"engine 'model\..*': cudaMalloc failed: cudaErrorMemoryAllocation"):
        session.run_on_device({"x": np.ones((4, 3), np.float32)})
    where, _ = session.run({"x": np.ones((4, 3), np.float32)})
    assert where.shape == (2, 12)


TOPK = model_of("g (float[batch,8] x, int64[1] k) => (float[batch,most] top) { top, where = TopK(x, k) }")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("integrated", [False, True])
def test_inputs_that_are_shapes(version: str, integrated: bool, open_engine: Any, cuda: FakeCuda) -> None:
    from edgemm.runtime._trt.sidecar import OptimizationProfile
    from edgemm.tensors import ShapeRange

    cuda.machine(integrated=integrated)
    ranges = OptimizationProfile({"x": ShapeRange((1, 8), (2, 8), (4, 8))}, {"k": ShapeRange((1,), (2,), (4,))})
    session = open_engine(version, TOPK, ranges, host={"k": "most"}, session={"cuda_graphs": True})
    x = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    for k in (2, 4, 2, 1):
        (top,) = session.run({"x": x, "k": np.array([k])})
        np.testing.assert_array_equal(top, -np.sort(-x, axis=1)[:, :k])
    with pytest.raises(DataError, match=r"input 'k': got \[5\], the engine takes \[1..4\]\."):
        session.run({"x": x, "k": np.array([5])})
    with pytest.raises(DataError, match="'k' is a shape, which TensorRT reads on the host"):
        session.run({"x": x, "k": Lender(x)})


# --- profiles ---

TWO = (
    profile(x=((1, 3), (1, 3), (2, 3)), y=((1, 3), (1, 3), (2, 3))),
    profile(x=((2, 3), (8, 3), (8, 3)), y=((2, 3), (8, 3), (8, 3))),
)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_profile_that_fits_is_chosen(version: str, open_engine: Any) -> None:
    session = open_engine(version, ADD, *TWO)
    for number, batch in enumerate((1, 8, 8, 2, 5, 1)):
        feed = pair(batch, number)
        np.testing.assert_allclose(session.run(feed)[0], added(feed), rtol=1e-6)
    changes = session.machine.called("IExecutionContext.set_optimization_profile_async")
    assert [index for index, _ in changes] == [1, 0, 1, 0]
    assert all(stream > 2 for _, stream in changes)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_shape_is_told_again_after_a_change_of_profile(version: str, open_engine: Any) -> None:
    model = model_of("g (float[a,3] x, float[b,3] y) => (float[a,3] p, float[b,3] q) { p = Neg(x)  q = Neg(y) }")
    ranges = [
        profile(x=((low, 3), (low, 3), (high, 3)), y=((1, 3), (4, 3), (8, 3))) for low, high in ((1, 2), (5, 8))
    ]
    session = open_engine(version, model, *ranges)
    for batch in (1, 8, 2):
        x, y = pair(batch)["x"], pair(4)["y"]
        p, q = session.run({"x": x, "y": y})
        np.testing.assert_array_equal(p, -x)
        np.testing.assert_array_equal(q, -y)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_shapes_that_no_profile_takes(version: str, open_engine: Any, cuda: FakeCuda) -> None:
    session = open_engine(version, ADD, *TWO)
    with pytest.raises(
        DataError, match=r"input 'x': got shape \[9, 3\], the engine takes \[1..2, 3\] or \[2..8, 3\]\."
    ):
        session.run(pair(9))
    feed = pair(1) | {"y": pair(8)["y"]}
    with pytest.raises(DataError, match="no profile takes it together with the other inputs"):
        session.run(feed)
    with pytest.raises(DataError, match=r"input 'y': got shape \[2, 4\], expected \['batch', 3\]"):
        session.run(pair(2) | {"y": np.ones((2, 4), np.float32)})
    with pytest.raises(DataError, match=r"got shape \[3\]"):
        session.run(pair(2) | {"y": np.ones(3, np.float32)})
    feed = pair(2)
    np.testing.assert_allclose(session.run(feed)[0], added(feed), rtol=1e-6)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_fixed_shapes_need_no_profile(version: str, open_engine: Any) -> None:
    session = open_engine(version, model_of("g (float[2,3] x) => (float[2,3] y) { y = Neg(x) }"))
    x = pair(2)["x"]
    np.testing.assert_array_equal(session.run({"x": x})[0], -x)
    with pytest.raises(DataError, match=r"input 'x': got shape \[3, 3\], expected \[2, 3\]"):
        session.run({"x": pair(3)["x"]})


# --- order ---


@pytest.mark.parametrize("version", [OLDEST, NEWEST, RTX[-1]])
@pytest.mark.parametrize("integrated", [False, True])
def test_results_that_stay_are_not_waited_for(
    version: str, integrated: bool, open_engine: Any, cuda: FakeCuda
) -> None:
    cuda.machine(integrated=integrated)
    session = open_engine(version, ADD, ADD_PROFILE, session={"device_outputs": frozenset({"z"})})
    feeds = [pair(2, n) for n in range(3)]
    results = [session.run(feed)[0] for feed in feeds]
    assert all(isinstance(r, DeviceArray) and r.shape == (2, 3) for r in results)
    assert len(session.machine.executed) <= 2  # only what had to be: a staging buffer was needed again
    for result, feed in zip(results, feeds, strict=True):
        np.testing.assert_allclose(result.numpy(), added(feed), rtol=1e-6)
    addresses = {r.pointer for r in results}
    assert len(addresses) == 3
    del results, result
    gc.collect()
    again = session.run(feeds[0])[0]
    assert again.pointer in addresses


def test_arrays_outlive_their_session(open_engine: Any, cuda: FakeCuda) -> None:
    session = open_engine(NEWEST, ADD, ADD_PROFILE)
    feed = pair(2)
    (z,) = session.run_on_device(feed)
    session.close()
    np.testing.assert_allclose(z.numpy(), added(feed), rtol=1e-6)
    assert cuda.live == {"device": 1, "event": 1}


def test_engines_hand_arrays_on(open_engine: Any, cuda: FakeCuda, tmp_path: Path) -> None:
    """Three engines, each with a stream of its own, wait for each other on the GPU and never on the host."""
    (tmp_path / "b").mkdir()
    first = open_engine(NEWEST, ADD, ADD_PROFILE)
    second = open_engine(NEWEST, ADD, ADD_PROFILE, name="second")
    third = open_engine(NEWEST, ADD, ADD_PROFILE, name="third")
    machine = third.machine
    for number in range(5):
        a, b = pair(2, number), pair(2, 100 + number)
        cuda.reset()
        (x,) = first.run_on_device(a)
        (y,) = second.run_on_device(b)
        (z,) = third.run({"x": x, "y": y})
        del x, y
        np.testing.assert_allclose(z, added({"x": added(a), "y": added(b)}), rtol=1e-5)
        assert cuda.counts["cudaMemcpyAsync"] == 5  # four inputs, one output
        assert cuda.counts["cudaStreamSynchronize"] == 0
    assert machine.executed[-1] == "third"


def test_a_buffer_is_not_written_to_while_a_later_engine_reads_it(open_engine: Any, cuda: FakeCuda) -> None:
    first = open_engine(NEWEST, ADD, ADD_PROFILE)
    second = open_engine(NEWEST, ADD, ADD_PROFILE, name="second")
    results, expected = [], []
    for number in range(4):
        a, b = pair(2, number), pair(2, 50 + number)
        (x,) = first.run_on_device(a)
        (z,) = second.run_on_device({"x": x, "y": b["y"]})
        del x  # its memory may be used for the next frame, which nobody has waited for
        results.append(z)
        expected.append(added({"x": added(a), "y": b["y"]}))
    first.wait()  # frames of the first engine run ahead of the second one
    for z, want in zip(results, expected, strict=True):
        np.testing.assert_allclose(z.numpy(), want, rtol=1e-5)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_threads(version: str, open_engine: Any) -> None:
    session = open_engine(version, ADD, *TWO)

    def work(seed: int) -> None:
        for number in range(15):
            feed = pair(1 + (seed + number) % 8, 100 * seed + number)
            (z,) = session.run(feed) if number % 2 else [a.numpy() for a in session.run_on_device(feed)]
            np.testing.assert_allclose(z, added(feed), rtol=1e-6)

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(work, seed) for seed in range(6)]:
            done.result()
    session.wait()


def test_closing_waits_for_runs(open_engine: Any) -> None:
    session = open_engine(NEWEST, ADD, ADD_PROFILE)
    started, errors = threading.Event(), []

    def work() -> None:
        try:
            while True:
                session.run(pair(2))
                started.set()
        except BundleError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    started.wait()
    session.close()
    session.close()
    for thread in threads:
        thread.join()
    assert len(errors) == 3
    assert "is closed" in errors[0]
    with pytest.raises(BundleError, match="is closed"):
        session.wait()


@pytest.mark.parametrize("version", VERSIONS)
def test_context_engine_and_runtime_go_in_this_order(version: str, open_engine: Any) -> None:
    session = open_engine(version, ADD, ADD_PROFILE, session={"cuda_graphs": True})
    for _ in range(3):
        session.run(pair(2))
    session.close()
    gc.collect()
    assert session.machine.freed == ["context", "engine", "runtime"]


# --- arrays of other libraries ---


class Lender:
    """Has the CUDA Array Interface, as numba's arrays do."""

    def __init__(self, values: np.ndarray, address: int = 0, **more: Any) -> None:
        self.shape, self.dtype = values.shape, values.dtype
        self.__cuda_array_interface__ = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (address, False),
            "version": 3,
            "stream": None,
        } | more


def test_lent_arrays_are_read_where_they_are(open_engine: Any, cuda: FakeCuda) -> None:
    session = open_engine(NEWEST, ADD, ADD_PROFILE)
    other = open_engine(NEWEST, ADD, ADD_PROFILE, name="other")
    a, b = pair(2, 1), pair(2, 2)
    (made,) = other.run_on_device(a)
    lent = Lender(made.numpy(), made.pointer, stream=other._execution.stream.handle)
    cuda.reset()
    np.testing.assert_allclose(
        session.run({"x": lent, "y": b["y"]})[0], added({"x": added(a), "y": b["y"]}), rtol=1e-5
    )
    assert cuda.counts["cudaMemcpyAsync"] == 2  # y there, z back
    ones = np.ones((1, 3), np.float32)
    part = Lender(ones, made.pointer + 12)  # the second row: not aligned for TensorRT
    cuda.reset()
    (z,) = session.run({"x": part, "y": ones})
    np.testing.assert_allclose(z, 2 * added(a)[1:], rtol=1e-5)
    assert "cudaMemcpyAsync 3" in cuda.calls
    with pytest.raises(DataError, match="'x': got int32 on the GPU, the engine takes float32"):
        session.run({"x": Lender(np.ones((2, 3), np.int32), made.pointer), "y": b["y"]})


def test_lent_arrays_are_kept_until_they_are_read(open_engine: Any, cuda: FakeCuda) -> None:
    session = open_engine(NEWEST, ADD, ADD_PROFILE)
    other = open_engine(NEWEST, ADD, ADD_PROFILE, name="other")
    (made,) = other.run_on_device(pair(2))
    gone: list[int] = []

    class Owner(Lender):
        def __del__(self) -> None:
            gone.append(1)

    (z,) = session.run_on_device({"x": Owner(made.numpy(), made.pointer), "y": pair(2)["y"]})
    gc.collect()
    assert gone == []
    session.wait()
    session.run_on_device(pair(2))
    gc.collect()
    assert gone == [1]
    assert z.shape == (2, 3)


def test_an_array_of_another_gpu(open_engine: Any, cuda: FakeCuda) -> None:
    cuda.machine(devices=2)
    session = open_engine(NEWEST, ADD, ADD_PROFILE)
    other = open_engine(NEWEST, ADD, ADD_PROFILE, name="other", session={"device": 1})
    (x,) = other.run_on_device(pair(2))
    assert x.device == 1
    with pytest.raises(DataError, match="'x': it is on GPU 1, the session on GPU 0"):
        session.run({"x": x, "y": pair(2)["y"]})


# --- CUDA graphs ---


@pytest.mark.parametrize("version", CLASSIC)
def test_cuda_graphs(version: str, open_engine: Any, cuda: FakeCuda) -> None:
    session = open_engine(version, ADD, ADD_PROFILE, session={"cuda_graphs": True})
    enqueued = []
    for number, batch in enumerate((2, 2, 2, 2, 3, 3, 3, 2, 2)):
        feed = pair(batch, number)
        np.testing.assert_allclose(session.run(feed)[0], added(feed), rtol=1e-6)
        enqueued.append(len(session.machine.called("IExecutionContext.execute_async_v3")))
    assert enqueued == [1, 2, 2, 2, 3, 4, 4, 5, 6]  # with new shapes once as it is, once to record it
    assert cuda.counts["cudaGraphLaunch"] == 6
    assert cuda.live["exec"] == 1
    session.run_on_device(pair(2))  # another address
    assert "exec" not in cuda.live


def test_what_cannot_be_recorded_runs_all_the_same(
    open_engine: Any, cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    session = open_engine(NEWEST, ADD, ADD_PROFILE, session={"cuda_graphs": True})
    cuda.fail("cudaStreamEndCapture", 1, 901)
    for number in range(4):
        feed = pair(2, number)
        np.testing.assert_allclose(session.run(feed)[0], added(feed), rtol=1e-6)
    assert caplog.text.count("runs without a CUDA graph") == 1
    sparse = open_engine(NEWEST, SPARSE, SPARSE_PROFILE, name="sparse", session={"cuda_graphs": True})
    for _ in range(3):
        sparse.run({"x": np.eye(3, dtype=np.float32)})
    assert cuda.counts["cudaStreamBeginCapture"] == 1


@pytest.mark.parametrize("version", RTX)
def test_rtx_has_graphs_of_its_own(version: str, open_engine: Any, cuda: FakeCuda) -> None:
    session = open_engine(version, ADD, ADD_PROFILE, session={"cuda_graphs": True})
    for _ in range(3):
        session.run(pair(2))
    (strategy,) = session.machine.called("IRuntimeConfig.cuda_graph_strategy")[0]
    assert strategy.name == "WHOLE_GRAPH_CAPTURE"
    assert cuda.counts["cudaStreamBeginCapture"] == 0


# --- options ---


@pytest.mark.parametrize("version", VERSIONS)
def test_runtime_cache(version: str, open_engine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "bundle" / "cache"
    session = open_engine(version, ADD, ADD_PROFILE, session={"cache": folder})
    session.run(pair(2))
    if version not in RTX:
        session.close()
        assert not folder.exists()
        return
    (file,) = folder.iterdir()  # also when the process is killed now
    assert file.read_bytes() == b"kernels"
    session.close()
    again = open_engine(version, ADD, ADD_PROFILE, session={"cache": folder})
    assert again.machine.called("IRuntimeCache.deserialize") == [(b"kernels",)]
    again.close()
    refused = open_engine(version, ADD, ADD_PROFILE, session={"cache": folder}, machine={"takes_cache": False})
    assert not file.exists()
    refused.run(pair(2))
    assert file.read_bytes() == b"kernels"
    assert caplog.text == ""


def test_a_cache_that_cannot_be_kept(open_engine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    session = open_engine(RTX[-1], ADD, ADD_PROFILE, session={"cache": tmp_path / "file" / "cache"})
    feed = pair(2)
    np.testing.assert_allclose(session.run(feed)[0], added(feed), rtol=1e-6)
    assert "is not kept" in caplog.text


@pytest.mark.parametrize("version", VERSIONS)
def test_weight_streaming(version: str, open_engine: Any, cuda: FakeCuda) -> None:
    options = {"weight_streaming": 500}
    if version == OLDEST:
        with pytest.raises(BackendError, match=r"TensorRT 8\.6\.1 has no weight streaming"):
            open_engine(version, ADD, ADD_PROFILE, session=options)
        return
    with pytest.raises(BackendError, match="was not built for weight streaming"):
        open_engine(version, ADD, ADD_PROFILE, session=options)
    for streamable, expected in ((300, 300), (900, 500)):
        session = open_engine(version, ADD, ADD_PROFILE, session=options, machine={"streamable": streamable})
        assert session.machine.called("ICudaEngine.weight_streaming_budget_v2") == [(expected,)]


@pytest.mark.parametrize("version", VERSIONS)
def test_version_compatible_engines_and_dla(version: str, open_engine: Any) -> None:
    options = {"version_compatible": True, "dla_core": 1, "strip_weights": False}
    session = open_engine(version, ADD, ADD_PROFILE, options=options, version="1.2.3")
    assert session.machine.called("Runtime.engine_host_code_allowed") == [(True,)]
    assert session.machine.called("Runtime.DLA_core") == [(1,)]
    feed = pair(2)
    np.testing.assert_allclose(session.run(feed)[0], added(feed), rtol=1e-6)


@pytest.mark.parametrize("version", VERSIONS)
def test_plugins_are_loaded_where_there_are_any(version: str, open_engine: Any) -> None:
    session = open_engine(version, ADD, ADD_PROFILE)
    assert len(session.machine.called("init_libnvinfer_plugins")) == (version in CLASSIC)


# --- refusals ---


@pytest.mark.parametrize("version", VERSIONS)
def test_engines_that_do_not_open(version: str, open_engine: Any, cuda: FakeCuda) -> None:
    title = r"TensorRT(-RTX)? [\d.]+"
    for machine, message in (
        (
            {"refuses": "the engine was built for SM 8.6"},
            f"{title} does not load .*: the engine was built for SM 8.6",
        ),
        ({"starts": False}, f"{title} does not start: CUDA initialization failure"),
        (
            {"no_context": "out of memory"},
            r"no execution context .* needs 3 MiB \(1,024 MiB are free\): out of memory",
        ),
    ):
        with pytest.raises(BackendError, match=message):
            open_engine(version, ADD, ADD_PROFILE, machine=machine)
    with pytest.raises(UnsupportedDeviceError, match=r"was built by .* 9\.9, here is") as caught:
        open_engine(version, ADD, ADD_PROFILE, version="9.9")
    assert "edgemm build" in caught.value.hint
    with pytest.raises(BackendError, match="has no weights in it"):
        open_engine(version, ADD, ADD_PROFILE, options={"strip_weights": True})
    assert cuda.live == {}


def test_engine_that_is_not_what_its_sidecar_says(open_engine: Any, tmp_path: Path) -> None:
    session = open_engine(ORIN, ADD, ADD_PROFILE)
    file = tmp_path / "model.0123456789ab.engine"
    sidecar = load_sidecar(file)
    for wrong, message in (
        (replace(sidecar, inputs=sidecar.inputs[:1]), r"it has more tensors \(y\)"),
        (replace(sidecar, outputs=sidecar.inputs), "it has no output x"),
        (replace(sidecar, profiles=()), None),
        (replace(sidecar, profiles=(ADD_PROFILE, ADD_PROFILE)), "it has 1 optimization profiles"),
    ):
        sidecar_file(file).write_bytes(dumps(wrong))
        if message is None:
            TensorRtSession(file, SessionOptions()).close()
            continue
        with pytest.raises(BackendError, match=message):
            TensorRtSession(file, SessionOptions())
    sidecar_file(file).write_bytes(dumps(sidecar))
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(BackendError, match="was changed or replaced"):
        TensorRtSession(file, SessionOptions())
    assert session.run(pair(1))


def test_no_gpu(open_engine: Any, cuda: FakeCuda) -> None:
    cuda.machine(devices=0)
    with pytest.raises(UnsupportedDeviceError, match="no GPU"):
        open_engine(ORIN, ADD, ADD_PROFILE)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_launch_that_fails(version: str, open_engine: Any, cuda: FakeCuda) -> None:
    session = open_engine(version, ADD, ADD_PROFILE)
    feed = pair(2)
    session.run(feed)
    session.machine.enqueue_fails = "IExecutionContext::enqueueV3: Error Code 1: Cask (Cask convolution execution)"
    with pytest.raises(BackendError, match=r"engine 'model\..*engine': TensorRT.* failed while it ran: .*Cask"):
        session.run(feed)
    session.machine.enqueue_fails = ""
    np.testing.assert_allclose(session.run(feed)[0], added(feed), rtol=1e-6)


def test_a_kernel_that_fails(open_engine: Any, cuda: FakeCuda, caplog: pytest.LogCaptureFixture) -> None:
    session = open_engine(ORIN, ADD, ADD_PROFILE)
    session.run(pair(2))
    session.machine.kernel_error = 700
    with pytest.raises(
        BackendError, match=r"engine 'model\..*': cudaEventSynchronize failed: cudaErrorIllegalAddress"
    ) as e:
        session.run(pair(2))
    assert "start it again" in e.value.hint
    with pytest.raises(BackendError, match="cudaErrorIllegalAddress"):
        session.run(pair(2))
    session.close()  # everything is given back, and says that the GPU is lost
    assert "cudaFree failed: cudaErrorIllegalAddress" in caplog.text


def exercise(open_engine: Any) -> None:
    """Opens an engine and calls everything there is; each step checks its numbers."""
    session = open_engine(ORIN, ADD, *TWO, session={"cuda_graphs": True})
    try:
        feed = pair(2)
        for _ in range(3):
            np.testing.assert_allclose(session.run(feed)[0], added(feed), rtol=1e-6)
        (z,) = session.run_on_device(feed)
        np.testing.assert_allclose(z.numpy(), added(feed), rtol=1e-6)
        larger = pair(7)
        np.testing.assert_allclose(session.run(larger)[0], added(larger), rtol=1e-6)
        lent = Lender(z.numpy(), z.pointer)
        np.testing.assert_allclose(
            session.run({"x": lent, "y": z})[0], added({"x": added(feed), "y": added(feed)}), rtol=1e-5
        )
        session.wait()
    finally:
        session.close()


FREES = (
    "cudaFree",
    "cudaFreeHost",
    "cudaStreamDestroy",
    "cudaEventDestroy",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
)


@pytest.mark.parametrize("integrated", [False, True])
def test_every_call_may_fail(open_engine: Any, cuda: FakeCuda, integrated: bool) -> None:
    """Each CUDA call of a whole life, one after the other, fails once: an error with its name, and no leak."""
    cuda.machine(integrated=integrated)
    exercise(open_engine)
    clean = cuda.counts
    assert clean["cudaGraphLaunch"] == 2
    assert cuda.live == {}
    told = 0
    for name, count in clean.items():
        if name in FREES:
            continue
        for call in range(1, count + 1):
            cuda.reset()
            cuda.fail(name, call, 1)
            error = failure_of(open_engine)
            assert error is None or name in error or "GPU" in error, (name, call, error)
            told += error is not None
            assert cuda.violations == [], (name, call)
            assert cuda.live == {}, (name, call)
    assert told > 60  # where a call can fail without harm (while closing), it is logged


def failure_of(open_engine: Any) -> str | None:
    try:
        exercise(open_engine)
    except BackendError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", FREES)
def test_a_free_that_fails_stops_nothing(
    open_engine: Any, cuda: FakeCuda, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    cuda.fail(name, 1, 1)
    exercise(open_engine)
    assert sum(cuda.live.values()) == 1  # the one that CUDA did not take back
    assert f"{name} failed: cudaErrorInvalidValue" in caplog.text
    cuda.purge()
