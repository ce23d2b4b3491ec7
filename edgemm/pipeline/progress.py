"""Who is told how far a conversion is, and how long each step took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol


class Progress(Protocol):
    """Told about every step of a conversion."""

    def bar(self, step: str, done: int, total: int) -> None:
        """`done` of `total` parts of `step` are finished."""
        ...

    def status(self, step: str, text: str) -> None:
        """`step` is now doing `text`."""
        ...

    def step(self, step: str, text: str) -> None:
        """`step` is finished; `text` says what it came to."""
        ...


class Silent:
    """Tells nobody."""

    def bar(self, step: str, done: int, total: int) -> None:
        """Does nothing."""

    def status(self, step: str, text: str) -> None:
        """Does nothing."""

    def step(self, step: str, text: str) -> None:
        """Does nothing."""


@dataclass(slots=True)
class Clock:
    """Seconds per step, for the manifest's `measured.seconds`; a step within another counts for itself."""

    seconds: dict[str, float] = field(default_factory=dict)
    _inner: float = 0.0

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Adds the time of the block to `step`."""
        start, outer, self._inner = time.perf_counter(), self._inner, 0.0
        try:
            yield
        finally:
            taken = time.perf_counter() - start
            self.seconds[step] = self.seconds.get(step, 0.0) + taken - self._inner
            self._inner = outer + taken
