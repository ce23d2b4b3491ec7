"""A fusion model on TensorRT engines: what is between them stays on the GPU; no encoder waits for another one."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from cuda_fake import COMPILER, FakeCuda, installed
from trt_session_fakes import VERSIONS, fake_runtime, profile, write_engine

from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant
from edgemm.errors import BackendError, DataError
from edgemm.runtime import FusionSession
from edgemm.runtime.chain import device_outputs
from edgemm.runtime.cuda import DeviceArray
from edgemm.runtime.ort import OrtSession
from edgemm.runtime.session import SessionOptions
from edgemm.runtime.trt import TensorRtSession
from edgemm.tensors import IOSpec, StateSpec, TensorSpec

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the fake CUDA runtime is compiled with cc")

NEWEST = "tensorrt-11.4.0"
HEADER = '<ir_version: 10, opset_import: ["": 20]>\n'

IMAGE = "image (float[batch,3] image) => (float[batch,3] image_features) { image_features = Tanh(image) }"
AUDIO = """audio (float[batch,2] audio) => (float[batch,2] audio_features, float[batch,2] energy)
{ audio_features = Neg(audio)  energy = Mul(audio, audio) }"""
FUSION = """fusion (float[batch,3] image_features, float[batch,2] audio_features) => (float[batch,5] logits)
{ logits = Concat<axis=1>(image_features, audio_features) }"""
STAGES = {"image": IMAGE, "audio": AUDIO, "fusion": FUSION}
COUNT = """count (float[batch,2] audio, float[batch,2] sum) => (float[batch,2] sum_out, float[batch,2] mean)
<float two = {2}> { sum_out = Add(audio, sum)  mean = Div(sum_out, two) }"""

Make = Callable[..., FusionSession]


def specs_of(values: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(v.name, "float32", tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim))
        for v in values
    )


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with installed() as fake:
        yield fake


@pytest.fixture
def make(cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    sessions = []

    def build(
        stages: Mapping[str, str] = STAGES,
        version: str = NEWEST,
        outputs: tuple[str, ...] = ("energy", "logits"),
        on_cpu: tuple[str, ...] = (),
        states: Mapping[str, str] | None = None,
        batch: str | int = "batch",
    ) -> FusionSession:
        trt = fake_runtime(version, cuda)
        monkeypatch.setitem(sys.modules, trt.__name__, trt)
        models = {name: onnx.parser.parse_model(HEADER + text) for name, text in stages.items()}
        taken = {i.name: i for m in models.values() for i in specs_of(m.graph.input)}
        given = {o.name: o for m in models.values() for o in specs_of(m.graph.output)}
        states = states or {}
        inputs = tuple(spec for name, spec in taken.items() if name not in given)
        io = IOSpec(
            inputs,
            tuple(given[n] for n in (*outputs, *states.values())),
            {i.name: i.name for i in inputs if i.name not in states},
            tuple(StateSpec(i, o) for i, o in states.items()),
            batch,
        )
        entries = tuple(
            EngineEntry(
                name,
                (name,),
                f"{name}.onnx",
                tuple(i.name for i in specs_of(m.graph.input)),
                tuple(o.name for o in specs_of(m.graph.output)),
                {},
                backend="onnxruntime" if name in on_cpu else "tensorrt",
            )
            for name, m in models.items()
        )
        stay = device_outputs(io, entries)
        engines: list[Any] = []
        for entry, model in zip(entries, models.values(), strict=True):
            dynamic = {
                i.name: tuple((s, *i.shape[1:]) for s in (1, 2, 8))
                for i in specs_of(model.graph.input)
                if i.shape[0] == "batch"
            }
            profiles = (profile(**dynamic),) if dynamic else ()
            file = write_engine(trt, model, tmp_path, entry.name, profiles=profiles)
            options = SessionOptions(device_outputs=stay.get(entry.name, frozenset()))
            if entry.backend == "tensorrt":
                engines.append(TensorRtSession(file, options))
            else:
                engines.append(OrtSession(tmp_path / entry.file, options))
        variant = Variant(
            "trt-fp32", "jetson", "+".join(sorted({e.backend for e in entries})), "fp32", "staged", entries, {}, 0
        )
        described = tuple(
            StageEntry(n, (n,), "encoder", specs_of(m.graph.input), specs_of(m.graph.output), 1, 0)
            for n, m in models.items()
        )
        session = FusionSession(Manifest("tiny", io, described, (), (variant,)), variant, engines)
        session.machine = trt.machine  # type: ignore[attr-defined]
        sessions.append(session)
        return session

    yield build
    for session in sessions:
        session.close()
        assert session.machine.errors == []  # type: ignore[attr-defined]
    sessions.clear()


def feed_of(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=(batch, w)).astype(np.float32) for n, w in (("image", 3), ("audio", 2))}


def check(out: Mapping[str, Any], feed: Mapping[str, np.ndarray]) -> None:
    assert list(out) == ["energy", "logits"]
    expected = np.concatenate([np.tanh(feed["image"]), -feed["audio"]], axis=1)
    np.testing.assert_allclose(np.asarray(out["logits"]), expected, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(out["energy"]), feed["audio"] ** 2, rtol=1e-6)


@pytest.mark.parametrize("version", VERSIONS)
def test_three_stages(version: str, make: Make, cuda: FakeCuda) -> None:
    session = make(version=version)
    for number, batch in enumerate((2, 2, 5, 1, 2)):
        feed = feed_of(batch, number)
        cuda.reset()
        out = session.run(feed)
        assert all(type(value) is np.ndarray for value in out.values())
        check(out, feed)
        copies = [call for call in cuda.calls if call.startswith("cudaMemcpyAsync")]
        assert (
            sorted(copies) == ["cudaMemcpyAsync 1"] * 2 + ["cudaMemcpyAsync 2"] * 2
        )  # what goes in and comes out
    assert session.machine.executed.count("fusion") == 5  # type: ignore[attr-defined]


def test_encoders_and_head_are_on_their_way_before_anything_is_waited_for(make: Make) -> None:
    session = make()
    session.run(feed_of(2))
    session.machine.waiting.clear()  # type: ignore[attr-defined]
    session.run(feed_of(2, 1))
    assert session.machine.waiting == [0, 1, 2]  # type: ignore[attr-defined]


def test_streams_differ_and_head_waits_for_events(make: Make, cuda: FakeCuda) -> None:
    session = make()
    streams = {engine._execution.stream.handle for engine in session._engines}  # type: ignore[attr-defined]
    assert len(streams) == 3
    feed = feed_of(2)
    check(session.run(feed), feed)
    cuda.reset()
    check(session.run(feed), feed)
    calls = cuda.counts
    assert calls["cudaStreamWaitEvent"] >= 2
    assert calls["cudaDeviceSynchronize"] == 0


def test_results_stay_on_the_gpu_when_asked_for(make: Make, cuda: FakeCuda) -> None:
    session = make()
    feed = feed_of(2)
    out = session.run_on_device(feed)
    assert all(isinstance(value, DeviceArray) for value in out.values())
    assert "cudaMemcpyAsync 2" not in cuda.calls
    check(out, feed)
    check(session.run(feed), feed)


def test_feeds_on_the_gpu(make: Make, cuda: FakeCuda) -> None:
    session = make()
    other = make({"image": IMAGE}, outputs=("image_features",))
    feed = feed_of(2)
    image = other.run_on_device({"image": feed["image"]})
    cuda.reset()
    on_gpu = {"image": image["image_features"], "audio": feed["audio"]}
    expected = {"image": np.tanh(feed["image"]), "audio": feed["audio"]}
    check(session.run(on_gpu), expected)
    assert cuda.calls.count("cudaMemcpyAsync 1") == 1

    class Lender:
        """Another library's array."""

        def __init__(self, array: DeviceArray) -> None:
            self.array = array
            self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__

    check(session.run(on_gpu | {"image": Lender(image["image_features"])}), expected)
    wrong = make({"audio": AUDIO}, outputs=("energy",)).run_on_device({"audio": feed["audio"]})["energy"]
    with pytest.raises(DataError, match=r"input 'image': got shape \(2, 2\), expected \['batch', 3\]"):
        session.run(on_gpu | {"image": wrong})
    with pytest.raises(DataError, match="input 'image': got list"):
        session.run(on_gpu | {"image": [1, 2, 3]})


def test_states_stay_on_the_gpu(make: Make, cuda: FakeCuda) -> None:
    session = make({"count": COUNT}, outputs=("mean",), states={"sum": "sum_out"})
    total = np.zeros((2, 2), np.float32)
    for number in range(4):
        audio = feed_of(2, number)["audio"]
        total += audio
        cuda.reset()
        np.testing.assert_allclose(session.run({"audio": audio})["mean"], total / 2, rtol=1e-5)
        assert cuda.calls.count("cudaMemcpyAsync 1") == (2 if number == 0 else 1)  # zeros go there once
        assert cuda.calls.count("cudaMemcpyAsync 2") == 1
    assert isinstance(session.state["sum"], np.ndarray)
    np.testing.assert_allclose(session.state["sum"], total, rtol=1e-5)
    with pytest.raises(DataError, match="reset_state"):
        session.run({"audio": feed_of(3)["audio"]})
    session.reset_state()
    audio = feed_of(3)["audio"]
    np.testing.assert_allclose(session.run({"audio": audio, "sum": audio})["mean"], audio, rtol=1e-5)


def test_engines_on_cpu_and_gpu(make: Make) -> None:
    for on_cpu in (("image",), ("fusion",), ("image", "audio")):
        session = make(on_cpu=on_cpu)
        feed = feed_of(3)
        check(session.run(feed), feed)
        out = session.run_on_device(feed)
        check(out, feed)
        assert isinstance(out["logits"], DeviceArray) == ("fusion" not in on_cpu)


def test_an_input_on_the_gpu_that_an_engine_on_the_cpu_reads_too(make: Make) -> None:
    twice = STAGES | {
        "audio": AUDIO.replace("audio (", "audio (float[batch,3] image, ").replace(
            "Mul(audio, audio)", "Add(image, image)"
        )
    }
    twice["audio"] = twice["audio"].replace("float[batch,2] energy", "float[batch,3] energy")
    session = make(twice, on_cpu=("audio",))
    feed = feed_of(2)
    image = make({"image": IMAGE}, outputs=("image_features",)).run_on_device({"image": feed["image"]})

    class Lender:
        def __init__(self, array: DeviceArray) -> None:
            self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__

    for value in (image["image_features"], Lender(image["image_features"])):
        out = session.run({"image": value, "audio": feed["audio"]})
        np.testing.assert_allclose(out["energy"], 2 * np.tanh(feed["image"]), rtol=1e-6)
    cached = session.run_cached(
        session.new_cache("marks"), {"image": image["image_features"], "audio": feed["audio"]}, None
    )
    np.testing.assert_array_equal(cached["energy"], out["energy"])


def test_nothing_on_a_gpu(make: Make) -> None:
    session = make(on_cpu=("image", "audio", "fusion"))
    feed = feed_of(2)
    check(session.run(feed), feed)
    with pytest.raises(BackendError, match="nothing of it is on a GPU"):
        session.run_on_device(feed)


def test_times_of_engines_are_their_own(make: Make) -> None:
    session = make()
    feed = feed_of(2)
    session.machine.waiting.clear()  # type: ignore[attr-defined]
    out, seconds = session.run_timed(feed)
    check(out, feed)
    assert list(seconds) == ["image", "audio", "fusion"]
    assert all(s > 0 for s in seconds.values())
    assert session.machine.waiting == [0, 0, 0]  # type: ignore[attr-defined]


def test_fixed_batch_runs_in_chunks(make: Make) -> None:
    fixed = {name: text.replace("batch", "2") for name, text in STAGES.items()}
    session = make(fixed, batch=2)
    for samples in (2, 5, 1):
        feed = feed_of(samples)
        check(session.run(feed), feed)
    with pytest.raises(DataError, match="a model with a fixed batch takes exactly 2"):
        session.run_on_device(feed_of(3))
    check(session.run_on_device(feed_of(2)), feed_of(2))


def test_threads(make: Make) -> None:
    session = make()

    def work(seed: int) -> None:
        for number in range(12):
            feed = feed_of(1 + number % 4, 100 * seed + number)
            check(session.run(feed) if number % 3 else session.run_on_device(feed), feed)

    with ThreadPoolExecutor(5) as pool:
        for done in [pool.submit(work, seed) for seed in range(5)]:
            done.result()


def test_a_failure_in_the_middle_leaks_nothing(make: Make, cuda: FakeCuda) -> None:
    session = make()
    feed = feed_of(2)
    session.run(feed)
    live = cuda.live
    cuda.reset()
    session.run(feed)
    for name, count in cuda.counts.items():
        for call in range(1, count + 1):
            cuda.reset()
            cuda.fail(name, call, 1)
            with pytest.raises(BackendError, match=name):
                session.run(feed)
            gc.collect(1)  # the traceback holds arrays
            cuda.reset()
            check(session.run(feed), feed)
            assert cuda.counted() == live, (name, call)


def test_reuse_of_what_engines_gave(make: Make, cuda: FakeCuda) -> None:
    """Encoder outputs are kept on the GPU between calls."""
    session = make()
    cache = session.new_cache("marks")
    feed, other = feed_of(2), feed_of(2, 1)
    check(session.run_cached(cache, feed, {"image", "audio"}), feed)
    mixed = {"image": feed["image"], "audio": other["audio"]}
    executed = session.machine.executed  # type: ignore[attr-defined]
    executed.clear()
    for number in range(3):
        mixed = mixed | {"audio": feed_of(2, number)["audio"]}
        check(session.run_cached(cache, mixed, {"audio"}), mixed)
    assert "image" not in executed
    cache.forget()


@pytest.mark.parametrize(
    ("entries", "outputs", "expected"),
    [
        (
            [("a", "tensorrt", "x", "p"), ("b", "tensorrt", "p", "y")],
            ("y",),
            {"a": {"p"}, "b": set()},
        ),
        ([("a", "tensorrt", "x", "p"), ("b", "onnxruntime", "p", "y")], ("y",), {"a": set()}),
        ([("a", "tensorrt", "x", "py"), ("b", "tensorrt", "p", "z")], ("y", "z"), {"a": {"p", "y"}, "b": set()}),
        (
            [("a", "tensorrt", "x", "p"), ("b", "tensorrt", "p", "y"), ("c", "onnxruntime", "p", "z")],
            ("y", "z"),
            {"a": set(), "b": {"y"}},
        ),
        ([("a", "tensorrt", "xs", "yt")], ("y", "t"), {"a": {"t"}}),
        ([("a", "tensorrt", "xi", "yj")], ("y", "j"), {"a": set()}),
        ([("a", "onnxruntime", "xs", "yt")], ("y", "t"), {}),
    ],
)
def test_what_stays(
    entries: list[tuple[str, str, str, str]], outputs: tuple[str, ...], expected: dict[str, set[str]]
) -> None:
    states = {"t": "s", "j": "i"}
    io = IOSpec(
        (),
        tuple(TensorSpec(n, "int64" if n == "j" else "float32", ("batch",)) for n in outputs),
        {},
        tuple(StateSpec(states[o], o) for o in outputs if o in states),
    )
    made = [EngineEntry(n, (n,), n, tuple(i), tuple(o), {}, backend=b) for n, b, i, o in entries]
    assert device_outputs(io, made) == {name: frozenset(found) for name, found in expected.items()}
