"""`edgemm convert --target` for NVIDIA devices, and what the other verbs say of such a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_models import HEAD, LENGTHS

from edgemm.backends.targets import find_target

ORIN, THOR = "jetson-orin-nano", "jetson-thor"
RANDOM = np.random.default_rng(3)
WEIGHT = RANDOM.standard_normal((32, 32)).round(2)
MODEL = f"""{HEAD}
pair (float[batch,4,32] left, float[batch,4,32] right) => (float[batch,4,64] both)
<float[32,32] w = {{{", ".join(map(str, WEIGHT.ravel()))}}}>
{{ a = MatMul(left, w)  b = MatMul(right, w)  both = Concat<axis=2>(a, b) }}"""

Edgemm = Callable[..., Any]


@pytest.fixture
def model(onnx_file: Callable[..., Path]) -> Path:
    """Two products of [4,32] with 32 × 32 weights, side by side."""
    return onnx_file(MODEL)


@pytest.fixture
def samples(npz: Callable[..., Path]) -> Path:
    """Forty samples of it."""
    return npz(**{n: RANDOM.standard_normal((40, 4, 32)).astype(np.float32) for n in ("left", "right")})


@pytest.fixture
def bundle(edgemm: Edgemm, model: Path, samples: Path, tmp_path: Path) -> Path:
    """The model for the CPU and two Jetsons."""
    out = tmp_path / "out.edgemm"
    targets = ("--target", "cpu", "--target", ORIN, "--target", "thor")
    fixed = ("--layout", "staged", "--engine", "onnxruntime", "--threads", 1)
    result = edgemm("convert", model, "--calib", samples, *targets, *fixed, "-o", out)
    assert result.code == 0, result.err
    (out.parent / "said.txt").write_text(result.out)
    return out


def test_a_column_and_lines_for_every_target(bundle: Path) -> None:
    lines = (bundle.parent / "said.txt").read_text().splitlines()
    assert lines[1].split()[-2:] == [ORIN, THOR]
    assert lines[1].split()[4] == "cpu"
    assert sum("simulated on this CPU" in line for line in lines) == 1
    assert f"latency    unmeasured: it takes a device with {THOR}" in lines
    assert f"{ORIN}-int8:" in lines
    assert lines[-1].endswith(f"edgemm profile {bundle}")  # the CPU's variant is first


def test_inspect_plan_and_run_take_it(edgemm: Edgemm, bundle: Path, samples: Path, tmp_path: Path) -> None:
    text = edgemm("inspect", bundle).out
    assert f"targets cpu, {ORIN}, {THOR}" in text
    assert f"variant  {ORIN}-int8: tensorrt on {ORIN}, staged" in text
    assert "simulated) · latency not measured" in text
    assert "no engines built yet (edgemm build)" in text
    report = edgemm("inspect", bundle, "--json").json
    orin = next(v for v in report["variants"] if v["target"] == ORIN)
    assert orin["latency"] is None
    assert [e["built"] for e in orin["engines"]] == [[]] * len(orin["engines"])
    assert orin["lint"]["error"] == 0
    assert edgemm("plan", bundle).out.count("fp16") == 0
    said = edgemm("plan", bundle, "--target", ORIN).out.splitlines()
    assert said[0].split()[-2:] == ["rule", "reason"]  # nothing was timed, and nothing searched
    assert "latency is unmeasured without the GPU" in said
    plan = edgemm("plan", bundle, "--target", "orin-nano", "--json").json
    assert plan["variant"] == f"{ORIN}-int8"
    assert {d["precision"] for d in plan["plan"]["decisions"]} <= {"int8", "fp16"}
    assert edgemm("plan", bundle, "--target", "rtx-ada").code == 1
    ran = edgemm("run", bundle, "--data", samples, "-o", tmp_path / "o.npz")
    assert ran.code == 0, ran.err
    assert edgemm("check", bundle, "--target", ORIN).code == 0


def test_json(edgemm: Edgemm, model: Path, samples: Path, tmp_path: Path) -> None:
    profile = ("--profile", "batch=1:2:4")
    out = tmp_path / "o.edgemm"
    report = edgemm("convert", model, "--calib", samples, "--target", ORIN, *profile, "-o", out, "--json").json
    (variant,) = report["variants"]
    assert (variant["target"], variant["latency"], variant["built"]) == (ORIN, None, None)
    assert variant["accuracy"]["simulated"] is True
    assert variant["lint"]["error"] == 0
    assert variant["lint"]["warning"] == len(variant["engines"])  # JetPack 6.0 has a parser for older opsets
    (note,) = [n for n in report["notes"] if "opset" in n and n.startswith(ORIN)]  # once for all stages
    assert note.endswith("use JetPack 6.1 or later")
    shapes = variant["engines"][0]["options"]["profiles"][0]["shapes"]
    assert next(iter(shapes.values())) == {"min": [1, 4, 32], "opt": [2, 4, 32], "max": [4, 4, 32]}
    assert json.loads((out / "recipe.json").read_text())["target"] == [ORIN]


@pytest.mark.parametrize(
    ("target", "hint"), [("rtx-amper", "did you mean 'rtx-ampere'?"), ("npu-x9000", "see `edgemm targets`")]
)
def test_a_wrong_name_is_answered_before_anything_runs(
    edgemm: Edgemm, model: Path, tmp_path: Path, target: str, hint: str
) -> None:
    result = edgemm("convert", model, "--target", "cpu", "--target", target, "-o", tmp_path / "o.edgemm")
    assert result.code == 1
    assert [line.split()[0] for line in result.err.splitlines()] == ["error:", "hint:"]
    assert f"no target '{target}'" in result.err
    assert hint in result.err
    assert not (tmp_path / "o.edgemm").exists()


@pytest.mark.parametrize("text", ["batch", "batch=1", "batch=1:2", "batch=1:2:x", "=1:2:3"])
def test_profiles_that_are_none(edgemm: Edgemm, model: Path, text: str) -> None:
    result = edgemm("convert", model, "--target", ORIN, "--profile", text)
    assert result.code == 2
    assert f"got '{text}', expected DIM=MIN:OPT:MAX." in result.err


@pytest.mark.parametrize("text", ["time=64:2:1", "time=0:1:2", "time=1:9:8"])
def test_profiles_out_of_order_are_answered_before_anything_runs(
    edgemm: Edgemm, tmp_path: Path, text: str
) -> None:
    result = edgemm("convert", tmp_path / "not-there.onnx", "--target", ORIN, "--profile", text)
    assert result.code == 2
    assert f"got '{text}', expected DIM=MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX." in result.err


def test_a_size_that_never_changes_is_noted(
    edgemm: Edgemm, onnx_file: Callable[..., Path], npz: Callable[..., Path], tmp_path: Path
) -> None:
    call = ("convert", onnx_file(LENGTHS), "--input", "x=batch,time:float32", "--precision", "fp32", "--json")
    calib = npz(x=np.ones((20, 16), np.float32))
    report = edgemm(*call, "--target", ORIN, "--calib", calib, "-o", tmp_path / "o.edgemm").json
    assert [n for n in report["notes"] if "engines will accept only 16" in n]


def test_a_size_that_nobody_told(edgemm: Edgemm, onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    path = onnx_file(LENGTHS)
    call = ("convert", path, "--target", ORIN, "-o", tmp_path / "o.edgemm", "--input", "x=batch,time:float32")
    result = edgemm(*call)
    assert result.code == 1
    assert "the dynamic dimension 'time' has no range" in result.err
    assert "--profile time=MIN:OPT:MAX" in result.err
    result = edgemm(*call, "--profile", "time=1:16:32")
    assert result.code == 0, result.err


def test_auto_says_what_it_is_here(edgemm: Edgemm, model: Path, samples: Path, tmp_path: Path) -> None:
    call = ("convert", model, "--calib", samples, "--precision", "fp16", "-o", tmp_path / "o.edgemm")
    result = edgemm(*call, "--target", "auto")
    if find_target("auto").module is None:
        assert "not for 'cpu' (what 'auto' is on this machine)." in result.err
    assert "this machine" not in edgemm(*call, "--target", "cpu").err


def test_float32_on_turing_is_answered_with_fp16(
    edgemm: Edgemm, model: Path, samples: Path, tmp_path: Path
) -> None:
    call = ("convert", model, "--calib", samples, "--target", "rtx-turing", "-o", tmp_path / "o.edgemm")
    result = edgemm(*call, "--precision", "fp32")
    assert result.code == 1
    assert "no float32 matrix products on SM 75" in result.err
    assert "use --precision auto or fp16" in result.err


def test_which_plan_was_refused(edgemm: Edgemm, model: Path, samples: Path, tmp_path: Path) -> None:
    call = ("convert", model, "--calib", samples, "--target", ORIN, "-o", tmp_path / "o.edgemm")
    result = edgemm(*call, "--max-drop", "0", "--search-seconds", "1")
    assert f"{ORIN}-int8 (the plan by the rules): refused, " in result.err


def test_a_recipe_names_targets(edgemm: Edgemm, model: Path, samples: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{path: {model}}}\ndata: {{calib: {samples}}}\ntarget: [{ORIN}, orin-nx]\n"
        "profiles: {batch: [1, 1, 2]}\nquantize: {precision: fp16}\n"
    )
    report = edgemm("convert", recipe, "-o", tmp_path / "o.edgemm", "--json").json
    assert [v["name"] for v in report["variants"]] == [f"{ORIN}-fp16", "jetson-orin-nx-fp16"]
