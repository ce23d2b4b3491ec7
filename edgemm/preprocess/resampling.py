"""How much the pixels of a row count in those of a resized one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

_UNITS = 1 << 16

BAND = 32
"""Pixels of a resized row that are computed in one product."""


def weights(size: int, wanted: int, *, antialias: bool) -> Array:
    """Returns float32 `[wanted, size]`: how much each pixel of a row counts in each pixel of the resized one.

    Rows add up to 1, in multiples of 2^-16. The window is Pillow's (`precompute_coeffs` of `Resample.c`).
    """
    scale = size / wanted
    reach = max(scale, 1.0) if antialias else 1.0
    result = np.zeros((wanted, size), np.float32)
    for row in range(wanted):
        center = (row + 0.5) * scale
        first, last = max(int(center - reach + 0.5), 0), min(int(center + reach + 0.5), size)
        taps = np.maximum(1 - np.abs((np.arange(first, last) + 0.5 - center) / reach), 0)
        units = np.floor(taps / taps.sum() * _UNITS + 0.5)
        units[units.argmax()] += _UNITS - units.sum()
        result[row, first:last] = units / _UNITS
    return result


@dataclass(frozen=True, slots=True)
class Band:
    """Some neighbouring pixels of a resized row, and what they are made of.

    Attributes:
        start: First pixel of the row that counts.
        end: One behind the last.
        weights: float32 `[pixels, end - start]`.
    """

    start: int
    end: int
    weights: Array


@lru_cache(maxsize=32)
def bands(size: int, wanted: int, *, antialias: bool) -> tuple[Band, ...]:
    """Returns `weights` in parts of `BAND` rows: all else in these rows is zero, and is not multiplied."""
    whole = weights(size, wanted, antialias=antialias)
    result = []
    for first in range(0, wanted, BAND):
        rows = whole[first : first + BAND]
        used = np.flatnonzero(rows.any(axis=0))
        start, end = int(used[0]), int(used[-1]) + 1
        result.append(Band(start, end, np.ascontiguousarray(rows[:, start:end])))
    return tuple(result)
