"""What a session measures of itself while an app uses it: how long its calls take, at next to no cost.

A call adds one to a bucket of a histogram. The buckets are those of a latency report (`docs/latency-report.md`),
40 per decade, so that a percentile is right within 6 % and histograms of several sessions can be added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from math import log10
from time import monotonic, perf_counter_ns
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from edgemm.runtime.latency import BUCKETS_PER_DECADE, PERCENTILES, edge_ms, samples_needed

if TYPE_CHECKING:
    from edgemm.runtime.fusion import FusionSession

F = TypeVar("F", bound=Callable[..., Any])

_BUCKETS = 16 * BUCKETS_PER_DECADE
"""From one nanosecond to four months."""

_FIRST = 6 * BUCKETS_PER_DECADE
"""Buckets below a millisecond."""

_NS_PER_MS = 1e6

SCHEMA = 1
KIND = "edgemm-session-report"


@dataclass(frozen=True, slots=True)
class LatencySnapshot:
    """The histogram at one moment.

    Attributes:
        counts: int64[buckets]; bucket k holds the calls from `10 ** (k / 40)` ns up to the next edge.
        total_ns: Sum of the times of all counted calls.
        max_ns: The longest one.
        failed: Calls that raised; they are not counted.
    """

    counts: np.ndarray
    total_ns: int
    max_ns: int
    failed: int

    @property
    def runs(self) -> int:
        """Number of counted calls."""
        return int(self.counts.sum())

    def percentile(self, percentile: float) -> float | None:
        """Returns the percentile in seconds, or None with fewer than `samples_needed(percentile)` calls.

        Raises:
            DataError: The percentile is not between 0 and 100.
        """
        runs = self.runs
        if runs < samples_needed(percentile):
            return None
        rank = percentile / 100 * runs
        behind = np.cumsum(self.counts)
        bucket = int(np.searchsorted(behind, rank, side="left"))
        inside = (rank - (behind[bucket] - self.counts[bucket])) / max(int(self.counts[bucket]), 1)
        return float(min(10.0 ** ((bucket + inside) / BUCKETS_PER_DECADE), self.max_ns)) * 1e-9

    def to_json(self) -> dict[str, Any]:
        """Returns times in milliseconds; a percentile without enough calls is None and listed in `needs`.

        `{runs, failed, p50_ms, ..., needs, mean_ms, max_ms, total_ms, histogram: {edges_ms, counts}}`; without any
        call every time is None.
        """
        runs = self.runs
        values = {f"p{p:g}": (p, self.percentile(p)) for p in PERCENTILES}
        filled = np.flatnonzero(self.counts)
        first, last = (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, 0)
        edges = [edge_ms(k - _FIRST) for k in range(first, last + 1)] if filled.size else []
        return {
            "runs": runs,
            "failed": self.failed,
            **{f"{name.replace('.', '_')}_ms": v and v * 1e3 for name, (_, v) in values.items()},
            "needs": {name: samples_needed(p) for name, (p, v) in values.items() if v is None},
            "mean_ms": self.total_ns / runs / _NS_PER_MS if runs else None,
            "max_ms": self.max_ns / _NS_PER_MS if runs else None,
            "total_ms": self.total_ns / _NS_PER_MS,
            "histogram": {"edges_ms": edges, "counts": [int(c) for c in self.counts[first:last]]},
        }


class LiveLatency:
    """The live histogram of a session; `session.latency`. Any thread may read it, or reset it, at any time.

    What a call costs is one logarithm and a few additions. They do not wait for a lock: under CPython's global
    interpreter lock, which is not given up between reading and writing a number, none is lost.
    """

    __slots__ = ("_counts", "_max", "_total", "failed", "since")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets every call."""
        self._counts = [0] * _BUCKETS
        self._total = self._max = 0
        self.failed = 0
        self.since = monotonic()

    def record(self, nanoseconds: int) -> None:
        """Counts one call."""
        self._counts[int(log10(nanoseconds or 1) * BUCKETS_PER_DECADE)] += 1
        self._total += nanoseconds
        if nanoseconds > self._max:
            self._max = nanoseconds

    def snapshot(self) -> LatencySnapshot:
        """Returns what was counted up to now."""
        return LatencySnapshot(np.array(self._counts, np.int64), self._total, self._max, self.failed)

    def percentile(self, percentile: float) -> float | None:
        """Returns the percentile in seconds, or None with fewer than `samples_needed(percentile)` calls."""
        return self.snapshot().percentile(percentile)

    def __repr__(self) -> str:
        found = self.snapshot()
        if not found.runs:
            return "<LiveLatency: no calls>"
        given = ((p, found.percentile(p)) for p in PERCENTILES)
        times = ", ".join(f"p{p:g} {v * 1e3:.3f} ms" for p, v in given if v is not None)
        return f"<LiveLatency: {found.runs:,} calls, {times}, max {found.max_ns / _NS_PER_MS:.3f} ms>"


def session_report(session: FusionSession) -> dict[str, Any]:
    """Returns what a session has done since it was opened (or `latency.reset()`), as plain JSON values.

    `{schema, kind, model, variant, target, backend, seconds, latency, stages, cache}`: `latency` as
    `LatencySnapshot.to_json`; `stages` has per engine in how many calls it was `reused`, `of_calls` that could
    have reused it, and its times where calls were made with `run_timed`; `cache` is `cache_info()` without the
    counts.
    """
    info, variant = session.cache_info(), session.variant
    stages = []
    for entry in variant.engines:
        timed = session.stage_latency.get(entry.name)
        stages.append(
            {
                "name": entry.name,
                "stages": list(entry.stages),
                "reused": (reused := info.reused.get(entry.name, 0)),
                "of_calls": reused + info.ran.get(entry.name, 0),
                **({"times": timed.snapshot().to_json()} if timed is not None else {}),
            }
        )
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "model": session.manifest.name,
        "variant": variant.name,
        "target": variant.target,
        "backend": session.backend,
        "seconds": monotonic() - session.latency.since,
        "latency": session.latency.snapshot().to_json(),
        "stages": stages,
        "cache": {
            "mode": info.mode,
            "note": info.note,
            "compared": list(info.compared),
            "bytes": info.bytes,
            "max_bytes": info.max_bytes,
            "not_kept": info.not_kept,
        },
    }


def counted(method: F) -> F:
    """Returns a method of a session that counts its calls in `latency`; one that raises is counted as failed."""

    @wraps(method)
    def call(self: FusionSession, *args: Any, **named: Any) -> Any:
        start = perf_counter_ns()
        try:
            outputs = method(self, *args, **named)
        except BaseException:
            self.latency.failed += 1
            raise
        self.latency.record(perf_counter_ns() - start)
        return outputs

    return cast(F, call)


def record_stages(kept: dict[str, LiveLatency], seconds: Mapping[str, float]) -> None:
    """Counts the times of one call of `run_timed`, per engine."""
    for name, value in seconds.items():
        if name not in kept:
            kept[name] = LiveLatency()
        kept[name].record(round(value * 1e9))
