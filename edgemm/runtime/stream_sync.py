"""Brings samples together by capture time. No threads, no clock, no engines: equal calls give equal sets.

Samples of one modality come in the order of their capture. Sets come in the order of their time, and never hold a
sample that is older than the one of the same modality in the set before.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgemm.runtime.stream_policy import ANY, StreamPolicy

ROUNDING = 1e-9
"""Seconds by which sums of times may be short of a deadline."""

JUMP = 1.0
"""Seconds by which two samples in a row must be behind those before them: then the clock was set back."""


@dataclass(slots=True, eq=False)
class Sample:
    """One sample of a modality.

    Attributes:
        modality: Its modality.
        arrays: Its inputs, with the batch axis; nobody else's memory.
        captured: When, by the sensor.
        at: The same, corrected by the modality's offset.
        arrived: When it was pushed, by the stream's clock, which never goes back.
        number: How many samples were pushed before it.
        used: Whether it was in a set.
    """

    modality: str
    arrays: Mapping[str, np.ndarray]
    captured: float
    at: float
    arrived: float
    number: int
    used: bool = False


@dataclass(slots=True)
class Counters:
    """What became of the samples of one modality.

    `pushed` is the sum of `used`, `dropped`, `late`, `rejected` and `pending`.

    Attributes:
        pushed: All that came.
        used: Were in a set, or in several.
        dropped: Gave way to newer ones.
        late: Captured before one that had come already.
        rejected: With NaN.
        pending: Wait.
        stale: Sets that took a sample that is older than the window or `max_age` allow.
        filled: Sets with a value in its place.
    """

    pushed: int = 0
    used: int = 0
    dropped: int = 0
    late: int = 0
    rejected: int = 0
    pending: int = 0
    stale: int = 0
    filled: int = 0


@dataclass(frozen=True, slots=True)
class SampleSet:
    """What goes into one call.

    Attributes:
        time: Corrected capture time of the trigger, or the tick.
        samples: Modality -> sample; None where a fill goes in.
        stale: Modalities whose sample is older than allowed.
        lacking: Required modalities without a sample; then there is no call.
        trigger: The sample that it was made for; None for a tick.
        epoch: How often the clock was set back before.
    """

    time: float
    samples: Mapping[str, Sample | None]
    stale: tuple[str, ...]
    lacking: tuple[str, ...]
    trigger: Sample | None
    epoch: int

    @property
    def filled(self) -> tuple[str, ...]:
        """Modalities without a sample."""
        return tuple(m for m, sample in self.samples.items() if sample is None)


@dataclass(slots=True)
class _Line:
    """The samples of one modality: the newest that is done with, and those that wait."""

    last: Sample | None = None
    waiting: deque[Sample] = field(default_factory=deque)
    newest: float = -math.inf
    suspect: float | None = None

    def all(self) -> list[Sample]:
        return [*((self.last,) if self.last is not None else ()), *self.waiting]


@dataclass(frozen=True, slots=True)
class _Trigger:
    time: float
    arrived: float
    sample: Sample | None


class Synchronizer:
    """Queues, and the sets that they make. Not thread-safe by itself.

    Attributes:
        epoch: How often a clock was set back: times before and after cannot be compared.
        incomplete: Sets that were given up because a required modality lacked.
        skipped: Ticks that passed without anybody asking for their set.
        ended: Whether no more samples come: nothing is waited for then.
    """

    def __init__(self, modalities: tuple[str, ...], policy: StreamPolicy, now: float) -> None:
        """Begins at `now`, which is when a trigger by rate ticks first."""
        self.epoch = self.incomplete = self.skipped = 0
        self.ended = False
        self._policy = policy
        self._patience = policy.patience(modalities)
        self._lines = {m: _Line() for m in modalities}
        self._counters = {m: Counters() for m in modalities}
        self._triggers = self._trigger_names(modalities)
        self._period = None if isinstance(policy.trigger, str) else 1.0 / policy.trigger
        self._next_tick = now
        self._tick: _Trigger | None = None
        self._time = -math.inf

    def _trigger_names(self, modalities: tuple[str, ...]) -> tuple[str, ...]:
        trigger = self._policy.trigger
        return modalities if trigger == ANY else (trigger,) if isinstance(trigger, str) else ()

    def counters(self) -> dict[str, Counters]:
        """Returns a copy of what was counted, by modality."""
        copies = {}
        for modality, line in self._lines.items():
            c = self._counters[modality]
            pending = sum(not s.used for s in line.all())
            copies[modality] = Counters(
                c.pushed, c.used, c.dropped, c.late, c.rejected, pending, c.stale, c.filled
            )
        return copies

    def full(self, modality: str) -> bool:
        """Whether a sample of `modality` has to wait for room."""
        if self._policy.drop != "block" or modality not in self._triggers:
            return False
        return len(self._lines[modality].waiting) >= self._policy.queue

    def reject(self, modality: str) -> None:
        """Counts a sample that is not taken because of what is in it."""
        self._counters[modality].pushed += 1
        self._counters[modality].rejected += 1

    def offer(self, sample: Sample) -> bool:
        """Takes a sample; returns False for a late one."""
        line, counters = self._lines[sample.modality], self._counters[sample.modality]
        counters.pushed += 1
        if sample.at < line.newest:
            if sample.at >= line.newest - JUMP:
                counters.late += 1
                return False
            if line.suspect is None or sample.at <= line.suspect:
                line.suspect = sample.at  # one that was long under way, or the first after the clock was set back
                counters.late += 1
                return False
            self.restart()
        line.suspect = None
        line.newest = sample.at
        if len(line.waiting) >= self._policy.queue:
            keep_newest = self._policy.drop == "keep-newest" and sample.modality in self._triggers
            for _ in range(len(line.waiting) if keep_newest else 1):
                line.waiting.popleft()
                counters.dropped += 1
        line.waiting.append(sample)
        return True

    def restart(self) -> None:
        """Forgets every sample and time: the clock was set back."""
        self.clear()
        for line in self._lines.values():
            line.newest, line.suspect = -math.inf, None
        self._time, self._tick = -math.inf, None
        self.epoch += 1

    def clear(self) -> None:
        """Drops every sample."""
        for modality, line in self._lines.items():
            self._counters[modality].dropped += sum(not s.used for s in line.all())
            line.last = None
            line.waiting.clear()

    def set_back(self, now: float) -> None:
        """Lets the next tick be `now`: the clock that ticks was set back."""
        self._next_tick = now

    def ready(self, now: float, elapsed: float) -> bool:
        """Whether `take` would give a set, or give one up."""
        trigger = self._trigger(now, elapsed)
        return trigger is not None and self._is_due(trigger, self._match(trigger), elapsed)

    def take(self, now: float, elapsed: float) -> SampleSet | None:
        """Returns the next set that is complete, or has waited long enough; None where there is none.

        Args:
            now: By the clock of the capture times.
            elapsed: By the clock of `Sample.arrived`.
        """
        while (trigger := self._trigger(now, elapsed)) is not None:
            found = self._match(trigger)
            if not self._is_due(trigger, found, elapsed):
                return None
            self._tick = None
            if not found.lacking:
                self._commit(found)
                return found
            self.incomplete += 1
            self._set_aside(trigger.sample)
        return None

    def take_at(self, now: float) -> SampleSet:
        """Returns the set for `now`, whatever triggers; one with `lacking` changes nothing."""
        found = self._match(_Trigger(max(now, self._time), 0.0, None))
        if not found.lacking:
            self._commit(found)
        return found

    def wait(self, now: float, elapsed: float) -> float | None:
        """Returns the seconds after which `ready` may change by itself, None where only a sample changes it."""
        trigger = self._trigger(now, elapsed)
        if trigger is not None:
            return max(0.0, trigger.arrived + self._patience - elapsed)
        return max(0.0, self._next_tick - now) if self._period is not None else None

    @property
    def idle(self) -> bool:
        """Whether nothing is left that triggers."""
        return self._tick is None and not any(self._lines[m].waiting for m in self._triggers)

    def _trigger(self, now: float, elapsed: float) -> _Trigger | None:
        """Returns what the next set is for."""
        if self._period is not None:
            return self._ticked(now, elapsed)
        while True:
            heads = [line.waiting[0] for m in self._triggers if (line := self._lines[m]).waiting]
            if not heads:
                return None
            head = min(heads, key=lambda sample: sample.number)
            if head.at >= self._time:
                return _Trigger(head.at, head.arrived, head)
            if self._policy.trigger == ANY and self._fits(head, self._time):
                return _Trigger(self._time, head.arrived, head)  # it came after a newer one of another sensor
            self._set_aside(head)

    def _ticked(self, now: float, elapsed: float) -> _Trigger | None:
        if self._tick is not None and self._tick.time < self._time:  # somebody asked for a later set
            self._tick = None
            self.skipped += 1
        if self._tick is None and self._period is not None and now >= self._next_tick and not self.ended:
            missed = math.floor((now - self._next_tick) / self._period)
            self.skipped += missed
            tick = self._next_tick + missed * self._period
            self._next_tick = tick + self._period
            self._tick = _Trigger(max(tick, self._time), elapsed - (now - tick), None)
        return self._tick

    def _is_due(self, trigger: _Trigger, found: SampleSet, elapsed: float) -> bool:
        complete = not found.lacking and not found.stale and not found.filled
        return complete or self.ended or elapsed >= trigger.arrived + self._patience - ROUNDING

    def _match(self, trigger: _Trigger) -> SampleSet:
        samples: dict[str, Sample | None] = {}
        stale, lacking = [], []
        for modality, line in self._lines.items():
            own = trigger.sample if trigger.sample is not None and trigger.sample.modality == modality else None
            sample = own or self._best(line, modality, trigger.time)
            fill = self._policy.fill(modality)
            if sample is None and isinstance(fill, str) and fill in ("last", "fail"):
                old = [s for s in line.all() if s.at <= trigger.time]
                if fill == "last" and old:
                    sample = old[-1]
                    stale.append(modality)
                else:
                    lacking.append(modality)
            samples[modality] = sample
        return SampleSet(trigger.time, samples, tuple(stale), tuple(lacking), trigger.sample, self.epoch)

    def _best(self, line: _Line, modality: str, time: float) -> Sample | None:
        """Returns the nearest within the window, or the newest that is no later than `time`; None if none fits."""
        fitting = [s for s in line.all() if self._fits(s, time)]
        if not fitting or self._policy.seconds("window", modality) is None:
            return fitting[-1] if fitting else None
        return min(reversed(fitting), key=lambda s: abs(s.at - time))

    def _fits(self, sample: Sample, time: float) -> bool:
        window = self._policy.seconds("window", sample.modality)
        oldest = self._policy.seconds("max_age", sample.modality)
        near = sample.at <= time if window is None else abs(sample.at - time) <= window
        return near and (oldest is None or time - sample.at <= oldest)

    def _commit(self, found: SampleSet) -> None:
        self._time = found.time
        for modality, sample in found.samples.items():
            if sample is None:
                self._counters[modality].filled += 1
                continue
            self._set_aside(sample)
            self._counters[modality].used += not sample.used
            sample.used = True
        for modality in found.stale:
            self._counters[modality].stale += 1

    def _set_aside(self, sample: Sample | None) -> None:
        """Lets `sample` be the last one of its modality; what is older is gone."""
        if sample is None:
            return
        line, counters = self._lines[sample.modality], self._counters[sample.modality]
        while line.last is not sample:
            if line.last is not None and not line.last.used:
                counters.dropped += 1
            line.last = line.waiting.popleft()
