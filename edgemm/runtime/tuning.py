"""Which schedule is the fastest on this machine: measured when a model is converted, and again where it runs.

A device may have other cores than the machine that converted, and be as busy as its app makes it. So the schedule
in a bundle can be measured anew there; what was found lies in the bundle's `cache/`, with the machine that it was
found on. Sessions go by it, since a schedule changes how long calls take and nothing else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edgemm.bundle import Schedule
from edgemm.errors import DataError
from edgemm.runtime.fusion import FusionSession
from edgemm.runtime.latency import ratio
from edgemm.runtime.machine import usable_cores
from edgemm.runtime.opening import open_session
from edgemm.runtime.schedule import SEQUENTIAL, find_levels, keep_schedule
from edgemm.runtime.session import SessionOptions
from edgemm.runtime.turns import time_sessions
from edgemm.tensors import Feed

MARGIN = 1.03
"""How many times faster a schedule must be than a plainer one: noise alone does not choose one."""

_ON_CPU = frozenset({"onnxruntime", "openvino"})
_PROBES = 5


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was measured of the schedules of a variant.

    Attributes:
        schedule: The fastest one; a plainer one where it is not faster by more than the noise.
        ratios: Schedule -> its time over that of the sequential one; empty where there was nothing to choose.
        kept: Whether sessions on this machine go by it from now on.
    """

    schedule: Schedule
    ratios: Mapping[str, float] = field(default_factory=dict)
    kept: bool = False


def tune(
    path: str | os.PathLike[str],
    feed: Feed,
    *,
    threads: int | None = None,
    variant: str | None = None,
    seconds: float = 3.0,
) -> Tuning:
    """Returns the fastest schedule of a bundle on this machine, as busy as it is now, and keeps it in the bundle.

    Where the bundle cannot be written, give the schedule to `open_session` in its options.

    Args:
        path: The bundle.
        feed: What a usual call gets.
        threads: Cores to use, as `open_session` has it.
        variant: As `open_session` has it.
        seconds: How long each comparison takes, about.

    Raises:
        EdgemmError: As `open_session` and `run`.
    """
    if not 0 < seconds < math.inf:
        raise DataError(f"tune: got {seconds!r} seconds, expected more than 0.", hint="3 is the default")
    path = Path(path)
    with open_session(path, threads=threads, variant=variant, cache="off") as session:
        name = session.variant.reuse or session.variant.name

    def opened(schedule: Schedule) -> FusionSession:
        options = SessionOptions(schedule=schedule)
        return open_session(path, threads=threads, variant=name, cache="off", options=options)

    found = find_schedule(opened, [feed], threads=threads or 0, seconds=seconds)
    return replace(found, kept=bool(found.ratios) and keep_schedule(path, name, found.schedule))


def find_schedule(
    opened: Callable[[Schedule], FusionSession], feeds: Sequence[Feed], *, threads: int, seconds: float
) -> Tuning:
    """Returns the fastest schedule; two sessions are open at a time.

    First the order is chosen, then whether threads spin. Calls in steady use and calls after a pause both count.

    Args:
        opened: Opens a session with a schedule.
        feeds: What the calls get.
        threads: Cores to use; 0 is every one that this process may use.
        seconds: How long each comparison takes, about.
    """
    ratios = {str(SEQUENTIAL): 1.0}
    with opened(SEQUENTIAL) as reference:
        if (threads or usable_cores()) < 2 or not _has_choice(reference):
            return Tuning(SEQUENTIAL)

        def measured(schedule: Schedule) -> float:
            """Returns the time over that of the reference; 1 at least where it may be noise."""
            with opened(schedule) as other:
                times = time_sessions({"one": reference, "other": other}, feeds, seconds=seconds)
            ratios[str(schedule)] = value = times["other"].ratio(times["one"])
            surely = ratio(times["other"].total, times["one"].total).high < 1
            return value if surely else max(value, 1.0)

        best, fastest = SEQUENTIAL, 1.0
        if any(len(level) > 1 for level in find_levels(reference.variant.engines)):
            parallel = Schedule("parallel", shares=_shares(reference, feeds))
            if (value := measured(parallel)) * MARGIN < fastest:
                best, fastest = parallel, value
        spinning = replace(best, idle="spin")
        if measured(spinning) * MARGIN < fastest:
            best = spinning
    return Tuning(best, ratios)


def _has_choice(session: FusionSession) -> bool:
    """Returns whether several engines run on the CPU."""
    return len(session.variant.engines) > 1 and _ON_CPU.issuperset(session.backend.split("+"))


def _shares(session: FusionSession, feeds: Sequence[Feed]) -> dict[str, float]:
    """Returns engine -> its part of the time of all engines."""
    session.run(feeds[0])
    runs = [session.run_timed(feeds[at % len(feeds)])[1] for at in range(_PROBES)]
    session.reset_state()
    medians = {name: float(np.median([run[name] for run in runs])) for name in runs[0]}
    return {name: max(0.01, round(value / sum(medians.values()), 2)) for name, value in medians.items()}
