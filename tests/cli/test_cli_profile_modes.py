"""Modes, files and what is told of the machine, as a user of `edgemm profile` sees them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from cli_models import LENGTHS

from edgemm.profiling.report import check


def test_json_follows_its_schema(edgemm, fusion_bundle: Path) -> None:
    result = edgemm("profile", fusion_bundle, "--runs", 100, "--json")
    report = result.json
    assert check(report) == ()
    assert (report["schema"], report["kind"]) == (1, "edgemm-latency-report")
    assert report["cold_start_ms"] == pytest.approx(report["load_ms"] + report["first_call_ms"])
    assert report["warmup"] == report["steady"]["runs"] >= 20
    assert set(report["end_to_end"]["intervals"]) == {"p50", "p90"}
    assert sum(report["end_to_end"]["histogram"]["counts"]) == 100
    assert report["created"].endswith("+00:00")


def test_every_mode_has_a_row(edgemm, fusion_bundle: Path) -> None:
    arguments = ("profile", fusion_bundle, "--runs", 100, "--rate", "image=400,audio=200", "--cached", "image")
    result = edgemm(*arguments)
    assert result.code == 0, result.err
    rows = {line.split("  ")[0] for line in result.out.splitlines()}
    assert {"image", "fusion", "end to end", "paced", "cached image"} <= rows
    assert "paced: image 400 Hz, audio 200 Hz, from the arrival of image to the output" in result.out
    assert "of 100 deadlines of 2.5 ms missed" in result.out
    assert "cached image: new in each call: audio; image not run; not comparable" in result.out
    assert "no --rate for" not in result.out
    report = edgemm(*arguments, "--json").json
    assert check(report) == ()
    assert [mode["label"] for mode in report["modes"]] == ["back to back", "paced", "cached image"]


def test_seconds_bound_the_paced_mode(edgemm, fusion_bundle: Path) -> None:
    report = edgemm("profile", fusion_bundle, "--seconds", 0.2, "--rate", "audio=100", "--json").json
    assert report["modes"][1]["deadlines"] == 20
    assert "paced: no --rate for image: a new sample with every one of audio" in report["warnings"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--rate", "image"), 2, "got 'image', expected MODALITY=HZ"),
        (("--rate", "image=fast"), 2, "got 'image=fast', expected MODALITY=HZ"),
        (("--rate", "image=3,image=4"), 2, "'image' is given twice"),
        (("--rate", "imag=3"), 1, "did you mean 'image'?"),
        (("--rate", "image=-3"), 1, "expected a number above 0"),
        (("--cached", "audi"), 1, "did you mean 'audio'?"),
        (("--cached", "audio,image"), 1, "no modality is left that changes"),
    ],
)
def test_wrong_modes(edgemm, fusion_bundle: Path, arguments: tuple[str, str], code: int, message: str) -> None:
    result = edgemm("profile", fusion_bundle, "--runs", 5, *arguments)
    assert result.code == code
    assert message in result.err
    assert result.out == ""


def test_one_engine_has_nothing_to_reuse(edgemm, onnx_file) -> None:
    two = LENGTHS.replace("(float[batch,time] x)", "(float[batch,time] x, float[batch,time] z)").replace(
        "Neg(x)", "Add(x, z)"
    )
    result = edgemm("profile", onnx_file(two), "--runs", 5, "--cached", "x")
    assert result.code == 1
    assert "--cached x: the whole model is one engine" in result.err


def test_samples_tell_whether_time_depends_on_the_input(edgemm, fusion_bundle: Path, npz) -> None:
    data = npz(image=np.ones((5, 4), np.float32), audio=np.ones((5, 2), np.float32))
    result = edgemm("profile", fusion_bundle, "--data", data, "--runs", 20)
    assert "ms between samples" in result.out
    assert "(5 samples, 30 times each)" in result.out
    assert "between samples" not in edgemm("profile", fusion_bundle, "--runs", 20).out


def test_percentiles_come_with_their_intervals(edgemm, fusion_bundle: Path) -> None:
    enough = edgemm("profile", fusion_bundle, "--runs", 100).out
    (line,) = [line for line in enough.splitlines() if line.startswith("95 % intervals end to end: p50 ")]
    assert " · p90 " in line
    assert "p95" not in line
    assert "intervals" not in edgemm("profile", fusion_bundle, "--runs", 5).out


def test_what_modalities_take(edgemm, fusion_bundle: Path) -> None:
    out = edgemm("profile", fusion_bundle, "--runs", 20).out
    assert "per modality: image " in out
    assert "image + audio " in out
    assert "critical path image → fusion" in out


def test_files_of_every_run(edgemm, fusion_bundle: Path, tmp_path: Path) -> None:
    table, trace = tmp_path / "runs.csv", tmp_path / "trace.json"
    result = edgemm("profile", fusion_bundle, "--runs", 7, "--csv", table, "--trace", trace)
    assert result.code == 0, result.err
    rows = list(csv.DictReader(table.open()))
    assert [row["stage"] for row in rows] == ["end to end", "image", "fusion"] * 7
    events = json.loads(trace.read_text())["traceEvents"]
    assert sum(event["name"] == "inference" for event in events) == 7


@pytest.mark.parametrize("option", ["--csv", "--trace"])
def test_files_are_not_replaced_unless_asked(edgemm, fusion_bundle: Path, tmp_path: Path, option: str) -> None:
    file = tmp_path / "kept"
    file.write_text("mine")
    result = edgemm("profile", fusion_bundle, "--runs", 5, option, file)
    assert result.code == 1
    assert "exists" in result.err
    assert "--force" in result.err
    assert file.read_text() == "mine"
    assert edgemm("profile", fusion_bundle, "--runs", 5, option, file, "--force").code == 0
    assert file.read_text() != "mine"


def test_no_file_of_a_measurement_that_fails(edgemm, onnx_file, tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    before = set(tmp_path.iterdir())
    model = onnx_file(LENGTHS)
    result = edgemm("profile", model, "--dim", "tim=40", "--csv", file)
    assert result.code == 1
    assert set(tmp_path.iterdir()) - before == {model}


def test_one_file_cannot_be_two(edgemm, fusion_bundle: Path, tmp_path: Path) -> None:
    result = edgemm("profile", fusion_bundle, "--csv", tmp_path / "x", "--trace", tmp_path / "x")
    assert result.code == 2
    assert "the same file" in result.err


@pytest.mark.parametrize("option", ["--csv", "--trace", "--html"])
def test_what_is_read_is_not_written(edgemm, fusion_bundle: Path, onnx_file, npz, option: str) -> None:
    model, data = onnx_file(LENGTHS), npz(x=np.ones((4, 30), np.float32))
    asked = [
        (fusion_bundle, fusion_bundle / "x", ()),
        (fusion_bundle, fusion_bundle / "manifest.json", ()),
        (model, model, ()),
        (model, data, ("--data", data)),
    ]
    for file, output, more in asked:
        before = output.read_bytes() if output.exists() else None
        result = edgemm("profile", file, "--runs", 2, *more, option, output, "--force")
        assert result.code == 1
        assert "which is read" in result.err
        assert (output.read_bytes() if output.exists() else None) == before
    assert edgemm("profile", fusion_bundle, "--runs", 2).code == 0


def test_energy_is_told_or_why_not(edgemm, fusion_bundle: Path) -> None:
    report = edgemm("profile", fusion_bundle, "--runs", 5, "--json").json
    energy = report["resources"]["energy"]
    assert energy.get("unavailable") or energy["per_inference_mj"] > 0
    assert "energy " in edgemm("profile", fusion_bundle, "--runs", 5).out


def test_profile_runs_on_a_device(edgemm_on_device, fusion_bundle: Path, tmp_path: Path) -> None:
    result = edgemm_on_device(
        "profile", fusion_bundle, "--runs", 5, "--rate", "image=100", "--trace", tmp_path / "t.json", "--json"
    )
    assert result.code == 0, result.err
    assert check(result.json) == ()
