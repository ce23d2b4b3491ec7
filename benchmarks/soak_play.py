"""Plays sensors, callers and swaps against one session, and checks every result, for `benchmarks.soak`."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.soak_oracle import GRID, Oracle, Taken
from edgemm.errors import EdgemmError, StreamError
from edgemm.runtime import FusionSession, open_session
from edgemm.runtime.stream import Stream
from edgemm.runtime.stream_result import Result

RATES = (30.0, 10.0, 100.0)
"""Samples per second; the sensors of the streams take them in turn."""

PATIENCE = 30.0
"""Seconds that threads have to end."""

SILENCE = 10.0
"""Seconds after which a stream without any result is broken."""

STREAMS = ("callback", "iterated", "polled")
"""How the results of each stream are taken."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is played.

    Attributes:
        seconds: How long.
        swap_every: Seconds between swaps; every third one is of a bundle that is not there, and has to fail.
        left_out: Share of samples that a sensor does not send.
        nan: Share of samples with NaN in them.
        late: Share of samples with a capture time before the one before.
        stops: Share of samples after which a sensor is silent for a while.
        raises: Share of results at which the callback raises.
        callers: Threads that call `run`.
        max_in_flight: Of the session.
        seed: Of all that is random.
    """

    seconds: float
    swap_every: float = 2.0
    left_out: float = 0.05
    nan: float = 0.02
    late: float = 0.02
    stops: float = 0.005
    raises: float = 0.02
    callers: int = 2
    max_in_flight: int = 3
    seed: int = 0


class DeliberateError(Exception):
    """What a callback raises on purpose."""


class Play:
    """One session, its streams, sensors and callers."""

    def __init__(self, bundles: Sequence[Path], samples: Mapping[str, np.ndarray], setting: Setting) -> None:
        """Opens a session on the first bundle. Nothing runs before `run`."""
        self.setting = setting
        self.bundles = list(bundles)
        self.oracle = Oracle(bundles, samples)
        self.session: FusionSession = open_session(bundles[0], max_in_flight=setting.max_in_flight)
        self.streams: list[Stream] = []
        self.taken: dict[str, Taken] = {}
        self.pushed: dict[str, Counter[str]] = {}
        self.swaps: dict[str, Any] = {"done": 0, "refused": 0, "seconds": []}
        self.unexpected: Counter[str] = Counter()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def run(self, watch: Callable[[], object], every: float) -> None:
        """Plays, and calls `watch` at intervals of `every` seconds; afterwards everything is closed."""
        modalities = list(self.oracle.rows)
        self._open_streams(modalities)
        for number, stream in enumerate(self.streams):
            for at, modality in enumerate(modalities):
                self._thread(self._sensor, number, stream, modality, RATES[(number + at) % len(RATES)])
        for number in range(self.setting.callers):
            self._thread(self._caller, number)
        self._thread(self._swapper)
        end = time.monotonic() + self.setting.seconds
        while time.monotonic() < end and not self._stop.wait(every):
            watch()
        self._stop.set()
        self._join(self._threads)
        for stream in self.streams:
            stream.end()
        self._join(self._takers)
        for stream in self.streams:
            stream.close()
        self.session.close()

    def _open_streams(self, modalities: Sequence[str]) -> None:
        zeros = dict.fromkeys(modalities, "zeros")
        last = modalities[1 % len(modalities)]
        policies: list[dict[str, Any]] = [
            {"trigger": modalities[0], "optional": zeros, "max_age": 0.5},
            {"trigger": last, "optional": dict.fromkeys(modalities, "last"), "drop": "block", "queue": 4},
            {"trigger": 50.0, "optional": zeros, "max_age": 1.0, "drop": "drop-oldest"},
        ]
        self._takers: list[threading.Thread] = []
        ways = (self._call, self._iterate, self._poll)
        for name, policy, take in zip(STREAMS, policies, ways, strict=True):
            self.taken[name], self.pushed[name] = Taken(), Counter()
            self.streams.append(self.session.stream(**policy))
            take(self.streams[-1], self.taken[name])

    def _call(self, stream: Stream, taken: Taken) -> None:
        chance = random.Random(self.setting.seed)

        def callback(result: Result) -> None:
            taken.take_result(self.oracle, result)
            if chance.random() < self.setting.raises:
                taken.raised += 1
                raise DeliberateError

        stream.start(callback, lambda error: taken.told.update([type(error).__name__]))
        assert stream._worker is not None
        self._takers.append(stream._worker)

    def _iterate(self, stream: Stream, taken: Taken) -> None:
        def work() -> None:
            while True:
                try:
                    for result in stream:
                        taken.take_result(self.oracle, result)
                    return
                except EdgemmError as error:
                    taken.told[type(error).__name__] += 1

        self._taker(work)

    def _poll(self, stream: Stream, taken: Taken) -> None:
        def work() -> None:
            while not self._stop.wait(0.004):
                try:
                    while (result := stream.poll()) is not None:
                        taken.take_result(self.oracle, result)
                except EdgemmError as error:
                    taken.told[type(error).__name__] += 1

        self._taker(work)

    def _taker(self, work: Callable[[], None]) -> None:
        self._takers.append(threading.Thread(target=self._watched, args=(work,), daemon=True))
        self._takers[-1].start()

    def _join(self, threads: Sequence[threading.Thread]) -> None:
        end = time.monotonic() + PATIENCE
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                self.unexpected["a thread does not end"] += 1

    def _thread(self, work: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=self._watched, args=(work, *arguments), daemon=True))
        self._threads[-1].start()

    def _watched(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception as error:
            self.unexpected[f"{getattr(work, '__name__', 'thread')}: {type(error).__name__}: {error}"] += 1
            self._stop.set()
            for stream in self.streams:
                stream.close()  # nobody is to wait for room

    def _sensor(self, number: int, stream: Stream, modality: str, rate: float) -> None:
        """Pushes samples with jitter; some are left out, late or NaN, and at times it is silent for a while."""
        chance, setting = random.Random(f"{self.setting.seed} {number} {modality}"), self.setting
        counted = self.pushed[STREAMS[number]]
        rows, last, due = self.oracle.rows[modality], 0.0, time.monotonic()
        while True:
            due = max(due + 1 / rate, time.monotonic() - 1 / rate)
            if chance.random() < setting.stops:
                due += chance.uniform(0.2, 1.0)
            if self._stop.wait(max(0.0, due + chance.uniform(0, 0.3 / rate) - time.monotonic())):
                return
            if chance.random() < setting.left_out:
                continue
            t = max(round(time.monotonic() * GRID), round(last * GRID) + 1) / GRID
            late = last > 0 and chance.random() < setting.late
            t = last - round(chance.uniform(0.01, 0.5) * GRID) / GRID if late else t
            sample = rows[self.oracle.number(modality, t)]
            nan = chance.random() < setting.nan and sample.dtype.kind == "f"
            if nan:
                sample = np.full_like(sample, np.nan)
            try:
                accepted = stream.push(modality, sample, t=t)
            except StreamError:
                if self._stop.is_set():
                    return
                raise
            counted[modality] += 1
            counted["refused"] += not accepted
            counted["nan"] += nan
            last = max(last, t) if accepted else last

    def _caller(self, number: int) -> None:
        """Calls `run` with one combination after the other."""
        chance = random.Random(f"{self.setting.seed} caller {number}")
        taken = self.taken[f"caller {number}"] = Taken()
        while not self._stop.wait(chance.uniform(0, 0.01)):
            key = tuple(chance.choice([None, *range(len(rows))]) for rows in self.oracle.rows.values())
            taken.take(self.oracle, key, self.session.run(self.oracle.feed(key)))

    def _swapper(self) -> None:
        """Swaps, and makes sure that the next call is of the new bundle, and that what has to fail does."""
        key = tuple(0 for _ in self.oracle.rows)
        for number in itertools.count(1):
            if self._stop.wait(self.setting.swap_every):
                return
            at = self.swaps["done"] + 1
            if number % 3 == 0:
                try:
                    self.session.swap(self.bundles[0] / "none")
                except EdgemmError:
                    self.swaps["refused"] += 1
                at = self.swaps["done"]
            else:
                start = time.monotonic()
                self.session.swap(self.bundles[at % len(self.bundles)])
                self.swaps["done"] += 1
                self.swaps["seconds"].append(time.monotonic() - start)
            found = self.oracle.which(key, self.session.run(self.oracle.feed(key)))
            if found != at % len(self.bundles) and len(self.bundles) > 1:
                raise AssertionError(f"after swap {number} the session runs bundle {found}")

    def broken(self) -> list[str]:
        """Returns the invariants that do not hold; nothing in a run that is in order."""
        found = [f"{count} x {what}" for what, count in self.unexpected.items()]
        for name, taken in self.taken.items():
            if taken.wrong:
                found.append(f"{name}: {taken.wrong} results that no bundle gives for their samples")
            if taken.repeated:
                found.append(f"{name}: {taken.repeated} results that came again or out of order")
            if taken.changes > self.swaps["done"]:
                found.append(f"{name}: {taken.changes} changes of bundle in {self.swaps['done']} swaps")
            if not taken.results and self.setting.seconds >= SILENCE:
                found.append(f"{name}: no results")
        for (name, pushed), stream in zip(self.pushed.items(), self.streams, strict=True):
            found += [f"{name}: {what}" for what in self._lost(stream, pushed, self.taken[name])]
        return found

    def _lost(self, stream: Stream, pushed: Counter[str], taken: Taken) -> list[str]:
        counters, found = stream.counters, []
        if counters.results != taken.results:
            found.append(f"{counters.results} results, {taken.results} came")
        told = Counter({"DeliberateError": taken.raised} if taken.raised else {})
        if counters.failed or counters.callback_errors != taken.raised or taken.told != told:
            found.append(f"{counters.failed} sets failed, told of {dict(taken.told)}, raised {taken.raised}")
        for modality, c in counters.modalities.items():
            if c.pushed != pushed[modality]:
                found.append(f"{c.pushed} samples of '{modality}' counted, {pushed[modality]} pushed")
            if c.pushed != c.used + c.dropped + c.late + c.rejected + c.pending or c.pending:
                found.append(f"samples of '{modality}' do not add up: {c}")
            if modality == stream.policy.trigger and c.used != counters.results:
                found.append(f"{c.used} samples of the trigger '{modality}' used, {counters.results} results")
        every = counters.modalities.values()
        refused = sum(c.late + c.rejected for c in every)
        if refused != pushed["refused"] or sum(c.rejected for c in every) != pushed["nan"]:
            found.append(f"{pushed['refused']} samples refused, {refused} counted; {pushed['nan']} with NaN")
        return found

    def record(self) -> dict[str, Any]:
        """Returns what happened as plain JSON values."""
        seconds = sorted(self.swaps["seconds"])
        return {
            "setting": asdict(self.setting),
            "rates_hz": list(RATES),
            "swaps": {
                "done": self.swaps["done"],
                "refused": self.swaps["refused"],
                "median_s": seconds[len(seconds) // 2] if seconds else None,
                "max_s": seconds[-1] if seconds else None,
            },
            "results": {
                name: {
                    "results": taken.results,
                    "wrong": taken.wrong,
                    "repeated": taken.repeated,
                    "changes_of_bundle": taken.changes,
                    "raised_on_purpose": taken.raised,
                    "told": dict(taken.told),
                }
                for name, taken in self.taken.items()
            },
            "streams": {name: asdict(s.counters) for name, s in zip(self.pushed, self.streams, strict=True)},
            "unexpected": dict(self.unexpected),
        }
