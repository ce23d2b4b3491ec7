"""Layers and MLPerf scenarios of trained models: what torch itself counts and calls them, by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from real_models import Convert, Converted, edgemm, load
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgemm.profiling.report import check

pytestmark = pytest.mark.slow

TRAINED = ("imu", "av_digits", "av_gru", "av_attention")


def profiled(made: Converted, *options: str) -> dict[str, Any]:
    data = ("--data", str(made.fixture.eval), "--runs", "20", "--warmup", "5")
    done = edgemm("profile", str(made.bundle), *data, *options, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert check(report) == ()
    return report


def counted_by_torch(made: Converted) -> int:
    """Operations of one sample, whose attention is not hidden in one fused operator."""
    program = torch.export.load(made.fixture.model)
    arrays = load(made.fixture.eval)
    feed = {name: torch.from_numpy(arrays[name][:1]) for name in program.graph_signature.user_inputs}
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        program.module()(**feed)
    return counter.get_total_flops()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", TRAINED)
def test_layers_are_those_of_the_torch_model(convert: Convert, name: str, precision: str) -> None:
    made = convert(name, precision)
    report = profiled(made, "--layers")
    assert report["roofline"]["flops"] == pytest.approx(counted_by_torch(made), rel=1e-3)
    assert report["profiled"]["unmapped_share"] < 0.3
    weights = [key.split(".") for key in torch.export.load(made.fixture.model).state_dict]
    known = {".".join(path[:end]) for path in weights for end in range(1, len(path))}
    heavy = {layer["module"] for layer in report["layers"] if layer["flops"] and layer["module"]}
    assert heavy
    assert heavy <= known
    stages = {stage for entry in report["stages"] for stage in entry["stages"]}
    assert {layer["stage"] for layer in report["layers"] if layer["flops"]} <= stages


def test_single_stream_of_a_trained_model(convert: Convert, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    asked = ("--scenario", "single-stream", "--loadgen-logs", str(logs))
    scenario = profiled(convert("imu", "fp32"), *asked)["scenario"]
    assert scenario["valid"] is True
    assert scenario["early_stopping_met"] is True
    assert scenario["latency"]["p50_ms"] <= scenario["result_ms"]
    assert "Scenario : SingleStream" in (logs / "mlperf_log_summary.txt").read_text()
