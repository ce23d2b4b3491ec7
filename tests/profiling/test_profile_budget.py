"""Budgets and fail-if conditions: what they mean, and what is wrong with those that mean nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from full_report import full_report

from edgemm.errors import DataError
from edgemm.profiling.budget import check_budget, parse_budget
from edgemm.profiling.fail_if import check_conditions, describe_drop, parse_conditions


@pytest.fixture(scope="module")
def report() -> dict:
    return full_report()


def kept(text: str, report: dict) -> list[bool]:
    return [outcome.kept for outcome in check_budget(parse_budget(text), report)]


def test_every_unit_of_time_is_the_same_limit(report: dict) -> None:
    p50 = report["end_to_end"]["p50_ms"]
    for unit, factor in {"s": 1e-3, "ms": 1, "us": 1e3, "µs": 1e3, "μs": 1e3, "ns": 1e6}.items():
        assert kept(f"p50<{p50 * factor * 1.001:.6f}{unit}", report) == [True], unit
        assert kept(f"p50<{p50 * factor * 0.999:.6f} {unit}", report) == [False], unit


def test_less_than_excludes_the_limit(report: dict) -> None:
    report = copy.deepcopy(report) | {"load_ms": 12.0}
    assert kept("load<12ms, load<=12ms,load<12.1ms", report) == [False, True, True]


def test_memory_and_energy(report: dict) -> None:
    assert kept("memory<118MB,memory<119MB,memory<0.2GB,memory<118MiB", report) == [False, True, True, False]
    (outcome,) = check_budget(parse_budget("energy<5mJ"), report)
    assert not outcome.kept
    assert "Permission denied" in outcome.why
    metered = copy.deepcopy(report)
    metered["resources"]["energy"] = {"per_inference_mj": 4.2}
    assert kept("energy<5mJ,energy<4000uJ,energy<0.005J", metered) == [True, False, True]
    del metered["resources"]
    assert check_budget(parse_budget("energy<5mJ"), metered)[0].to_json() == {
        "limit": "energy<5mJ",
        "got": None,
        "unit": "mJ",
        "kept": False,
        "why": "not measured",
    }


def test_a_percentile_that_needs_more_runs_is_not_kept(report: dict) -> None:
    (outcome,) = check_budget(parse_budget("p99.9<1000s"), report)
    assert (outcome.kept, outcome.got) == (False, None)
    assert outcome.got_text == "needs 6,636 runs, got 2,000"


def test_modes_have_limits_of_their_own(report: dict) -> None:
    assert kept("paced.p50<0.6ms,back-to-back.p50<0.6ms,cached.p50<0.2ms", report) == [False, True, True]
    assert kept("paced.missed<1%,paced.missed<0.4%", report) == [True, False]
    plain = {k: v for k, v in report.items() if k != "modes"}
    (outcome,) = check_budget(parse_budget("paced.p99<33ms"), plain)
    assert (outcome.kept, outcome.why) == (False, "not measured: ask for --rate")


def test_got_is_told_in_the_unit_of_the_limit(report: dict) -> None:
    (outcome,) = check_budget(parse_budget("load<1s"), report)
    assert outcome.got_text == "0.0124 s"
    assert outcome.to_json()["got"] == pytest.approx(0.0124)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "'' is not of the form NAME<NUMBER UNIT", "for example"),
        ("p99", "'p99' is not of the form", "for example"),
        ("p99>30ms", "'p99>30ms' is not of the form", "for example"),
        ("p99<30ms,", "'' is not of the form", "for example"),
        ("p99<-3ms", "is not of the form", "for example"),
        ("p99<30", "'p99<30' has no unit (units: ns, us", "for example"),
        ("p99<30MB", "p99 has no unit 'MB'", "for example"),
        ("memory<500ms", "memory has no unit 'ms' (units: kB, KB, MB", "for example"),
        ("p97<3ms", "nothing is called 'p97'", "did you mean 'p9"),
        ("memroy<3MB", "nothing is called 'memroy'", "did you mean 'memory'?"),
        ("pacde.p99<3ms", "there is no mode 'pacde'", "did you mean 'paced'?"),
        ("paced.memory<3MB", "memory is not a figure of that mode", "write memory"),
        ("missed<1%", "missed is not a figure of that mode", "write paced.missed"),
        ("cached.missed<1%", "missed is not a figure of that mode", "write paced.missed"),
    ],
)
def test_bad_budgets_are_errors_with_hints(text: str, message: str, hint: str) -> None:
    refused(parse_budget, text, message, hint)


def refused(parse: Callable[[str], object], text: str, message: str, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert hint in caught.value.hint


def comparison(value: float, low: float, high: float, **more: object) -> dict:
    found = {"ratio": {"value": value, "low": low, "high": high}, "memory": {"a_mb": 110.0, "b_mb": 100.0}}
    accuracy = {"metric": "accuracy", "percent": True, "drop": 0.004}
    return {**found, "accuracy": accuracy, "interleaved": True, "threshold": 0.03, "no_verdict": [], **more}


@pytest.mark.parametrize(
    ("text", "ratio", "fails"),
    [
        ("slower>5%", (1.06, 1.01, 1.11), True),
        ("slower>5%", (1.06, 0.99, 1.11), False),
        ("slower>5%", (1.04, 1.03, 1.05), False),
        ("slower>5%", (0.5, 0.4, 0.6), False),
        ("slower > 0%", (1.001, 1.0005, 1.002), True),
        ("memory>9%", (1, 1, 1), True),
        ("memory>11%", (1, 1, 1), False),
        ("drop>0.3%", (1, 1, 1), True),
        ("drop>0.003", (1, 1, 1), True),
        ("drop>0.5%", (1, 1, 1), False),
    ],
)
def test_conditions(text: str, ratio: tuple[float, float, float], fails: bool) -> None:
    (found,) = check_conditions(parse_conditions(text), comparison(*ratio))
    assert found["fails"] is fails, found["why"]


@pytest.mark.parametrize(
    ("text", "ratio", "fails"),
    [
        ("slower>5%", (1.187, 1.147, 1.214), False),
        ("slower>5%", (1.3, 1.2, 1.4), True),
        ("slower>5%", (1.3, 0.9, 1.4), False),
        ("slower>40%", (1.3, 1.2, 1.4), False),
    ],
)
def test_against_a_saved_report_the_wider_threshold_counts(
    text: str, ratio: tuple[float, float, float], fails: bool
) -> None:
    saved = comparison(*ratio, interleaved=False, threshold=0.25)
    (found,) = check_conditions(parse_conditions(text), saved)
    assert found["fails"] is fails
    assert ("only more than 25% counts" in found["why"]) is (text == "slower>5%")


def test_slower_fails_where_there_is_no_verdict() -> None:
    other = comparison(0.5, 0.4, 0.6, no_verdict=["inputs: A random, B eval.npz"])
    found = check_conditions(parse_conditions("slower>5%,memory>11%"), other)
    assert [f["fails"] for f in found] == [True, False]
    assert found[0]["why"] == "not compared: inputs: A random, B eval.npz"


@pytest.mark.parametrize(
    ("percent", "drop", "text"),
    [
        (True, -0.0625, "A gains 6.25 points"),
        (True, 0.0625, "A loses 6.25 points"),
        (True, 0.0, "no difference"),
        (False, 0.25, "A is worse by 0.25"),
        (False, -0.25, "A is better by 0.25"),
        (True, None, "the difference is no number"),
    ],
)
def test_a_drop_in_words(percent: bool, drop: float | None, text: str) -> None:
    accuracy = {"metric": "f1_macro", "percent": percent, "drop": drop}
    assert describe_drop(accuracy) == text
    if drop is not None:
        (found,) = check_conditions(parse_conditions("drop>50%"), comparison(1, 1, 1, accuracy=accuracy))
        assert found["why"] == f"f1_macro: {text}"


def test_what_was_not_measured_fails() -> None:
    lacking = comparison(1, 1, 1, accuracy=None, memory={"unavailable": "it did not open"})
    found = check_conditions(parse_conditions("memory>5%,drop>1%"), lacking)
    assert [f["fails"] for f in found] == [True, True]
    assert "it did not open" in found[0]["why"]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "is not of the form NAME>NUMBER%", "for example"),
        ("slower", "is not of the form", "for example"),
        ("slower<5%", "is not of the form", "for example"),
        ("slower>5", "slower is given in %, got no unit", "for example"),
        ("slower>5ms", "slower is given in %, got the unit 'ms'", "for example"),
        ("slowr>5%", "nothing is called 'slowr'", "did you mean 'slower'?"),
        ("slower>5%;memory>3%", "is not of the form", "for example"),
    ],
)
def test_bad_conditions_are_errors_with_hints(text: str, message: str, hint: str) -> None:
    refused(parse_conditions, text, message, hint)
