"""`python -m recipes.make`: what is done stays done, what fails ends nothing else, the weakest comes first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes import make as m
from recipes import prepare as p


def record(name: str, ratio: float | None, drop: float = 0.0) -> m.Record:
    accuracy = {"float": 0.9, "variant": 0.9 - drop, "drop": drop, "budget": 0.01}
    latency = {"float_ms": 1.0, "variant_ms": ratio, "ratio": ratio}
    more = {"metric": "metrics.py:f1", "size": {"ratio": 0.5}, "seconds": {"train": None, "convert": 3.0}}
    return {"recipe": name, "accuracy": accuracy, "latency": latency, **more}


def test_weakest_comes_first() -> None:
    records = [record("fast", 0.4), record("unmeasured", None), record("slow", 1.1), {"recipe": "b", "error": "x"}]
    records.append(record("lossy", 0.3, drop=0.02))
    assert [r["recipe"] for r in m.weakest_first(records)] == ["b", "lossy", "slow", "fast", "unmeasured"]


def test_summary_is_of_what_ships() -> None:
    refused = {"refused": "slower than float", "name": "cpu-int8"}
    shipped = {
        "refused": None,
        "name": "cpu",
        "precision": "float",
        "layout": "whole",
        "decisions": {"fp32": 3},
        "accuracy": {
            "metric": "accuracy",
            "samples": 40,
            "float": 2 / 3,
            "variant": 0.5,
            "drop": 1 / 6,
            "budget": 1,
        },
        "latency": {"float_ms": 1.23456, "variant_ms": 1.0, "ratio": 0.81},
        "size_bytes": 50,
    }
    inputs = [{"modality": "text"}, {"modality": "image"}, {"modality": "text"}, {"modality": None}]
    result = {"variants": [refused, shipped], "inputs": inputs, "stages": [{"parameters": 7}, {"parameters": 5}]}
    found = m.summary(result | {"float_size_bytes": 100})
    assert (found["modalities"], found["parameters"]) == (["image", "text"], 12)
    assert found["accuracy"] == {"float": 0.6667, "variant": 0.5, "drop": 0.1667, "budget": 1.0}
    assert found["latency"]["float_ms"] == 1.235
    assert found["size"] == {"float_bytes": 100, "edge_bytes": 50, "ratio": 0.5}
    assert found["refused"] == {"cpu-int8": "slower than float"}


@pytest.fixture
def done(tmp_path: Path) -> m.Work:
    """The recipe imu as if it had been made in `tmp_path`."""
    work = m.Work("imu", tmp_path, tmp_path / "results")
    for folder in (work.bundle, work.results):
        folder.mkdir(parents=True)
    (work.place / "complete").write_text(p.VERSION)
    (work.place / "made_by").write_text(p.training_digest("imu"))
    (work.place / "converted").write_text(work.digest())
    work.record.write_text(json.dumps(record("imu", 0.4) | {"inputs": work.digest()}))
    return work


def test_what_is_done_is_not_done_again(done: m.Work) -> None:
    assert done.finished() == json.loads(done.record.read_text())
    (finished,) = m.make_all([done])
    assert finished["recipe"] == "imu"


@pytest.mark.parametrize("lost", ["converted", "complete", "made_by", "record"])
def test_it_is_done_again_after_a_change(done: m.Work, lost: str) -> None:
    file = done.record if lost == "record" else done.place / lost
    file.write_text('{"inputs": "of another recipe"}')
    assert done.finished() is None


def test_a_record_from_elsewhere_is_not_this_machines_work(done: m.Work) -> None:
    (done.place / "converted").unlink()
    assert done.finished() is None


def test_one_that_fails_ends_no_other(done: m.Work, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = m.Work("imu", tmp_path / "other", tmp_path, p.Way(data_root=tmp_path))
    failed, finished = m.make_all([broken, done])
    assert "'imu' has its own data and reads none from" in failed["error"]
    assert "error" not in finished
    assert "1/2 imu: failed" in capsys.readouterr().err
    assert m.weakest_first([finished, failed])[0] is failed


@pytest.mark.slow
def test_quick_run_goes_to_the_end_and_is_kept_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["imu", "--quick", "--folder", str(tmp_path), "--json"]
    assert m.main(words) == 0
    (made,) = json.loads(capsys.readouterr().out)
    assert made["trained"] == "1 quick"
    assert made["seconds"]["train"] > 0
    assert (tmp_path / "imu" / "imu.edgemm" / "manifest.json").exists()
    assert json.loads((tmp_path / "results" / "imu.json").read_text()) == made
    assert m.main(words[:-1]) == 0
    output = capsys.readouterr()
    assert "done before" in output.err
    assert "accuracy" in output.out
