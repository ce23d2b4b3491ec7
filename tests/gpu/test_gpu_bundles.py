"""Bundles on a real GPU, by everything that runs there, against ONNX Runtime's CPU: `make test-gpu`.

A test is skipped, with its reason, where a package that it needs is not installed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from planned import STAGES, engines_in, planned_bundle

from edgemm.backends.device import build_missing
from edgemm.backends.targets import RTX_SMS
from edgemm.bundle import read_manifest, verify
from edgemm.errors import MissingExtraError, UnsupportedDeviceError
from edgemm.runtime import FusionSession, open_session
from edgemm.runtime._trt.engines import RTX, Gpu
from edgemm.runtime.latency import measure

pytestmark = pytest.mark.gpu

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "mixed")
TOLERANCE = {"fp32": 2e-3, "fp16": 1e-2, "bf16": 5e-2, "int8": 3e-2, "mixed": 3e-2}
"""Largest difference, relative to the largest output: fp32 may be TensorFloat-32, int8 may round the other way."""

RANDOM = np.random.default_rng(0)
FEEDS = [
    {n: RANDOM.standard_normal((batch, s)).astype(np.float32) for n, s in (("image", 64), ("audio", 32))}
    for batch in (1, 2, 4)
]


@pytest.fixture
def fit(gpu: Gpu, module: str) -> str:
    """A TensorRT module that is installed and builds for this GPU."""
    if module == RTX and gpu.sm not in RTX_SMS:
        pytest.skip(f"TensorRT-RTX does not build for SM {gpu.sm}")
    return module


def bundle_of(folder: Path, precision: str, module: str) -> Path:
    """Returns a bundle whose only variant was planned for TensorRT, in one precision."""
    variants = {f"gpu-{precision}": ("rtx-ampere", module, precision)}
    return planned_bundle(folder / f"{precision}.edgemm", variants)


def reference(folder: Path, precision: str) -> list[np.ndarray]:
    """Returns the answers of the planned graphs on the CPU; for bfloat16, which it has not, those of float32."""
    folder = folder / "reference"
    folder.mkdir()
    bundle = bundle_of(folder, "fp32" if precision == "bf16" else precision, "tensorrt")
    with open_session(bundle, target="cpu") as session:
        return [session.run(feed)["logits"] for feed in FEEDS]


def compare(session: FusionSession, wanted: list[np.ndarray], precision: str, what: str) -> None:
    for feed, want in zip(FEEDS, wanted, strict=True):
        got = session.run(feed)["logits"]
        worst = float(np.abs(got - want).max() / np.abs(want).max())
        assert worst < TOLERANCE[precision], f"{what}, {precision}, batch {len(want)}: {worst:.2e}"
    times = measure({"run": lambda: session.run(FEEDS[0])}, runs=200, warmup=20)["run"]
    print(f"{what}, {precision}: p50 {float(np.median(times.seconds)) * 1e3:.3f} ms, batch 1")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_engines_built_here(tmp_path: Path, fit: str, gpu: Gpu, precision: str) -> None:
    wanted = reference(tmp_path, precision)
    bundle = bundle_of(tmp_path, precision, fit)
    report = build_missing(bundle)
    verify(bundle, read_manifest(bundle))
    assert [e.engine for e in report.engines] == list(STAGES)
    with open_session(bundle) as session:
        assert session.choice is not None
        assert (session.choice.backend, session.choice.passed_over) == ("tensorrt", ())
        assert sorted(session.choice.engines) == engines_in(bundle)
        compare(session, wanted, precision, f"{fit} on {gpu.name}")
    assert all(e.kept for e in build_missing(bundle).engines)


def test_first_open_builds_and_the_second_does_not(tmp_path: Path, fit: str) -> None:
    bundle = bundle_of(tmp_path, "int8", fit)
    for built in (True, False):
        with open_session(bundle, build=True) as session:
            assert session.choice is not None
            assert (session.choice.backend, session.choice.built) == ("tensorrt", built)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("target", ["ort-tensorrt", "ort-rtx", "cuda"])
def test_providers_of_onnx_runtime(tmp_path: Path, gpu: Gpu, target: str, precision: str) -> None:
    wanted = reference(tmp_path, precision)
    bundle = bundle_of(tmp_path, precision, "tensorrt")
    try:
        session = open_session(bundle, target=target)
    except (MissingExtraError, UnsupportedDeviceError) as error:
        pytest.skip(str(error))
    with session:
        assert session.choice is not None
        compare(session, wanted, precision, f"{session.choice.backend} on {gpu.name}")
    if target != "cuda":
        assert any((bundle / "cache").iterdir())
        verify(bundle, read_manifest(bundle))
        with open_session(bundle, target=target) as again:
            compare(again, wanted, precision, f"{target} from its cache on {gpu.name}")
