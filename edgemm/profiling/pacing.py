"""Runs a session at the rates of its sensors: an open loop, whose arrivals do not wait for the calls.

A loop that makes the next input when the call before has returned hides what a slow call does to the inputs behind
it: they are never made (coordinated omission; Tene: How NOT to Measure Latency). Here all arrivals are scheduled
before the first call, and a latency counts from the scheduled arrival, as it would for a sensor.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edgemm.errors import DataError
from edgemm.profiling.record import Recorder, Runs
from edgemm.profiling.report import PACED
from edgemm.profiling.times import times_json
from edgemm.runtime.latency import collector_resting
from edgemm.tensors import Feed, IOSpec

MOST_HZ = 100_000.0
"""No sensor is faster, and the record of one would not fit into memory."""


class Clock(Protocol):
    """Where pacing takes the time from; a test has its own."""

    def now(self) -> float:
        """Returns seconds since anything: the clock of the recorder."""
        ...

    def sleep(self, seconds: float) -> None:
        """Waits."""
        ...


class SystemClock:
    """The clock of this machine."""

    def now(self) -> float:
        """Returns `time.perf_counter()`."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Gives the processor away, as an app that waits for a sensor does; spinning would keep the clock high."""
        time.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Schedule:
    """When the samples of every modality arrive.

    Attributes:
        rates: Modality -> samples per second; those without one come with every sample of the trigger.
        trigger: The modality whose samples start calls: that of the highest rate.
    """

    rates: Mapping[str, float]
    trigger: str

    @property
    def period(self) -> float:
        """Seconds between two calls; also their deadline."""
        return 1 / self.rates[self.trigger]

    def sample(self, modality: str, call: int) -> tuple[int, float]:
        """Returns the newest sample of a modality at a call: its index, and the seconds at which it arrived."""
        rate = self.rates.get(modality, self.rates[self.trigger])
        index = math.floor(call * rate / self.rates[self.trigger] + 1e-6)
        return index, index / rate


def make_schedule(io: IOSpec, rates: Mapping[str, float]) -> Schedule:
    """Returns the arrivals of sensors with these rates; all of them begin at 0.

    Raises:
        DataError: No rate, one out of range, or one of no modality of the model.
    """
    known = io.modality_names()
    for name, rate in rates.items():
        if name not in known:
            raise io.no_modality(f"--rate {name}={rate:g}", name)
        if not 0 < rate <= MOST_HZ:
            raise DataError(
                f"--rate {name}={rate:g}: expected a number above 0 and up to {MOST_HZ:,.0f}.",
                hint="it is in samples a second",
            )
    if not rates:
        raise DataError("no rates.", hint=f"give one, for example --rate {known[0]}=30")
    return Schedule(dict(rates), max(rates, key=lambda name: rates[name]))


@dataclass(frozen=True, slots=True)
class Paced:
    """What a paced measurement gave.

    Attributes:
        runs: The latencies count from the scheduled arrival of the trigger's sample.
        schedule: What arrived when.
        woke_late: float64[waits], seconds by which the calls that had to wait for their sample were woken late.
        ages: Modality -> float64[runs], seconds from the arrival of the sample that was used to the output.
    """

    runs: Runs
    schedule: Schedule
    woke_late: np.ndarray
    ages: Mapping[str, np.ndarray]

    def to_json(self) -> dict[str, Any]:
        """Returns `edgemm.profiling.report.Mode`."""
        runs, period = self.runs, self.schedule.period
        outputs = runs.due + runs.seconds
        service = runs.seconds - runs.waited
        between = np.diff(outputs)
        return {
            "mode": runs.mode,
            "label": runs.label,
            "times": times_json(runs.seconds),
            "rate_hz": dict(self.schedule.rates),
            "trigger": self.schedule.trigger,
            "deadline_ms": period * 1e3,
            "deadlines": runs.count,
            "missed": int(np.count_nonzero(runs.seconds > period)),
            "jitter_ms": round(float(between.std()) * 1e3, 6) if between.size else 0.0,
            "wake_ms": round(float(np.median(self.woke_late)) * 1e3, 6) if self.woke_late.size else 0.0,
            "kept_up": bool(service.mean() <= period),
            "ages": {name: times_json(age, histogram=False) for name, age in self.ages.items()},
        }


LEAD = 0.005
"""Seconds from the start of the measurement to the first arrival."""


def paced(
    recorder: Recorder,
    io: IOSpec,
    feeds: Sequence[Feed],
    schedule: Schedule,
    calls: int,
    clock: Clock | None = None,
) -> Paced:
    """Returns the times of `calls` calls, one at each sample of the trigger, every engine of them.

    Each call reads the newest samples that have arrived with its trigger's; feed k mod len(feeds) has the k-th
    sample of every modality. Calls are made in order, and none is left out.

    Args:
        recorder: Makes the calls; what it holds already is dropped.
        io: The model's signature.
        feeds: What the sensors give.
        schedule: What arrives when.
        calls: Number of calls.
        clock: None takes that of this machine. It has to be the recorder's.
    """
    clock = clock or SystemClock()
    recorder.forget()
    modalities = io.modality_names()
    inputs = {m: [name for name, modality in io.modalities.items() if modality == m] for m in modalities}
    due = np.empty(calls)
    late: list[float] = []
    arrived = {m: np.empty(calls) for m in modalities}
    with collector_resting():
        start = clock.now() + LEAD
        for at in range(calls):
            due[at] = start + schedule.sample(schedule.trigger, at)[1]
            feed: dict[str, np.ndarray] = {}
            for modality in modalities:
                index, when = schedule.sample(modality, at)
                arrived[modality][at] = start + when
                source = feeds[index % len(feeds)]
                feed.update((name, source[name]) for name in inputs[modality])
            if wait_until(clock, float(due[at])):
                late.append(clock.now() - float(due[at]))
            recorder.call(feed, schedule.sample(schedule.trigger, at)[0] % len(feeds))
    runs = recorder.runs(PACED, "paced", due)
    ended = runs.due + due[0] + runs.seconds
    return Paced(runs, schedule, np.array(late), {m: ended - arrived[m] for m in modalities})


def wait_until(clock: Clock, due: float) -> bool:
    """Waits until `due` unless that is over; returns whether it had to."""
    if clock.now() >= due:
        return False
    while (rest := due - clock.now()) > 0:
        clock.sleep(rest)
    return True
