"""Minutes of sensors, callers and swaps on one session: does memory grow, is a result lost, repeated or wrong?

    make soak SOAK_MINUTES=10
    python -m benchmarks.soak [FIRST.edgemm SECOND.edgemm --data SAMPLES.npz] [--minutes 2] [--json FILE]

Three streams (one calls back, one is iterated, one is polled) take samples at 30, 10 and 100 Hz with jitter; some
are left out, come late or with NaN, sensors fall silent, callbacks raise. Threads call `run` meanwhile, and the
session swaps its bundle, at times for one that is not there. Every result is compared, bit for bit, with what each
bundle gives alone for the same samples. Ends with code 1 when an invariant breaks.

Without bundles of your own, `benchmarks.soak_bundles` converts a fixture twice. They need one input per modality,
and other weights: results must tell which one gave them. Give one bundle to swap it for itself.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.soak_play import Play, Setting
from edgemm.errors import EdgemmError
from edgemm.profiling.resources import resident_memory

FOLDER = Path("build/soak")
NAMES = ("first.edgemm", "second.edgemm")
SAMPLES = "samples.npz"

WARM_UP = 0.3
"""Share of the time that counts as warm-up: memory may grow in it."""

POINTS = 300
"""Most points that the slope is computed from; each is the median of its part of the time."""

LIMIT = 1024.0
"""KiB per minute from which growth of memory is a leak."""

MIN_LOOKS = 10
"""From so many looks at the memory on there is a slope."""

MIN_SECONDS = 90.0
"""From here on growth of memory is a leak: before, libraries still make what they then keep."""

KIB = 1024


@dataclass(frozen=True, slots=True)
class Slope:
    """How memory grows: slope of Theil and Sen, the median over all pairs of points.

    Attributes:
        kib_per_minute: The slope.
        low: Lower end of its 95 % confidence interval (Sen, 1968).
        high: Upper end.
        start_kib: Resident at the first point after the warm-up, and so on.
        end_kib: At the last one.
        points: Number of points.
    """

    kib_per_minute: float
    low: float
    high: float
    start_kib: float
    end_kib: float
    points: int


def slope_of(seconds: Sequence[float], resident: Sequence[int], warm_up: float = WARM_UP) -> Slope:
    """Returns how resident memory grows after the warm-up.

    Args:
        seconds: When it was looked at, rising; at least three times after the warm-up.
        resident: Bytes.
        warm_up: Share of the time that does not count.
    """
    times, values = np.asarray(seconds, float) / 60, np.asarray(resident, float) / KIB
    counts = times >= times[0] + warm_up * (times[-1] - times[0])
    times, values = times[counts], values[counts]
    parts = np.array_split(np.arange(times.size), min(POINTS, times.size))
    points = np.array([(np.median(times[part]), np.median(values[part])) for part in parts])
    found = stats.theilslopes(points[:, 1], points[:, 0], 0.95)
    ends = float(points[0, 1]), float(points[-1, 1])
    return Slope(float(found[0]), float(found[2]), float(found[3]), *ends, len(points))


class Watch:
    """Looks at the memory of this process while a soak runs.

    Twice, halfway through the warm-up and at the end, the C library first has to give back what it keeps:
    what has grown between the two is in use. The slope of all looks also holds what fragmentation adds.
    """

    def __init__(self, seconds: float) -> None:
        """Begins now, for a soak of so many seconds."""
        self.every = min(1.0, max(0.02, seconds / POINTS))
        self._start = time.monotonic()
        self._looks: list[tuple[float, int]] = []
        self._due = [WARM_UP / 2 * seconds, seconds - 2 * self.every]
        self._live: list[tuple[float, int]] = []

    def look(self) -> None:
        """Notes the memory."""
        at = time.monotonic() - self._start
        self._looks.append((at, resident_memory()))
        if self._due and at >= self._due[0]:
            self._due.pop(0)
            gc.collect()
            with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
                ctypes.CDLL(None).malloc_trim(0)
            self._live.append((at, resident_memory()))

    def to_json(self) -> dict[str, Any]:
        """Returns the slope and what is in use, in KiB and KiB per minute."""
        found: dict[str, Any] = {}
        if len(self._looks) >= MIN_LOOKS:
            found |= asdict(slope_of(*zip(*self._looks, strict=True)))
        if len(self._live) == 2:
            (start, before), (end, after) = self._live
            growth = (after - before) / KIB / (end - start) * 60
            found |= {"used_kib": [before / KIB, after / KIB], "used_kib_per_minute": growth}
        return {**found, "warm_up": WARM_UP}


def soak(play: Play, limit: float | None = LIMIT) -> dict[str, Any]:
    """Plays to the end and returns the record; `broken` lists the invariants that do not hold.

    Args:
        play: That has not run.
        limit: KiB per minute; memory grows if the whole interval of its slope is above it, or what is in use grows
            by more. None judges no memory: the play is too short for that.
    """
    start, watch = time.monotonic(), Watch(play.setting.seconds)
    play.run(watch.look, watch.every)
    memory, broken = watch.to_json(), play.broken()
    if limit is not None and (memory.get("low", 0.0) > limit or memory.get("used_kib_per_minute", 0.0) > limit):
        broken.append(
            f"memory grows by {memory.get('low', 0.0):,.0f} to {memory.get('high', 0.0):,.0f} KiB per minute, "
            f"what is in use by {memory.get('used_kib_per_minute', 0.0):,.0f}; limit {limit:,.0f}"
        )
    return {
        "seconds": time.monotonic() - start,
        "broken": broken,
        "memory": {**memory, "limit": limit},
        **play.record(),
    }


def load(file: str) -> dict[str, np.ndarray]:
    """Returns the arrays of an `.npz`."""
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def main() -> int:
    """Runs the soak and prints what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="*", help="bundles to swap, the first of them runs at first")
    parser.add_argument("--data", help="samples of the inputs, an .npz; what else is in it is left out")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long (default: %(default)s)")
    parser.add_argument("--swap-every", type=float, default=2.0, help="seconds (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=LIMIT, help="KiB per minute (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to keep the record")
    options = parser.parse_args()
    if bool(options.bundles) != bool(options.data):
        parser.error("give bundles and --data, or neither")
    if not options.bundles:
        print(f"bundles to swap: {FOLDER}, trained and converted first if they are not there ...", flush=True)
        subprocess.run([sys.executable, "-m", "benchmarks.soak_bundles", str(FOLDER)], check=True)
    bundles = options.bundles or [FOLDER / name for name in NAMES]
    limit = options.limit if options.minutes * 60 >= MIN_SECONDS else None
    setting = Setting(options.minutes * 60, options.swap_every, seed=options.seed)
    try:
        play = Play(bundles, load(options.data or str(FOLDER / SAMPLES)), setting)
    except (EdgemmError, OSError, ValueError) as error:
        parser.error(str(error))
    record = {"bundles": [b.name for b in bundles], **soak(play, limit)}
    if options.json:
        from edgemm.pipeline.provenance import measured_here, tool_versions  # not in the memory that was watched

        record = {**measured_here(0), "tools": tool_versions(), **record}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    show(record)
    return 1 if record["broken"] else 0


def show(record: dict[str, Any]) -> None:
    """Prints what happened."""
    print(f"{record['seconds']:.0f} s, {record['swaps']['done']} swaps, {record['swaps']['refused']} refused")
    for name, taken in record["results"].items():
        print(f"{name:12s} {taken['results']:8,} results, {taken['wrong']} wrong, {taken['repeated']} repeated")
    memory = record["memory"]
    if "low" in memory:
        print(
            f"memory       {memory['start_kib'] / KIB:,.1f} to {memory['end_kib'] / KIB:,.1f} MiB after warm-up, "
            f"{memory['kib_per_minute']:+,.0f} KiB per minute ({memory['low']:+,.0f} to {memory['high']:+,.0f})"
        )
    if "used_kib" in memory:
        before, after = (kib / KIB for kib in memory["used_kib"])
        growth = memory["used_kib_per_minute"]
        print(f"in use       {before:,.1f} to {after:,.1f} MiB, {growth:+,.0f} KiB per minute")
    if memory["limit"] is None:
        print(f"memory       not judged: that takes {MIN_SECONDS:g} s or more")
    for what in record["broken"]:
        print(f"broken: {what}")


if __name__ == "__main__":
    sys.exit(main())
