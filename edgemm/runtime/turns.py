"""Latency of several sessions in one interleaved measurement, whole calls and engine by engine.

Sessions take turns in short blocks, in rotating order. Before each block the machine rests until the pool threads
of the session before have gone to sleep, and one run that is not counted brings the session's own weights and
threads back: what is compared is each session in steady use, under the same conditions.

A device calls at the rate of its sensors instead, and does other things in between: caches are cold and threads
asleep. So single calls are measured as well, each after a pause, the sessions in turn (`paced`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgemm.runtime.latency import Latencies
from edgemm.tensors import Feed

_LOOK = 0.009
"""Seconds over which the processor time of all threads is looked at: two ticks of a slow kernel, and more.

Also the least pause before a paced call, about the rate of a fast sensor.
"""

_QUIET = 0.2
"""Share of a processor below which all threads are asleep."""

_LONGEST = 0.15
"""Seconds after which a rest ends in any case; ONNX Runtime's threads spin for up to 0.09 after a run."""

_PACED = 40
"""Paced calls of each session, fewer where they take longer than a quarter of the measurement."""

_MIN_PACED = 15
"""Paced calls of each session however long they take, for a median that a few wake-ups do not move."""

_SLOWER = 1.03
"""From this ratio on paced calls count as slower."""

_BLOCK_SECONDS = 0.02
_MAX_BLOCK = 60
_MIN_ROUNDS = 7
_MAX_ROUNDS = 60


@dataclass(frozen=True, slots=True)
class Timing:
    """Latencies of one session: whole calls, each engine within them, and single calls after a pause."""

    total: Latencies
    engines: Mapping[str, Latencies]
    paced: Latencies

    @property
    def ms(self) -> float:
        """Median of a whole call in milliseconds."""
        return self.total.median * 1e3

    @property
    def paced_ms(self) -> float:
        """Median of a single call after a pause in milliseconds."""
        return self.paced.median * 1e3

    def ratio(self, base: Timing) -> float:
        """Returns the time over that of `base`: in steady use, or of paced calls where they are slower than its.

        Paced calls of small models are mostly cold caches and threads that wake up, which all sessions share.
        """
        steady, paced = self.ms / base.ms, self.paced_ms / base.paced_ms
        return paced if paced > max(steady, _SLOWER) else steady

    def engine_ms(self, name: str) -> float:
        """Median of one engine in milliseconds."""
        return self.engines[name].median * 1e3


class Timed(Protocol):
    """What can be timed: a FusionSession, or something that is compared with one."""

    def run(self, feed: Feed) -> object:
        """Runs once."""
        ...

    def reset_state(self) -> None:
        """Forgets kept states."""
        ...

    def run_timed(self, feed: Feed) -> tuple[object, Mapping[str, float]]:
        """Runs once; returns the outputs, and seconds by engine."""
        ...


def time_sessions(sessions: Mapping[str, Timed], feeds: Sequence[Feed], *, seconds: float) -> dict[str, Timing]:
    """Returns the timing of every session over the same feeds in about `seconds` in all.

    At least seven rounds are made, however long they take.
    """
    blocks = {name: _block(session, feeds[0]) for name, session in sessions.items()}
    totals: dict[str, list[float]] = {name: [] for name in sessions}
    engines: dict[str, dict[str, list[float]]] = {name: {} for name in sessions}
    names = list(sessions)
    end = time.perf_counter() + seconds
    for at in range(_MAX_ROUNDS):
        for name in _turn(names, at):
            session = sessions[name]
            session.reset_state()  # a state that grows with every call would be measured at every length
            rest()
            session.run(feeds[at % len(feeds)])
            for k in range(blocks[name]):
                feed = feeds[(at + k) % len(feeds)]
                start = time.perf_counter()
                _, parts = session.run_timed(feed)
                totals[name].append(time.perf_counter() - start)
                for engine, value in parts.items():
                    engines[name].setdefault(engine, []).append(value)
        if at + 1 >= _MIN_ROUNDS and time.perf_counter() >= end:
            break
    paced = _paced(sessions, feeds, seconds / 4)
    return {
        name: Timing(
            Latencies(np.array(totals[name])),
            {engine: Latencies(np.array(values)) for engine, values in engines[name].items()},
            paced[name],
        )
        for name in sessions
    }


def rest() -> None:
    """Waits until no thread of this process is at work: those of some sessions spin for a while after a run."""
    end = time.perf_counter() + _LONGEST
    while time.perf_counter() < end:
        start, before = time.perf_counter(), time.process_time()
        time.sleep(_LOOK)
        if time.process_time() - before < _QUIET * (time.perf_counter() - start):
            return


def _paced(sessions: Mapping[str, Timed], feeds: Sequence[Feed], seconds: float) -> dict[str, Latencies]:
    """Returns single calls of every session, one after the other in rotating order, each after a pause."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    names = list(sessions)
    end = time.perf_counter() + seconds
    for at in range(_PACED):
        for name in _turn(names, at):
            sessions[name].reset_state()
            rest()
            start = time.perf_counter()
            sessions[name].run(feeds[at % len(feeds)])
            times[name].append(time.perf_counter() - start)
        if at + 1 >= _MIN_PACED and time.perf_counter() >= end:
            break
    return {name: Latencies(np.array(values)) for name, values in times.items()}


def _turn(names: list[str], at: int) -> list[str]:
    """Returns the names in the order of round `at`."""
    first = at % len(names)
    return names[first:] + names[:first]


def _block(session: Timed, feed: Feed) -> int:
    """Returns how many runs of `session` make a block."""
    session.run(feed)
    start = time.perf_counter()
    session.run(feed)
    return int(np.clip(_BLOCK_SECONDS / max(time.perf_counter() - start, 1e-6), 1, _MAX_BLOCK))
