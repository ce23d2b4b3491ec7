"""Graphs against each other on this machine, engine by engine, before anything is chosen.

Two sessions are open at a time: a reference, the float graph on ONNX Runtime, and one other. They take turns in
short blocks, so that what disturbs one disturbs the other, and the ratio of their medians counts.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgemm.backends.registry import get_backend
from edgemm.data import spread
from edgemm.errors import BackendError
from edgemm.graph import let_go, remove_mapped
from edgemm.memory import give_back_memory
from edgemm.partition import Stage, StageGraph
from edgemm.pipeline.candidates import WHOLE
from edgemm.pipeline.engines import EngineKind
from edgemm.quant.chain import Chain, filled
from edgemm.rewrite.prepare import prepare
from edgemm.runtime.registry import session_class
from edgemm.runtime.session import EngineSession, SessionOptions
from edgemm.runtime.turns import rest
from edgemm.tensors import Feed, IOSpec

FEEDS = 4
SECONDS = 0.16
"""Time of one comparison, without the rests."""

_ROUNDS = 7
_FEW_ROUNDS = 3
_FAR = 1.5
"""Ratio in each of a few rounds from which more rounds would tell nothing new."""

_SLOW = 0.01
"""Seconds of one run from which on few rounds are enough: the noise is small beside it."""

_MAX_BLOCK = 40
_numbers = itertools.count()


@dataclass(slots=True)
class Track:
    """One graph of a layout with its real inputs: the forms of it are raced here.

    Attributes:
        stage: The float graph.
        feeds: Its inputs for a few samples.
        folder: For engine files.
        threads: What the user asked for; 0 leaves it to the backend.
        alone: Whether it is the model's only engine, whose threads may then spin between runs.
    """

    stage: Stage
    feeds: Sequence[Feed]
    folder: Path
    threads: int
    alone: bool
    _reference: EngineSession | None = None
    _references: list[float] = field(default_factory=list)

    def open(self, model: ir.Model, kind: EngineKind) -> EngineSession:
        """Returns a session on `model` as it would ship.

        Raises:
            BackendError: The backend cannot run it.
        """
        backend = get_backend(kind.backend)
        path = self.folder / f"race-{next(_numbers)}{backend.suffix}"
        threads = kind.threads if kind.threads is not None else self.threads
        options = SessionOptions(threads=threads, spinning=self.alone, precision=kind.precision)
        try:
            backend.draft(prepare(model, kind.preparation), path)
            self._give_back()
            return session_class(kind.backend)(path, options)
        finally:
            remove_mapped(path)

    def ratio(self, model: ir.Model, kind: EngineKind) -> float | None:
        """Returns the time of `model` on `kind` over that of the float graph on ONNX Runtime, or None.

        None when the backend cannot run it.
        """
        try:
            other = self.open(model, kind)
        except BackendError:
            return None
        try:
            if self._reference is None:
                self._reference = self.open(self.stage.model, EngineKind())
            reference, taken = self.compare(self._reference, other)
        except BackendError:
            return None
        finally:
            other.close()
            self._give_back()
        self._references.append(reference)
        return taken / reference

    def milliseconds(self, one: ir.Model, other: ir.Model, kind: EngineKind) -> tuple[float, float]:
        """Returns the median latencies of two graphs on one kind of engine, in milliseconds.

        Raises:
            BackendError: The backend cannot run one of them.
        """
        first, second = self.open(one, kind), self.open(other, kind)
        try:
            a, b = self.compare(first, second, 2 * SECONDS)
        finally:
            first.close()
            second.close()
            self._give_back()
        return a * 1e3, b * 1e3

    def compare(self, a: EngineSession, b: EngineSession, seconds: float = SECONDS) -> tuple[float, float]:
        """Returns the seconds of both, from blocks in alternating order.

        The second is the first times the median of the ratios of neighbouring blocks: what slows the machine down
        for a while slows both.
        """
        sessions = (a, b)
        for session in sessions:
            session.run(self.feeds[0])
        runs = [_seconds(session, self.feeds[0]) for session in sessions]
        rounds = _ROUNDS if min(runs) < _SLOW else _FEW_ROUNDS
        blocks = [int(np.clip(seconds / rounds / 2 / run, 2, _MAX_BLOCK)) for run in runs]
        medians = np.empty((rounds, 2))
        for number in range(rounds):
            for turn, which in enumerate(((0, 1), (1, 0))[number % 2]):
                if turn == 1 and self.alone:  # a round begins with the session that the last one ended with
                    rest()
                medians[number, which] = self._median(sessions[which], blocks[which])
            if number + 1 == _FEW_ROUNDS and np.all(medians[: number + 1, 1] > _FAR * medians[: number + 1, 0]):
                medians = medians[: number + 1]
                break
        first = float(np.median(medians[:, 0]))
        return first, first * float(np.median(medians[:, 1] / medians[:, 0]))

    def _median(self, session: EngineSession, count: int) -> float:
        """Returns the median seconds of `count` runs, after one that is not counted."""
        session.run(self.feeds[0])
        times = []
        for number in range(count):
            feed = self.feeds[number % len(self.feeds)]
            start = time.perf_counter()
            session.run(feed)
            times.append(time.perf_counter() - start)
        return float(np.median(times))

    def _give_back(self) -> None:
        let_go(self.stage.model)
        give_back_memory(4 * self.stage.parameters)

    def reference_ms(self) -> float:
        """Returns the median latency in milliseconds of the float graph on ONNX Runtime, over all comparisons."""
        if not self._references:
            session = self._reference = self._reference or self.open(self.stage.model, EngineKind())
            self._references.append(self.compare(session, session)[0])
        return float(np.median(self._references)) * 1e3

    def close(self) -> None:
        """Closes the reference."""
        if self._reference is not None:
            self._reference.close()
            self._reference = None


def stage_feeds(graph: StageGraph, io: IOSpec, samples: Sequence[Feed]) -> dict[str, list[Feed]]:
    """Returns the inputs of every stage, and under `WHOLE` of the model with its states, for a few feeds.

    Raises:
        BackendError: The float model does not run.
    """
    chain = Chain(graph, io)
    result: dict[str, list[Feed]] = {}
    for index in spread(len(samples), FEEDS):
        chain.reset()
        values = chain.run(filled(samples[index], io))
        for name, inputs in [(WHOLE, io.inputs), *((s.name, s.inputs) for s in graph.stages)]:
            result.setdefault(name, []).append({i.name: np.ascontiguousarray(values[i.name]) for i in inputs})
    return result


def _seconds(session: EngineSession, feed: Feed) -> float:
    start = time.perf_counter()
    session.run(feed)
    return max(time.perf_counter() - start, 1e-6)
