"""Engines built into a bundle by the real TensorRT-RTX, which needs no GPU for that: `make test-rtx`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from planned import AMPERE, CPU, JETSON, RTX_3060, RTX_5090, STAGES, engines_in, planned_bundle
from rtx import SKIP

from edgemm.backends.device import Step, Watch, build_missing
from edgemm.bundle import read_manifest, verify
from edgemm.errors import BackendError, UnsupportedDeviceError
from edgemm.runtime import cuda, open_session
from edgemm.runtime._trt.module import load_module
from edgemm.runtime._trt.sidecar import read_sidecar

pytestmark = pytest.mark.skipif(bool(SKIP), reason=SKIP)

MIXED = {"rtx-blackwell-mixed": ("rtx-blackwell", "tensorrt_rtx", "mixed")}
BF16 = {"rtx-ampere-bf16": ("rtx-ampere", "tensorrt_rtx", "bf16")}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return planned_bundle(tmp_path / "tiny.edgemm", AMPERE | MIXED | CPU)


def test_engines_for_two_targets_without_a_gpu(bundle: Path) -> None:
    steps: list[Step] = []
    ampere = build_missing(bundle, target="rtx-ampere", watch=Watch(progress=steps.append))
    blackwell = build_missing(bundle, target="rtx-blackwell")
    manifest = read_manifest(bundle)
    verify(bundle, manifest)
    assert sorted(e.file for e in (*ampere.engines, *blackwell.engines)) == engines_in(bundle)
    for report, sm, variant in ((ampere, 86, "rtx-ampere-int8"), (blackwell, 120, "rtx-blackwell-mixed")):
        assert [e.engine for e in report.engines] == list(STAGES)
        assert {e.variant for e in report.engines} == {variant}
        for built in report.engines:
            sidecar = read_sidecar(bundle / built.file)
            assert sidecar == built.sidecar
            assert sidecar.compute_capabilities == (sm,)
            assert sidecar.version == load_module("tensorrt_rtx").__version__
            assert sidecar.device == {}
            assert sidecar.precisions["int8"] >= 1
            assert sidecar.onnx_sha256 == manifest.files[f"engines/{variant}/{built.engine}.onnx"]["sha256"]
    assert "float16" in blackwell.engines[0].sidecar.precisions
    assert {s.engine for s in steps} == set(STAGES)
    assert not list((bundle / "cache").iterdir())


def test_kept_forced_and_for_another_gpu(bundle: Path) -> None:
    first = build_missing(bundle, target="rtx-ampere")
    assert all(e.kept for e in build_missing(bundle, target="rtx-ampere").engines)
    forced = build_missing(bundle, target="rtx-ampere", force=True)
    assert [e.file for e in forced.engines] == [e.file for e in first.engines]
    assert [e.sidecar.sha256 for e in forced.engines] == [e.sidecar.sha256 for e in first.engines]
    other = build_missing(bundle, target="rtx-ada", variant="rtx-ampere-int8")
    assert not any(e.kept for e in other.engines)
    assert len(engines_in(bundle)) == 6
    assert all(e.kept for e in build_missing(bundle, target="rtx-ampere").engines)
    verify(bundle, read_manifest(bundle))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version_compatible": True}, "stage 'image': a version-compatible engine was asked for; TensorRT-RTX"),
        ({"hardware_compatibility": "ampere-plus"}, "compatibility 'ampere-plus' was asked for; TensorRT-RTX"),
        ({"dla_core": 0, "gpu_fallback": True}, "DLA core 0 was asked for and TensorRT-RTX .* finds none"),
        ({"optimization_level": 9}, "got optimization level 9, expected 0 to 5"),
    ],
)  # fmt: skip
def test_options_that_it_has_not(bundle: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        build_missing(bundle, target="rtx-ampere", options=options)
    assert engines_in(bundle) == []


def test_options_that_it_has(bundle: Path) -> None:
    options = {"optimization_level": 1, "tf32": False, "weight_streaming": True, "workspace": 2**28}
    report = build_missing(bundle, target="rtx-ampere", options=options)
    assert {e.sidecar.options["workspace"] for e in report.engines} == {2**28}
    assert all(e.kept for e in build_missing(bundle, target="rtx-ampere").engines)


def test_format_that_the_gpu_has_not(tmp_path: Path) -> None:
    bundle = planned_bundle(tmp_path / "x.edgemm", BF16)
    with pytest.raises(BackendError, match=r"stage 'image': .* target\(s\) sm75, .* HW-specific datatypes"):
        build_missing(bundle, target="rtx-turing", variant="rtx-ampere-bf16")
    verify(bundle, read_manifest(bundle))
    assert len(build_missing(bundle, target="rtx-ampere").engines) == 3


def test_jetson_graphs_are_not_for_it(tmp_path: Path) -> None:
    bundle = planned_bundle(tmp_path / "x.edgemm", JETSON)
    with pytest.raises(BackendError, match="is built by TensorRT on the device itself"):
        build_missing(bundle, target="rtx-ampere", variant="jetson-orin-nano-int8")


@pytest.mark.parametrize("gpu", [RTX_3060, RTX_5090], ids=["ampere", "blackwell"])
def test_opening_takes_the_engine_of_this_gpu_and_no_other(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, gpu: Any
) -> None:
    """Up to the moment when TensorRT-RTX would load it, which needs the GPU."""
    build_missing(bundle, target="rtx-ampere")
    monkeypatch.setattr(cuda, "find_gpu", lambda device=0: gpu)
    with open_session(bundle) as session:
        assert session.choice is not None
        reasons = {(p.variant, p.backend): p.reason for p in session.choice.passed_over}
    engine = reasons["rtx-ampere-int8", "tensorrt"]
    if gpu is RTX_5090:
        assert "was built for SM 86, 'NVIDIA GeForce RTX 5090' has SM 120" in engine
    else:
        assert "CUDA" in engine  # it was opened
    assert "'image' has no built engine in this bundle" in reasons["rtx-blackwell-mixed", "tensorrt"]
    with pytest.raises(UnsupportedDeviceError):
        open_session(bundle, target="rtx-ampere")


def test_opening_builds_when_it_may(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_gpu", lambda device=0: RTX_3060)
    with open_session(bundle, variant="rtx-ampere-int8", build=True) as session:
        assert session.choice is not None
        first, second = session.choice.passed_over[:2]
    assert "has no built engine" in first.reason
    assert "CUDA" in second.reason  # built, found and opened
    assert len(engines_in(bundle)) == 3
    verify(bundle, read_manifest(bundle))


def test_ctrl_c_leaves_a_whole_bundle_and_the_next_build_goes_on(bundle: Path) -> None:
    command = [sys.executable, "-m", "edgemm", "build", bundle, "--target", "rtx-ampere"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 120
    while not engines_in(bundle):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    verify(bundle, read_manifest(bundle))
    left = len(engines_in(bundle))
    if left < 3:
        assert run.returncode == 130, said
    report = build_missing(bundle, target="rtx-ampere")
    assert sum(e.kept for e in report.engines) == left
