"""A measured report is one by its own schema, and what is wrong with a changed one is said with its place."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemm.errors import DataError
from edgemm.profiling.report import check, read_report
from edgemm.profiling.resources import ResourceWatch
from edgemm.profiling.session import Plan, profile_session, session_facts, warnings_of
from edgemm.profiling.warmup import WarmupRule
from edgemm.runtime import open_session

GIVEN = {
    "file": "sensors.edgemm",
    "threads": 1,
    "machine": {},
    "machine_summary": "a machine",
    "inputs": "random",
    "samples": 0,
    "batch": 1,
    "load_ms": 1.0,
}


@pytest.fixture
def report(sensors: Path, feeds: list[dict[str, np.ndarray]], tmp_path: Path) -> dict[str, Any]:
    """Every mode, measured; resources of a machine that shows nothing."""
    watch = ResourceWatch(tmp_path / "nothing", lambda: None)
    plan = Plan(
        runs=130,
        warmup=WarmupRule(fixed=20),
        rates={"camera": 1000, "lidar": 500},
        cached=("lidar",),
        spread=True,
    )
    with open_session(sensors, cache="off", threads=1) as session:
        found = profile_session(session, feeds, plan, watch)
        facts = session_facts(session)
    return json.loads(json.dumps({**facts, **GIVEN, **found.report}))


def test_a_measured_report_is_one(report: dict[str, Any]) -> None:
    assert check(report) == ()
    assert [mode["mode"] for mode in report["modes"]] == ["back-to-back", "paced", "cached"]
    assert report["modes"][0]["times"] == report["end_to_end"]
    assert report["modes"][1]["deadlines"] == report["modes"][2]["times"]["runs"] == 130
    assert report["end_to_end"]["p95_ms"] is not None
    assert sum(m["share"] for m in report["modalities"]) == pytest.approx(1)
    assert report["critical_path"][-1] == "fusion"
    assert report["critical_path_ms"] <= report["sum_of_stages_p50_ms"] * 1.5
    assert [span["engine"] for span in report["timeline"]] == ["camera", "lidar", "fusion"]
    assert report["spread"]["samples"] == 3
    assert report["steady"] == {"rule": "20 runs, as asked", "runs": 20, "reached": report["steady"]["reached"]}
    resources = report["resources"]
    assert "unavailable" in resources["energy"]
    assert resources["memory"]["rss_peak_mb"] >= resources["memory"]["rss_steady_mb"] > 1
    assert check(read_back(report)) == ()


def test_a_bundle_with_both_layouts_reuses_in_the_cached_mode(sensors_both: Path, feeds, tmp_path: Path) -> None:
    watch = ResourceWatch(tmp_path / "nothing", lambda: None)
    reopen = partial(open_session, sensors_both, cache="marks", threads=1)
    plan = Plan(runs=20, warmup=WarmupRule(fixed=2), cached=("lidar",), reopen=reopen, energy=False)
    with open_session(sensors_both, cache="off", threads=1) as session:
        found = profile_session(session, feeds, plan, watch).report
    assert [stage["name"] for stage in found["stages"]] == ["whole"]
    assert found["modes"][1]["reused"] == ["lidar"]
    assert "energy" not in found["resources"]
    with open_session(sensors_both, cache="off") as session, pytest.raises(DataError, match="is one engine"):
        profile_session(session, feeds, replace(plan, reopen=None), watch)


def read_back(report: dict[str, Any]) -> Any:
    return json.loads(json.dumps(report))


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("kind", "other", "kind: got 'other', expected 'edgemm-latency-report'"),
        ("schema", 2, "schema: got 2, this edgemm reads 1"),
        ("load_ms", "fast", "load_ms: got 'fast', expected a number"),
        ("load_ms", True, "load_ms: got True, expected a number"),
        ("runs", 1.5, "runs: got 1.5, expected a whole number"),
        ("file", None, "file: got null, expected a text"),
        ("end_to_end.p50_ms", float("inf"), "end_to_end.p50_ms: got inf, expected a number"),
        ("end_to_end.needs", [], "end_to_end.needs: got [], expected an object"),
        ("stages", {}, "stages: got {}, expected a list"),
        ("stages.1.share", None, "stages[1].share: got null, expected a number"),
        ("modes.1.mode", "fast", "modes[1].mode: got 'fast', expected one of back-to-back, paced, cached"),
        ("modes.2.comparable", True, "modes[2].comparable: got true"),
        ("modes.1.missed", 999, "modes[1].missed: got 999 of 130 deadlines"),
        ("resources.energy", {}, "resources.energy.per_inference_mj: missing"),
        ("resources.energy", 0, "resources.energy: got 0, expected an object"),
        ("resources.memory.device.unavailable", 3, "resources.memory.device.unavailable: got 3, expected a text"),
        ("end_to_end.max_ms", 0.0, "end_to_end: p95 is"),
        (
            "end_to_end.intervals.p50",
            [1e9, 2e9],
            "end_to_end.intervals.p50: [1000000000.0, 2000000000.0] does not",
        ),
        ("modes.0.times.histogram.counts", [1], "modes[0].times.histogram"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(report: dict[str, Any], path: str, value: Any, problem: str) -> None:
    place: Any = report
    *parents, last = path.split(".")
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[last] = value
    problems = check(report)
    assert problems
    assert problems[0].startswith(problem)


def test_what_lacks_is_said(report: dict[str, Any]) -> None:
    del report["end_to_end"]["needs"], report["machine"], report["modes"][1]["rate_hz"]
    assert set(check(report)) == {"end_to_end.needs: missing", "machine: missing"}
    report["end_to_end"]["needs"], report["machine"] = {}, {}
    assert check(report) == ("modes[1]: a paced mode lacks rate_hz",)
    assert check([]) == ("the report is [], expected an object",)


def test_keys_that_are_not_known_are_left_alone(report: dict[str, Any]) -> None:
    report["later"] = {"x": [object]}
    assert check(report) == ()


def test_a_saved_report_is_read(report: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(report))
    assert read_report(file) == report
    file.write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        read_report(file)
    file.write_text(json.dumps(report | {"runs": "x"}))
    with pytest.raises(DataError, match="is no latency report: runs: got 'x', expected a whole number"):
        read_report(file)
    with pytest.raises(DataError, match="No such file") as caught:
        read_report(tmp_path / "none.json")
    assert "edgemm profile FILE --json > none.json" in caught.value.hint


def test_a_reader_of_the_numbers_is_warned(report: dict[str, Any]) -> None:
    calm = copy.deepcopy(report)
    calm["end_to_end"]["cv"], calm["modes"][1]["kept_up"] = 0.01, True
    assert warnings_of(calm, 1.0) == []
    calm["end_to_end"]["cv"] = 0.4
    calm["steady"] = {"rule": "until the medians agree", "runs": 400, "reached": False}
    calm["modes"][1]["kept_up"] = False
    calm["modes"][2]["reused"] = []
    calm["resources"]["throttling"] = {"throttled": True, "because": ["it is hot"], "watched": []}
    found = warnings_of(calm, 1.3)
    assert len(found) == 6
    assert "vary by 40%" in found[0]
    assert "not steady after 20 runs" in found[1]
    assert "slower: the last third takes 1.30 times" in found[2]
    assert "slowed itself down: it is hot" in found[3]
    assert "takes longer than the 1 ms" in found[4]
    assert "cached lidar: no engine depends on this alone" in found[5]
