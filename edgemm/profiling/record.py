"""Runs a session and keeps when each call and each engine inside it began and ended."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemm.profiling.report import BACK_TO_BACK
from edgemm.runtime.latency import measure

if TYPE_CHECKING:
    from edgemm.runtime.fusion import FusionSession
    from edgemm.tensors import Feed


@dataclass(frozen=True, slots=True)
class Spans:
    """Calls of engines, in any order.

    Attributes:
        run: int64[spans], index of the inference.
        engine: int64[spans], index in `Runs.engines`.
        start: float64[spans], seconds on the clock of `Runs.due`.
        seconds: float64[spans].
    """

    run: np.ndarray
    engine: np.ndarray
    start: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True, slots=True)
class Runs:
    """Inferences that were measured in one mode, in their order.

    Attributes:
        mode: One of the modes of `edgemm.profiling.report`.
        label: What the mode is called in tables.
        due: float64[runs], seconds since the first one was due: when the input was there.
        waited: float64[runs], seconds from then to the start of the call.
        seconds: float64[runs], from `due` to the output: the latency.
        samples: int64[runs], index of the feed that was run.
        engines: Names, in the order of the variant.
        spans: Calls of engines; empty where a mode does not look inside.
    """

    mode: str
    label: str
    due: np.ndarray
    waited: np.ndarray
    seconds: np.ndarray
    samples: np.ndarray
    engines: tuple[str, ...]
    spans: Spans

    @property
    def count(self) -> int:
        """Number of inferences."""
        return int(self.seconds.size)

    def engine_seconds(self) -> dict[str, np.ndarray]:
        """Returns engine -> float64[runs], the seconds that it took in each inference."""
        return {
            name: np.bincount(
                self.spans.run[self.spans.engine == at],
                weights=self.spans.seconds[self.spans.engine == at],
                minlength=self.count,
            )
            for at, name in enumerate(self.engines)
        }

    def covered(self) -> np.ndarray:
        """Returns float64[runs], the seconds of each inference in which at least one engine ran."""
        order = np.argsort(self.spans.start, kind="stable")
        start, run = self.spans.start[order], self.spans.run[order]
        end = start + self.spans.seconds[order]
        # Inferences follow one another, so the latest end so far never lies inside a later one.
        before = np.maximum.accumulate(np.concatenate([[-np.inf], end[:-1]])) if end.size else end
        return np.bincount(run, weights=np.maximum(end - np.maximum(start, before), 0), minlength=self.count)

    def spans_of(self, run: int) -> list[tuple[str, float, float]]:
        """Returns `(engine, start, seconds)` of one inference by start; the start counts from that of its call."""
        mine = self.spans.run == run
        begin = float(self.due[run] + self.waited[run])
        found = zip(self.spans.engine[mine], self.spans.start[mine], self.spans.seconds[mine], strict=True)
        return sorted(
            ((self.engines[e], float(s) - begin, float(t)) for e, s, t in found), key=lambda span: span[1]
        )


class Recorder:
    """Makes calls of a session and keeps their times.

    Attributes:
        began: When each call began.
        ended: When its output was there.
        samples: Which feed it ran.
    """

    def __init__(
        self, session: FusionSession, reset_every: int = 0, clock: Callable[[], float] = perf_counter
    ) -> None:
        """Records `session`.

        Args:
            session: What runs.
            reset_every: Forget the kept states before every such run; 0 never does.
            clock: Seconds since anything; that of the session's spans.
        """
        self._session = session
        self._clock = clock
        self._names = tuple(entry.name for entry in session.variant.engines)
        self._index = {name: at for at, name in enumerate(self._names)}
        self._reset_every = reset_every
        self._since = 0
        self.began, self.ended, self.samples = array("d"), array("d"), array("q")
        self._runs, self._engines = array("q"), array("q")
        self._starts, self._ends = array("d"), array("d")

    def call(self, feed: Feed, sample: int) -> None:
        """Runs one feed, every engine of it."""
        if self._reset_every:
            self._since += 1
            if self._since >= self._reset_every:
                self._session.reset_state()
                self._since = 0
        began = self._clock()
        _, spans = self._session.run_spans(feed)
        self.ended.append(self._clock())
        run = len(self.began)
        self.began.append(began)
        self.samples.append(sample)
        for name, start, end in spans:
            self._runs.append(run)
            self._engines.append(self._index[name])
            self._starts.append(start)
            self._ends.append(end)

    def forget(self) -> None:
        """Drops what was recorded, for example a warm-up; the states and what counts to their reset stay."""
        for kept in (self.began, self.ended, self.samples, self._runs, self._engines, self._starts, self._ends):
            del kept[:]

    def runs(self, mode: str, label: str, due: np.ndarray | None = None) -> Runs:
        """Returns what was recorded.

        Args:
            mode: As of `Runs`.
            label: As of `Runs`.
            due: float64[runs], when the inputs were there, on the clock of `began`; None takes `began`.
        """
        began, ended = np.array(self.began), np.array(self.ended)
        due = began if due is None else due
        zero = due[0] if due.size else 0.0
        starts = np.array(self._starts)
        spans = Spans(np.array(self._runs), np.array(self._engines), starts - zero, np.array(self._ends) - starts)
        samples = np.array(self.samples)
        return Runs(mode, label, due - zero, began - due, ended - due, samples, self._names, spans)


def cycle(run: Callable[[Feed, int], object], feeds: Sequence[Feed]) -> Callable[[], None]:
    """Returns a call without arguments that gives `run` the next feed and its number, over and over."""
    at, last = 0, len(feeds) - 1

    def call() -> None:
        nonlocal at
        run(feeds[at], at)
        at = at + 1 if at < last else 0

    return call


def back_to_back(
    recorder: Recorder, call: Callable[[], Any], *, runs: int | None = None, seconds: float | None = None
) -> Runs:
    """Returns runs that follow each other without a pause.

    Args:
        recorder: What `call` records to; what it holds already is dropped.
        call: What `cycle` made.
        runs: Number of runs.
        seconds: How long to run instead.

    Raises:
        DataError: Not exactly one of `runs` and `seconds`.
    """
    recorder.forget()
    measure({"call": call}, runs=runs, seconds=seconds, warmup=0)
    return recorder.runs(BACK_TO_BACK, "back to back")
