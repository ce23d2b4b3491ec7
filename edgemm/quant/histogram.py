"""A histogram of fixed size whose content depends on the values alone, not on how they arrived.

Bins cover [-2^e, 2^e) evenly. A value outside doubles the range as often as needed, and each doubling adds pairs
of neighbouring bins. Dividing by a power of two is exact and floor(floor(2x) / 2) = floor(x), so the counts are
the same in any order, any batch size and any division of the data over histograms that are merged later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

HALF = 4096
"""Bins on each side of zero. With the outer bit of the range in use, at least 2,048 of them tell values apart."""

_CHUNK = 1 << 16  # stays in the processor's cache
_EXACT = (-100, HALF.bit_length() - 1)
"""Exponents for which scaling by HALF · 2^-e neither overflows float32 nor loses bits of its smallest numbers."""

_NO_EXPONENT = -126
_TOO_LARGE = 2.0**128  # beyond float32: counts as Inf


class Histogram:
    """Counts of finite values in 2 · `HALF` bins (64 kB), with the exact minimum, maximum and number of values."""

    __slots__ = ("_ready", "count", "counts", "exponent", "high", "low", "skipped")

    def __init__(self) -> None:
        self.counts = np.zeros(2 * HALF, np.int64)
        self.exponent = _NO_EXPONENT  # the smallest range; floats below it share the two bins next to zero
        self.low = math.inf
        self.high = -math.inf
        self.count = 0
        self.skipped = 0  # NaN and Inf

    @property
    def width(self) -> float:
        """Width of one bin."""
        return math.ldexp(1.0, self.exponent) / HALF

    def add(self, array: np.ndarray) -> None:
        """Counts every finite value of `array` (any float or integer dtype, any shape)."""
        flat = np.ravel(array)
        if flat.dtype not in (np.float32, np.float64):
            flat = flat.astype(np.float32 if flat.dtype == np.float16 else np.float64)
        for start in range(0, flat.size, _CHUNK):
            self._add_chunk(flat[start : start + _CHUNK])

    def _add_chunk(self, values: np.ndarray) -> None:
        low, high = float(values.min()), float(values.max())
        if not (low > -_TOO_LARGE and high < _TOO_LARGE):
            finite = values[np.abs(values.astype(np.float64)) < _TOO_LARGE]
            self.skipped += values.size - finite.size
            if finite.size == 0:
                return
            values, low, high = finite, float(finite.min()), float(finite.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += values.size
        largest = max(abs(low), abs(high))
        if largest > 0:  # zeros fit any range
            self._grow(math.frexp(largest)[1])
        # Powers of two scale float32 exactly unless they leave its range: then float64, which gives the same bins.
        if values.dtype == np.float32 and not _EXACT[0] <= self.exponent <= _EXACT[1]:
            values = values.astype(np.float64)
        scaled = values * values.dtype.type(HALF * math.ldexp(1.0, -self.exponent))
        bins = np.floor(scaled, out=scaled).astype(np.intp)
        bins += HALF
        self.counts += np.bincount(bins, minlength=2 * HALF)

    def _grow(self, exponent: int) -> None:
        steps = min(exponent - self.exponent, HALF.bit_length() + 1)
        if steps <= 0:
            return
        if self.counts.any():
            for _ in range(steps):
                folded = self.counts.reshape(HALF, 2).sum(axis=1)
                self.counts[:] = 0
                self.counts[HALF // 2 : HALF // 2 + HALF] = folded
        self.exponent = exponent

    def merge(self, other: Histogram) -> None:
        """Adds the values that `other` counted; `other` may grow to this one's range and counts the same."""
        exponent = max(self.exponent, other.exponent)
        self._grow(exponent)
        other._grow(exponent)
        self.counts += other.counts
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.count += other.count
        self.skipped += other.skipped

    def state(self) -> dict[str, np.ndarray]:
        """Returns everything that was counted, as arrays."""
        used = np.flatnonzero(self.counts)
        whole = np.array([self.exponent, self.count, self.skipped], np.int64)
        return {"bins": used, "counts": self.counts[used], "whole": whole, "ends": np.array([self.low, self.high])}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes the place of the histogram that gave `state`."""
        self.counts[:] = 0
        self.counts[state["bins"]] = state["counts"]
        self.exponent, self.count, self.skipped = map(int, state["whole"])
        self.low, self.high = map(float, state["ends"])

    def edges(self) -> np.ndarray:
        """Returns the 2 · `HALF` + 1 edges of the bins, ascending, float64."""
        return np.arange(-HALF, HALF + 1, dtype=np.float64) * self.width
