"""TensorRT engines on a real GPU against ONNX Runtime's CPU provider on the same graphs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemm.runtime.cuda import DeviceArray
from edgemm.runtime.ort import OrtSession
from edgemm.runtime.session import SessionOptions
from edgemm.runtime.trt import TensorRtSession

pytestmark = pytest.mark.gpu

Build = Callable[..., Path]
BATCH = {"batch": (1, 4, 16)}

MLP = "g (float[batch,64] x) => (float[batch,32] y) { h = MatMul(x, w1)  r = Relu(h)  y = MatMul(r, w2) }"
CONV = """g (float[batch,8,16,16] x) => (float[batch,32,16,16] y)
{ c = Conv<pads=[1,1,1,1]>(x, w1)  r = Relu(c)  y = Conv<pads=[1,1,1,1]>(r, w2) }"""
TOKENS = """g (int64[batch,n] ids) => (float[batch,n,16] y, int64[batch,n] top)
{ y = Gather(table, ids)  top = ArgMax<axis=2,keepdims=0>(y) }"""
WEIGHTS: dict[str, dict[str, tuple[int, ...]]] = {
    "mlp": {"w1": (64, 128), "w2": (128, 32)},
    "conv": {"w1": (32, 8, 3, 3), "w2": (32, 32, 3, 3)},
    "tokens": {"table": (100, 16)},
}
TOLERANCE = {"float": 1e-4, "half": 2e-2, "int8": 5e-2}


def model_of(name: str, precision: str = "float") -> Any:
    from trt_graphs import half, model_of, quantize, random_weights

    text = {"mlp": MLP, "conv": CONV, "tokens": TOKENS}[name]
    model = model_of(text, random_weights(**WEIGHTS[name]))
    return {"float": lambda m: m, "half": half, "int8": quantize}[precision](model)


def feed_of(name: str, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    if name == "tokens":
        return {"ids": rng.integers(0, 100, (batch, 3 + seed % 5))}
    return {"x": rng.normal(size=(batch, 64) if name == "mlp" else (batch, 8, 16, 16)).astype(np.float32)}


def same(got: Any, want: Any, tolerance: float) -> None:
    for a, b in zip(got, want, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if b.size and b.dtype == np.float32:
            assert np.abs(a - b).max() <= tolerance * max(1.0, np.abs(b).max())
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("precision", ["float", "half", "int8"])
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_numbers(build: Build, name: str, precision: str, graphs: bool) -> None:
    engine = build(model_of(name, precision), BATCH, tf32=False)
    session = TensorRtSession(engine, SessionOptions(cuda_graphs=graphs))
    reference = OrtSession(engine.with_name("model.onnx"), SessionOptions())
    for seed, batch in enumerate((4, 4, 4, 16, 16, 16, 1, 4)):
        feed = feed_of(name, batch, seed)
        same(session.run(feed), reference.run(feed), TOLERANCE[precision])
    session.close()


def test_int64_and_two_profiles(build: Build) -> None:
    engine = build(model_of("tokens"), {"batch": (1, 1, 2), "n": (1, 4, 8)}, {"batch": (3, 8, 8), "n": (1, 4, 8)})
    session = TensorRtSession(engine, SessionOptions())
    reference = OrtSession(engine.with_name("model.onnx"), SessionOptions())
    for seed, batch in enumerate((1, 8, 2, 5, 1)):
        feed = feed_of("tokens", batch, seed)
        same(session.run(feed), reference.run(feed), 1e-6)
    session.close()


def test_sizes_that_depend_on_values(build: Build, module: str) -> None:
    if module == "tensorrt_rtx":
        pytest.skip("TensorRT-RTX has no NonZero")
    from trt_graphs import model_of as parsed

    engine = build(parsed("g (float[batch,8] x) => (int64[2,found] where) { where = NonZero(x) }"), BATCH)
    session = TensorRtSession(engine, SessionOptions())
    for values in (np.eye(8), np.zeros((3, 8)), np.ones((16, 8)), np.eye(8)[:1]):
        x = values.astype(np.float32)
        np.testing.assert_array_equal(session.run({"x": x})[0], np.stack(np.nonzero(x)))
        np.testing.assert_array_equal(session.run_on_device({"x": x})[0].numpy(), np.stack(np.nonzero(x)))
    session.close()


def test_results_stay_and_go_on(build: Build) -> None:
    """The output of one engine into another one, many frames ahead of the host."""
    from trt_graphs import model_of as parsed

    first = TensorRtSession(build(model_of("mlp"), BATCH, name="first", tf32=False), SessionOptions())
    head = parsed("g (float[batch,32] y) => (float[batch,32] z) { t = Tanh(y)  z = Add(t, y) }")
    second = TensorRtSession(build(head, BATCH, name="second"), SessionOptions())
    results, expected = [], []
    for seed in range(50):
        feed = feed_of("mlp", 1 + seed % 16, seed)
        (y,) = first.run_on_device(feed)
        (z,) = second.run_on_device({"y": y})
        assert isinstance(y, DeviceArray)
        expected.append(first.run(feed)[0])
        results.append(z)
        del y
    for z, y in zip(results, expected, strict=True):
        same([z.numpy()], [np.tanh(y) + y], 1e-4)
    first.close()
    second.close()
    same([results[0].numpy()], [np.tanh(expected[0]) + expected[0]], 1e-4)


def test_torch_in_and_out(build: Build) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    session = TensorRtSession(build(model_of("mlp"), BATCH, tf32=False), SessionOptions())
    for seed in range(20):
        feed = feed_of("mlp", 8, seed)
        want = session.run(feed)
        x = torch.zeros(8, 64, device="cuda")
        x += torch.from_numpy(feed["x"]).cuda()  # on torch's stream, under way
        (y,) = session.run_on_device({"x": x})
        del x
        same([torch.from_dlpack(y).cpu().numpy()], want, 1e-6)
    session.close()


def test_threads(build: Build) -> None:
    engine = build(model_of("conv"), BATCH, tf32=False)
    session = TensorRtSession(engine, SessionOptions())
    reference = OrtSession(engine.with_name("model.onnx"), SessionOptions(threads=1))

    def work(seed: int) -> None:
        for number in range(10):
            feed = feed_of("conv", 1 + (seed + number) % 16, 100 * seed + number)
            same(session.run(feed), reference.run(feed), 1e-4)

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(work, seed) for seed in range(6)]:
            done.result()
    session.close()


def test_runtime_cache(build: Build, module: str, tmp_path: Path) -> None:
    if module != "tensorrt_rtx":
        pytest.skip("only TensorRT-RTX compiles kernels at run time")
    engine = build(model_of("mlp"), BATCH)
    for _ in range(2):
        session = TensorRtSession(engine, SessionOptions(cache=tmp_path / "cache"))
        session.run(feed_of("mlp", 4))
        session.close()
        (file,) = (tmp_path / "cache").iterdir()
        assert file.stat().st_size > 0
