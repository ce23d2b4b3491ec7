from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from cli_models import LENGTHS, onnx_bytes

from edgemm.cli._feeds import data_feeds
from edgemm.data import open_samples
from edgemm.runtime import open_session
from edgemm.runtime.latency import samples_needed

FIXED = '<ir_version: 10, opset_import: ["": 20]>\nfixed (float[4,3] x) => (float[4,3] y) { y = Neg(x) }'


def test_every_fact_in_json(edgemm_process, fusion_bundle: Path, npz) -> None:
    data = npz(image=np.ones((10, 4), np.float32), audio=np.ones((10, 2), np.float32))
    result = edgemm_process("profile", fusion_bundle, "--data", data, "--runs", 100, "--threads", 1, "--json")
    assert result.code == 0, result.err
    assert result.err == ""
    report = result.json
    assert (report["variant"], report["backend"]) == ("cpu-fp32", "onnxruntime")
    assert report["backend_version"] == onnxruntime.__version__
    assert (report["runs"], report["threads"], report["batch"]) == (100, 1, 1)
    assert (report["samples"], report["of_samples"]) == (10, 10)
    assert [s["name"] for s in report["stages"]] == ["image", "fusion"]
    total = report["end_to_end"]
    assert 0 < total["p50_ms"] <= total["p90_ms"] <= total["max_ms"]
    assert total["p99_ms"] is None
    assert total["needs"]["p99"] == samples_needed(99) == 662
    assert all(stage["runs"] == 100 and stage["p50_ms"] > 0 for stage in report["stages"])
    assert sum(s["share"] for s in report["stages"]) <= 1
    assert report["sum_of_stages_p50_ms"] < total["p50_ms"]
    assert 0 < report["overhead_p50_ms"] < total["p50_ms"]
    assert report["load_ms"] > 0
    assert report["first_call_ms"] > 0
    assert report["peak_memory_mb"] >= report["baseline_memory_mb"] > 1
    assert report["machine"]["cores"] >= 1


def test_text_says_what_few_runs_cannot(edgemm, fusion_bundle: Path) -> None:
    result = edgemm("profile", fusion_bundle, "--runs", 100, "--warmup", 20)
    assert result.code == 0, result.err
    assert "batch 1 · 100 runs after 20 to warm up · back to back · random inputs" in result.out
    lines = {line.split("  ")[0]: line for line in result.out.splitlines()}
    assert {"image", "fusion", "end to end"} <= set(lines)
    assert "needs 662 runs" in lines["end to end"]
    assert "needs 6,636 runs" in lines["end to end"]
    assert "edgemm takes" in result.out
    assert "peak memory" in result.out
    assert "\x1b" not in result.out


def test_preprocessing_on_the_host_is_named(edgemm, raw_bundle: Path) -> None:
    result = edgemm("profile", raw_bundle, "--runs", 20, "--warmup", 2)
    assert result.code == 0, result.err
    assert "ms; preprocessing on the host and what lies between them take" in result.out
    assert "edgemm takes" not in result.out


def test_enough_runs_give_the_percentile(edgemm, fusion_bundle: Path) -> None:
    report = edgemm("profile", fusion_bundle, "--runs", 700, "--json").json
    assert report["end_to_end"]["p99_ms"] is not None
    assert set(report["end_to_end"]["needs"]) == {"p99.9"}


def test_seconds(edgemm, fusion_bundle: Path) -> None:
    report = edgemm("profile", fusion_bundle, "--seconds", 0.2, "--json").json
    total = report["end_to_end"]
    assert total["runs"] * total["mean_ms"] <= 400


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1"])
def test_seconds_end(edgemm, fusion_bundle: Path, seconds: str) -> None:
    result = edgemm("profile", fusion_bundle, "--seconds", seconds)
    assert result.code == 2
    assert "--seconds" in result.err


def test_runs_and_seconds_exclude_each_other(edgemm, fusion_bundle: Path) -> None:
    result = edgemm("profile", fusion_bundle, "--seconds", 1, "--runs", 5)
    assert result.code == 2
    assert "not both" in result.err


def test_state_is_kept(edgemm, stream_bundle: Path) -> None:
    result = edgemm("profile", stream_bundle, "--runs", 5)
    assert result.code == 0, result.err
    assert "state kept between runs, in the end h [1,2]" in result.out
    assert edgemm("profile", stream_bundle, "--runs", 5, "--batch", 2).code == 1


def test_growing_state_is_shown_and_can_be_reset(edgemm, cache_bundle: Path) -> None:
    grown = edgemm("profile", cache_bundle, "--runs", 10, "--warmup", 20, "--json").json
    assert grown["states"] == {"past": [1, 31, 2]}  # the first call, 20 to warm up, 10 measured
    short = edgemm("profile", cache_bundle, "--runs", 10, "--reset-every", 4, "--json").json
    assert short["states"]["past"][1] <= 4


def test_bare_onnx_with_a_named_size(edgemm, onnx_file) -> None:
    model = onnx_file(LENGTHS)
    assumed = edgemm("profile", model, "--runs", 5)
    assert "random inputs, with time=16 assumed (set with --dim)" in assumed.out
    report = edgemm("profile", model, "--runs", 5, "--dim", "time=40", "--batch", 3, "--json").json
    assert report["dims"] == {"batch": 3, "time": 40}
    assert report["assumed_dims"] == []
    assert [s["name"] for s in report["stages"]] == ["model"]


def test_unknown_dimension(edgemm, onnx_file) -> None:
    result = edgemm("profile", onnx_file(LENGTHS), "--dim", "tim=40")
    assert result.code == 1
    assert "--dim tim: no input has a dimension of this name (there are: batch, time)" in result.err
    assert "did you mean 'time'?" in result.err


@pytest.mark.parametrize("text", ["time", "time=", "time=x", "=4", "time=0"])
def test_malformed_dimension(edgemm, onnx_file, text: str) -> None:
    result = edgemm("profile", onnx_file(LENGTHS), "--dim", text)
    assert result.code == 2
    assert "expected NAME=SIZE" in result.err


def test_fixed_batch_is_its_own_default(edgemm, tmp_path: Path) -> None:
    model = tmp_path / "fixed.onnx"
    model.write_bytes(onnx_bytes(FIXED))
    result = edgemm("profile", model, "--runs", 5, "--json")
    assert result.code == 0, result.err


def test_samples_are_cycled(fusion_bundle: Path, npz) -> None:
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    samples = open_samples(str(npz(image=image, audio=np.zeros((3, 2), np.float32))))
    with open_session(fusion_bundle) as session:
        feeds = data_feeds(session.io, samples, 2)
    np.testing.assert_array_equal(feeds[0]["image"], image[[0, 1]])
    np.testing.assert_array_equal(feeds[1]["image"], image[[2, 0]])


@pytest.mark.parametrize(("name", "content"), [("broken.onnx", b"\x08\x0anonsense"), ("empty.onnx", b"")])
def test_no_model(edgemm, tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    result = edgemm("profile", path, "--runs", 5)
    assert result.code == 1
    assert name in result.err


def test_what_must_be_converted_first(edgemm, tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"PK")
    result = edgemm("profile", tmp_path / "net.pt2")
    assert result.code == 1
    assert "got a '.pt2' file, expected a bundle, an .onnx file, or a TensorRT engine" in result.err
    assert "edgemm convert net.pt2" in result.err
    result = edgemm("profile", tmp_path / "net.pt")
    assert "did you mean 'net.pt2'?" in result.err


def test_weights_beside_the_model_are_not_overwritten(edgemm, onnx_file) -> None:
    model = onnx_file(LENGTHS)
    weights = model.with_name(f"{model.name}.data")
    weights.write_bytes(b"weights")
    result = edgemm("profile", model, "--runs", 3, "--csv", weights, "--force")
    assert result.code == 1
    assert "which is read" in result.err
    assert weights.read_bytes() == b"weights"


def test_missing_file(edgemm, tmp_path: Path) -> None:
    result = edgemm("profile", tmp_path / "none.edgemm")
    assert result.code == 1
    assert "no such file or bundle" in result.err
