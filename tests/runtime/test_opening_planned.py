"""Bundles with graphs for TensorRT on a machine with and without a GPU: what opens, and why nothing better."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from planned import AMPERE, CPU, JETSON, ORIN, STAGES, planned_bundle

from edgemm.bundle import Manifest, add_files, read_manifest
from edgemm.errors import BackendError, BundleError, UnsupportedDeviceError
from edgemm.runtime import choice, cuda, open_session, registry
from edgemm.runtime._trt.engines import Gpu, engine_key, engine_path
from edgemm.runtime._trt.sidecar import OptimizationProfile, Sidecar, dumps, sha256
from edgemm.runtime.choice import candidates
from edgemm.runtime.ort import OrtSession
from edgemm.runtime.session import SessionOptions

NO_GPU = UnsupportedDeviceError("CUDA finds no GPU here.", hint="install the driver")
MIXED = {"rtx-ampere-mixed": ("rtx-ampere", "tensorrt_rtx", "mixed")}
BF16 = {"rtx-ampere-bf16": ("rtx-ampere", "tensorrt_rtx", "bf16")}
RNG = np.random.default_rng(0)
FEED = {n: RNG.standard_normal((4, s)).astype(np.float32) for n, s in (("image", 64), ("audio", 32))}


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Gpu | Exception], None]:
    """Returns a function that gives this machine a GPU, or an error instead, as far as CUDA can tell."""

    def put(gpu: Gpu | Exception) -> None:
        def find_gpu(device: int = 0) -> Gpu:
            if isinstance(gpu, Exception):
                raise gpu
            return gpu

        monkeypatch.setattr(cuda, "find_gpu", find_gpu)

    put(NO_GPU)
    return put


def order(manifest: Manifest, target: str = "auto", variant: str | None = None, build: bool = False) -> list[str]:
    return [str(c) for c in candidates(manifest, target, variant, build=build)]


# --- the order ---


def test_order_of_candidates(tmp_path: Path) -> None:
    manifest = read_manifest(planned_bundle(tmp_path / "x.edgemm", CPU | AMPERE | JETSON))
    gpu = [
        "'rtx-ampere-int8' by tensorrt",
        "'jetson-orin-nano-int8' by tensorrt",
        "'rtx-ampere-int8' by ort-rtx",
        "'rtx-ampere-int8' by ort-tensorrt",
        "'jetson-orin-nano-int8' by ort-tensorrt",
        "'rtx-ampere-int8' by ort-cuda",
        "'jetson-orin-nano-int8' by ort-cuda",
    ]
    built = ["'rtx-ampere-int8' by tensorrt, built here", "'jetson-orin-nano-int8' by tensorrt, built here"]
    last = ["'cpu-fp32'", "'rtx-ampere-int8' by onnxruntime", "'jetson-orin-nano-int8' by onnxruntime"]
    assert order(manifest) == gpu + last
    assert order(manifest, build=True) == gpu[:2] + built + gpu[2:] + last
    assert order(manifest, "rtx-ampere") == gpu[:1]
    assert order(manifest, "rtx-ampere", build=True) == [gpu[0], built[0]]
    assert order(manifest, "cpu") == ["'cpu-fp32'"]
    assert order(manifest, "cuda") == [gpu[5], gpu[6]]
    assert order(manifest, "ort-tensorrt") == [gpu[3], gpu[4]]
    assert order(manifest, variant="cpu-fp32") == ["'cpu-fp32'"]
    assert order(manifest, "rtx-ampere", variant="cpu-fp32") == ["'cpu-fp32'"]
    assert order(manifest, variant="jetson-orin-nano-int8") == [gpu[1], gpu[4], gpu[6], last[2]]
    with pytest.raises(
        BundleError, match=r"no target 'rtx-ada' .* \(targets: cpu, rtx-ampere, jetson-orin-nano\)"
    ):
        order(manifest, "rtx-ada")
    for wrong, meant in (("rtx-amper", "rtx-ampere"), ("ort-tensorrrt", "ort-tensorrt"), ("autto", "auto")):
        with pytest.raises(BundleError) as caught:
            order(manifest, wrong)
        assert caught.value.hint == f"did you mean '{meant}'?"
    with pytest.raises(BundleError, match="no variant 'rtx'"):
        order(manifest, variant="rtx")


def test_a_variant_for_a_provider_is_not_run_by_a_better_one(tmp_path: Path) -> None:
    manifest = read_manifest(planned_bundle(tmp_path / "x.edgemm", {"cuda-fp16": ("cuda", "tensorrt", "fp16")}))
    (variant,) = manifest.variants
    engines = tuple(replace(e, backend="ort-cuda") for e in variant.engines)
    manifest = replace(manifest, variants=(replace(variant, backend="ort-cuda", engines=engines),))
    assert order(manifest, build=True) == ["'cuda-fp16' by ort-cuda", "'cuda-fp16' by onnxruntime"]
    assert order(manifest, "cuda") == ["'cuda-fp16' by ort-cuda"]


# --- without a GPU ---


def test_without_a_gpu_the_variant_for_the_cpu_opens(
    tmp_path: Path, on: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = planned_bundle(tmp_path / "x.edgemm", AMPERE | CPU)
    with caplog.at_level(logging.INFO, "edgemm"), open_session(bundle) as session:
        assert session.variant.name == "cpu-fp32"
        found = session.choice
        assert found is not None
        assert (found.variant, found.backend, found.built) == ("cpu-fp32", "onnxruntime", False)
        assert found.engines == tuple(f"engines/cpu-fp32/{s}.onnx" for s in STAGES)
        assert [p.backend for p in found.passed_over] == ["tensorrt", "ort-rtx", "ort-tensorrt", "ort-cuda"]
        assert {(p.variant, p.reason) for p in found.passed_over} == {("rtx-ampere-int8", str(NO_GPU))}
        assert found.lines() == [
            "runs cpu-fp32 by onnxruntime",
            "not rtx-ampere-int8 by tensorrt, ort-rtx, ort-tensorrt, ort-cuda: CUDA finds no GPU here.",
        ]
        assert json.loads(json.dumps(found.to_json()))["passed_over"][0]["reason"] == str(NO_GPU)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "runs cpu-fp32 by onnxruntime; not rtx-ampere-int8 by tensorrt, " in record.getMessage()


def test_no_gpu_is_said_in_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def long(device: int = 0) -> Gpu:
        text = (
            "CUDA finds no GPU here (libcudart.so.12: cudaErrorInsufficientDriver: CUDA driver ...; runtime 12.9)."
        )
        raise UnsupportedDeviceError(text, hint="install the driver")

    monkeypatch.setattr(cuda, "find_gpu", long)
    with open_session(planned_bundle(tmp_path / "x.edgemm", AMPERE | CPU)) as session:
        assert session.choice is not None
        assert {p.reason for p in session.choice.passed_over} == {"CUDA finds no GPU here."}
        assert {p.hint for p in session.choice.passed_over} == {"install the driver; details: edgemm doctor"}


def test_this_machine_as_it_is(tmp_path: Path) -> None:
    bundle = planned_bundle(tmp_path / "x.edgemm", AMPERE | CPU)
    with open_session(bundle) as session:
        assert session.choice is not None
        if shutil.which("nvidia-smi"):
            pytest.skip("there is a driver here")
        assert session.variant.name == "cpu-fp32"
        assert "CUDA" in session.choice.passed_over[0].reason
        assert session.choice.passed_over[0].hint


@pytest.mark.parametrize("variants", [AMPERE, MIXED])
def test_graphs_for_tensorrt_run_on_the_cpu_as_they_were_planned(tmp_path: Path, on: Any, variants: Any) -> None:
    bundle = planned_bundle(tmp_path / "x.edgemm", variants)
    (name,) = variants
    with open_session(bundle) as session:
        assert session.choice is not None
        assert (session.variant.name, session.choice.backend) == (name, "onnxruntime")
        got = session.run(FEED)["logits"]
    np.testing.assert_array_equal(got, chain(bundle, name, ort.GraphOptimizationLevel.ORT_DISABLE_ALL))
    with open_session(bundle, target="cpu") as session:
        np.testing.assert_array_equal(session.run(FEED)["logits"], got)


def chain(bundle: Path, variant: str, level: Any) -> np.ndarray:
    """Returns what the graphs give in sessions of ONNX Runtime's own, one after the other."""
    values = dict(FEED)
    for stage in STAGES:
        settings = ort.SessionOptions()
        settings.graph_optimization_level = level
        file = bundle / f"engines/{variant}/{stage}.onnx"
        session = ort.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
        outputs = [o.name for o in session.get_outputs()]
        given = {i.name: values[i.name] for i in session.get_inputs()}
        values |= dict(zip(outputs, session.run(outputs, given), strict=True))
    return values["logits"]


def test_optimizations_would_break_them(tmp_path: Path, on: Any) -> None:
    bundle = planned_bundle(tmp_path / "x.edgemm", MIXED)
    with pytest.raises(Exception, match="invalid model"):  # QLinearConcat with float16 scales
        chain(bundle, "rtx-ampere-mixed", ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def test_bfloat16_is_passed_over_on_the_cpu(tmp_path: Path, on: Any) -> None:
    with open_session(planned_bundle(tmp_path / "x.edgemm", BF16 | AMPERE)) as session:
        assert session.variant.name == "rtx-ampere-int8"
        assert session.choice is not None
        assert session.choice.passed_over[-1].variant == "rtx-ampere-bf16"
        assert "no bfloat16 arithmetic" in session.choice.passed_over[-1].reason
    with pytest.raises(UnsupportedDeviceError, match=r"nothing in this bundle runs here: .*no bfloat16") as caught:
        open_session(planned_bundle(tmp_path / "y.edgemm", BF16))
    said = "'rtx-ampere-bf16' by tensorrt, ort-rtx, ort-tensorrt, ort-cuda: CUDA finds no GPU here; "
    assert said in str(caught.value)


def test_named_target_is_an_error_not_a_fallback(tmp_path: Path, on: Any) -> None:
    bundle = planned_bundle(tmp_path / "x.edgemm", AMPERE | CPU)
    for target in ("rtx-ampere", "cuda", "ort-tensorrt"):
        with pytest.raises(UnsupportedDeviceError, match="CUDA finds no GPU here"):
            open_session(bundle, target=target)


def test_a_broken_bundle_is_never_passed_over(tmp_path: Path, on: Any) -> None:
    bundle = planned_bundle(tmp_path / "x.edgemm", AMPERE | CPU)
    (bundle / "engines/rtx-ampere-int8/image.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="has 0 bytes"):
        open_session(bundle)


# --- with a GPU, and what is installed here for it ---


def test_what_is_not_installed_is_told(tmp_path: Path, on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if set(ort.get_available_providers()) & {"CUDAExecutionProvider", "TensorrtExecutionProvider"}:
        pytest.skip("this ONNX Runtime is built for GPUs")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    on(ORIN)
    bundle = planned_bundle(tmp_path / "x.edgemm", JETSON | CPU)
    with open_session(bundle) as session:
        assert session.variant.name == "cpu-fp32"
        assert session.choice is not None
        reasons = {p.backend: p.reason for p in session.choice.passed_over}
    assert "the package 'tensorrt' is needed to build and run TensorRT engines" in reasons["tensorrt"]
    assert "as it is installed here has no TensorrtExecutionProvider" in reasons["ort-tensorrt"]
    assert "as it is installed here has no CUDAExecutionProvider" in reasons["ort-cuda"]


class Engine(OrtSession):
    """Runs the planned graph beside a built engine, and keeps what it was opened with."""

    opened: list[tuple[Path, SessionOptions]] = []  # noqa: RUF012

    def __init__(self, engine: Path, options: SessionOptions) -> None:
        Engine.opened.append((engine, options))
        graph = engine.with_name(f"{engine.name.split('.')[0]}.onnx")
        super().__init__(graph, options)


@pytest.fixture
def tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `tensorrt` 10.3.0, and sessions that need no GPU."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path/tensorrt.py").write_text("__version__ = '10.3.0'\nclass Builder: pass\n")
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setitem(registry.SESSIONS, "tensorrt", f"{__name__}:Engine")
    monkeypatch.setattr(Engine, "opened", [])
    yield
    sys.modules.pop("tensorrt", None)


def add_engine(bundle: Path, variant: str, stage: str, **changes: Any) -> str:
    """Adds a file that stands for a built engine, with a sidecar, and returns its name."""
    manifest = read_manifest(bundle)
    entry = next(e for v in manifest.variants if v.name == variant for e in v.engines if e.name == stage)
    content = f"engine of {stage} {sorted(changes)}".encode()
    whole = bundle.parent / "engine"
    whole.write_bytes(content)
    sidecar = Sidecar(
        flavour="tensorrt",
        version="10.3.0",
        compute_capabilities=(87,),
        device={"name": "Orin", "multiprocessors": 8},
        stage=stage,
        modalities=(),
        inputs=(),
        outputs=(),
        profiles=tuple(OptimizationProfile.from_json(p) for p in entry.options["profiles"]),
        onnx_sha256=str(manifest.files[entry.file]["sha256"]),
        options={},
        typing="strong",
        layers=(),
        precisions={},
        weights={},
        size=len(content),
        size_limit=None,
        sha256=sha256(whole),
        seconds=1.0,
    )
    sidecar = replace(sidecar, **changes)
    file = engine_path(entry.file, engine_key(sidecar))
    add_files(bundle, {file: content, f"{file}.json": dumps(sidecar)})
    return file


def test_matching_engines_are_opened(tmp_path: Path, on: Any, tensorrt: None) -> None:
    bundle = planned_bundle(tmp_path / "x.edgemm", CPU | JETSON)
    add_engine(bundle, "jetson-orin-nano-int8", "image", version="8.6.1")
    files = [add_engine(bundle, "jetson-orin-nano-int8", stage) for stage in STAGES]
    add_engine(bundle, "jetson-orin-nano-int8", "audio", device={"name": "Orin", "multiprocessors": 16})
    on(ORIN)
    with open_session(bundle, threads=1) as session:
        assert session.variant.name == "jetson-orin-nano-int8"
        assert session.choice == choice.Choice("jetson-orin-nano-int8", "tensorrt", False, tuple(files))
        assert [path for path, _ in Engine.opened] == [bundle / f for f in files]
        assert [o.device_outputs for _, o in Engine.opened] == [{"seen"}, {"heard"}, frozenset()]
        assert {o.cache for _, o in Engine.opened} == {bundle / "cache"}
    with open_session(bundle, target="jetson-orin-nano") as session:
        assert session.choice is not None
        assert session.choice.backend == "tensorrt"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "10.7.0"}, "was built by TensorRT 10.7.0, here is 10.3.0"),
        ({"compute_capabilities": (110,)}, "was built for SM 110, 'Orin' has SM 87"),
        ({"device": {"name": "Orin", "multiprocessors": 16}}, "was built on 'Orin' with 16 multiprocessors"),
        ({"device": {"name": "Thor", "multiprocessors": 8}}, "was built on 'Thor'"),
        ({"onnx_sha256": "0" * 64}, "was built from another graph"),
        ({"profiles": ()}, "was built for other shapes"),
        ({"options": {"dla_core": 0}}, "was built for DLA core 0"),
        ({"flavour": "tensorrt_rtx"}, "was built by TensorRT-RTX, TensorRT would run it"),
        ({"sha256": "0" * 64}, "is not the one that its sidecar tells of"),
        (None, "'audio' has no built engine in this bundle"),
    ],
)
def test_engine_that_does_not_match_is_never_used(
    tmp_path: Path, on: Any, tensorrt: None, changes: dict[str, Any] | None, reason: str
) -> None:
    bundle = planned_bundle(tmp_path / "x.edgemm", JETSON | CPU)
    for stage in ("image", "fusion"):
        add_engine(bundle, "jetson-orin-nano-int8", stage)
    if changes is not None:
        add_engine(bundle, "jetson-orin-nano-int8", "audio", **changes)
    on(ORIN)
    with open_session(bundle) as session:
        assert session.variant.name == "cpu-fp32"
        assert session.choice is not None
        assert reason in session.choice.passed_over[0].reason
    assert Engine.opened == []
    with pytest.raises(UnsupportedDeviceError) as caught:
        open_session(bundle, target="jetson-orin-nano")
    assert reason in str(caught.value)
    assert caught.value.hint == f"build it here: edgemm build {bundle}"


def test_engine_that_does_not_load_is_passed_over_with_its_reason(
    tmp_path: Path, on: Any, tensorrt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, engine: Path, options: SessionOptions) -> None:
        raise BackendError(f"TensorRT 10.3.0 does not load engine '{engine.name}'.", hint="build it again")

    monkeypatch.setattr(Engine, "__init__", refuse)
    bundle = planned_bundle(tmp_path / "x.edgemm", JETSON | CPU)
    for stage in STAGES:
        add_engine(bundle, "jetson-orin-nano-int8", stage)
    on(ORIN)
    with open_session(bundle) as session:
        assert session.variant.name == "cpu-fp32"
        assert session.choice is not None
        assert "TensorRT 10.3.0 does not load engine 'image." in session.choice.passed_over[0].reason


def test_engines_are_built_when_that_is_allowed(
    tmp_path: Path, on: Any, tensorrt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path(__file__).parents[1] / "backends"
    (tmp_path / "path/tensorrt.py").write_text(
        "import sys\nfrom trt_fakes import fake_module\nsys.modules['tensorrt'] = fake_module('tensorrt-10.3.0')\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'path'}{os.pathsep}{here}")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    bundle = planned_bundle(tmp_path / "x.edgemm", JETSON | CPU)
    on(ORIN)
    with open_session(bundle) as session:
        assert session.variant.name == "cpu-fp32"
    with open_session(bundle, build=True) as session:
        assert session.choice is not None
        assert (session.choice.backend, session.choice.built) == ("tensorrt", True)
        assert "has no built engine" in session.choice.passed_over[0].reason
        first = session.choice.engines
    with open_session(bundle, build=True) as session:
        assert session.choice == choice.Choice("jetson-orin-nano-int8", "tensorrt", False, first)
    assert len(Engine.opened) == 6


def test_build_that_fails_is_passed_over_with_its_reason(tmp_path: Path, on: Any, tensorrt: None) -> None:
    bundle = planned_bundle(tmp_path / "x.edgemm", JETSON | CPU)
    on(ORIN)
    with open_session(bundle, build=True) as session:  # the process that builds does not find the module
        assert session.variant.name == "cpu-fp32"
        assert session.choice is not None
        assert [p.backend for p in session.choice.passed_over][:2] == ["tensorrt", "tensorrt"]
        assert "the package 'tensorrt' is needed" in session.choice.passed_over[1].reason


def test_bundle_that_cannot_be_written_opens_without_an_engine(
    tmp_path: Path, on: Any, tensorrt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = planned_bundle(tmp_path / "x.edgemm", JETSON | CPU)
    (bundle / "cache").write_text("a file where the folder would be")
    on(ORIN)
    with pytest.raises(BundleError, match="'cache' is not part of the bundle"):
        open_session(bundle)
    (bundle / "cache").unlink()
    real = Path.mkdir

    def read_only(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.name.startswith("building-"):
            raise OSError(30, "Read-only file system")
        real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", read_only)
    with open_session(bundle, build=True) as session:
        assert session.variant.name == "cpu-fp32"
        assert session.choice is not None
        assert "cannot be written: Read-only file system" in session.choice.passed_over[1].reason


def test_sidecar_that_makes_no_sense(tmp_path: Path, on: Any, tensorrt: None) -> None:
    bundle = planned_bundle(tmp_path / "x.edgemm", JETSON | CPU)
    on(ORIN)
    add_engine(bundle, "jetson-orin-nano-int8", "image", options={"version_compatible": True}, version=10)
    with open_session(bundle) as session:
        assert session.variant.name == "cpu-fp32"
        assert session.choice is not None
        assert "has a sidecar that makes no sense" in session.choice.passed_over[0].reason
