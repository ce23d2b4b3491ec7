"""`edgemm convert` as it is called: its outputs, and what it says to every kind of bad input.

Failures write nothing, exit with code 1, name what is wrong and give a hint. None shows a traceback.
"""

from __future__ import annotations

import json
import os
import pickle  # noqa: TID251  makes one, loads none
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_models import HEAD

PAIR = f"""{HEAD}
pair (float[batch,4] image, float[batch,3] gyro) => (float[batch,2] logits)
<float[7,2] w = {{{", ".join(f"{(i * 7 % 5) - 2}" for i in range(14))}}}>
{{ joined = Concat<axis=1>(image, gyro)  logits = MatMul(joined, w) }}"""

ROOT = Path(__file__).resolve().parents[2]
RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.normal(size=(40, 4)).astype(np.float32)
GYRO = RANDOM.normal(size=(40, 3)).astype(np.float32)
LABEL = RANDOM.integers(0, 2, 40)

Edgemm = Callable[..., Any]
Npz = Callable[..., Path]


@pytest.fixture
def model(onnx_file: Callable[..., Path]) -> Path:
    """image[4] and gyro[3], joined, two logits."""
    return onnx_file(PAIR)


@pytest.fixture
def fails(edgemm: Edgemm, tmp_path: Path) -> Callable[..., str]:
    """Runs `edgemm convert ARGS... -o out.edgemm`, which must fail well; returns what stderr says of it."""

    def call(*args: object, code: int = 1) -> str:
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        result = edgemm("convert", *args, "-o", tmp_path / "out.edgemm")
        assert result.code == code
        assert result.out == ""
        assert "Traceback" not in result.err
        after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if "__pycache__" not in p.parts}
        assert {p: t for p, t in after.items() if p != tmp_path} == {
            p: t for p, t in before.items() if p != tmp_path
        }
        if code == 1:
            error, hint = result.err.splitlines()[-2:]
            assert error.startswith("error: "), result.err
            assert hint.startswith("hint:  "), result.err
            return f"{error}\n{hint}"
        return str(result.err)

    return call


# -- what it prints ---------------------------------------------------------------------------------------------


def test_table_on_stdout_and_steps_on_stderr(edgemm: Edgemm, model: Path, npz: Npz, tmp_path: Path) -> None:
    data = npz(image=IMAGE, gyro=GYRO, label=LABEL)
    out = tmp_path / "out.edgemm"
    result = edgemm("convert", model, "--calib", data, "--label", "label", "--precision", "fp32", "-o", out)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[1].split() == [
        "stage",
        "modality",
        "nodes",
        "parameters",
        "precision",
        "float",
        "ms",
        "edge",
        "ms",
    ]
    assert lines[2].split()[:6] == ["fusion", "image,", "gyro", "2", "14", "float"]
    assert lines[4].startswith("accuracy   ")
    assert "12 evaluation samples" in lines[4]
    assert lines[5].startswith("latency    ")
    assert lines[6].startswith("size       ")
    assert lines[-1] == f"{out}   next: edgemm profile {out}"
    assert [line.split()[0] for line in result.err.splitlines()] == ["load", "export", "partition"]
    assert "\x1b" not in result.out + result.err


def test_json_and_default_output(edgemm: Edgemm, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    result = edgemm("convert", "model.onnx", "--json", "--modality", "image=camera", "--threads", 1)
    assert result.code == 0, result.err
    assert result.json["bundle"] == "model.edgemm"
    assert [i["modality"] for i in result.json["inputs"]] == ["camera", "gyro"]
    assert (model.parent / "model.edgemm" / "manifest.json").is_file()
    assert json.loads((model.parent / "model.edgemm" / "recipe.json").read_text())["threads"] == 1


def test_recipe_and_options_over_it(edgemm: Edgemm, model: Path, npz: Npz, tmp_path: Path) -> None:
    npz(image=IMAGE, gyro=GYRO)
    recipe = tmp_path / "two-sensors"
    recipe.write_text(
        "model: {path: model.onnx}\ndata: {calib: data.npz, seed: 5}\n"
        "quantize: {precision: int8}\nevaluate: {max_drop: 0.5}\n"
    )
    zeros = ("--max-drop", 0, "--threads", 0)
    result = edgemm("convert", recipe, "--precision", "fp32", "--json", *zeros, "-o", tmp_path / "out.edgemm")
    assert result.code == 0, result.err
    assert [v["precision"] for v in result.json["variants"]] == ["fp32"]
    assert result.json["variants"][0]["accuracy"]["budget"] == 0
    kept = json.loads((tmp_path / "out.edgemm" / "recipe.json").read_text())
    assert (kept["data"]["seed"], kept["evaluate"]["max_drop"], kept["threads"]) == (5, 0, 0)


STREAM = f"""{HEAD}
stream (float[batch,4] image, float[batch,3] gyro, float[batch,3] past_sum)
  => (float[batch,7] joined, float[batch,3] total)
{{ total = Add(gyro, past_sum)  joined = Concat<axis=1>(image, total) }}"""


def test_declared_inputs_and_states_reach_the_bundle(
    edgemm: Edgemm, onnx_file: Callable[..., Path], tmp_path: Path
) -> None:
    words = ("--state", "past_sum=total", "--input", "image=batch,4:float32", "--modality", "image=camera")
    result = edgemm("convert", onnx_file(STREAM), *words, "--json", "-o", tmp_path / "out.edgemm")
    assert result.code == 0, result.err
    assert result.json["states"] == [{"input": "past_sum", "output": "total"}]
    inputs = {i["name"]: (i["modality"], i["shape"]) for i in result.json["inputs"]}
    assert inputs == {
        "image": ("camera", ["batch", 4]),
        "gyro": ("gyro", ["batch", 3]),
        "past_sum": (None, ["batch", 3]),
    }


@pytest.mark.slow
def test_bars_on_a_terminal(model: Path, npz: Npz, tmp_path: Path) -> None:
    if not shutil.which("script"):
        pytest.skip("no `script` to make a terminal with")
    data = npz(image=IMAGE, gyro=GYRO)
    command = f"{sys.executable} -m edgemm convert {model} --calib {data} -o {tmp_path / 'out.edgemm'}"
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"},
    )
    assert done.returncode == 0, done.stdout
    assert "\x1b[" in done.stdout
    assert "━" in done.stdout
    assert "0/?" not in done.stdout
    assert "next: edgemm profile" in done.stdout


# -- model files ------------------------------------------------------------------------------------------------


def test_a_plan_without_integers_is_what_keeps_a_model_float(
    edgemm: Edgemm, model: Path, npz: Npz, tmp_path: Path
) -> None:
    data = ("--calib", npz(image=IMAGE, gyro=GYRO), "--engine", "onnxruntime", "--layout", "whole")
    decision = {"stage": "fusion", "node": "MatMul", "op": "MatMul", "precision": "fp32"}
    decision |= {"rule": "by-hand", "reason": "left alone"}
    plan = {"target": "cpu", "calibration": {}, "decisions": [decision]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    for precision, code in (("auto", 0), ("int8", 1)):
        arguments = (*data, "--plan", tmp_path / "plan.json", "--precision", precision)
        result = edgemm("convert", model, *arguments, "-o", tmp_path / f"{precision}.edgemm")
        assert result.code == code, result.err
        assert f"{tmp_path / 'plan.json'} leaves all of its nodes float" in " ".join(f"{result}".split())


def test_truncated_onnx(fails: Callable[..., str], model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-40])
    assert "model.onnx is an ONNX model cut off at" in fails(model)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_pt2(fails: Callable[..., str], trained_folder: Path, tmp_path: Path, share: float) -> None:
    content = (trained_folder / "model.pt2").read_bytes()
    path = tmp_path / "cut.pt2"
    path.write_bytes(content[: int(len(content) * share)])
    said = fails(path)
    assert "cut.pt2 is a zip archive cut off at" in said
    assert "copy, download or save the model again" in said


def test_damaged_pt2(fails: Callable[..., str], trained_folder: Path, tmp_path: Path) -> None:
    content = bytearray((trained_folder / "model.pt2").read_bytes())
    start = content.index(b'"graph_module"')
    content[start : start + 200] = bytes(200)
    (tmp_path / "bad.pt2").write_bytes(content)
    assert "bad.pt2 is a damaged torch.export archive" in fails(tmp_path / "bad.pt2")


class Malicious:
    """Unpickling this runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("wrap", [False, True])
def test_pickle_that_runs_code_is_not_loaded(fails: Callable[..., str], tmp_path: Path, wrap: bool) -> None:
    import torch

    value: Any = Malicious(tmp_path / "marker")
    torch.save({"state_dict": value} if wrap else value, tmp_path / "model.pt2")
    said = fails(tmp_path / "model.pt2")
    assert "is a pickled module or object" in said
    assert "Loading it runs code from the file" in said
    assert "--allow-pickle" in said
    assert not (tmp_path / "marker").exists()


def test_plain_pickle_is_not_loaded(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "marker")))
    assert "Loading it runs code from the file" in fails(tmp_path / "model.pt")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.onnx", b"", "is an empty file (0 bytes)"),
        ("photo.pt2", b"\x89PNG\r\n\x1a\n" + bytes(50), "is a PNG image, not a model that edgemm reads"),
        ("net.py", b"import torch\nclass Net: pass\n", "is Python source, not a model file"),
    ],
)
def test_other_files(fails: Callable[..., str], tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"{name} {message}" in fails(tmp_path / name)


def test_missing_model_names_those_beside_it(fails: Callable[..., str], model: Path, tmp_path: Path) -> None:
    said = fails(tmp_path / "modle.onnx")
    assert "modle.onnx does not exist" in said
    assert "model.onnx" in said


# -- data files -------------------------------------------------------------------------------------------------


def test_missing_input(fails: Callable[..., str], model: Path, npz: Npz) -> None:
    said = fails(model, "--calib", npz(image=IMAGE, giro=GYRO))
    assert "data.npz: the data has no array 'gyro' (arrays: giro, image)." in said
    assert "did you mean 'giro'?" in said


def test_unequal_lengths(fails: Callable[..., str], model: Path, npz: Npz) -> None:
    said = fails(model, "--calib", npz(image=IMAGE, gyro=GYRO[:7]))
    assert "data.npz: array 'gyro' has 7 samples, 'image' has 40." in said
    assert "every input needs one row per sample" in said


def test_object_arrays(fails: Callable[..., str], model: Path, npz: Npz, tmp_path: Path) -> None:
    rows = np.empty(40, object)
    rows[:] = [Malicious(tmp_path / "marker")] * 40
    said = fails(model, "--calib", npz(image=IMAGE, gyro=rows))
    assert "data.npz: array 'gyro' holds Python objects, which are pickled and are not loaded." in said
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (np.inf, "Inf")])
@pytest.mark.parametrize("option", ["--calib", "--eval"])
def test_nan_and_inf(
    fails: Callable[..., str], model: Path, npz: Npz, value: float, name: str, option: str
) -> None:
    gyro = GYRO.copy()
    gyro[5, 1] = value
    said = fails(model, option, npz(image=IMAGE, gyro=gyro))
    assert f"data.npz row 5: array 'gyro' has {name} (1 of 3 values)." in said


@pytest.mark.parametrize("dtype", ["int32", "uint8", "float64"])
def test_wrong_dtype(fails: Callable[..., str], model: Path, npz: Npz, dtype: str) -> None:
    said = fails(model, "--calib", npz(image=IMAGE.astype(dtype), gyro=GYRO))
    assert "data.npz: " in said
    assert f"array 'image' is {dtype}" in said
    assert "image.astype('float32')" in said


def test_wrong_row_shape(fails: Callable[..., str], model: Path, npz: Npz) -> None:
    said = fails(model, "--calib", npz(image=IMAGE, gyro=np.ones((40, 5), np.float32)))
    assert "gyro" in said
    assert "5" in said


def test_truncated_npz(fails: Callable[..., str], model: Path, npz: Npz) -> None:
    data = npz(image=IMAGE, gyro=GYRO)
    data.write_bytes(data.read_bytes()[:500])
    said = fails(model, "--calib", data)
    assert "data.npz: the file is truncated or damaged" in said


def test_no_samples_and_too_few(fails: Callable[..., str], model: Path, npz: Npz) -> None:
    assert "data.npz: no samples." in fails(model, "--calib", npz(image=IMAGE[:0], gyro=GYRO[:0]))
    said = fails(model, "--calib", npz("two.npz", image=IMAGE[:2], gyro=GYRO[:2]))
    assert "2 samples cannot be split into 3 disjoint parts" in said


def test_reader_that_fails(fails: Callable[..., str], model: Path, tmp_path: Path) -> None:
    (tmp_path / "reader.py").write_text("class Reader:\n    def __len__(self): return 1 // 0\n"
                                        "    def __getitem__(self, i): return {}\n")  # fmt: skip
    said = fails(model, "--calib", f"{tmp_path / 'reader.py'}:Reader")
    assert "reader.py:2: __len__ failed: ZeroDivisionError" in said


# -- words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (
            ("--label", "labl"),
            "no array 'labl' for the labels (arrays: gyro, image, label).",
            "did you mean 'label'?",
        ),
        (("--label", "image"), "label 'image' is an input of the model, not a label", "leave --label out"),
        (("--metric", "acuracy", "--label", "label"), "no metric 'acuracy'", "did you mean 'accuracy'?"),
        (("--metric", "f1_macro"), "metric 'f1_macro' needs labels.", "--label"),
        (("--output-name", "logit"), "no output 'logit' in this model (outputs: logits).", "'logits'?"),
        (("--modality", "imge=x"), "no input 'imge' in this model (inputs: image, gyro).", "'image'?"),
        (("--input", "giro=batch,3"), "no input 'giro' in this model (inputs: image, gyro).", "'gyro'?"),
        (("--input", "gyro=batch,3:flota32"), "'flota32' is no dtype", "did you mean 'float32'?"),
        (("--state", "giro=logits"), "no input 'giro' in this model", "did you mean 'gyro'?"),
        (("--state", "gyro=logit"), "no output 'logit' in this model", "did you mean 'logits'?"),
        (
            ("--max-drop", "-1"),
            "evaluate.max_drop: got -1.0, expected a number greater than or equal to 0",
            "may ship",
        ),
        (("--opset", "3"), "export.opset: got 3, expected a number greater than or equal to 18", "ONNX opset"),
        (("--factory", "net.py:build"), "--factory does not apply", "leave --factory out"),
    ],
)
def test_mistyped_words(
    fails: Callable[..., str], model: Path, npz: Npz, options: tuple[str, ...], message: str, hint: str
) -> None:
    said = fails(model, "--calib", npz(image=IMAGE, gyro=GYRO, label=LABEL), *options)
    error, given = said.splitlines()
    assert message in error
    assert hint in given


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--calip", "x.npz"), "'--calib'"),
        (("--precision", "in8"), "'in8' is not one of 'auto', 'fp32', 'fp16', 'int8', 'fp8', 'int4'"),
        (("--modality", "image"), "--modality: got 'image', expected INPUT=NAME."),
        (("--state", "=h"), "--state: got '=h', expected IN=OUT."),
        (("second.onnx",), "unexpected extra argument"),
    ],
)
def test_usage_errors_exit_with_2(
    fails: Callable[..., str], model: Path, options: tuple[str, ...], message: str
) -> None:
    said = fails(model, *options, code=2)
    assert message in said
    assert "Usage: edgemm convert" in said


def test_int8_without_data(fails: Callable[..., str], model: Path) -> None:
    said = fails(model, "--precision", "int8")
    assert "quantize.precision is int8 but data.calib is missing" in said
    assert "--calib" in said


def test_int8_that_cannot_be(fails: Callable[..., str], onnx_file: Callable[..., Path], npz: Npz) -> None:
    joined = onnx_file(f"""{HEAD}
    joined (float[batch,4] image, float[batch,3] gyro) => (float[batch,7] y)
    {{ y = Concat<axis=1>(image, gyro) }}""")
    said = fails(joined, "--precision", "int8", "--calib", npz(image=IMAGE, gyro=GYRO))
    assert "int8 was demanded and cannot ship: nothing stays int8: no Conv, Gemm or MatMul" in said
    assert "--precision auto" in said
