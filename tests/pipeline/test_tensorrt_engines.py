"""Conversions with real engines of TensorRT-RTX in the bundle: `make test-rtx`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvidia_models import (
    CONVOLUTIONS,
    FACTOR,
    LOUD,
    PAIR,
    PRODUCTS,
    STRIDED,
    VOLUME,
    WIDE_PAIR,
    WIDE_PRODUCTS,
    rows,
    save,
    strided,
)
from rtx import SKIP

from edgemm.backends.tensorrt import read_sidecar
from edgemm.bundle import read_manifest, verify
from edgemm.cli._description import describe_bundle
from edgemm.pipeline import ConvertResult, convert
from edgemm.runtime._trt.engines import Gpu, engine_key, engine_path, engines_of, mismatch

pytestmark = pytest.mark.skipif(bool(SKIP), reason=SKIP)

ADA, AMPERE, BLACKWELL, TURING = "rtx-ada", "rtx-ampere", "rtx-blackwell", "rtx-turing"
SM = {AMPERE: 86, BLACKWELL: 120, TURING: 75}
Made = Callable[..., ConvertResult]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Converts a model of `nvidia_models` with the arrays as samples."""

    def call(
        text: str, weights: dict[str, np.ndarray], arrays: dict[str, np.ndarray] | None, **sections: Any
    ) -> ConvertResult:
        given: dict[str, Any] = {"model": {"path": save(text, weights, tmp_path / "model.onnx")}}
        if arrays is not None:
            np.savez(tmp_path / "calib.npz", **arrays)
            given["data"] = {"calib": str(tmp_path / "calib.npz")}
        return convert(given | sections, tmp_path / "out.edgemm", force=True)

    return call


def test_each_target_has_an_engine_per_stage_that_fits_it(made: Made) -> None:
    result = made(PAIR, PRODUCTS, rows(60, 3), target=[AMPERE, BLACKWELL, TURING])
    manifest = read_manifest(result.path)
    verify(result.path, manifest)
    assert [v.target for v in manifest.shipped] == [AMPERE, BLACKWELL, TURING]
    for variant in manifest.shipped:
        gpu = Gpu("any", SM[variant.target], 30, 8 * 2**30, False)
        assert variant.precision == "int8"
        for entry in variant.engines:
            (name,) = engines_of(manifest.files, entry.file)
            sidecar = read_sidecar(result.path / name)
            assert name == engine_path(entry.file, engine_key(sidecar))
            assert sidecar.compute_capabilities == (SM[variant.target],)
            assert sidecar.stage == entry.name
            digest = manifest.files[entry.file]["sha256"]
            common = {"onnx_sha256": digest, "module": "tensorrt_rtx", "version": sidecar.version}
            assert mismatch(sidecar, **common, gpu=gpu, options=entry.options) is None
            other = Gpu("other", 89, 30, 8 * 2**30, False)
            assert mismatch(sidecar, **common, gpu=other, options=entry.options) is not None
            quantized = [layer for layer in sidecar.layers if layer.quantized == "int8"]
            assert bool(quantized) == (entry.decisions.get("int8", 0) > 0)
    said = result.to_json()["variants"][0]["built"]
    assert set(said) == {"a", "b", "fusion"}
    assert all(e["size_bytes"] == manifest.files[e["file"]]["size"] for e in said.values())
    lines = result.summary_lines()
    assert any(line.startswith("engines    ") and "3 for SM 86 by tensorrt_rtx" in line for line in lines)
    built = describe_bundle(result.path)["variants"][0]["engines"][0]["built"]
    assert [b["compute_capabilities"] for b in built] == [[86]]


def test_equal_conversions_give_equal_engines(made: Made) -> None:
    sizes = {}
    for _ in range(2):
        files = made(PAIR, PRODUCTS, rows(60, 3), target=AMPERE).manifest.files
        engines = {n: f["sha256"] for n, f in files.items() if n.endswith((".engine", ".onnx"))}
        assert len(engines) == 6
        sizes[tuple(sorted(engines.items()))] = True
    assert len(sizes) == 1


def test_engines_accept_the_sizes_between_stages(made: Made) -> None:
    result = made(STRIDED, CONVOLUTIONS, strided(60, 48), target=AMPERE, profiles={"time": [20, 48, 90]})
    (variant,) = result.manifest.shipped
    (name,) = engines_of(result.manifest.files, next(e.file for e in variant.engines if e.name == "sound"))
    (profile,) = read_sidecar(result.path / name).profiles
    assert (profile.shapes["sound"].min, profile.shapes["sound"].max) == ((1, 16, 20), (8, 16, 90))


def test_islands_of_float_build_on_ampere_and_are_refused_on_turing(made: Made) -> None:
    result = made(LOUD, PRODUCTS | FACTOR, rows(60, 2), target=[AMPERE, TURING], quantize={"precision": "auto"})
    assert [v.target for v in result.manifest.shipped] == [AMPERE]
    reasons = {v.precision: str(v.refused) for v in result.manifest.variants if v.target == TURING}
    assert set(reasons) == {"int8", "fp16", "fp32"}
    assert all("no float32 matrix products on SM 75" in reasons[p] for p in ("fp16", "fp32"))


def test_what_the_builder_refuses_is_refused_in_its_words(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemm.pipeline.tensorrt.objection", lambda findings: None)
    result = made(VOLUME, PRODUCTS, rows(60, 3), target=["cpu", AMPERE], quantize={"precision": "fp32"})
    (refused,) = [v for v in result.manifest.variants if v.refused]
    assert refused.name == f"{AMPERE}-fp32"
    assert "(Det)" in str(refused.refused)
    assert not [f for f in result.manifest.files if f.startswith(f"engines/{AMPERE}")]


@pytest.mark.parametrize(
    ("precision", "dtype", "targets"),
    [("fp8", "float8_e4m3fn", {ADA: 89, BLACKWELL: 120}), ("int4", "int4", {AMPERE: 86, BLACKWELL: 120})],
)
def test_fp8_and_int4_are_in_the_engines(made: Made, precision: str, dtype: str, targets: dict[str, int]) -> None:
    result = made(
        WIDE_PAIR,
        WIDE_PRODUCTS,
        rows(60, 3, width=128),
        target=list(targets),
        quantize={"precision": precision},
        evaluate={"max_drop": 0.5},
    )
    manifest = read_manifest(result.path)
    verify(result.path, manifest)
    assert [v.name for v in manifest.shipped] == [f"{t}-{precision}" for t in targets]
    for variant in manifest.shipped:
        quantized = 0
        for entry in variant.engines:
            (name,) = engines_of(manifest.files, entry.file)
            sidecar = read_sidecar(result.path / name)
            assert sidecar.compute_capabilities == (targets[variant.target],)
            held = precision in entry.options["precisions"]
            assert held == any(layer.quantized == dtype for layer in sidecar.layers)
            quantized += sidecar.weights["quantized"]
        assert quantized == 2 * 128 * 64 * (8 if precision == "fp8" else 4) // 8


def test_float_engines_without_samples(made: Made) -> None:
    result = made(PAIR, PRODUCTS, None, target=AMPERE)
    assert result.shipped.name == f"{AMPERE}-fp32"
    for entry in result.shipped.engines:
        (name,) = engines_of(result.manifest.files, entry.file)
        sidecar = json.loads((result.path / f"{name}.json").read_text())
        assert set(sidecar["precisions"]) <= {"float32", "int64", "int32"}
