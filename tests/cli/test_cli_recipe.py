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


@pytest.fixture
def model(onnx_file: Callable[..., Path]) -> Path:
    return onnx_file(PAIR)


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


def test_init_begins_a_recipe_from_raw_samples(
    edgemm: Edgemm, model: Path, npz: Npz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = np.random.default_rng(0).integers(0, 256, (len(GYRO), 2, 2, 3)).astype(np.uint8)
    data = npz(image=pictures, gyro=GYRO, label=LABEL)
    result = edgemm("recipe", "init", model, "--calib", data, "-o", "raw.yaml")
    assert result.code == 0, result.err
    assert "note: These samples are not what the model takes: " in result.out
    assert "'image'" in result.out
    written = Path("raw.yaml").read_text()
    assert "docs/preprocessing.md" in written
    assert yaml.safe_load(written)["data"] == {"calib": data.name, "label": "label"}
    assert edgemm("recipe", "check", "raw.yaml").code == 1
    lost = edgemm("recipe", "init", model, "--calib", "lost.npz", "-o", "lost.yaml")
    assert (lost.code, Path("lost.yaml").exists()) == (1, False)
    assert "lost.npz" in lost.err
