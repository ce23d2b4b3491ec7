"""`edgemm profile --layers` and `--scenario` as a user calls them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgemm.profiling import peaks
from edgemm.profiling.report import check


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "SECONDS", 0.01)
    monkeypatch.setattr(peaks, "SIZE", 128)
    monkeypatch.setattr(peaks, "COPIED", 2**20)


def test_layers_as_json(edgemm, fusion_bundle: Path) -> None:
    report = edgemm("profile", fusion_bundle, "--runs", 20, "--batch", 3, "--layers", "--json").json
    assert check(report) == ()
    by_op = {layer["op"]: layer for layer in report["layers"]}
    assert set(by_op) == {"MatMul", "Concat"}
    assert by_op["MatMul"]["flops"] == 2 * 3 * 4 * 3
    assert (by_op["MatMul"]["stage"], by_op["Concat"]["stage"]) == ("image", "fusion")
    assert report["roofline"]["peaks"][0]["label"] == "measured on this machine"
    assert "not the latency" in report["profiled"]["label"]
    assert report["end_to_end"]["runs"] == 20


def test_table_of_the_slowest_layers(edgemm, fusion_bundle: Path) -> None:
    result = edgemm("profile", fusion_bundle, "--runs", 20, "--layers", 1)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    (header,) = (at for at, line in enumerate(lines) if line.startswith("layer "))
    assert lines[header + 2].startswith("1 of 2 layers, ")
    assert "100.0% of it is mapped to no torch module" in result.out
    assert "a run of its own under the engines' profilers: its sum is not the latency" in result.out
    assert "measured on this machine by onnxruntime" in result.out


def test_without_the_option_nothing_is_profiled(edgemm, fusion_bundle: Path) -> None:
    report = edgemm("profile", fusion_bundle, "--runs", 5, "--json").json
    assert not {"layers", "roofline", "profiled", "scenario"} & set(report)


def test_layers_of_a_bare_file_and_of_samples(edgemm, onnx_file, npz) -> None:
    from cli_models import LENGTHS

    model, data = onnx_file(LENGTHS), npz(x=np.ones((4, 30), np.float32))
    report = edgemm("profile", model, "--data", data, "--runs", 5, "--layers", "--json").json
    assert [layer["op"] for layer in report["layers"]] == ["Neg"]
    assert report["layers"][0]["bytes"] == 2 * 4 * 30


def test_layers_where_only_the_base_packages_are(edgemm_on_device, fusion_bundle: Path) -> None:
    result = edgemm_on_device("profile", fusion_bundle, "--runs", 5, "--layers", "--json")
    assert result.code == 0, result.err
    assert {layer["op"] for layer in result.json["layers"]} == {"MatMul", "Concat"}


def test_single_stream(edgemm_process, fusion_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen", reason="needs the loadgen extra")
    logs = tmp_path / "logs"
    asked = ("--scenario", "single-stream", "--seconds", 0.2, "--loadgen-logs", logs, "--json")
    result = edgemm_process("profile", fusion_bundle, *asked)
    assert result.code == 0, result.err
    assert result.err == ""
    assert check(result.json) == ()
    scenario = result.json["scenario"]
    assert (scenario["scenario"], scenario["valid"]) == ("single-stream", True)
    assert scenario["queries"] >= 100
    assert (logs / "mlperf_log_summary.txt").exists()
    again = edgemm_process("profile", fusion_bundle, *asked)
    assert again.code == 1
    assert "has the logs of another run" in again.err
    assert again.out == ""


def test_scenario_as_text(edgemm, fusion_bundle: Path) -> None:
    pytest.importorskip("mlperf_loadgen", reason="needs the loadgen extra")
    result = edgemm("profile", fusion_bundle, "--seconds", 0.2, "--scenario", "offline", "--batch", 4)
    assert result.code == 0, result.err
    assert "offline: VALID · samples per second" in result.out
    assert "not an MLPerf submission" in result.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--loadgen-logs", "x"), "--loadgen-logs is for --scenario"),
        (("--target-qps", 5), "--target-qps is for --scenario server"),
        (("--scenario", "offline", "--target-latency", 5), "--target-latency is for --scenario server"),
        (("--scenario", "multistream"), "'multistream' is not one of"),
        (("--layers", 0), "0 is not in the range"),
    ],
)
def test_options_that_contradict_each_other(edgemm, fusion_bundle: Path, options: tuple, said: str) -> None:
    result = edgemm("profile", fusion_bundle, *options)
    assert result.code == 2
    assert said in result.err


def test_without_loadgen_nothing_is_measured(edgemm, fusion_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    result = edgemm("profile", fusion_bundle, "--scenario", "offline")
    assert result.code == 1
    assert "the package 'mlperf_loadgen' is needed to run an MLPerf scenario" in result.err
    assert "pip install 'edgemm[loadgen]'" in result.err
    assert result.out == ""


def test_engine_without_its_sidecar(edgemm, tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"plan")
    result = edgemm("profile", engine)
    assert result.code == 1
    assert "expected its sidecar 'model.engine.json' beside it, got none" in result.err
    assert "edgemm build" in result.err
