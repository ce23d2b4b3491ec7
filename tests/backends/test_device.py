"""Engines built into a bundle, with a fake TensorRT 10.3 in the process that builds. See `test_device_rtx`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planned import AMPERE, CPU, JETSON, ORIN, RTX_3060, STAGES, engines_in, model, planned_bundle, with_build
from trt_script import write_fake

from edgemm.backends import device
from edgemm.backends.device import Step, Watch, build_missing
from edgemm.bundle import Manifest, read_manifest, verify
from edgemm.errors import BackendError, BundleError, EdgemmError, MissingExtraError, UnsupportedDeviceError
from edgemm.graph import serialize
from edgemm.runtime import cuda
from edgemm.runtime._trt.engines import Gpu
from edgemm.runtime._trt.sidecar import read_sidecar


@pytest.fixture
def tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Returns a function that installs a fake `tensorrt`: for this process and for the one that builds."""
    place = tmp_path / "path"
    place.mkdir()
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", f"{place}{os.pathsep}{here}")
    monkeypatch.syspath_prepend(place)

    def install(version: str = "10.3.0", body: str = "pass") -> None:
        write_fake(place, body, version=version, dla_cores=1)
        shutil.rmtree(place / "__pycache__", ignore_errors=True)
        sys.modules.pop("tensorrt", None)

    yield install
    sys.modules.pop("tensorrt", None)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Gpu], None]:
    """Returns a function that puts a GPU into this machine, as far as anybody who asks CUDA can tell."""
    return lambda gpu: monkeypatch.setattr(cuda, "find_gpu", lambda device=0: gpu)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return planned_bundle(tmp_path / "tiny.edgemm", JETSON | CPU)


@pytest.fixture(scope="module")
def kept_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept") / "tiny.edgemm"


@pytest.fixture
def built(bundle: Path, kept_bundle: Path, tensorrt: Any, on: Any) -> Path:
    """The bundle with its engines, built on an Orin, where this test is as well."""
    tensorrt()
    on(ORIN)
    if not kept_bundle.exists():
        build_missing(bundle)
        shutil.copytree(bundle, kept_bundle)
    else:
        shutil.rmtree(bundle)
        shutil.copytree(kept_bundle, bundle)
    return bundle


def test_missing_engines_are_built_into_the_bundle(bundle: Path, tensorrt: Any, on: Any) -> None:
    tensorrt()
    on(ORIN)
    before = read_manifest(bundle)
    steps: list[Step] = []
    report = build_missing(bundle, watch=Watch(progress=steps.append))
    manifest = read_manifest(bundle)
    verify(bundle, manifest)
    assert [e.engine for e in report.engines] == list(STAGES)
    assert sorted(e.file for e in report.engines) == engines_in(bundle)
    assert manifest.variants == before.variants
    for built in report.engines:
        assert not built.kept
        sidecar = read_sidecar(bundle / built.file)
        assert sidecar == built.sidecar
        assert sidecar.device == {"name": "Orin", "multiprocessors": 8}
        assert (sidecar.flavour, sidecar.version, sidecar.compute_capabilities) == ("tensorrt", "10.3.0", (87,))
        assert (
            sidecar.onnx_sha256 == manifest.files[f"engines/jetson-orin-nano-int8/{built.engine}.onnx"]["sha256"]
        )
        assert sidecar.precisions["int8"] > 0
    assert report.engines[2].sidecar.modalities == ("image", "audio")
    assert {(s.number, s.total, s.engine) for s in steps} == {(1, 3, "image"), (2, 3, "audio"), (3, 3, "fusion")}
    cache = sorted(p.name for p in (bundle / "cache").iterdir())
    assert cache == ["timing-tensorrt-10.3.0-sm87-Orin-8.cache"]
    assert json.dumps(report.to_json())


def test_engines_that_fit_are_kept_unless_forced(built: Path) -> None:
    first = engines_in(built)
    assert all(e.kept for e in build_missing(built).engines)
    assert all(e.kept for e in build_missing(built, options={"workspace": 2**20}).engines)
    assert not any(e.kept for e in build_missing(built, force=True).engines)
    assert engines_in(built) == first
    verify(built, read_manifest(built))


@pytest.mark.parametrize(
    ("gpu", "version"),
    [(replace(ORIN, multiprocessors=16), "10.3.0"), (ORIN, "10.7.0"), (replace(ORIN, name="Orin NX"), "10.3.0")],
    ids=["multiprocessors", "version", "name"],
)
def test_engines_of_another_device_are_built_again_beside_the_old_ones(
    built: Path, tensorrt: Any, on: Any, gpu: Gpu, version: str
) -> None:
    old = engines_in(built)
    tensorrt(version)
    on(gpu)
    report = build_missing(built)
    assert not any(e.kept for e in report.engines)
    assert set(engines_in(built)) == {*old, *(e.file for e in report.engines)}
    assert len(engines_in(built)) == 6
    tensorrt()
    on(ORIN)
    assert {e.file for e in build_missing(built).engines if e.kept} == set(old)


def _rewrite(file: Path) -> None:
    file.write_bytes(file.read_bytes()[::-1])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda engine: [f.unlink() for f in engine.parent.glob(f"{engine.name}*")], "is missing"),
    "changed": (_rewrite, "was changed after it was built"),
    "sidecar": (
        lambda engine: _rewrite(Path(f"{engine}.json")),
        "has a sidecar that was changed after it was built",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_damaged_engine_is_dropped_and_built_again(built: Path, what: str) -> None:
    """The same files come back; an engine that is not listed goes."""
    before = engines_in(built)
    break_it, reason = BROKEN[what]
    image = next(f for f in before if "/image." in f)
    stray = f"{image[: -len('0123456789ab.engine')]}ffffffffffff.engine"
    break_it(built / image)
    (built / stray).write_bytes(b"whose?")
    report = build_missing(built)
    assert [e.kept for e in report.engines] == [False, True, True]
    assert {d.file: d.reason for d in report.dropped} == {image: reason, stray: "is not in the manifest"}
    assert report.to_json()["dropped"]
    assert engines_in(built) == before
    verify(built, read_manifest(built))
    assert all(read_sidecar(built / file) for file in before)  # each is the one that its sidecar tells of
    assert build_missing(built).dropped == ()


def test_engines_with_options_that_no_plan_asks_for_are_dropped(built: Path, tensorrt: Any, on: Any) -> None:
    first = engines_in(built)
    on(replace(ORIN, name="Orin NX"))
    others = {e.file for e in build_missing(built).engines}
    on(ORIN)
    report = build_missing(built, options={"optimization_level": 5})
    assert {d.file for d in report.dropped} == set(first)
    assert {d.reason for d in report.dropped} == {"was built with optimization_level=None, the plan asks for 5"}
    assert set(engines_in(built)) == others | {e.file for e in report.engines}  # another GPU's are not touched
    verify(built, read_manifest(built))


def test_options_become_part_of_the_plan_and_memory_does_not(built: Path) -> None:
    options = {"optimization_level": 5, "workspace": 2**28}
    report = build_missing(built, options=options)
    assert not any(e.kept for e in report.engines)
    assert all(e.sidecar.options["workspace"] == 2**28 for e in report.engines)
    (variant,) = [v for v in read_manifest(built).variants if v.backend == "tensorrt"]
    assert [e.options["build"] for e in variant.engines] == [{"optimization_level": 5}] * 3
    assert all(e.kept for e in build_missing(built).engines)  # the plan asks for it from now on
    back = build_missing(built, options={"optimization_level": None})
    assert all(e.kept for e in back.engines)
    (variant,) = [v for v in read_manifest(built).variants if v.backend == "tensorrt"]
    assert [e.options["build"] for e in variant.engines] == [{}] * 3
    verify(built, read_manifest(built))


def test_plan_s_own_options_reach_the_builder(bundle: Path, tensorrt: Any, on: Any) -> None:
    tensorrt()
    on(ORIN)
    report = build_missing(with_build(bundle, tf32=False, hardware_compatibility="ampere-plus"))
    assert {e.sidecar.options["hardware_compatibility"] for e in report.engines} == {"ampere-plus"}
    assert {e.sidecar.options["tf32"] for e in report.engines} == {False}


def test_what_this_tensorrt_lacks_is_refused_with_a_reason(bundle: Path, tensorrt: Any, on: Any) -> None:
    tensorrt("8.6.1")
    on(ORIN)
    with pytest.raises(
        BackendError, match=r"stage 'image': weight streaming .* TensorRT 8\.6\.1 has no WEIGHT_STR"
    ):
        build_missing(bundle, options={"weight_streaming": True})
    with pytest.raises(BackendError, match=r"DLA core 3 was asked for and .* finds 1"):
        build_missing(bundle, options={"dla_core": 3, "gpu_fallback": True})
    assert engines_in(bundle) == []
    plans = [e.options["build"] for v in read_manifest(bundle).variants for e in v.engines if e.options]
    assert plans == [{}] * 3  # what failed is not asked for again
    verify(bundle, read_manifest(bundle))


def test_fallback_needs_something_to_fall_back_from(built: Path) -> None:
    before = read_manifest(built)
    with pytest.raises(BackendError, match="without a DLA core") as caught:
        build_missing(built, options={"gpu_fallback": True})
    assert "--dla-core 0" in caught.value.hint
    assert read_manifest(built) == before
    with_core = with_build(built, dla_core=0, gpu_fallback=True)
    with pytest.raises(BackendError, match="without a DLA core"):
        build_missing(with_core, options={"dla_core": None})
    with pytest.raises(BackendError, match="a DLA engine has fixed sizes"):  # it got as far as the builder
        build_missing(with_core, options={"gpu_fallback": True})


def test_unknown_option(bundle: Path) -> None:
    with pytest.raises(BackendError, match="no option 'workspaces'") as caught:
        build_missing(bundle, options={"workspaces": 1})
    assert caught.value.hint == "did you mean 'workspace'?"


def test_failure_keeps_what_was_built_before(bundle: Path, tensorrt: Any, on: Any) -> None:
    tensorrt(body="if network.num_inputs == 2: return None")
    on(ORIN)
    with pytest.raises(BackendError, match="stage 'fusion'"):
        build_missing(bundle)
    assert [Path(f).name.split(".")[0] for f in engines_in(bundle)] == ["audio", "image"]
    verify(bundle, read_manifest(bundle))
    tensorrt()
    assert [e.kept for e in build_missing(bundle).engines] == [True, True, False]


def test_timeout(bundle: Path, tensorrt: Any, on: Any) -> None:
    tensorrt(body="time.sleep(60)")
    on(ORIN)
    with pytest.raises(BackendError, match=r"took longer than 0\.5 s"):
        build_missing(bundle, watch=Watch(timeout=0.5))
    assert engines_in(bundle) == []
    assert [p.name for p in (bundle / "cache").iterdir()] == []


def test_graph_that_changes_meanwhile_gives_no_engine(
    bundle: Path, tensorrt: Any, on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verified_and_changed(path: Path, manifest: Manifest) -> None:
        verify(path, manifest)
        (path / "engines/jetson-orin-nano-int8/image.onnx").write_bytes(serialize(model("image", "mixed")))

    monkeypatch.setattr(device, "verify", verified_and_changed)
    tensorrt()
    on(ORIN)
    with pytest.raises(BundleError, match=r"image\.onnx' was changed while its engine was built"):
        build_missing(bundle)
    assert engines_in(bundle) == []


def no_gpu(device: int = 0) -> Gpu:
    raise UnsupportedDeviceError("no GPU here.", hint="get one")


def test_no_gpu_and_no_tensorrt(bundle: Path, tmp_path: Path, on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_gpu", no_gpu)
    with pytest.raises(UnsupportedDeviceError, match=r"^no GPU here") as caught:
        build_missing(bundle)
    assert caught.value.hint == "get one"
    with pytest.raises(
        UnsupportedDeviceError, match="engines for 'jetson-orin-nano' are built on one: no GPU"
    ) as e:
        build_missing(bundle, target="orin-nano")
    assert e.value.hint == "get one; or copy the bundle there and build there"
    both = planned_bundle(tmp_path / "both.edgemm", JETSON | AMPERE)
    with pytest.raises(UnsupportedDeviceError) as caught:
        build_missing(both)
    assert caught.value.hint == "get one; without a GPU: edgemm build --target rtx-ampere"
    on(ORIN)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match="the package 'tensorrt' is needed"):
        build_missing(bundle)


@pytest.mark.parametrize(
    ("target", "kind", "message"),
    [
        ("cpu", BackendError, "no engines are built for 'cpu'"),
        ("cuda", BackendError, "no engines are built for 'cuda'"),
        ("jetson-thor", UnsupportedDeviceError, r"'jetson-thor' \(SM 110\) are built on one; here is 'Orin'"),
        ("rtx-ampere", BundleError, r"no variant is for 'rtx-ampere' \(variants for TensorRT: jet"),
        ("jetson-orin-nx", BundleError, "no variant is for 'jetson-orin-nx'"),
        ("jetson", BackendError, "no target 'jetson'"),
    ],
)  # fmt: skip
def test_targets_that_are_refused(
    bundle: Path, on: Any, target: str, kind: type[EdgemmError], message: str
) -> None:
    on(ORIN)
    with pytest.raises(kind, match=message) as caught:
        build_missing(bundle, target=target)
    assert caught.value.hint


def test_variants_that_are_refused(bundle: Path, on: Any, tmp_path: Path) -> None:
    on(ORIN)
    for name, message in (
        ("cpu-fp32", "the variant 'cpu-fp32' is not for TensorRT"),
        ("jetson-orin-nano", "the variant 'jetson-orin-nano' is not in this bundle"),
    ):
        with pytest.raises(BundleError, match=message):
            build_missing(bundle, variant=name)
    with pytest.raises(BackendError, match="is built by TensorRT on the device itself, not for 'rtx-ampere'"):
        build_missing(bundle, variant="jetson-orin-nano-int8", target="rtx-ampere")
    with pytest.raises(BundleError, match=r"no variant is for TensorRT \(targets: cpu\)"):
        build_missing(planned_bundle(tmp_path / "cpu.edgemm", CPU))


def test_of_several_variants_those_for_this_gpu_are_built(tmp_path: Path, tensorrt: Any, on: Any) -> None:
    tensorrt()
    on(ORIN)
    thor = {"jetson-thor-int8": ("jetson-thor", "tensorrt", "int8")}
    bundle = planned_bundle(tmp_path / "both.edgemm", thor | JETSON | AMPERE)
    assert {e.variant for e in build_missing(bundle).engines} == {"jetson-orin-nano-int8"}
    on(replace(RTX_3060, sm=90))
    bundle = planned_bundle(tmp_path / "thor.edgemm", thor)
    assert {e.sidecar.compute_capabilities for e in build_missing(bundle).engines} == {(90,)}


def test_damaged_bundle_is_not_built(bundle: Path, tensorrt: Any, on: Any) -> None:
    tensorrt()
    on(ORIN)
    (bundle / "engines/cpu-fp32/image.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="has 0 bytes"):
        build_missing(bundle)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_bundle(bundle: Path, tensorrt: Any, on: Any) -> None:
    tensorrt()
    on(ORIN)
    bundle.chmod(0o500)
    try:
        with pytest.raises(BundleError, match="cannot be written") as caught:
            build_missing(bundle)
    finally:
        bundle.chmod(0o700)
    assert "copy it" in caught.value.hint


INTERRUPTED = """
import sys
from pathlib import Path
from edgemm.backends.device import build_missing
from edgemm.runtime import cuda
from edgemm.runtime._trt.engines import Gpu

cuda.find_gpu = lambda device=0: Gpu("Orin", 87, 8, 0, True)
build_missing(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_ended_build_leaves_a_whole_bundle_and_goes_on(
    bundle: Path, tensorrt: Any, on: Any, how: signal.Signals
) -> None:
    tensorrt(body="network.num_inputs == 2 and time.sleep(600)")
    run = subprocess.Popen([sys.executable, "-c", INTERRUPTED, bundle], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(engines_in(bundle)) < 2 or not list((bundle / "cache").glob("building-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(how)
    _, said = run.communicate(timeout=60)
    assert how == signal.SIGKILL or b"KeyboardInterrupt" in said
    verify(bundle, read_manifest(bundle))
    assert len(engines_in(bundle)) == 2
    tensorrt()
    on(ORIN)
    assert [e.kept for e in build_missing(bundle).engines] == [True, True, False]
    verify(bundle, read_manifest(bundle))
