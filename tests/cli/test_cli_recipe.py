"""`edgemm recipe`: what is listed, shown, checked and begun, and what each says to bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import yaml
from cli_models import STREAM
from test_cli_convert import GYRO, IMAGE, LABEL, PAIR
from test_cli_help import help_text

from edgemm.cli.recipe import VERBS, recipe
from edgemm.preprocess.registry import STEPS
from edgemm.recipe import Recipe, load_recipe

Edgemm = Callable[..., Any]
Npz = Callable[..., Path]
GOLDEN = Path(__file__).parent / "golden"

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
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe file."""

    def call(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return call


# -- help ---------------------------------------------------------------------------------------------------------


def test_help_is_the_manual() -> None:
    """After a deliberate change: `EDGEMM_UPDATE_GOLDEN=1`, and read the diff."""
    import os

    context = click.Context(
        recipe, info_name="edgemm recipe", terminal_width=88, help_option_names=["-h", "--help"]
    )
    parts = [help_text("recipe")]
    for verb in VERBS:
        command = recipe.get_command(context, verb)
        assert command is not None
        child = click.Context(
            command, parent=context, info_name=verb, terminal_width=88, help_option_names=["-h", "--help"]
        )
        parts.append(command.get_help(child) + "\n")
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert (parameter.help or "").endswith("."), (verb, parameter.name)
        assert f"edgemm recipe {verb}" in (command.epilog or "")
    path, text = GOLDEN / "help_recipe.txt", "\n".join(parts)
    if os.environ.get("EDGEMM_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_mistyped_verbs_are_answered(edgemm: Edgemm) -> None:
    assert "did you mean 'check'?" in edgemm("recipe", "chek").err
    assert "did you mean `edgemm recipe show mine.yaml`?" in edgemm("recipe", "mine.yaml").err


# -- list ---------------------------------------------------------------------------------------------------------


def test_list_tells_what_each_shows_and_warns_of_what_is_broken(
    edgemm: Edgemm, write: Any, tmp_path: Path
) -> None:
    write(
        "about: {task: mood of 3, fusion: gate, data: tweets, synthetic: true}\nmodel: {path: m.pt2}\n"
        "inputs: {ids: {modality: text}, mask: {modality: text}, image: {modality: image}}\n",
        "mood.yaml",
    )
    write("model: {pth: m.pt2}\n", "other.yaml")
    result = edgemm("recipe", "list", tmp_path)
    assert result.code == 0
    header, first, second = result.out.splitlines()
    assert header.split() == ["name", "task", "modalities", "fusion", "data"]
    assert [cell.strip() for cell in first.split("  ") if cell] == [
        *("mood", "mood of 3", "text, image", "gate", "tweets (synthetic)")
    ]
    assert second.split() == ["other", "-", "-", "-", "-"]
    assert "other.yaml:1:" in result.err
    rows = edgemm("recipe", "list", tmp_path, "--json").json["recipes"]
    assert [row["name"] for row in rows] == ["mood", "other"]
    assert (rows[0]["modalities"], rows[0]["error"]) == (["text", "image"], None)


def test_a_folder_without_recipes_is_an_error(edgemm: Edgemm, tmp_path: Path) -> None:
    assert "there is no recipe (*.yaml)" in edgemm("recipe", "list", tmp_path).err
    assert "there is no folder" in edgemm("recipe", "list", tmp_path / "none").err


# -- show and schema ----------------------------------------------------------------------------------------------


def test_what_is_shown_is_the_same_recipe(edgemm: Edgemm, write: Any, tmp_path: Path) -> None:
    path = write(
        "model: {path: m.pt2}\ninputs: {a: {modality: x, blank: {silence: 1e-3}}}\n"
        "quantize: {rules: [{match: {op: Conv}, precision: float}]}\nstream: {optional: {x: mean}}\n"
    )
    result = edgemm("recipe", "show", path, "--set", "evaluate.max_drop=0.5", "--set", "target=[cpu, rtx-ada]")
    assert result.code == 0, result.err
    again = load_recipe(write(result.out, "again.yaml"))
    given = {"evaluate": {"max_drop": 0.5}, "target": ["cpu", "rtx-ada"]}
    assert again == load_recipe(path, given)
    assert "  # Largest loss of the metric that may ship.\n  max_drop: 0.5\n" in result.out
    shown = edgemm("recipe", "show", path, "--json").json
    assert shown["evaluate"]["max_drop"] == 0.01
    assert shown["model"]["path"] == str(tmp_path / "m.pt2")


def test_what_is_shown_converts_from_wherever_it_is_saved(
    edgemm: Edgemm, model: Path, npz: Npz, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npz("c.npz", image=IMAGE, gyro=GYRO, label=LABEL)
    np.save(tmp_path / "quiet.npy", GYRO[0])
    write("model: {path: model.onnx}\ndata: {label: label}\ninputs: {gyro: {blank: {file: quiet.npy}}}\n")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    show = ("recipe", "show", "mine.yaml", "--set", "data.calib=c.npz")
    Path("other/printed.yaml").write_text(edgemm(*show).out)
    assert edgemm(*show, "-o", "other/written.yaml").code == 0
    written = Path("other/written.yaml").read_text()
    assert yaml.safe_load(written)["model"]["path"] == "../model.onnx"
    assert "# mine.yaml with every default; paths are relative to this file." in written
    monkeypatch.chdir(tmp_path.parent)
    for name in ("printed.yaml", "written.yaml"):
        checked = edgemm("recipe", "check", tmp_path / "other" / name)
        assert checked.code == 0, checked.out
        recipe = load_recipe(tmp_path / "other" / name)
        assert recipe.data.calib is not None
        assert (Path(recipe.data.calib).resolve(), recipe.data.label) == (tmp_path / "c.npz", "label")
    assert "exists" in edgemm(*show[:2], tmp_path / "mine.yaml", "-o", tmp_path / "mine.yaml").err
    assert edgemm(*show[:2], tmp_path / "mine.yaml", "-o", tmp_path / "x.yaml", "--json").code == 2


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("evaluate.maxdrop=1", "--set evaluate.maxdrop: there is no field 'evaluate.maxdrop'", "'max_drop'"),
        ("max_drop=1", "there is no field 'max_drop'", "did you mean 'evaluate.max_drop'?"),
        ("evaluate.max_drop", "got no key and value", "write KEY=VALUE"),
        ("evaluate.max_drop=-1", "options: evaluate.max_drop: got -1, expected a number", "may ship"),
        ("target=[cpu", "'[cpu' is no YAML value", "dotted key"),
    ],
)
def test_set_names_what_was_meant(edgemm: Edgemm, write: Any, text: str, message: str, hint: str) -> None:
    result = edgemm("recipe", "show", write("model: {path: m.pt2}\n"), "--set", text)
    assert result.code == 1
    error, given = result.err.splitlines()
    assert message in error
    assert hint in given


def test_set_reaches_convert_and_plan(edgemm: Edgemm, model: Path) -> None:
    for verb in ("convert", "plan"):
        assert "no target 'jetson-x'" in edgemm(verb, model, "--set", "target=jetson-x").err
        assert "did you mean 'quantize.rules'?" in edgemm(verb, model, "--set", "rules=[]").err


@pytest.mark.slow
def test_set_reaches_a_conversion(edgemm: Edgemm, model: Path, npz: Npz, tmp_path: Path) -> None:
    out = tmp_path / "out.edgemm"
    sets = ("--set", "threads=1", "--set", "inputs.image.modality=camera", "--set", "quantize.precision=fp32")
    result = edgemm("convert", model, "--calib", npz(image=IMAGE, gyro=GYRO), *sets, "-o", out, "--json")
    assert result.code == 0, result.err
    assert [i["modality"] for i in result.json["inputs"]] == ["camera", "gyro"]
    assert json.loads((out / "recipe.json").read_text())["threads"] == 1


def test_the_schema_is_written_for_editors(edgemm: Edgemm, tmp_path: Path) -> None:
    path = tmp_path / "recipe.schema.json"
    assert "# yaml-language-server: $schema=recipe.schema.json" in edgemm("recipe", "schema", "-o", path).out
    schema = json.loads(path.read_text())
    assert schema == edgemm("recipe", "schema").json
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False
    _, one = schema["$defs"]["InputSection"]["properties"]["preprocess"]["anyOf"][0]["items"]["anyOf"]
    assert set(one["properties"]) == set(STEPS)
    assert one["properties"]["center_crop"]["required"] == ["size"]
    assert one["properties"]["nv12_to_rgb"]["properties"]["full_range"] == {"default": False, "type": "boolean"}
    assert "exists" in edgemm("recipe", "schema", "-o", path).err


# -- check --------------------------------------------------------------------------------------------------------


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


def test_check_holds_names_against_the_model(edgemm: Edgemm, model: Path, npz: Npz, write: Any) -> None:
    npz("c.npz", image=IMAGE, gyro=GYRO, label=LABEL)
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


def test_wrong_steps_are_told_once_and_hide_no_wrong_names(
    edgemm: Edgemm, model: Path, npz: Npz, write: Any
) -> None:
    npz("c.npz", image=IMAGE, gyro=GYRO, label=LABEL)
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
    edgemm: Edgemm, model: Path, npz: Npz, write: Any
) -> None:
    npz("c.npz", image=IMAGE, gyro=GYRO, label=LABEL)
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


# -- init ---------------------------------------------------------------------------------------------------------


def test_init_writes_what_the_model_tells(edgemm: Edgemm, model: Path, npz: Npz, tmp_path: Path) -> None:
    data, path = npz("c.npz", image=IMAGE, gyro=GYRO, label=LABEL), tmp_path / "recipes" / "mine.yaml"
    path.parent.mkdir()
    result = edgemm("recipe", "init", model, "--calib", data, "-o", path)
    assert result.code == 0, result.err
    assert result.out.splitlines()[0] == "image: image (its own modality)"
    assert yaml.safe_load(path.read_text()) == {
        "model": {"path": "../model.onnx"},
        "inputs": {
            "image": {"modality": "image", "shape": ["batch", 4]},
            "gyro": {"modality": "gyro", "shape": ["batch", 3]},
        },
        "data": {"calib": "../c.npz", "label": "label"},
        "evaluate": {"metric": "accuracy"},
    }
    checked = edgemm("recipe", "check", path)
    assert (checked.code, checked.out) == (0, f"{path}: ok (modalities image, gyro; stages fusion)\n")
    assert "exists" in edgemm("recipe", "init", model, "-o", path).err
    assert "is a recipe already" in edgemm("recipe", "init", path, "-o", tmp_path / "x.yaml").err


def test_everything_that_init_comments_out_is_a_default(
    edgemm: Edgemm, model: Path, npz: Npz, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    assert edgemm("recipe", "init", model, "-o", path).code == 0
    lines = path.read_text().splitlines()
    live = [line[1:] if re.match(r"#(  )*\w", line) else line for line in lines]
    skipped = ("about:", "  task:", "  fusion:", "  data:", "  synthetic:", "  source:", "  title:")
    raw = ("    raw:", "      dtype:", "      shape:")
    live = [line for line in live if not line.startswith((*skipped, *raw))]  # both have fields without a default
    (tmp_path / "all.yaml").write_text("\n".join(live))
    assert load_recipe(tmp_path / "all.yaml") == load_recipe(path)
    named = {line.strip().partition(":")[0] for line in live if ":" in line and not line.strip().startswith("#")}
    assert {name for name in Recipe.model_fields if name != "about"} <= named


def test_init_tells_states_and_arrays_that_are_no_inputs(
    edgemm: Edgemm, onnx_file: Callable[..., Path], npz: Npz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    result = edgemm("recipe", "init", onnx_file(STREAM), "--calib", npz(x=rows, extra=rows))
    assert result.code == 0, result.err
    assert yaml.safe_load(Path("model.yaml").read_text())["states"] == {"h": "h_out"}
    assert "Arrays that are no inputs: extra." in Path("model.yaml").read_text()
    assert edgemm("recipe", "check", "model.yaml").code == 0


@pytest.mark.slow
def test_what_init_writes_converts_as_it_is(
    edgemm: Edgemm, model: Path, npz: Npz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = npz(image=IMAGE, gyro=GYRO, label=LABEL)
    assert edgemm("recipe", "init", model, "--calib", data).code == 0
    converted = edgemm("convert", "model.yaml", "--json")
    assert converted.code == 0, converted.err
    assert converted.json["bundle"] == "model.edgemm"
