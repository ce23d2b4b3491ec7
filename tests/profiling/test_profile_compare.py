"""Comparing two builds: the interval, the verdict, saved reports, and no verdict where there is no difference."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
from full_report import full_report, times
from planned_speed import fusion_pair

from edgemm.errors import DataError
from edgemm.profiling.compare import OPENINGS, Opened, compare_stages, culprit, measure_pair, pooled_ratio, verdict
from edgemm.profiling.saved import (
    compare_layers,
    compare_reports,
    different_conditions,
    interval_ratio,
    warnings_of_saved,
)
from edgemm.runtime import FusionSession, open_session
from edgemm.runtime.latency import Latencies, Ratio


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles: `plain`, and one each in which a stage is slowed."""
    return fusion_pair(tmp_path_factory.mktemp("pair"))


def feeds(session: FusionSession) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    shapes = {"image": (1, 4), "audio": (1, 2)}
    return [{n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()} for _ in range(3)]


def measured(a: Path, b: Path, runs: int, warmup: int = 5) -> tuple[Opened, Opened]:
    opens = (lambda: open_session(a, cache="off"), lambda: open_session(b, cache="off"))
    return measure_pair(opens, feeds, runs=runs, warmup=warmup)


@pytest.mark.parametrize("slow", ["image", "fusion"])
def test_a_slowed_stage_is_found_and_named(pair: dict[str, Path], slow: str) -> None:
    a, b = measured(pair[slow], pair["plain"], 60)
    rows = compare_stages(a, b)
    found = verdict(pooled_ratio(a.totals, b.totals), *(o.to_json()["end_to_end"]["p50_ms"] for o in (a, b)))
    assert found == "slower"
    assert culprit(rows, found) == slow
    row = next(r for r in rows if r["name"] == slow)
    assert row["verdict"] == "slower"
    assert row["difference_ms"] == pytest.approx(row["a_p50_ms"] - row["b_p50_ms"])
    b, a = measured(pair["plain"], pair[slow], 60)
    turned = verdict(pooled_ratio(b.totals, a.totals), *(o.to_json()["end_to_end"]["p50_ms"] for o in (b, a)))
    assert turned == "faster"
    assert culprit(compare_stages(b, a), turned) == slow


def test_no_verdict_on_a_model_against_itself_in_20_repeats(pair: dict[str, Path]) -> None:
    for name, repeats in (("plain", 16), ("image", 4)):
        for repeat in range(repeats):
            a, b = measured(pair[name], pair[name], 60)
            medians = [o.to_json()["end_to_end"]["p50_ms"] for o in (a, b)]
            ratio = pooled_ratio(a.totals, b.totals)
            assert verdict(ratio, *medians) == "no difference", (name, repeat, ratio, medians)


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_each_sample_is_measured_in_both_orders(
    pair: dict[str, Path], monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    seen: list[tuple[int, float]] = []
    run = FusionSession.run_spans

    def note(self: FusionSession, feed: dict[str, np.ndarray]) -> object:
        seen.append((id(self), float(feed["image"][0, 0])))
        return run(self, feed)

    def given(session: FusionSession) -> list[dict[str, np.ndarray]]:
        return [{**feeds(session)[0], "image": np.full((1, 4), at, np.float32)} for at in range(samples)]

    monkeypatch.setattr(FusionSession, "run_spans", note)
    opens = (lambda: open_session(pair["plain"], cache="off"), lambda: open_session(pair["plain"], cache="off"))
    measure_pair(opens, given, runs=2 * samples * OPENINGS, warmup=0)
    rounds = [seen[at : at + 2] for at in range(0, 4 * samples, 2)]
    assert all(first[1] == second[1] for first, second in rounds)
    assert {(first[1], first[0]) for first, _ in rounds} == {
        (at, who[0]) for at in range(samples) for who in seen[:2]
    }


def test_every_opening_has_its_share_of_the_runs(pair: dict[str, Path]) -> None:
    a, b = measured(pair["plain"], pair["plain"], 4 * OPENINGS + 1)
    assert [t.runs for t in a.totals] == [t.runs for t in b.totals] == [5] + [4] * (OPENINGS - 1)
    assert all([t.runs for t in parts] == [5] + [4] * (OPENINGS - 1) for parts in a.parts.values())
    few, _ = measured(pair["plain"], pair["plain"], 2)
    assert [t.runs for t in few.totals] == [1, 1]


def test_sessions_are_closed(pair: dict[str, Path]) -> None:
    opened: list[FusionSession] = []

    def make() -> FusionSession:
        opened.append(open_session(pair["plain"], cache="off"))
        return opened[-1]

    measure_pair((make, make), feeds, runs=3)
    assert len(opened) == 6
    for session in opened:
        with pytest.raises(Exception, match="closed"):
            session.run(feeds(session)[0])


def test_builds_of_different_models_are_refused(pair: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="do not take the same inputs: ") as caught:
        measured(pair["plain"], pair["other"], 10)
    assert "two builds of one model" in caught.value.hint


def test_interval_holds_what_differs_between_openings() -> None:
    random = np.random.default_rng(1)

    def opening(factor: float) -> Latencies:
        return Latencies(1e-3 * factor * (1 + random.normal(0, 0.001, 400)))

    a = [opening(f) for f in (1.05, 0.97, 1.06, 0.98, 1.04, 0.99)]
    b = [opening(1.0) for _ in a]
    found = pooled_ratio(a, b)
    assert found.low < 1 < found.high
    steady = pooled_ratio([opening(1.05) for _ in a], b)
    assert 1.04 < steady.low < steady.value < steady.high < 1.06


def test_the_order_of_the_calls_is_no_difference() -> None:
    """Whoever is called second takes longer: the ratios run by run have two heaps and nothing between them."""
    random = np.random.default_rng(2)

    def opening(second: int) -> Latencies:
        late = np.arange(41) % 2 == second
        return Latencies(1e-3 * (1 + 0.1 * late) * (1 + random.normal(0, 0.01, 41)))

    found = pooled_ratio([opening(0) for _ in range(6)], [opening(1) for _ in range(6)])
    assert 0.98 < found.low < found.value < found.high < 1.02


def test_one_opening_goes_by_its_runs() -> None:
    a, b = Latencies(np.linspace(2, 2.2, 50)), Latencies(np.linspace(1, 1.1, 50))
    assert pooled_ratio([a], [b]).value == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize(
    ("ratio", "medians", "expected"),
    [
        ((1.10, 1.05, 1.15), (11.0, 10.0), "slower"),
        ((1.10, 0.99, 1.15), (11.0, 10.0), "no difference"),
        ((1.02, 1.01, 1.03), (10.2, 10.0), "no difference"),
        ((0.90, 0.85, 0.95), (9.0, 10.0), "faster"),
        ((0.98, 0.97, 0.99), (9.8, 10.0), "no difference"),
        ((1.10, 1.05, 1.15), (0.011, 0.010), "no difference"),
    ],
)
def test_verdict(ratio: tuple[float, float, float], medians: tuple[float, float], expected: str) -> None:
    assert verdict(Ratio(*ratio, paired=True), *medians) == expected


def test_ratio_of_intervals_holds_the_truth_as_often_as_it_says() -> None:
    random, held, width = np.random.default_rng(3), 0, []
    for _ in range(400):
        a, b = (times_of(random.normal(scale, 0.05, 200)) for scale in (1.1, 1.0))
        found = interval_ratio(a, b)
        assert found is not None
        held += found.low <= 1.1 <= found.high
        width.append(found.high - found.low)
    assert 0.93 <= held / 400 <= 0.995
    assert np.mean(width) < 0.05


def times_of(milliseconds: np.ndarray) -> dict:
    from edgemm.profiling.times import times_json

    return times_json(milliseconds * 1e-3, histogram=False)


def test_ratio_against_a_saved_report() -> None:
    b = full_report()
    a = copy.deepcopy(b)
    found, rows = compare_reports(a, b)
    assert found.value == 1
    assert found.low < 1 < found.high
    assert {row["verdict"] for row in rows} == {"no difference"}
    a["stages"][1] |= times(0.48, seed=2, histogram=False)
    a["end_to_end"] = times(0.66)
    found, rows = compare_reports(a, b)
    assert math.isclose(found.value, 0.66 / 0.42, rel_tol=1e-3)
    assert culprit(rows, "slower") == "digits"


def test_too_few_runs_for_an_interval() -> None:
    a = full_report()
    a["end_to_end"] = times(0.42, 3)
    with pytest.raises(DataError, match="3 runs are too few") as caught:
        compare_reports(a, full_report())
    assert "6 runs" in caught.value.hint


def test_stages_that_only_one_of_them_has() -> None:
    a, b = full_report(), full_report()
    del a["stages"][0]
    b["stages"][2]["stages"] = ["head"]
    _, rows = compare_reports(a, b)
    only = sorted((r["name"], r["a_p50_ms"] is None, r["b_p50_ms"] is None) for r in rows if "ratio" not in r)
    assert only == [("fusion", False, True), ("fusion", True, False), ("image", True, False)]


def test_conditions_that_differ_are_named() -> None:
    a, b = full_report(), full_report()
    assert different_conditions(a, b) == []
    b["machine"] = {**b["machine"], "cpu": "Cortex-A78AE", "governor": "schedutil"}
    b["threads"] = 4
    assert different_conditions(a, b) == [
        "the machines differ: processor: A Intel Xeon, B Cortex-A78AE",
        "the machines differ: frequency governor: A unknown, B schedutil",
        "threads: A 1, B 4",
    ]


@pytest.mark.parametrize("key", ["inputs", "samples", "of_samples", "batch", "threads", "dims", "reset_every"])
def test_no_verdict_where_the_work_differs(key: str) -> None:
    a, b = full_report(), full_report()
    a["stages"][1] |= times(0.48, seed=2, histogram=False)
    assert "slower" in {row["verdict"] for row in compare_reports(a, b)[1]}
    b[key] = "random" if key == "inputs" else 7
    (reason,) = different_conditions(a, b)
    assert f"B {b[key]}" in reason
    assert {row["verdict"] for row in compare_reports(a, b)[1]} == {None}


def test_one_file_of_inputs_in_two_spellings_is_no_difference() -> None:
    a, b = full_report(), full_report()
    b["inputs"] = f"./{a['inputs']}"
    assert different_conditions(a, b) == []


def test_what_differs_between_sessions_of_one_build_is_no_difference() -> None:
    a, b = full_report(), full_report()
    a["stages"][1] |= times(b["stages"][1]["p50_ms"] * 1.187, seed=2, histogram=False)
    _, rows = compare_reports(a, b)
    assert rows[1]["ratio"]["low"] > 1.1
    assert rows[1]["verdict"] == "no difference"


def test_warnings_of_both_reports_are_repeated() -> None:
    a, b = full_report(), full_report()
    a["warnings"], b["backend_version"] = [], "1.20.0"
    told = warnings_of_saved(a, b)
    assert "compare both files in one run: --compare build/" in told[0]
    assert told[1:] == [f"B: {b['warnings'][0]}", "version of the backend: A 1.31.1, B 1.20.0"]
    assert "restless machine" in told[1]


def test_layers_are_added_up_by_module() -> None:
    def layer(name: str, module: str | None, ms: float, op: str = "Conv") -> dict:
        return {"name": name, "op": op, "stage": "image", "module": module, "p50_ms": ms, "share": 0.1}

    a = [layer("c1", "image.0", 0.2), layer("q1", "image.0", 0.05, "QuantizeLinear"), layer("x", None, 0.1)]
    b = [layer("conv", "image.0", 0.4), layer("y", None, 0.3)]
    rows = compare_layers(a, b)
    assert [row["name"] for row in rows] == ["image.0", "x", "y"]
    assert rows[0]["a_p50_ms"] == pytest.approx(0.25)
    assert rows[0]["difference_ms"] == pytest.approx(-0.15)
    assert rows[0]["op"] == "Conv, QuantizeLinear"
    assert (rows[1]["b_p50_ms"], rows[2]["a_p50_ms"]) == (None, None)
    assert all("difference_ms" not in row for row in rows[1:])
