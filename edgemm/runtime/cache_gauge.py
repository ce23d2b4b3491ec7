"""What comparing inputs costs, and which engines take longer than that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from edgemm.runtime.chain import Step

TRIALS = 3
"""Runs of each engine after which `"auto"` decides; the fastest one counts."""

MARGIN = 2
"""How many times as long as comparing the engines must take: an input is not unchanged in every call."""

_SMALL = 4096
"""Bytes up to which arrays are compared at once."""

_BLOCK = 16384
"""Words that are compared at once: the result of one comparison stays in the nearest cache."""

_WORDS = ((8, np.uint64), (4, np.uint32), (2, np.uint16), (1, np.uint8))


class Gauge:
    """Measures engines, until it is known which of them take longer than comparing what they are computed from."""

    def __init__(self, steps: Sequence[Step], sources: Sequence[frozenset[str]], keepable: Sequence[bool]) -> None:
        self._steps = steps
        self._sources = sources
        self._keepable = keepable
        self._seconds = [float("inf")] * len(steps)
        self._runs = [0] * len(steps)
        self._start = self._inside = 0.0
        self._beside = float("inf")

    def begin(self) -> None:
        """Notes that a call begins."""
        self._start, self._inside = perf_counter(), 0.0

    def end(self) -> bool:
        """Notes that a call ends, and returns whether every engine has run often enough."""
        self._beside = min(self._beside, perf_counter() - self._start - self._inside)
        return min(self._runs) >= TRIALS

    def run(self, at: int, given: Mapping[str, Any]) -> Sequence[Any]:
        """Returns what the engine gives, and measures it."""
        step = self._steps[at]
        start = perf_counter()
        outputs: Sequence[Any] = step.run(given)
        if step.wait is not None:
            step.wait()  # an engine on a GPU has only been launched
        seconds = perf_counter() - start
        self._seconds[at] = min(self._seconds[at], seconds)
        self._inside += seconds
        self._runs[at] += 1
        return outputs

    def worth(self, cost: Mapping[str, float]) -> frozenset[str]:
        """Returns the inputs to compare: those of encoders that take longer than that and a call's bookkeeping.

        Engines behind all inputs do not count: with them unchanged there is hardly a reason to call.

        Args:
            cost: Input -> seconds to compare and copy it.
        """
        chosen: set[str] = set()
        for found, keepable in zip(self._sources, self._keepable, strict=True):
            if not keepable or found >= cost.keys():
                continue
            behind = zip(self._sources, self._seconds, self._keepable, strict=True)
            saved = sum(seconds for sources, seconds, ok in behind if ok and sources <= found)
            if saved > MARGIN * (sum(cost[name] for name in found) + self._beside):
                chosen |= found
        return frozenset(chosen)


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Returns whether two C-contiguous arrays of one dtype and shape hold the same bytes; it ends at a difference.

    Not `==`: a NaN equals itself here, and 0.0 is not -0.0.
    """
    if a.nbytes <= _SMALL:
        return a.tobytes() == b.tobytes()
    size, word = next((size, word) for size, word in _WORDS if a.nbytes % size == 0)
    x, y = a.reshape(-1).view(word), b.reshape(-1).view(word)
    for start in range(0, a.nbytes // size, _BLOCK):
        if not (x[start : start + _BLOCK] == y[start : start + _BLOCK]).all():
            return False
    return True


def comparing_cost(array: np.ndarray | None) -> float:
    """Returns the seconds that it takes to compare `array` to the end and to copy it."""
    if array is None:
        return float("inf")
    seconds = float("inf")
    for _ in range(TRIALS):
        start = perf_counter()
        same_bytes(array, array)
        array.copy()
        seconds = min(seconds, perf_counter() - start)
    return seconds
