"""Missing modalities of models that were trained on real data: what each fill costs, and what training gains."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from real_models import edgemm, load

from edgemm.runtime import open_session

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The bundle of the image and audio model with all fills and the report, and its evaluation samples."""
    from benchmarks.fixtures import build

    fixture, bundle = build("av_digits"), tmp_path_factory.mktemp("missing") / "digits.edgemm"
    learn = ("--learn-missing", "image", "--learn-missing", "audio", "--modality-report")
    options = ("-o", str(bundle), "--precision", "int8", "--layout", "staged", "--engine", "onnxruntime")
    done = edgemm("convert", *fixture.arguments, *options, *learn)
    assert done.returncode == 0, done.stderr
    return bundle, fixture.eval


def test_the_report_is_what_streams_give(digits: tuple[Path, Path]) -> None:
    """A stream without a microphone scores what the report says of that case, sample by sample."""
    bundle, samples = digits
    arrays = load(samples)
    report = json.loads((bundle / "report" / "modalities.json").read_text())
    assert report["samples"] == len(arrays["label"])
    scores = {(tuple(r["missing"]), r["fill"]): r["scores"] for r in report["rows"]}
    variant = report["sessions"][1]
    with open_session(bundle) as session:
        for modality, fill in (("audio", "mean"), ("image", "mean"), ("audio", "zeros")):
            present = "image" if modality == "audio" else "audio"
            right = 0
            with session.stream(trigger=present, optional={modality: fill}) as stream:
                for sample, label in zip(arrays[present], arrays["label"], strict=True):
                    stream.push(present, sample)
                    result = stream.poll()
                    assert result is not None
                    assert dict(result.filled) == {modality: fill}
                    right += int(result.outputs["logits"].argmax()) == label
            assert right / len(arrays["label"]) == pytest.approx(scores[(modality,), fill][variant], abs=0.003)


def test_every_fill_is_worse_than_a_sample_and_the_best_is_no_guess(digits: tuple[Path, Path]) -> None:
    report = json.loads((digits[0] / "report" / "modalities.json").read_text())
    for name in report["sessions"]:
        pairs = [(r["missing"], r["scores"][name]) for r in report["rows"]]
        complete, *rows = [pair for pair in pairs if pair[1] is not None]  # trained for int8 is not for float
        assert all(score < complete[1] for _, score in rows)
        for modality in report["modalities"]:
            assert max(score for missing, score in rows if missing == [modality]) > 0.5
        nothing = [score for missing, score in rows if len(missing) == 2]
        assert np.max(nothing) < 0.2


def test_what_is_trained_is_better_than_the_mean(digits: tuple[Path, Path]) -> None:
    report = json.loads((digits[0] / "report" / "modalities.json").read_text())
    variant = report["sessions"][1]
    scores = {(tuple(r["missing"]), r["fill"]): r["scores"][variant] for r in report["rows"]}
    for modality in report["modalities"]:
        assert scores[(modality,), "learned"] > scores[(modality,), "mean"]
