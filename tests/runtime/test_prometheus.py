"""The text for Prometheus: read by Prometheus' own parser, and its histogram by its rules."""

from __future__ import annotations

import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgemm.errors import DataError
from edgemm.runtime.live import LiveLatency
from edgemm.runtime.prometheus import CONTENT_TYPE, prometheus_text


def report(times: list[int], model: str = "digits", variant: str = "cpu-int8") -> dict[str, Any]:
    live = LiveLatency()
    for value in times:
        live.record(value)
    live.failed = 2
    stages = [{"name": "image", "reused": 1, "of_calls": 4}, {"name": "fusion", "reused": 0, "of_calls": 3}]
    return {
        "model": model,
        "variant": variant,
        "latency": live.snapshot().to_json(),
        "stages": stages,
        "cache": {"bytes": 4096},
    }


def families(text: str) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_prometheus_reads_every_family() -> None:
    found = families(prometheus_text(report([400_000, 420_000, 30_000_000])))
    kinds = {name: family.type for name, family in found.items()}
    assert kinds == {
        "edgemm_run_duration_seconds": "histogram",
        "edgemm_run_failures": "counter",
        "edgemm_stage_reuses": "counter",
        "edgemm_stage_reusable_calls": "counter",
        "edgemm_cache_bytes": "gauge",
    }
    assert all(family.documentation for family in found.values())
    calls = {s.labels["stage"]: s.value for s in found["edgemm_stage_reusable_calls"].samples}
    assert calls == {"image": 4, "fusion": 3}
    assert [s.value for s in found["edgemm_run_failures"].samples] == [2]


def test_buckets_are_cumulative_and_end_with_all_calls() -> None:
    times = [5_000, 400_000, 420_000, 2_000_000, 30_000_000, 40_000_000_000]
    family = families(prometheus_text(report(times)))["edgemm_run_duration_seconds"]
    buckets = [(float(s.labels["le"]), s.value) for s in family.samples if s.name.endswith("_bucket")]
    assert [le for le, _ in buckets] == sorted(le for le, _ in buckets)
    assert buckets[-1] == (float("inf"), len(times))
    for le, count in buckets:
        assert count == sum(value * 1e-9 <= le for value in times), le
    named = {s.name: s.value for s in family.samples}
    assert named["edgemm_run_duration_seconds_count"] == len(times)
    assert named["edgemm_run_duration_seconds_sum"] == pytest.approx(sum(times) * 1e-9)


def test_buckets_are_the_same_in_every_scrape() -> None:
    def bounds(text: str) -> list[str]:
        return re.findall(r'le="([^"]+)"', text)

    empty, full = (bounds(prometheus_text(report(times))) for times in ([], [1_000, 10**9]))
    assert empty == full
    assert {"1e-05", "0.001", "0.1", "1", "10", "+Inf"} <= set(full)


def test_the_format_line_by_line() -> None:
    text = prometheus_text(report([1_000_000]))
    assert text.endswith("\n")
    sample = re.compile(r'[a-z_]+\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\} [0-9.e+-]+')
    seen: list[str] = []
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = line.split()[2]
            assert name not in seen, "one family in two places"
            seen.append(name)
        elif line.startswith("# TYPE "):
            assert line.split()[2] == seen[-1]
        else:
            assert sample.fullmatch(line), line
            assert line.startswith(seen[-1])
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


def test_several_sessions_are_told_apart() -> None:
    text = prometheus_text(
        report([1_000_000]), report([2_000_000] * 3, variant="cpu-fp32"), labels={"device": "gate-3"}
    )
    family = families(text)["edgemm_run_duration_seconds"]
    counts = {s.labels["variant"]: s.value for s in family.samples if s.name.endswith("_count")}
    assert counts == {"cpu-int8": 1, "cpu-fp32": 3}
    assert {s.labels["device"] for s in family.samples} == {"gate-3"}
    assert text.count("# TYPE edgemm_run_duration_seconds ") == 1
    with pytest.raises(DataError, match="two sessions are both model 'digits'") as caught:
        prometheus_text(report([]), report([]))
    assert "labels=" in caught.value.hint


@pytest.mark.parametrize("name", ['a "quoted" name', "back\\slash", "two\nlines", "ü", "{}=,"])
def test_any_name_survives(name: str) -> None:
    family = families(prometheus_text(report([1_000_000], model=name)))["edgemm_cache_bytes"]
    assert family.samples[0].labels["model"] == name


@pytest.mark.parametrize("label", ["", "1st", "a-b", "le", "model", "__name__", "stage"])
def test_labels_that_prometheus_refuses(label: str) -> None:
    with pytest.raises(DataError, match="label"):
        prometheus_text(report([]), labels={label: "x"})
