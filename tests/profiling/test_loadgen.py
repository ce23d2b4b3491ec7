"""Real runs of MLPerf's LoadGen on small bundles, and what is read from its logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from edgemm.errors import BackendError, DataError
from edgemm.profiling import loadgen
from edgemm.profiling.loadgen import STREAMS, Detail, Load, joined, read_detail, run_scenario
from edgemm.runtime import open_session

pytest.importorskip("mlperf_loadgen", reason="needs the loadgen extra")

MODEL = """<ir_version: 10, opset_import: ["": 20]>
g (float[batch,4] image, float[batch,2] audio) => (float[batch,6] y) { y = Concat<axis=1>(image, audio) }"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.parser.parse_model(MODEL).SerializeToString())
    return path


def feeds(count: int = 3) -> list[dict[str, np.ndarray]]:
    return [
        {"image": np.full((1, 4), i, np.float32), "audio": np.full((1, 2), -i, np.float32)} for i in range(count)
    ]


class Watched:
    """A session that notes the sizes and the samples of its calls."""

    def __init__(self, session: Any, fail_at: int = 0) -> None:
        self._session, self.io = session, session.io
        self.calls: list[list[float]] = []
        self._fail_at = fail_at

    def run(self, feed: Any) -> Any:
        self.calls.append(feed["image"][:, 0].tolist())
        if len(self.calls) == self._fail_at:
            raise BackendError("engine 'model' failed: it does.", hint="nothing")
        return self._session.run(feed)


def run(model: Path, scenario: str, **more: Any) -> tuple[dict[str, Any], list[list[float]]]:
    fail_at = more.pop("fail_at", 0)
    with open_session(model, threads=1, cache="off") as session:
        watched = Watched(session, fail_at)
        found = run_scenario(watched, feeds(), Load(scenario, **{"seconds": 0.3, "queries": 100} | more))
    before = 2 * 15 if more.get("batch", 1) == 1 else 15 + 11  # those that tell how fast the model is
    return found, watched.calls[before:]


def test_single_stream(model: Path) -> None:
    found, calls = run(model, "single-stream")
    assert (found["scenario"], found["valid"], found["reason"]) == ("single-stream", True, None)
    assert found["tool"].startswith("MLPerf LoadGen ")
    assert "not an MLPerf submission" in found["label"]
    assert found["queries"] == len(calls) >= 100
    assert {len(call) for call in calls} == {1}
    assert {call[0] for call in calls} == {0, 1, 2}
    latency = found["latency"]
    assert (
        0 < latency["min_ms"] <= latency["p50_ms"] <= latency["p90_ms"] <= latency["p99_9_ms"] <= latency["max_ms"]
    )
    assert found["result_ms"] >= latency["p50_ms"]
    assert found["qps"] == pytest.approx(1e3 / latency["mean_ms"], rel=1e-3)
    assert found["logs"] is None


def test_too_few_queries_are_invalid(model: Path) -> None:
    """The 99th percentile needs 662 queries; LoadGen says so."""
    found, _ = run(model, "multi-stream", seconds=0.001, queries=5)
    assert found["valid"] is False
    assert found["early_stopping_met"] is False
    assert "queries" in found["early_stopping"]


def test_multi_stream_has_eight_samples_per_query(model: Path) -> None:
    found, calls = run(model, "multi-stream")
    assert found["samples_per_query"] == STREAMS == 8
    assert sum(map(len, calls)) == found["queries"] * STREAMS
    found, calls = run(model, "multi-stream", batch=8)
    assert {len(call) for call in calls} == {8}
    assert len(calls) == found["queries"]
    assert found["metric"] == "99th percentile latency of a query"


def test_offline_counts_samples(model: Path) -> None:
    found, calls = run(model, "offline", batch=4)
    assert found["queries"] == 1
    assert found["qps"] > 0
    assert {len(call) for call in calls[:-1]} == {4}
    assert sum(map(len, calls)) / found["qps"] == pytest.approx(found["latency"]["max_ms"] / 1e3, rel=0.01)


def test_server_keeps_its_pace(model: Path) -> None:
    found, calls = run(model, "server", qps=200.0, latency_ms=500.0, seconds=0.5)
    assert found["target_qps"] == 200
    assert found["latency_bound_ms"] == 500
    assert found["latency_bound_met"] is True
    assert sum(map(len, calls)) == found["queries"]
    assert 100 < found["qps"] < 400


def test_a_bound_that_nothing_keeps(model: Path) -> None:
    found, _ = run(model, "server", qps=500.0, latency_ms=1e-6)
    assert (found["valid"], found["latency_bound_met"]) == (False, False)
    assert "target QPS" in found["reason"]


def test_logs_are_kept_and_not_overwritten(model: Path, tmp_path: Path) -> None:
    logs = tmp_path / "deep" / "logs"
    found, _ = run(model, "single-stream", logs=logs)
    assert found["logs"] == str(logs)
    assert "MLPerf Results Summary" in (logs / "mlperf_log_summary.txt").read_text()
    before = (logs / "mlperf_log_detail.txt").read_bytes()
    with pytest.raises(DataError, match="has the logs of another run") as caught:
        run(model, "single-stream", logs=logs)
    assert caught.value.hint == "name another folder"
    assert (logs / "mlperf_log_detail.txt").read_bytes() == before


@pytest.mark.parametrize("scenario", ["single-stream", "server", "offline"])
def test_a_failing_model_ends_the_run_with_its_error(model: Path, scenario: str) -> None:
    with pytest.raises(BackendError, match="engine 'model' failed"):
        run(model, scenario, fail_at=40)


def test_nothing_is_written_where_we_are(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    run(model, "single-stream")
    assert list(here.iterdir()) == []


def test_nothing_is_printed(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(model, "single-stream")
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_what_a_scenario_does_not_take(model: Path) -> None:
    with pytest.raises(DataError, match="single-stream with this model has one sample at a time"):
        run(model, "single-stream", batch=2)
    with pytest.raises(DataError, match="no scenario 'multistream'"):
        run(model, "multistream")


def test_samples_of_a_batch(model: Path) -> None:
    with open_session(model) as session:
        both = joined(session, feeds(2))
        np.testing.assert_array_equal(both["image"][:, 0], [0, 1])
        odd = [feeds(1)[0], {"image": np.zeros((1, 5), np.float32), "audio": np.zeros((1, 2), np.float32)}]
        with pytest.raises(DataError, match=r"'image': got samples of shapes \[1, 4\] and \[1, 5\]"):
            joined(session, odd)


def test_a_log_without_a_result(tmp_path: Path) -> None:
    log = tmp_path / "mlperf_log_detail.txt"
    with pytest.raises(DataError, match="LoadGen wrote no log"):
        read_detail(log)
    log.write_text(
        'noise\n:::MLLOG {"key": "error_runtime", "value": "no", "metadata": {"is_error": true}}\n'
        ":::MLLOG {broken\n"
    )
    with pytest.raises(DataError, match="LoadGen gives no result: error_runtime: no"):
        read_detail(log)
    log.write_text(':::MLLOG {"key": "result_validity", "value": "VALID", "metadata": {"is_error": false}}\n')
    assert read_detail(log) == Detail({"result_validity": "VALID"})


def test_expected_speed_is_the_mean_over_all_feeds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def run(self, feed: Any) -> None:
            pass

    cost = {0: 1.0, 1: 9.0}
    monkeypatch.setattr(loadgen, "_timed", lambda call: cost[int(call.args[1][0]["image"][0, 0])])
    single, fastest = loadgen._expected(Session(), feeds(2), Load("server"))  # type: ignore[arg-type]
    assert (single, fastest) == (5.0, 5.0)
