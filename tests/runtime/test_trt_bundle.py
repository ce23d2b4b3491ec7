"""A bundle with built engines, from `open_session` to numbers, on an Orin whose CUDA and TensorRT are fakes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cuda_fake import COMPILER, FakeCuda, installed
from planned import CPU, JETSON, STAGES, engines_in, planned_bundle
from trt_session_fakes import fake_runtime, write_engine

from edgemm.bundle import add_files, read_manifest, verify
from edgemm.errors import UnsupportedDeviceError
from edgemm.runtime import SessionOptions, open_session
from edgemm.runtime._trt.engines import engine_key, engine_path
from edgemm.runtime._trt.sidecar import OptimizationProfile, load_sidecar, sidecar_file
from edgemm.runtime.cuda import DeviceArray

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the fake CUDA runtime is compiled with cc")

VARIANT = "jetson-orin-nano-int8"
RANDOM = np.random.default_rng(0)
FEEDS = [
    {n: RANDOM.standard_normal((batch, s)).astype(np.float32) for n, s in (("image", 64), ("audio", 32))}
    for batch in (2, 2, 2, 4, 1)
]


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with installed() as fake:
        fake.machine(devices=2, integrated=True, memory=2**33)
        yield fake


@pytest.fixture
def trt(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = fake_runtime("tensorrt-10.3.0", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.fixture
def bundle(tmp_path: Path, trt: Any) -> Path:
    """Engines as `edgemm build` leaves them on the GPU that the fake plays."""
    path = planned_bundle(tmp_path / "orin.edgemm", JETSON | CPU)
    manifest = read_manifest(path)
    (variant,) = (v for v in manifest.variants if v.name == VARIANT)
    files: dict[str, bytes | Path] = {}
    for entry in variant.engines:
        built = write_engine(
            trt,
            onnx.load(path / entry.file),
            tmp_path,
            entry.name,
            profiles=[OptimizationProfile.from_json(p) for p in entry.options["profiles"]],
            onnx_sha256=manifest.files[entry.file]["sha256"],
            device={"name": "Fake GPU 0", "multiprocessors": 16},
        )
        place = engine_path(entry.file, engine_key(load_sidecar(built)))
        files |= {place: built, f"{place}.json": sidecar_file(built)}
    add_files(path, files)
    return path


def test_built_engines_are_chosen_and_give_what_the_cpu_gives(bundle: Path, trt: Any, cuda: FakeCuda) -> None:
    with open_session(bundle, target="cpu", variant=VARIANT) as planned:
        wanted = [planned.run(feed)["logits"] for feed in FEEDS]
    with open_session(bundle) as session:
        assert session.choice is not None
        assert (session.choice.variant, session.choice.backend) == (VARIANT, "tensorrt")
        assert sorted(session.choice.engines) == engines_in(bundle)
        for feed, want in zip(FEEDS, wanted, strict=True):
            np.testing.assert_allclose(session.run(feed)["logits"], want, rtol=1e-5, atol=1e-6)
            stayed = session.run_on_device(feed)["logits"]
            assert isinstance(stayed, DeviceArray)
            np.testing.assert_allclose(stayed.numpy(), want, rtol=1e-5, atol=1e-6)
        del stayed
    assert trt.machine.errors == []
    assert set(trt.machine.executed) == set(STAGES)
    verify(bundle, read_manifest(bundle))


def test_memory_that_is_shared_needs_no_copies(bundle: Path, trt: Any, cuda: FakeCuda) -> None:
    with open_session(bundle, variant=VARIANT) as session:
        for feed in FEEDS:
            session.run(feed)
    assert cuda.counts["cudaMemcpyAsync"] == 0


def test_options_reach_the_engines(bundle: Path, trt: Any, cuda: FakeCuda) -> None:
    with open_session(bundle, variant=VARIANT, cache="off", options=SessionOptions(cuda_graphs=True)) as session:
        for feed in FEEDS[:3]:
            session.run(feed)
    assert cuda.counts["cudaGraphLaunch"] == 2 * len(STAGES)


def test_engines_of_another_gpu_are_passed_over(bundle: Path, trt: Any, cuda: FakeCuda) -> None:
    with pytest.raises(UnsupportedDeviceError, match=r"was built on 'Fake GPU 0'.*here is 'Fake GPU 1'"):
        open_session(bundle, target="jetson-orin-nano", options=SessionOptions(device=1))
    with open_session(bundle, options=SessionOptions(device=1)) as session:
        assert session.choice is not None
        assert session.choice.backend != "tensorrt"
        assert "Fake GPU 1" in " ".join(session.choice.lines())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda engine: engine.write_bytes(engine.read_bytes()[::-1]), "was changed after it was built"),
        (lambda engine: engine.unlink(), "is missing"),
        (
            lambda engine: sidecar_file(engine).write_text("{}"),
            "has a sidecar that was changed after it was built",
        ),
    ],
    ids=["changed", "missing", "sidecar"],
)
def test_damaged_engine_is_passed_over_and_never_loaded(
    bundle: Path, trt: Any, damage: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine that comes last: those before it are whole, and are not loaded either."""
    loaded: list[bytes] = []
    load = trt.Runtime.deserialize_cuda_engine
    monkeypatch.setattr(
        trt.Runtime, "deserialize_cuda_engine", lambda self, data: loaded.append(data) or load(self, data)
    )
    open_session(bundle).close()
    assert len(loaded) == len(STAGES)
    loaded.clear()
    damage(bundle / next(f for f in engines_in(bundle) if "/fusion." in f))
    with open_session(bundle) as session:
        assert session.choice is not None
        assert session.choice.backend != "tensorrt"
        passed = session.choice.passed_over[0]
        assert passed.reason == f"'fusion' has no engine for this machine: the one in the bundle {reason}."
        assert passed.hint == f"build it here: edgemm build {bundle}"
        assert session.run(FEEDS[0])["logits"].shape == (2, 16)
    assert loaded == []
    with pytest.raises(UnsupportedDeviceError, match="no engine for this machine"):
        open_session(bundle, target="jetson-orin-nano")
