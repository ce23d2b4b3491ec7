"""Names and keys of built engines, and every reason not to use one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from edgemm.runtime._trt.engines import Gpu, engine_key, engine_path, engines_of, mismatch
from edgemm.runtime._trt.sidecar import OptimizationProfile, Sidecar
from edgemm.tensors import ShapeRange, TensorSpec

ORIN = Gpu("Orin", 87, 8, 8 * 2**30, integrated=True)
DESKTOP = Gpu("NVIDIA GeForce RTX 3060", 86, 28, 12 * 2**30, integrated=False)
PROFILE = OptimizationProfile({"image": ShapeRange((1, 4), (2, 4), (8, 4))})
OPTIONS: dict[str, Any] = {"version_compatible": False, "hardware_compatibility": None, "dla_core": None}
PROFILES = json.loads(json.dumps([PROFILE.to_json()]))
"""As a manifest gives them back: lists, where the sidecar's have tuples."""
X = TensorSpec("image", "float32", ("batch", 4))

CLASSIC = Sidecar(
    flavour="tensorrt",
    version="10.3.0",
    compute_capabilities=(87,),
    device={"name": "Orin", "multiprocessors": 8, "driver": "540.4"},
    stage="image",
    modalities=("image",),
    inputs=(X,),
    outputs=(X,),
    profiles=(PROFILE,),
    onnx_sha256="a" * 64,
    options=OPTIONS,
    typing="strong",
    layers=(),
    precisions={},
    weights={},
    size=1,
    size_limit=None,
    sha256="b" * 64,
    seconds=1.5,
)
RTX = replace(CLASSIC, flavour="tensorrt_rtx", version="1.7.1.116", compute_capabilities=(86, 120), device={})


def why(sidecar: Sidecar, gpu: Gpu = ORIN, **changes: Any) -> str | None:
    given: dict[str, Any] = {
        "onnx_sha256": "a" * 64,
        "module": sidecar.flavour,
        "version": "10.3.0" if sidecar.flavour == "tensorrt" else "1.7.1.116",
        "options": {"profiles": PROFILES, "build": {}},
    }
    return mismatch(sidecar, gpu=gpu, **given | changes)


def with_options(sidecar: Sidecar, **options: Any) -> Sidecar:
    return replace(sidecar, options=OPTIONS | options)


def test_paths() -> None:
    assert engine_path("engines/v/image.onnx", "0123456789ab") == "engines/v/image.0123456789ab.engine"
    files = [
        "engines/v/image.onnx",
        "engines/v/image.bbbbbbbbbbbb.engine",
        "engines/v/image.bbbbbbbbbbbb.engine.json",
        "engines/v/image.aaaaaaaaaaaa.engine",
        "engines/v/image.aaaaaaaaaaaa.engine.json",
        "engines/v/image.cccccccccccc.engine",  # no sidecar
        "engines/v/image.2.bbbbbbbbbbbb.engine",  # of the stage 'image.2'
        "engines/v/image.2.bbbbbbbbbbbb.engine.json",
        "engines/v/imageX.bbbbbbbbbbbb.engine",
        "engines/v/imageX.bbbbbbbbbbbb.engine.json",
        "engines/w/image.bbbbbbbbbbbb.engine",
        "engines/w/image.bbbbbbbbbbbb.engine.json",
    ]
    assert engines_of(files, "engines/v/image.onnx") == [files[3], files[1]]
    assert engines_of(files, "engines/v/image.2.onnx") == [files[6]]
    assert engines_of(files, "engines/v/audio.onnx") == []


def test_key_is_of_what_an_engine_is_for_and_of_nothing_else() -> None:
    key = engine_key(CLASSIC)
    assert len(key) == 12
    assert int(key, 16) >= 0
    same = replace(CLASSIC, seconds=9.0, sha256="c" * 64, size=2, device={"multiprocessors": 8, "name": "Orin"})
    assert engine_key(same) == key
    changed = [
        replace(CLASSIC, onnx_sha256="d" * 64),
        replace(CLASSIC, flavour="tensorrt_rtx"),
        replace(CLASSIC, version="10.7.0"),
        replace(CLASSIC, compute_capabilities=(86,)),
        replace(CLASSIC, device={"name": "Orin", "multiprocessors": 16}),
        replace(CLASSIC, device={"name": "Other", "multiprocessors": 8}),
        replace(CLASSIC, profiles=()),
        with_options(CLASSIC, dla_core=0),
    ]
    keys = [engine_key(s) for s in changed]
    assert len({key, *keys}) == len(changed) + 1
    assert engine_key(replace(RTX, device={"name": "any"})) == engine_key(RTX)


def test_key_survives_the_sidecar_file() -> None:
    assert engine_key(Sidecar.from_json(CLASSIC.to_json())) == engine_key(CLASSIC)
    assert why(Sidecar.from_json(CLASSIC.to_json())) is None


def test_matching_engines_are_used() -> None:
    assert why(CLASSIC) is None
    assert why(RTX, DESKTOP) is None
    assert why(with_options(CLASSIC, workspace=2**20)) is None
    assert why(with_options(CLASSIC, dla_core=0), options={"profiles": PROFILES, "build": {"dla_core": 0}}) is None
    assert why(replace(CLASSIC, profiles=()), options={}) is None


@pytest.mark.parametrize(
    ("sidecar", "gpu", "changes", "reason"),
    [
        (CLASSIC, ORIN, {"onnx_sha256": "e" * 64}, "from another graph (sha256 aaaaaaaaaaaa…, this one has eeee"),
        (CLASSIC, ORIN, {"module": "tensorrt_rtx"}, "was built by TensorRT, TensorRT-RTX would run it"),
        (CLASSIC, ORIN, {"version": "10.7.0"}, "was built by TensorRT 10.3.0, here is 10.7.0"),
        (RTX, DESKTOP, {"version": "1.4.0"}, "was built by TensorRT-RTX 1.7.1.116, here is 1.4.0"),
        (CLASSIC, ORIN, {"options": {}}, "other shapes than the plan's optimization profiles"),
        (CLASSIC, replace(ORIN, sm=110), {}, "was built for SM 87, 'Orin' has SM 110"),
        (CLASSIC, replace(ORIN, name="Orin NX"), {}, "with 8 multiprocessors, here is 'Orin NX' with 8"),
        (CLASSIC, replace(ORIN, multiprocessors=16), {}, "with 8 multiprocessors, here is 'Orin' with 16"),
        (replace(CLASSIC, device={}), ORIN, {}, "does not say which GPU it was built on"),
        (replace(CLASSIC, compute_capabilities=()), ORIN, {}, "for a GPU that its sidecar does not name"),
        (RTX, ORIN, {}, "was built for SM 86, 120, 'Orin' has SM 87"),
        (with_options(CLASSIC, dla_core=1), ORIN, {}, "for DLA core 1, which the plan does not ask for"),
        (with_options(CLASSIC, strip_weights=True), ORIN, {}, "without weights, which the plan does not ask for"),
    ],
)  # fmt: skip
def test_reason(sidecar: Sidecar, gpu: Gpu, changes: dict[str, Any], reason: str) -> None:
    assert reason in str(why(sidecar, gpu, **changes))


def test_options_that_were_asked_for_must_be_there() -> None:
    options = {"profiles": PROFILES, "build": {"dla_core": 0}}
    assert why(CLASSIC, options=options) == "was built with dla_core=None, the plan asks for 0"
    options["build"] = {"tf32": False}
    assert why(CLASSIC, options=options) == "was built with tf32=None, the plan asks for False"


def test_version_compatible_engine_runs_with_later_versions_of_the_same_major_one() -> None:
    sidecar = with_options(CLASSIC, version_compatible=True)
    assert why(sidecar, version="10.16.1") is None
    for version in ("10.1.0", "11.4.0", "9.9"):
        assert "later versions of the same major one only" in str(why(sidecar, version=version))


def test_hardware_compatible_engines() -> None:
    other = replace(DESKTOP, name="NVIDIA GeForce RTX 3090", multiprocessors=82)
    ada = Gpu("NVIDIA RTX 4000", 89, 48, 0, integrated=False)
    built = replace(CLASSIC, compute_capabilities=(86,), device={"name": DESKTOP.name, "multiprocessors": 28})
    assert why(built, DESKTOP) is None
    assert "here is 'NVIDIA GeForce RTX 3090' with 82" in str(why(built, other))
    same = with_options(built, hardware_compatibility="same-compute-capability")
    assert why(same, other) is None
    assert "has SM 89" in str(why(same, ada))
    any_ampere = with_options(built, hardware_compatibility="ampere-plus")
    assert why(any_ampere, ada) is None
    turing = Gpu("T4", 75, 40, 0, integrated=False)
    assert why(any_ampere, turing) == "was built for Ampere and later, 'T4' has SM 75"
    # hardware compatibility is not for JetPack (NVIDIA, "Hardware Compatibility")
    assert "has SM 87" in str(why(any_ampere, ORIN))
