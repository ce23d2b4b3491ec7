"""Runs a session while some modalities stay as they are: what a call takes if their encoders need not run.

These times say what an app sees between two samples of a slow sensor. They are never mixed with plain latency.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemm.errors import DataError
from edgemm.profiling.record import Runs, Spans, cycle
from edgemm.profiling.report import CACHED
from edgemm.profiling.times import times_json
from edgemm.profiling.warmup import WarmupRule, warm_up
from edgemm.runtime.cache import ONE_ENGINE
from edgemm.runtime.latency import measure
from edgemm.tensors import IOSpec

if TYPE_CHECKING:
    from edgemm.runtime.fusion import FusionSession
    from edgemm.tensors import Feed


@dataclass(frozen=True, slots=True)
class Cached:
    """What a cached measurement gave.

    Attributes:
        runs: Whole calls; nothing is known of the engines inside.
        changed: Modalities that were new in every call.
        unchanged: Modalities that stayed as they were.
        reused: Engines that did not run.
    """

    runs: Runs
    changed: tuple[str, ...]
    unchanged: tuple[str, ...]
    reused: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns `edgemm.profiling.report.Mode`."""
        return {
            "mode": self.runs.mode,
            "label": self.runs.label,
            "times": times_json(self.runs.seconds),
            "changed": list(self.changed),
            "unchanged": list(self.unchanged),
            "reused": list(self.reused),
            "comparable": False,
        }


def check_cached(io: IOSpec, unchanged: Collection[str], *, reusable: bool) -> None:
    """Checks which modalities are to stay as they are.

    Args:
        io: The model's signature.
        unchanged: Modalities.
        reusable: Whether the session has an engine per stage.

    Raises:
        DataError: One is no modality of the model, all of them stay, or the model is one engine.
    """
    known = io.modality_names()
    for name in unchanged:
        if name not in known:
            raise io.no_modality(f"--cached {name}", name)
    shown = ",".join(unchanged)
    if set(unchanged) >= set(known):
        raise DataError(
            f"--cached {shown}: no modality is left that changes.", hint="leave at least one modality out"
        )
    if not reusable:
        raise DataError(f"--cached {shown}: {ONE_ENGINE}.", hint="or leave --cached out")


def cached(
    session: FusionSession,
    feeds: Sequence[Feed],
    unchanged: Sequence[str],
    warmup: WarmupRule,
    *,
    runs: int | None = None,
    seconds: float | None = None,
) -> Cached:
    """Returns the times of calls in which `unchanged` modalities stay those of the first feed: `run(changed=...)`.

    The session's cache is off afterwards.

    Args:
        session: What runs; of a variant with one engine, one that was opened to reuse what its stages give.
        feeds: What the other modalities cycle over.
        unchanged: Modalities.
        warmup: When the calls before the measured ones are enough.
        runs: Number of runs.
        seconds: How long to run instead.

    Raises:
        DataError: As `check_cached`.
    """
    io = session.io
    check_cached(io, unchanged, reusable=len(session.variant.engines) > 1)
    changed = tuple(m for m in io.modality_names() if m not in unchanged)
    held = {name: array for name, array in feeds[0].items() if io.modalities.get(name) in unchanged}
    label = f"cached {', '.join(unchanged)}"
    samples: list[int] = []

    def run(feed: Feed, at: int) -> None:
        samples.append(at)
        session.run(feed, changed=changed)

    session.use_cache("marks")
    try:
        call = cycle(run, [{**feed, **held} for feed in feeds])
        session.run(feeds[0], changed=io.modality_names())
        warm_up(call, warmup)
        before = session.cache_info().reused
        del samples[:]
        times = measure({"call": call}, runs=runs, seconds=seconds, warmup=0)["call"].seconds
        after = session.cache_info().reused
    finally:
        session.use_cache("off")
    due = np.cumsum(times) - times
    nothing = np.zeros(0)
    spans = Spans(nothing.astype(np.int64), nothing.astype(np.int64), nothing, nothing)
    names = tuple(entry.name for entry in session.variant.engines)
    found = Runs(CACHED, label, due, np.zeros(times.size), times, np.array(samples), names, spans)
    reused = tuple(name for name in names if after[name] - before[name] >= times.size)
    return Cached(found, changed, tuple(unchanged), reused)
