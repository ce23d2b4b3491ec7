"""Missing modalities on the command line: convert --modality-report, --learn-missing, and what inspect shows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from cli_models import HEAD, onnx_bytes

MODEL = f"""{HEAD}
pair (float[batch,2] image, float[batch,2] audio) => (float[batch,2] logits)
{{ f = Tanh(image)  g = Tanh(audio)  logits = Add(f, g) }}"""


@pytest.fixture
def arguments(tmp_path: Path) -> list[object]:
    """What follows `edgemm convert`."""
    (tmp_path / "pair.onnx").write_bytes(onnx_bytes(MODEL))
    random = np.random.default_rng(0)
    for name in ("calib", "eval"):
        arrays = {n: random.standard_normal((40, 2)).astype(np.float32) for n in ("image", "audio")}
        label = (np.tanh(arrays["image"]) + np.tanh(arrays["audio"])).argmax(1)
        np.savez(tmp_path / f"{name}.npz", label=label, **arrays)
    data = ["--calib", tmp_path / "calib.npz", "--eval", tmp_path / "eval.npz", "--label", "label"]
    output = ["-o", tmp_path / "pair.edgemm", "--precision", "fp32", "--layout", "staged"]
    return [tmp_path / "pair.onnx", *data, *output, "--engine", "onnxruntime"]


def test_the_table_and_what_inspect_shows(edgemm, arguments, tmp_path: Path) -> None:
    told = edgemm("convert", *arguments, "--modality-report", "--blank", "audio=constant:1")
    assert told.code == 0, told.err
    table = told.out[told.out.index("accuracy by missing modality, 40 evaluation samples") :].splitlines()
    assert table[1].split() == ["missing", "fill", "float", "cpu-fp32"]
    assert table[2].split() == ["nothing", "100.00%", "100.00%"]
    assert [line.split()[:2] for line in table[3:8]] == [
        ["image", "zeros"],
        ["image", "mean"],
        ["audio", "zeros"],
        ["audio", "blank"],
        ["audio", "mean"],
    ]
    assert re.search(r"^missing +cpu-fp32: mean embeddings of image, audio$", told.err, re.MULTILINE)
    shown = edgemm("inspect", tmp_path / "pair.edgemm")
    assert "missing  image: blank, mean (cpu-fp32)" in shown.out
    assert "missing  audio: blank, mean (cpu-fp32)" in shown.out
    assert [s["fill"] for s in edgemm("inspect", tmp_path / "pair.edgemm", "--json").json["stand_ins"]] == [
        *("blank", "blank"),
        *("mean", "mean"),
    ]


def test_json_has_the_report(edgemm, arguments) -> None:
    told = edgemm("convert", *arguments, "--modality-report", "--json")
    assert told.code == 0, told.err
    assert {tuple(r["missing"]) for r in told.json["modalities"]["rows"]} == {
        (),
        ("image",),
        ("audio",),
        ("image", "audio"),
    }


def test_the_recipes_policy_is_shown(edgemm, arguments, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    stream = "{trigger: 10, optional: {audio: mean, image: last}, max_age: {audio: 0.5}, drop: block}"
    recipe.write_text(f"model: {{path: pair.onnx}}\nstream: {stream}\n")
    told = edgemm("convert", recipe, *arguments[1:])
    assert told.code == 0, told.err
    shown = edgemm("inspect", tmp_path / "pair.edgemm")
    assert "stream   drop block · max_age audio 0.5 · optional audio mean, image last · trigger 10" in shown.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--learn-missing", "sound"], "missing.learn: there is no modality 'sound' (modalities: image, audio)"),
        (["--learn-missing", "audi"], "did you mean 'audio'?"),
        (["--learn-missing", "audio", "--layout", "whole"], "the layout 'whole' has one engine"),
    ],
)
def test_what_cannot_be_is_said(edgemm, arguments, tmp_path: Path, options: list[str], message: str) -> None:
    told = edgemm("convert", *arguments, *options)
    assert told.code == 1
    assert message in told.err
    assert not (tmp_path / "pair.edgemm").exists()
