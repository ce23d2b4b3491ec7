"""Where the numbers of a latency report contradict themselves; their types are right already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from edgemm.profiling.typed_json import shown

_MODE_KEYS = {
    "back-to-back": (),
    "paced": ("rate_hz", "trigger", "deadline_ms", "deadlines", "missed", "jitter_ms", "kept_up"),
    "cached": ("changed", "unchanged", "comparable"),
}


def contradictions(report: Mapping[str, Any]) -> Iterator[str]:
    """Yields percentiles that fall, intervals without their percentile, runs that no bucket counts, and so on."""
    yield from _wrong_times("end_to_end", report["end_to_end"])
    for at, stage in enumerate(report["stages"]):
        yield from _wrong_times(f"stages[{at}]", stage)
    for at, mode in enumerate(report.get("modes", ())):
        yield from _wrong_mode(f"modes[{at}]", mode)


def _wrong_mode(place: str, mode: Mapping[str, Any]) -> Iterator[str]:
    yield from _wrong_times(f"{place}.times", mode["times"])
    for modality, times in mode.get("ages", {}).items():
        yield from _wrong_times(f"{place}.ages.{modality}", times)
    lacking = [key for key in _MODE_KEYS[mode["mode"]] if key not in mode]
    if lacking:
        yield f"{place}: a {mode['mode']} mode lacks {', '.join(lacking)}"
    elif mode["mode"] == "cached" and mode["comparable"]:
        yield f"{place}.comparable: got true, expected false: cached calls do not run every engine"
    elif mode["mode"] == "paced" and mode["missed"] > mode["deadlines"]:
        yield f"{place}.missed: got {mode['missed']} of {mode['deadlines']} deadlines"


def _wrong_times(place: str, times: Mapping[str, Any]) -> Iterator[str]:
    names = ("min", "p50", "p90", "p95", "p99", "p99.9", "max")
    values = {name: times.get(f"{name.replace('.', '_')}_ms") for name in names}
    there = [(name, value) for name, value in values.items() if value is not None]
    for (low, a), (high, b) in pairwise(there):
        if a > b:
            yield f"{place}: {low} is {a:g} ms and {high} only {b:g} ms"
    for name, interval in times.get("intervals", {}).items():
        value = values.get(name)
        if value is None or len(interval) != 2 or not interval[0] <= value <= interval[1]:
            yield f"{place}.intervals.{name}: {interval} does not hold {shown(value)}"
    histogram = times.get("histogram")
    if histogram is not None:
        edges, counts = histogram["edges_ms"], histogram["counts"]
        if len(edges) != len(counts) + 1 or any(a >= b for a, b in pairwise(edges)):
            yield f"{place}.histogram.edges_ms: expected {len(counts) + 1} rising edges, got {len(edges)}"
        if sum(counts) != times["runs"]:
            yield f"{place}.histogram.counts: they add up to {sum(counts):,}, there are {times['runs']:,} runs"
