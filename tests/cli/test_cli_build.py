"""`edgemm build`, and what `run` and `doctor` tell of engines; the builds themselves are in tests/backends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planned import AMPERE, CPU, JETSON, ORIN, STAGES, engines_in, planned_bundle
from trt_script import write_fake

from edgemm.bundle import read_manifest, verify
from edgemm.runtime import cuda

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return planned_bundle(tmp_path / "tiny.edgemm", JETSON | AMPERE | CPU)


@pytest.fixture
def orin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An Orin with TensorRT 10.3, as far as the builder can tell; returns the module's file."""
    place = tmp_path / "path"
    place.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (place, ROOT / "tests/backends", ROOT))))
    monkeypatch.syspath_prepend(place)
    monkeypatch.syspath_prepend(ROOT / "tests/backends")
    monkeypatch.setattr(cuda, "find_gpu", lambda device=0: ORIN)
    yield write_fake(place)
    sys.modules.pop("tensorrt", None)


def test_table_of_what_was_built_and_kept(edgemm: Any, bundle: Path, orin: Path) -> None:
    result = edgemm("build", bundle, "--max-memory", "256", "--timeout", "60")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].split() == ["variant", "engine", "built", "by", "size", "seconds", "layers"]
    assert [line.split()[:5] for line in lines[1:4]] == [
        ["jetson-orin-nano-int8", stage, "TensorRT", "10.3.0", line.split()[4]]
        for stage, line in zip(STAGES, lines[1:4], strict=True)
    ]
    assert lines[-2].startswith(f"{bundle}: 3 engines for SM 87, Orin, 3 built now, ")
    assert lines[-1] == "note: image, audio, fusion: the size proves nothing: too few quantized weights"
    again = edgemm("build", bundle)
    assert again.code == 0
    assert [line.split()[-1] for line in again.out.splitlines()[1:4]] == ["kept"] * 3
    assert "3 engines for SM 87, Orin, 0 built now" in again.out


def test_json_and_options(edgemm: Any, bundle: Path, orin: Path) -> None:
    result = edgemm("build", bundle, "--json", "--level", "0", "--hardware-compatible", "ampere-plus", "--refit")
    assert result.code == 0, result.err
    report = result.json
    assert report["gpu"]["name"] == "Orin"
    assert [e["engine"] for e in report["engines"]] == list(STAGES)
    assert not any(e["kept"] for e in report["engines"])
    asked = {"optimization_level": 0, "hardware_compatibility": "ampere-plus", "refit": True}
    plans = [e.options["build"] for v in read_manifest(bundle).variants for e in v.engines if v.name in JETSON]
    assert plans == [asked] * 3
    assert edgemm("build", bundle, "--json").json["engines"][0]["kept"]
    assert not edgemm("build", bundle, "--force", "--json").json["engines"][0]["kept"]
    assert not edgemm("build", bundle, "--forget", "--level", "5", "--json").json["engines"][0]["kept"]
    plans = [e.options["build"] for v in read_manifest(bundle).variants for e in v.engines if v.name in JETSON]
    assert plans == [{"optimization_level": 5}] * 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--target", "cpu"), "error: no engines are built for 'cpu'"),
        (("--target", "orin-nan"), "hint:  did you mean 'orin-nano'?"),
        (("--variant", "cpu-fp32"), "is not for TensorRT"),
        (("--gpu-fallback",), "error: variant 'jetson-orin-nano-int8': fallback to the GPU was asked for without"),
        (("--dla-core", "0"), "DLA core 0 was asked for and TensorRT 10.3.0 finds none"),
        (("--target", "rtx-ampere"), "the package 'tensorrt_rtx' is needed"),
    ],
)
def test_refusals_are_one_error_and_a_hint(
    edgemm: Any, bundle: Path, orin: Path, arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    result = edgemm("build", bundle, *arguments)
    assert result.code == 1
    assert said in result.err
    assert "hint: " in result.err
    assert result.out == ""
    assert engines_in(bundle) == []


def test_damaged_engine_is_told_and_built_again(
    edgemm: Any, bundle: Path, orin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgemm.cli import _diagnosis

    light = tuple(p for p in _diagnosis.PACKAGES if p.module in ("numpy", "onnxruntime"))
    monkeypatch.setattr(_diagnosis.check_packages, "__defaults__", (light,))
    assert edgemm("build", bundle).code == 0
    image = next(f for f in engines_in(bundle) if "/image." in f)
    (bundle / image).unlink()
    said = f"{image} is missing; build it again: edgemm build"
    shown = edgemm("inspect", bundle)
    assert shown.code == 0, shown.err
    assert "2 of 3 engines for Orin by tensorrt 10.3.0" in shown.out
    assert f"note: {said}" in shown.out
    assert f"problem: {said} {bundle}." in edgemm("doctor", bundle).out
    data = {n: np.ones((1, s), np.float32) for n, s in (("image", 64), ("audio", 32))}
    np.savez(bundle.parent / "data.npz", **data)
    run = edgemm("run", bundle, "--data", bundle.parent / "data.npz", "-o", bundle.parent / "out.npz")
    assert run.code == 0, run.err
    assert "'image' has no engine for this machine: the one in the bundle is missing." in run.out
    built = edgemm("build", bundle)
    assert built.code == 0, built.err
    assert f"\ndropped {image}: it is missing\n" in built.out
    assert "3 engines for SM 87, Orin, 1 built now" in built.out
    assert "note: " not in edgemm("inspect", bundle).out


def test_inspect_counts_the_engines_that_the_plan_uses(edgemm: Any, bundle: Path, orin: Path) -> None:
    assert edgemm("build", bundle, "--level", "5").code == 0
    result = edgemm("build", bundle, "--forget", "--level", "2")
    assert "it was built with optimization_level=5, the plan asks for 2" in result.out
    assert "3 of 3 engines for Orin by tensorrt 10.3.0" in edgemm("inspect", bundle).out
    assert edgemm("build", bundle, "--forget", "--force").code == 0
    assert len(engines_in(bundle)) == 6  # those of level 2 fit a plan that asks for no level
    shown = edgemm("inspect", bundle).out
    assert "3 of 3 engines for Orin by tensorrt 10.3.0" in shown
    assert "does not ask for" not in shown


def test_options_that_stay_are_told(edgemm: Any, bundle: Path, orin: Path) -> None:
    said = "note: later builds and sessions ask for optimization_level=2 as well (--forget takes it back)"
    assert said in edgemm("build", bundle, "--level", "2", "--max-memory", "64").out.splitlines()
    assert "later builds" not in edgemm("build", bundle, "--max-memory", "64").out


def test_run_for_the_cpu_tells_what_runs_graphs_for_tensorrt(edgemm: Any, tmp_path: Path) -> None:
    bundle = planned_bundle(tmp_path / "x.edgemm", AMPERE)
    np.savez(tmp_path / "data.npz", **{n: np.ones((1, s), np.float32) for n, s in (("image", 64), ("audio", 32))})
    result = edgemm("run", bundle, "--target", "cpu", "--data", tmp_path / "data.npz", "-o", tmp_path / "out.npz")
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1] == "runs rtx-ampere-int8 by onnxruntime"


def test_ctrl_c_keeps_what_was_built(bundle: Path, orin: Path) -> None:
    write_fake(orin.parent, "network.num_inputs == 2 and time.sleep(600)")
    code = (
        "from edgemm.runtime import cuda; from edgemm.runtime._trt.engines import Gpu; "
        "cuda.find_gpu = lambda device=0: Gpu('Orin', 87, 8, 0, True); "
        "from edgemm.cli import main; main()"
    )
    run = subprocess.Popen([sys.executable, "-c", code, "build", bundle], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(engines_in(bundle)) < 2 or not list((bundle / "cache").glob("building-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert said == "interrupted; engines that were built are in the bundle, `edgemm build` goes on.\n"
    verify(bundle, read_manifest(bundle))
    assert not list((bundle / "cache").glob("building-*"))


def test_run_tells_what_was_chosen(edgemm: Any, bundle: Path, tmp_path: Path) -> None:
    samples = {n: np.ones((3, s), np.float32) for n, s in (("image", 64), ("audio", 32))}
    np.savez(tmp_path / "data.npz", **samples)
    result = edgemm("run", bundle, "--data", tmp_path / "data.npz", "-o", tmp_path / "out.npz")
    assert result.code == 0, result.err
    assert "3 samples by cpu-fp32" in result.out
    assert "\nruns cpu-fp32 by onnxruntime\nnot jetson-orin-nano-int8 by tensorrt, " in result.out
    report = edgemm(
        "run", bundle, "--data", tmp_path / "data.npz", "-o", tmp_path / "out.npz", "--force", "--json"
    ).json
    assert report["choice"]["backend"] == "onnxruntime"
    assert {p["backend"] for p in report["choice"]["passed_over"]} >= {"tensorrt", "ort-tensorrt", "ort-cuda"}
    refused = edgemm(
        "run", bundle, "--data", tmp_path / "data.npz", "-o", tmp_path / "x.npz", "--target", "rtx-ampere"
    )
    assert refused.code == 1
    assert "hint: " in refused.err


def test_doctor_tells_what_of_a_bundle_runs(edgemm: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemm.cli import _diagnosis

    light = tuple(p for p in _diagnosis.PACKAGES if p.module in ("numpy", "onnxruntime"))
    monkeypatch.setattr(_diagnosis.check_packages, "__defaults__", (light,))
    result = edgemm("doctor", bundle)
    assert result.code == 0, result.err
    assert f"{bundle}\n  runs cpu-fp32 by onnxruntime\n  not jetson-orin-nano-int8 by tensorrt, " in result.out
    report = edgemm("doctor", bundle, "--json").json
    assert report["bundle"]["choice"]["variant"] == "cpu-fp32"
    assert report["bundle"]["hints"]
    assert edgemm("doctor", bundle / "nowhere").code == 1


def test_doctor_tells_what_builds_without_a_gpu() -> None:
    from edgemm.cli._diagnosis import PACKAGES, PackageStatus
    from edgemm.cli.doctor import builders

    states = {
        "tensorrt_rtx": PackageStatus(next(p for p in PACKAGES if p.module == "tensorrt_rtx"), "1.7.1", "ok")
    }
    assert builders(tuple(states.values())) == [
        "TensorRT for RTX 1.7.1, for the targets rtx-..., with or without a GPU (edgemm build --target)"
    ]
    assert builders(()) == []


def test_doctor_tells_of_a_bundle_that_does_not_run(
    edgemm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgemm.cli import _diagnosis

    light = tuple(p for p in _diagnosis.PACKAGES if p.module in ("numpy", "onnxruntime"))
    monkeypatch.setattr(_diagnosis.check_packages, "__defaults__", (light,))
    bundle = planned_bundle(tmp_path / "x.edgemm", {"a-bf16": ("rtx-ampere", "tensorrt_rtx", "bf16")})
    result = edgemm("doctor", bundle)
    assert result.code == 0, result.err
    assert "nothing in this bundle runs here" in result.out
    assert "no bfloat16 arithmetic" in result.out


def test_profile_tells_when_a_variant_is_run_by_something_else(edgemm: Any, bundle: Path) -> None:
    result = edgemm("profile", bundle, "--variant", "rtx-ampere-int8", "--runs", "5")
    assert result.code == 0, result.err
    said = "not the times of this variant, which is for tensorrt on rtx-ampere: see `edgemm doctor`"
    assert said in result.out
    report = edgemm("profile", bundle, "--variant", "rtx-ampere-int8", "--runs", "5", "--json").json
    assert (report["backend"], report["instead_of"]) == ("onnxruntime", "tensorrt on rtx-ampere")
    assert report["choice"]["passed_over"][0]["backend"] == "tensorrt"
    assert report["backend_version"]
    assert "not the times" not in edgemm("profile", bundle, "--runs", "5").out
