"""CSV and trace of measured runs: every run is in them, and the trace follows the rules of its format."""

from __future__ import annotations

import csv
import io
import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from edgemm.profiling import files
from edgemm.profiling.cached import cached
from edgemm.profiling.files import left_out, write_csv, write_trace
from edgemm.profiling.pacing import make_schedule, paced
from edgemm.profiling.record import Recorder, Runs, back_to_back, cycle
from edgemm.profiling.warmup import WarmupRule
from edgemm.runtime import FusionSession

RUNS = 25


@pytest.fixture
def measured(session: FusionSession, feeds: list[dict[str, np.ndarray]]) -> list[Runs]:
    recorder = Recorder(session)
    plain = back_to_back(recorder, cycle(recorder.call, feeds), runs=RUNS)
    at_rate = paced(recorder, session.io, feeds, make_schedule(session.io, {"camera": 1000}), RUNS)
    held = cached(session, feeds, ["lidar"], WarmupRule(fixed=1), runs=RUNS)
    return [plain, at_rate.runs, held.runs]


def written_trace(measured: list[Runs]) -> dict[str, Any]:
    file = io.BytesIO()
    write_trace(file, measured, 'a "model"')
    return json.loads(file.getvalue())


def test_csv_has_a_row_per_run_and_stage(measured: list[Runs]) -> None:
    file = io.BytesIO()
    write_csv(file, measured)
    rows = list(csv.DictReader(io.StringIO(file.getvalue().decode())))
    assert list(rows[0]) == ["mode", "run", "stage", "start_ms", "duration_ms"]
    kinds = {mode: [r for r in rows if r["mode"] == mode] for mode in ("back-to-back", "paced", "cached")}
    assert [len(kinds[mode]) for mode in kinds] == [4 * RUNS, 4 * RUNS, RUNS]
    assert [r["stage"] for r in kinds["back-to-back"][:5]] == [
        "end to end",
        "camera",
        "lidar",
        "fusion",
        "end to end",
    ]
    whole = [float(r["duration_ms"]) for r in kinds["paced"] if r["stage"] == "end to end"]
    np.testing.assert_allclose(whole, measured[1].seconds * 1e3, atol=1e-6)
    starts = [float(r["start_ms"]) for r in kinds["paced"] if r["stage"] == "end to end"]
    np.testing.assert_allclose(starts, np.arange(RUNS), atol=1e-5)
    assert not file.closed


def test_trace_follows_the_rules_of_the_format(measured: list[Runs]) -> None:
    """Trace Event Format: complete events have ts and dur in microseconds; slices of a thread nest."""
    trace = written_trace(measured)
    assert trace["displayTimeUnit"] in ("ms", "ns")
    events = trace["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X"}
    for event in events:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
        else:
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
    for process in (1, 2, 3):
        for thread in range(4):
            mine = [e for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) == (process, thread)]
            mine.sort(key=lambda e: e["ts"])
            for before, after in pairwise(mine):
                assert before["ts"] + before["dur"] <= after["ts"] + 0.01


def test_trace_names_what_it_shows(measured: list[Runs]) -> None:
    events = written_trace(measured)["traceEvents"]
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert processes == {
        1: 'a "model": back to back',
        2: 'a "model": paced',
        3: 'a "model": cached lidar',
    }
    threads = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name" and e["pid"] == 1}
    assert threads == {0: "inference", 1: "camera", 2: "lidar", 3: "fusion"}


def test_trace_has_every_run_and_the_engines_lie_inside(measured: list[Runs]) -> None:
    events = [e for e in written_trace(measured)["traceEvents"] if e["ph"] == "X"]
    for process, engines in ((1, 3), (2, 3), (3, 0)):
        whole = {e["args"]["run"]: e for e in events if e["pid"] == process and e["tid"] == 0}
        parts = [e for e in events if e["pid"] == process and e["tid"] > 0]
        assert sorted(whole) == list(range(RUNS))
        assert len(parts) == engines * RUNS
        for part in parts:
            around = whole[part["args"]["run"]]
            assert around["ts"] - 0.01 <= part["ts"]
            assert part["ts"] + part["dur"] <= around["ts"] + around["dur"] + 0.01
    waited = [e["args"] for e in events if e["pid"] == 2 and "waited_us" in e["args"]]
    assert waited
    assert all(a["latency_us"] > a["waited_us"] for a in waited)


def test_a_trace_of_many_runs_has_the_last_ones(measured: list[Runs], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_TRACED", 10)
    trace = written_trace(measured[:1])
    runs = {e["args"]["run"] for e in trace["traceEvents"] if e["ph"] == "X"}
    assert runs == set(range(RUNS - 10, RUNS))
    assert left_out(measured[:1]) == trace["otherData"]["left out"] == RUNS - 10
