"""`edgemm profile A --compare B`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from planned_speed import fusion_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return fusion_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def labelled(npz) -> Path:
    random = np.random.default_rng(0)
    image = random.standard_normal((12, 4)).astype(np.float32)
    return npz(image=image, audio=np.zeros((12, 2), np.float32), label=random.integers(0, 5, 12))


def test_slower_fails_the_command(edgemm, pair: dict[str, Path]) -> None:
    result = edgemm("profile", pair["image"], "--compare", pair["plain"], "--runs", 60, "--fail-if", "slower>50%")
    assert result.code == 2, result.err
    assert "A is slower: it takes +" in result.out
    assert "most of it in 'image'" in result.out
    assert "--fail-if slower>50%: fails, A takes +" in result.out
    assert "60 runs of each, interleaved, both opened 6 times" in result.out
    assert "peak memory A " in result.out


def test_every_fact_in_json(edgemm, pair: dict[str, Path], labelled: Path) -> None:
    more = ["--data", labelled, "--label", "label", "--fail-if", "slower>5%,drop>0.1%", "--json"]
    result = edgemm("profile", pair["plain"], "--compare", pair["image"], "--runs", 60, *more)
    assert result.code == 0, result.err
    found = result.json
    assert (found["kind"], found["schema"]) == ("edgemm-latency-comparison", 1)
    assert (found["verdict"], found["mostly"]) == ("faster", "image")
    assert found["ratio"]["low"] <= found["ratio"]["value"] <= found["ratio"]["high"] < 1
    assert [row["name"] for row in found["stages"]] == ["image", "fusion"]
    assert found["stages"][0]["verdict"] == "faster"
    assert found["a"]["end_to_end"]["runs"] == found["b"]["end_to_end"]["runs"] == found["runs"] == 60
    assert found["memory"]["a_mb"] > 1
    assert found["memory"]["b_mb"] > 1
    accuracy = found["accuracy"]
    assert (accuracy["metric"], accuracy["samples"], accuracy["drop"]) == ("accuracy", 12, 0)
    assert accuracy["a"] == accuracy["b"]
    assert [c["fails"] for c in found["fail_if"]] == [False, False]
    assert found["inputs"] == str(labelled)


def test_agreement_needs_no_labels(edgemm, pair: dict[str, Path], labelled: Path) -> None:
    asked = ["--data", labelled, "--metric", "agreement", "--runs", 12]
    result = edgemm("profile", pair["plain"], "--compare", pair["plain"], *asked)
    assert result.code == 0, result.err
    assert "agreement A 100.00%, B 100.00%: no difference on 12 samples" in result.out


def test_a_variant_is_named_behind_a_colon(edgemm, pair: dict[str, Path]) -> None:
    named = f"{pair['plain']}:cpu-fp32"
    assert edgemm("profile", pair["plain"], "--compare", named, "--runs", 6).code == 0
    result = edgemm("profile", pair["plain"], "--compare", f"{pair['plain']}:cpu-int8", "--runs", 6)
    assert result.code == 1
    assert "cpu-int8" in result.err


def saved_report(edgemm, file: Path, folder: Path, **changed: object) -> Path:
    report = edgemm("profile", file, "--runs", 100, "--json").json
    saved = folder / "before.json"
    saved.write_text(json.dumps(report | changed))
    return saved


def test_against_a_saved_report(edgemm, pair: dict[str, Path], tmp_path: Path) -> None:
    saved = saved_report(edgemm, pair["plain"], tmp_path, warnings=["restless machine: of then"])
    result = edgemm("profile", pair["fusion"], "--compare", saved, "--runs", 100, "--fail-if", "slower>5%")
    assert result.code == 2, result.err
    assert "A is slower" in result.out
    assert "most of it in 'fusion'" in result.out
    assert "against a saved report only more than 25% counts" in result.out
    assert "interleaved" not in result.out
    assert "warning: B was measured at another time" in result.err
    assert f"for a finer answer compare both files in one run: --compare {pair['plain']}" in result.err
    assert "warning: B: restless machine: of then" in result.err
    told = edgemm("profile", pair["plain"], "--compare", saved, "--runs", 100, "--json").json
    assert told["interleaved"] is False
    assert told["b"]["report"] == str(saved)
    assert (told["threshold"], told["no_verdict"]) == (0.25, [])


def test_a_saved_report_on_other_inputs_gives_no_verdict(
    edgemm, pair: dict[str, Path], labelled: Path, tmp_path: Path
) -> None:
    saved = saved_report(edgemm, pair["plain"], tmp_path)
    asked = ["--compare", saved, "--data", labelled, "--runs", 100, "--fail-if", "slower>100%"]
    result = edgemm("profile", pair["fusion"], *asked)
    assert result.code == 2, result.err
    assert f"no verdict: inputs: A {labelled}, B random" in result.out
    assert f"--fail-if slower>100%: fails, not compared: inputs: A {labelled}, B random" in result.out
    assert "A is slower" not in result.out
    told = edgemm("profile", pair["fusion"], *asked, "--json").json
    assert (told["verdict"], told["mostly"]) == (None, None)
    assert {row["verdict"] for row in told["stages"]} == {None}


def test_a_file_that_is_no_report(edgemm, pair: dict[str, Path], tmp_path: Path) -> None:
    saved = tmp_path / "other.json"
    saved.write_text('{"kind": "something"}')
    result = edgemm("profile", pair["plain"], "--compare", saved)
    assert result.code == 1
    assert "is no latency report: kind: got 'something'" in result.err


def test_different_models(edgemm, pair: dict[str, Path]) -> None:
    result = edgemm("profile", pair["plain"], "--compare", pair["other"], "--runs", 6)
    assert result.code == 1
    assert "do not take the same inputs" in result.err
    assert "hint:  compare two builds of one model" in result.err


def test_an_unknown_label(edgemm, pair: dict[str, Path], labelled: Path) -> None:
    asked = ["--data", labelled, "--label", "lable"]
    result = edgemm("profile", pair["plain"], "--compare", pair["plain"], *asked)
    assert result.code == 1
    assert "there is no array 'lable'" in result.err
    assert "did you mean 'label'?" in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fail-if", "slower>5%"], "--fail-if is for --compare"),
        (["--label", "label"], "--label is for --compare"),
        (["--compare", "B", "--label", "label"], "--label and --metric need --data"),
        (["--compare", "B.json", "--label", "x", "--data", "d.npz"], "a saved report has no outputs to score"),
        (["--compare", "B", "--html", "x.html"], "--html is about one build"),
        (["--compare", "B", "--budget", "p50<1s"], "--budget is about one build"),
        (["--compare", "B", "--rate", "image=30"], "--rate is about one build"),
        (["--compare", "B", "--fail-if", "drop>1%"], "needs --data, and --label or --metric"),
    ],
)
def test_options_that_contradict_each_other(
    edgemm, pair: dict[str, Path], options: list[str], message: str
) -> None:
    result = edgemm("profile", pair["plain"], *options)
    assert result.code == 2
    assert message in result.err


def test_a_bad_condition_is_said_before_anything_is_opened(edgemm, tmp_path: Path) -> None:
    result = edgemm("profile", tmp_path / "none", "--compare", "B", "--fail-if", "slowr>5%")
    assert result.code == 1
    assert "nothing is called 'slowr'" in result.err
    assert "hint:  did you mean 'slower'?" in result.err
