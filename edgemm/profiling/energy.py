"""The energy of an inference: calls follow each other for a while, and meters are read around and beside them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.profiling.meters import Meter, find_ina3221, find_rapl
from edgemm.profiling.nvml import Nvml, NvmlEnergy
from edgemm.profiling.report import Unavailable

SECONDS = 2.0
"""How long calls follow each other: counters of energy move in steps of up to a tenth of a second."""

IDLE_SECONDS = 0.5

SAMPLE_SECONDS = 0.02
"""Pause between two readings of a meter that knows only power."""

ESTIMATE = "the energy of one inference, by the share of each modality in the time of the engines; not measured"


def find_meters(root: Path, gpu: Nvml | None) -> tuple[list[Meter], str]:
    """Returns what this machine has, and why there is none.

    A Jetson's monitor has everything in it. Else the processor's counters, and that of the GPU.

    Args:
        root: Folder that holds `sys`.
        gpu: The GPU that the model runs on, or None.
    """
    board, no_board = find_ina3221(root)
    if board:
        return board, ""
    processor, no_processor = find_rapl(root)
    reasons = [no_board, no_processor]
    graphics: list[Meter] = []
    if gpu is not None:
        meter = NvmlEnergy(gpu)
        if meter.joules() is None:
            reasons.append(f"{gpu.name} does not count its energy")
        else:
            graphics.append(meter)
    found = [*processor, *graphics]
    return found, "" if found else "; ".join(reasons)


def measure_energy(
    meters: Sequence[Meter],
    call: Callable[[], object],
    *,
    seconds: float = SECONDS,
    idle: float = IDLE_SECONDS,
) -> dict[str, Any] | Unavailable:
    """Returns `edgemm.profiling.report.Energy` without the modalities.

    Args:
        meters: One or more.
        call: One inference.
        seconds: How long to make calls; at least one is made.
        idle: How long to wait without calls before, for the power of a machine that does nothing.
    """
    _, resting = _energy(meters, lambda: _pause(idle))
    count, spent = 0, 0.0

    def work() -> None:
        nonlocal count, spent
        start = time.perf_counter()
        while count == 0 or spent < seconds:
            call()
            count += 1
            spent = time.perf_counter() - start

    took, joules = _energy(meters, work)
    stuck = [meter.name for meter, value in zip(meters, joules, strict=True) if not value]
    if stuck:
        return {"unavailable": f"{', '.join(stuck)}: the readings did not move in {took:.1f} s"}
    whole = sum(value for value in joules if value is not None)
    report: dict[str, Any] = {
        "per_inference_mj": whole / count * 1e3,
        "watts": whole / took,
        "inferences": count,
        "seconds": took,
        "sources": [
            {"name": meter.name, "covers": meter.covers, "joules": value}
            for meter, value in zip(meters, joules, strict=True)
        ],
    }
    if idle > 0 and all(resting):
        report["idle_watts"] = sum(value for value in resting if value is not None) / idle
    return report


def _pause(seconds: float) -> None:
    if seconds > 0:
        time.sleep(seconds)


def _energy(meters: Sequence[Meter], work: Callable[[], None]) -> tuple[float, list[float | None]]:
    """Returns the seconds that `work` took, and the joules that each meter saw; None where one failed."""
    before = [meter.joules() for meter in meters]
    samplers = [_Sampler(m) if value is None else None for m, value in zip(meters, before, strict=True)]
    start = time.perf_counter()
    try:
        work()
    finally:
        end = time.perf_counter()
        sampled = [sampler.stop(start, end) if sampler is not None else None for sampler in samplers]
    found: list[float | None] = []
    for meter, begin, power in zip(meters, before, sampled, strict=True):
        now = meter.joules() if begin is not None else None
        found.append(power if begin is None or now is None else now - begin)
    return end - start, found


class _Sampler:
    """Reads the power of a meter in a thread, from now until `stop`."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._times: list[float] = []
        self._watts: list[float] = []
        self._stopped = threading.Event()
        self._read()
        self._thread = threading.Thread(target=self._loop, name="edgemm-power", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while not self._stopped.wait(SAMPLE_SECONDS):
            self._read()

    def _read(self) -> None:
        value = self._meter.watts()
        if value is not None:
            self._times.append(time.perf_counter())
            self._watts.append(value)

    def stop(self, start: float, end: float) -> float | None:
        """Returns the joules from `start` to `end`, or None without a reading."""
        self._stopped.set()
        self._thread.join()
        self._read()
        return integrate(self._times, self._watts, start, end)


def integrate(times: Sequence[float], watts: Sequence[float], start: float, end: float) -> float | None:
    """Returns the joules from `start` to `end` of power readings, by trapezoids; None without a reading.

    Before the first and after the last reading the power is taken to be theirs.
    """
    if not times:
        return None
    inside = [t for t in times if start < t < end]
    at = np.array([start, *inside, end])
    power = np.interp(at, times, watts)
    return float(np.sum(np.diff(at) * (power[:-1] + power[1:]) / 2))
