"""Engines on a CPU that run at the same time: which ones, in how many threads, and how a call waits for them.

An engine may run as soon as those that it reads from have run. So the engines of a variant form levels: those of
one level read only from levels before, and may run at the same time: one in the calling thread, others in threads
of the session. ONNX Runtime and OpenVINO give up Python's global lock while they compute.

Each engine computes what it computes alone. With fewer threads than it has in a sequential schedule it may add up
in another order: results of two schedules can differ in the last digits, as those of two numbers of threads can.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, Protocol, TypeVar

from edgemm.bundle import CACHE, EngineEntry, Schedule
from edgemm.errors import BundleError
from edgemm.runtime.chain import Step
from edgemm.runtime.machine import describe_machine, usable_cores

T = TypeVar("T")

Span = tuple[str, float, float]
"""An engine, and the begin and the end of one of its runs, in seconds of `time.perf_counter`."""

SEQUENTIAL = Schedule()

KEPT = "schedule.json"
"""File in the cache of a bundle: `{machine, schedules: {variant: schedule}}`, measured on that machine."""


class _Reads(Protocol):
    @property
    def inputs(self) -> tuple[str, ...]: ...

    @property
    def outputs(self) -> tuple[str, ...]: ...


class Level(NamedTuple):
    """Steps that may run at the same time, by number, the longest first, and the tensors that end there."""

    steps: tuple[int, ...]
    done: tuple[str, ...]


def find_levels(engines: Sequence[_Reads]) -> tuple[tuple[int, ...], ...]:
    """Returns the numbers of the engines by level: each reads only what engines of earlier levels give."""
    made: dict[str, int] = {}
    found: dict[int, list[int]] = {}
    for at, engine in enumerate(engines):
        level = 1 + max((made[name] for name in engine.inputs if name in made), default=-1)
        made.update(dict.fromkeys(engine.outputs, level))
        found.setdefault(level, []).append(at)
    return tuple(tuple(found[level]) for level in sorted(found))


def divide(schedule: Schedule, engines: Sequence[EngineEntry], threads: int) -> dict[str, int]:
    """Returns engine -> the number of its threads, 0 for as many as the backend likes.

    Args:
        schedule: A parallel one divides the cores among the engines of a level, at least one each.
        engines: In the order of the variant.
        threads: As `SessionOptions.threads`; 0 is every core that this process may use.
    """
    found = {engine.name: threads for engine in engines}
    if schedule.order != "parallel":
        return found
    for level in find_levels(engines):
        if len(level) > 1:
            names = [engines[at].name for at in level]
            shares = [schedule.shares.get(name, 1.0) for name in names]
            found.update(zip(names, _split(threads or usable_cores(), shares), strict=True))
    return found


def _split(cores: int, shares: Sequence[float]) -> list[int]:
    """Returns how many of `cores` each gets: one, and of the others its share, rounded so that none is left."""
    free = max(0, cores - len(shares))
    exact = [free * share / sum(shares) for share in shares]
    given = [int(value) for value in exact]
    nearest = sorted(range(len(shares)), key=lambda at: given[at] - exact[at])
    for at in nearest[: free - sum(given)]:
        given[at] += 1
    return [1 + value for value in given]


def open_lanes(schedule: Schedule, engines: Sequence[EngineEntry], threads: int) -> Lanes | None:
    """Returns what runs engines of a level at the same time; None where they run one after the other."""
    widest = max(map(len, find_levels(engines)), default=0)
    beside = min(widest, threads or usable_cores()) - 1
    return Lanes(beside, schedule.shares) if schedule.order == "parallel" and beside > 0 else None


class Lanes:
    """Threads of a session beside the one that calls. Any number of threads may call at once.

    Attributes:
        shares: Engine -> how long it takes beside the others.
    """

    def __init__(self, beside: int, shares: Mapping[str, float]) -> None:
        """Makes room for `beside` threads; they start when they are needed."""
        self.shares = shares
        self._pool = ThreadPoolExecutor(beside, thread_name_prefix="edgemm")

    def run(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Returns what each call gives, in their order. The first runs in this thread: let it be the longest.

        What no other thread has begun when this one is free runs here as well, so that many threads that call one
        session do not wait for each other. Every call has ended when this returns or raises.

        Raises:
            BaseException: What the first of those that failed raised.
        """
        futures: list[Future[T] | None] = [None, *map(self._submit, calls[1:])]
        results: list[T] = []
        failed: BaseException | None = None
        for call, future in zip(calls, futures, strict=True):
            try:
                results.append(call() if future is None or future.cancel() else future.result())
            except BaseException as error:
                failed = failed or error
        if failed is not None:
            try:
                raise failed
            finally:
                failed = None  # the error holds this frame, which would hold the error
        return results

    def close(self) -> None:
        """Lets the threads end; what is called later runs in the calling thread. Waits for nobody."""
        self._pool.shutdown(wait=False)

    def _submit(self, call: Callable[[], T]) -> Future[T] | None:
        try:
            return self._pool.submit(call)
        except RuntimeError:  # closed
            return None


class Chain:
    """The engines of a session and how a call runs them over its tensors.

    Attributes:
        steps: The engines, in the order of the variant.
        levels: Steps that run at the same time; in a sequential schedule each step is a level.
        lanes: What runs them; None runs one after the other.
        whole: One engine for all steps together, for calls in which everything is new; None without one.
        schedule: What was asked for, as far as it can be had.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        lanes: Lanes | None = None,
        whole: Step | None = None,
        schedule: Schedule = SEQUENTIAL,
    ) -> None:
        self.steps = tuple(steps)
        self.levels = _levels(self.steps, lanes)
        self.lanes = lanes
        self.whole = whole
        self.schedule = schedule

    def run(self, values: dict[str, Any], spans: list[Span] | None, *, stay: bool = False) -> None:
        """Runs every engine over `values`, adds what they give and drops what is no longer needed.

        Args:
            values: Tensor name -> array.
            spans: Where the runs of engines are added; then the stages run, not `whole`.
            stay: Whether results of engines on a GPU stay there.
        """
        if self.whole is not None and spans is None:
            self.run_whole(self.whole, values)
        elif self.lanes is None:
            self._run_in_turn(values, spans, stay=stay)
        else:
            self._run_levels(self.lanes, values, spans)

    def run_whole(self, whole: Step, values: dict[str, Any]) -> None:
        """Adds to `values` what the engine for everything gives."""
        values.update(zip(whole.outputs, whole.run(whole.given(values)), strict=True))

    def close(self) -> None:
        """Lets the threads end; the engines are the session's."""
        if self.lanes is not None:
            self.lanes.close()

    def _run_in_turn(self, values: dict[str, Any], spans: list[Span] | None, *, stay: bool) -> None:
        for step in self.steps:
            given = step.given(values)
            call = step.run_on_device if stay and step.run_on_device is not None else step.run
            if spans is None:
                results = call(given)
            else:
                start = perf_counter()
                results = call(given)
                if step.wait is not None:
                    step.wait()
                spans.append((step.name, start, perf_counter()))
            values.update(zip(step.outputs, results, strict=True))
            for name in step.done:
                del values[name]

    def _run_levels(self, lanes: Lanes, values: dict[str, Any], spans: list[Span] | None) -> None:
        for level in self.levels:
            given = [(self.steps[at], self.steps[at].given(values)) for at in level.steps]
            if spans is None:
                results = lanes.run([partial(step.run, feed) for step, feed in given])
            else:
                results = lanes.run([partial(_timed, step, feed, spans) for step, feed in given])
            for (step, _), arrays in zip(given, results, strict=True):
                values.update(zip(step.outputs, arrays, strict=True))
            for name in level.done:
                del values[name]


def seconds_of(steps: Sequence[Step], spans: Sequence[Span]) -> dict[str, float]:
    """Returns engine -> the seconds that it ran."""
    seconds = {step.name: 0.0 for step in steps}
    for name, start, end in spans:
        seconds[name] += end - start
    return seconds


def _levels(steps: Sequence[Step], lanes: Lanes | None) -> tuple[Level, ...]:
    if lanes is None:
        return tuple(Level((at,), step.done) for at, step in enumerate(steps))
    ends = {name: 0 for step in steps for name in step.done}
    found = []
    for number, level in enumerate(find_levels(steps)):
        found.append(tuple(sorted(level, key=lambda at: -lanes.shares.get(steps[at].name, 1.0))))
        for at in level:
            read = (*steps[at].inputs, *steps[at].outputs)
            ends.update({name: number for name in read if name in ends})
    return tuple(Level(at, tuple(n for n, end in ends.items() if end == k)) for k, at in enumerate(found))


def _timed(step: Step, feed: Mapping[str, Any], spans: list[Span]) -> Sequence[Any]:
    start = perf_counter()
    arrays = step.run(feed)
    spans.append((step.name, start, perf_counter()))
    return arrays


def kept_schedule(bundle: Path, variant: str) -> Schedule | None:
    """Returns what `keep_schedule` wrote for a variant on this machine, None where nothing can be read."""
    schedules = _kept(bundle / CACHE / KEPT)
    if variant not in schedules:
        return None
    with contextlib.suppress(BundleError):
        return Schedule.from_json(schedules[variant], KEPT)
    return None


def keep_schedule(bundle: Path, variant: str, schedule: Schedule) -> bool:
    """Writes a schedule beside those of other variants; returns whether the bundle could be written to."""
    file = bundle / CACHE / KEPT
    schedules = {**_kept(file), variant: schedule.to_json()}
    text = json.dumps({"machine": describe_machine().summary(), "schedules": schedules}, indent=1)
    part = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(exist_ok=True)
        part.write_text(text + "\n")
        part.replace(file)
    except OSError:
        return False
    return True


def _kept(file: Path) -> dict[str, Any]:
    """Returns variant -> schedule as JSON, of this machine; nothing of a file that is not as it should be."""
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(data, dict) or not isinstance(data.get("schedules"), dict):
        return {}
    return data["schedules"] if data.get("machine") == describe_machine().summary() else {}
