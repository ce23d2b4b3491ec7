"""`edgemm recipe check`: all that is wrong with a recipe, where, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli_convert import GYRO, IMAGE, LABEL, PAIR

Edgemm = Callable[..., Any]
Npz = Callable[..., Path]

BROKEN = """\
model: {path: model.onnx}
quantize:
  precison: int8
  calibrator: mze
evaluate: {max_drop: 0.1, max_drop: -2}
stream: {window: soon}
"""


@pytest.fixture
def model(onnx_file: Callable[..., Path]) -> Path:
    return onnx_file(PAIR)


@pytest.fixture
def calib(npz: Npz) -> Path:
    return npz("c.npz", image=IMAGE, gyro=GYRO, label=LABEL)


def test_check_tells_everything_at_once_with_lines(edgemm: Edgemm, write: Any) -> None:
    path = write(BROKEN)
    result = edgemm("recipe", "check", path)
    assert result.code == 1
    found = [line for line in result.out.splitlines() if not line.startswith(" ")]
    assert found == [
        f"{path}:1:15: model.path: there is no file 'model.onnx'",
        f"{path}:3:3: quantize.precison: there is no such field",
        f"{path}:4:15: quantize.calibrator: got 'mze', expected 'minmax', 'moving-average', 'percentile', "
        "'entropy', 'mse' or 'auto'",
        f"{path}:5:27: evaluate.max_drop: given twice, first in line 5",
        f"{path}:5:37: evaluate.max_drop: got -2, expected a number greater than or equal to 0",
        f"{path}:6:18: stream.window: got 'soon', expected a number or a mapping",
    ]
    assert "    did you mean 'precision'?" in result.out
    told = edgemm("recipe", "check", path, "--json").json
    assert told["ok"] is False
    assert [(p["line"], p["column"]) for p in told["files"][0]["problems"]][1] == (3, 3)


def test_what_is_no_yaml_has_a_line_too(edgemm: Edgemm, write: Any, tmp_path: Path) -> None:
    problem = edgemm("recipe", "check", write("model: [\n"), "--json").json["files"][0]["problems"][0]
    assert problem["line"] == 2
    assert problem["message"].startswith("no readable YAML")


def test_a_model_of_our_recipes_that_is_not_there_says_what_makes_it(edgemm: Edgemm, write: Any) -> None:
    told = edgemm("recipe", "check", write("model: {path: ../.cache/edgemm/fixtures/imu/model.pt2}\n"))
    assert "    `python -m recipes.make imu` makes it" in told.out
    told = edgemm("recipe", "check", write("model: {path: fixtures/imu/model.pt2}\n"))
    assert "    make it, or name another" in told.out


def test_a_recipe_that_is_not_there_or_no_text(
    edgemm: Edgemm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "imu.yaml").write_text("model: {path: m.onnx}\n")
    (tmp_path / "mine.yaml").write_bytes(b"\x89PNG\xff\x00")
    monkeypatch.chdir(tmp_path)
    told = {
        name: edgemm("recipe", "check", name).out.splitlines()
        for name in ("mien.yaml", "imu", "imu.yaml", "recipes", "mine.yaml", "no/way.yaml")
    }
    assert told["mien.yaml"] == ["mien.yaml: no such file", "    did you mean 'mine.yaml'?"]
    assert told["imu"] == ["imu: no such file", "    did you mean 'recipes/imu.yaml'?"]
    assert told["imu.yaml"] == ["imu.yaml: no such file", "    did you mean 'recipes/imu.yaml'?"]
    assert told["recipes"][0] == "recipes: is a folder"
    assert told["mine.yaml"][0] == "mine.yaml: not a text in UTF-8"
    assert told["no/way.yaml"][0] == "no/way.yaml: no such file"
    shown = edgemm("recipe", "show", "imu")
    assert shown.code == 1
    assert "did you mean 'recipes/imu.yaml'?" in shown.err


def test_check_holds_names_against_the_model(edgemm: Edgemm, model: Path, calib: Path, write: Any) -> None:
    path = write(
        "model: {path: model.onnx}\n"
        "inputs:\n  imge: {modality: camera}\n  giro: {modality: gyro}\n"
        "data: {calib: c.npz, label: lable}\n"
        "evaluate: {output: logit}\n"
        "stream: {optional: {gyros: zeros}}\n"
        "target: jetson-orin-nan\n"
        "quantize:\n  rules:\n    - {match: {modality: '*'}, precision: float}\n"
        "    - {match: {op: MatMull}, precision: float}\n"
        "profiles: {btch: [1, 2, 4]}\n"
    )
    result = edgemm("recipe", "check", path, "--json")
    assert result.code == 1
    problems = {(p["line"], p["field"]): p["hint"] for p in result.json["files"][0]["problems"]}
    assert problems == {
        (3, "inputs.imge"): "did you mean 'image'?",
        (4, "inputs.giro"): "did you mean 'gyro'?",
        (5, "data.label"): "did you mean 'label'?",
        (6, "evaluate.output"): "did you mean 'logits'?",
        (7, "stream.optional.gyros"): "did you mean 'gyro'?",
        (8, "target"): "did you mean 'jetson-orin-nano'?",
        (12, "quantize.rules.1"): "did you mean 'MatMul'?",
        (13, "profiles.btch"): "did you mean 'batch'?",
    }
    assert edgemm("recipe", "check", path, "--no-model").code == 0


def test_a_rule_that_no_node_can_follow_is_told(edgemm: Edgemm, model: Path, calib: Path, write: Any) -> None:
    path = write(
        "model: {path: model.onnx}\n"
        "data: {calib: c.npz, label: label}\n"
        "quantize:\n  rules:\n    - {match: {op: MatMul}, precision: int8}\n"
        "    - {match: {op: Concat}, precision: int4-weight}\n"
    )
    result = edgemm("recipe", "check", path)
    assert result.code == 1
    assert result.out.startswith(f"{path}:6:7: quantize.rules.1: the node that it matches cannot be int4-weight ")


def test_wrong_steps_are_told_once_and_hide_no_wrong_names(
    edgemm: Edgemm, model: Path, calib: Path, write: Any
) -> None:
    path = write(
        "model: {path: model.onnx}\n"
        "inputs:\n  gyro:\n    source: gyroo\n    preprocess: [gravity]\n"
        "data: {calib: c.npz, eval: c.npz, label: label}\n"
        "stream: {optional: {gyros: zeros}}\n"
        "quantize: {rules: [{match: {modality: gyroo}, precision: float}]}\n"
    )
    problems = edgemm("recipe", "check", path, "--json").json["files"][0]["problems"]
    assert [(p["line"], p["field"]) for p in problems] == [
        (5, "inputs.gyro.preprocess"),
        (7, "stream.optional.gyros"),
        (8, "quantize.rules.0"),
    ]


def test_check_tells_wrong_fields_and_wrong_names_in_one_pass(
    edgemm: Edgemm, model: Path, calib: Path, write: Any
) -> None:
    path = write(
        "model: {path: model.onnx}\n"
        "inputs:\n  imge: {modality: camera}\n  gyro: {modality: motion, rte: 50}\n"
        "data: {calib: c.npz, label: label, eval_share: 2}\n"
        "evaluate: {output: logit, max_drop: -1}\n"
        "stream: {optional: {gyro: zeros, motion: zeroes}, window: {moton: 1}}\n"
        "quantize:\n  search_seconds: .inf\n  rules: [{match: {op: MatMull}, precision: float}]\n"
        "profile: {cached: [gyro]}\n"
    )
    result = edgemm("recipe", "check", path, "--json")
    problems = {(p["line"], p["field"]): p["hint"] for p in result.json["files"][0]["problems"]}
    assert {key: hint for key, hint in problems.items() if key[1] in ("inputs.gyro.rte", "evaluate.output")} == {
        (4, "inputs.gyro.rte"): "did you mean 'rate'?",
        (6, "evaluate.output"): "did you mean 'logits'?",
    }
    assert list(problems) == [
        (3, "inputs.imge"),
        (4, "inputs.gyro.rte"),
        (5, "data.eval_share"),
        (6, "evaluate.output"),
        (6, "evaluate.max_drop"),
        (7, "stream.optional.gyro"),
        (7, "stream.optional.motion"),
        (7, "stream.window.moton"),
        (9, "quantize.search_seconds"),
        (10, "quantize.rules.0"),
        (11, "profile.cached.0"),
    ]


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("inputs: {gyro: {modality: ''}}\nstream: {optional: {motion: zeros}}\n", ["inputs.gyro.modality"]),
        ("inputs: {gyro: {preprocess: [pmc]}}\ndata: {calib: c.npz}\n", ["inputs.gyro.preprocess.0"]),
        ("inputs: {gyro: {dtype: flot, rate: 1}}\n", ["inputs.gyro.dtype"]),
        ("data: {calib: d.npz}\nevaluate: {metric: f1_macro}\n", ["data.calib"]),
        ("quantize: {precision: int8}\n", [""]),
        (
            "missing: {heads: {alone: none.pt2}}\nstream: {optional: {gyro: 'head:alone'}}\n",
            ["missing.heads.alone"],
        ),
        (
            "about: {task: x}\nquantize: {rules: [{precision: float}]}\n",
            ["about.fusion", "about.data", "quantize.rules.0.match"],
        ),
        ("target: []\nstates: 3\n", ["target", "states"]),
    ],
)
def test_check_tells_nothing_that_only_follows(
    edgemm: Edgemm, model: Path, npz: Npz, write: Any, text: str, fields: list[str]
) -> None:
    """Of what is wrong by itself: a model without its data, a modality that cannot be known."""
    npz("c.npz", image=IMAGE, gyro=GYRO.astype(np.int16), label=LABEL)
    result = edgemm("recipe", "check", write(f"model: {{path: model.onnx}}\n{text}"), "--json")
    assert [p["field"] for p in result.json["files"][0]["problems"]] == fields


def test_check_holds_shapes_against_the_model(edgemm: Edgemm, model: Path, write: Any) -> None:
    text = "model: {path: model.onnx}\ninputs:\n  image: {shape: [batch, 4]}\n  gyro:\n    rate: 50\n    shape: "
    result = edgemm("recipe", "check", write(f"{text}[batch, 5]\n"), "--json")
    (problem,) = result.json["files"][0]["problems"]
    assert (problem["line"], problem["field"]) == (4, "inputs.gyro")
    assert "is declared as gyro[batch,5] float32; the file says gyro[batch,3] float32" in problem["message"]
    assert "--input" not in problem["message"] + problem["hint"]
    assert edgemm("recipe", "check", write(f"{text}[batch, 3]\n")).code == 0


def test_check_holds_heads_against_the_recipe_and_the_model(
    edgemm: Edgemm, model: Path, npz: Npz, write: Any
) -> None:
    text = "model: {path: model.onnx}\nstream: {optional: {gyro: 'head:alone'}}\n"
    told = edgemm("recipe", "check", write(text))
    assert told.code == 1
    assert "'head:alone', which missing.heads does not have" in told.out
    named = f"{text}missing: {{heads: {{alone: model.onnx}}}}\n"
    told = edgemm("recipe", "check", write(named))
    assert told.code == 1
    assert "'alone' is checked with calibration samples, and there are none" in told.out


@pytest.mark.parametrize(
    ("stream", "field", "line"),
    [
        ("optional: {image: zeros,\n    gyro: zeroes}", "stream.optional.gyro", 7),
        ("optional: {image: zeros,\n    gyro: learned}", "stream.optional.gyro", 7),
        ("optional: {image: zeros,\n    gyro: 'head:x'}", "stream.optional.gyro", 7),
        ("optional: {image: zeros,\n    gyro: mean}", "stream.optional.gyro", 7),
        ("window: {image: 1}\n  optional:\n    image: 'constant:nan'", "stream.optional.image", 8),
    ],
)
def test_check_tells_a_fill_at_its_own_line(
    edgemm: Edgemm, model: Path, write: Any, stream: str, field: str, line: int
) -> None:
    inputs = "inputs:\n  image: {modality: image}\n  gyro: {modality: gyro}\n"
    text = f"model: {{path: model.onnx}}\n{inputs}stream:\n  {stream}\n"
    result = edgemm("recipe", "check", write(text), "--json")
    (problem,) = result.json["files"][0]["problems"]
    assert (problem["field"], problem["line"]) == (field, line)


def test_check_runs_no_code_unless_told(edgemm: Edgemm, model: Path, write: Any, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    path = write("model: {path: model.onnx}\nevaluate: {metric: own.py:score}\n")
    result = edgemm("recipe", "check", path)
    assert result.code == 0, result.out
    assert "the metric is not opened: it runs code" in result.out
    assert not (tmp_path / "ran").exists()
    assert edgemm("recipe", "check", path, "--run-code").code == 1  # there is no function `score`
    assert (tmp_path / "ran").exists()
