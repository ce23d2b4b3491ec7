"""Calls of any batch and any size, made from real rows: what the export is traced, proven and compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgemm.data import Samples
from edgemm.data import spread as evenly
from edgemm.errors import DataError
from edgemm.tensors import BATCH, Dim, TensorSpec, convert_hint

MOST_SAMPLES = 64
UNKNOWN_SIZES = (8, 64, 512, 16000)
"""Sizes to try, without data, where a file leaves one open: the first that the model accepts is used."""
_SPREAD = 0.1


@dataclass(frozen=True, slots=True)
class Feeds:
    """Rows to build calls from.

    Attributes:
        inputs: Every input with its full rank; a word is a size that may change from call to call.
        axes: Input -> its batch axis, or None when the input has none.
        rows: One entry per row: input -> array of full rank, of size 1 on the batch axis.
    """

    inputs: tuple[TensorSpec, ...]
    axes: Mapping[str, int | None]
    rows: tuple[Mapping[str, np.ndarray], ...]

    def call(
        self, batch: int = 1, start: int = 0, sizes: Mapping[str, int] | None = None
    ) -> dict[str, np.ndarray]:
        """Returns one call's arrays: rows `start`, `start + 1`, ... (cyclic), `batch` of them.

        Rows are brought to common sizes by repeating or cutting them along their symbolic axes, which keeps every
        value one that the model has seen.

        Args:
            batch: Size of the batch axis.
            start: First row.
            sizes: Symbol -> size; others keep the size of the first row.
        """
        chosen = [self.rows[(start + i) % len(self.rows)] for i in range(batch)]
        goal = self.sizes_of(start) | dict(sizes or {})
        feed = {}
        for spec in self.inputs:
            axis = self.axes[spec.name]
            parts = [
                _resize(row[spec.name], spec.shape, goal) for row in (chosen if axis is not None else chosen[:1])
            ]
            joined = np.concatenate(parts, axis=axis) if axis is not None else parts[0]
            feed[spec.name] = np.require(joined, requirements=["C"])
        return feed

    def sizes_of(self, row: int) -> dict[str, int]:
        """Returns symbol -> size in one row, the batch left out."""
        found: dict[str, int] = {}
        arrays = self.rows[row % len(self.rows)]
        for spec in self.inputs:
            for size, symbol in zip(arrays[spec.name].shape, spec.shape, strict=True):
                if isinstance(symbol, str) and symbol != BATCH:
                    found.setdefault(symbol, size)
        return found

    def seen(self, symbol: str) -> tuple[int, ...]:
        """Returns the sizes that the rows have for a symbol, ascending."""
        return tuple(sorted({self.sizes_of(i)[symbol] for i in range(len(self.rows))}))


def _resize(array: np.ndarray, shape: Sequence[Dim], goal: Mapping[str, int]) -> np.ndarray:
    for axis, symbol in enumerate(shape):
        if isinstance(symbol, str) and symbol in goal and array.shape[axis] != goal[symbol]:
            if array.shape[axis] == 0:
                padding = [(0, goal[symbol]) if a == axis else (0, 0) for a in range(array.ndim)]
                array = np.pad(array, padding)
            else:
                array = np.take(array, np.arange(goal[symbol]) % array.shape[axis], axis=axis)
    return array


def spread(samples: Samples | None, most: int = MOST_SAMPLES) -> tuple[int, ...]:
    """Returns the indices of at most `most` samples, evenly spread over all of them."""
    return evenly(len(samples) if samples is not None else 0, most)


def cast_row(spec_dtype: str, row: np.ndarray) -> np.ndarray:
    """Returns `row`, in float32 where the data is float64 or float16 and the model is float32."""
    wider = row.dtype in (np.float64, np.float16)
    return row.astype(np.float32) if wider and spec_dtype == "float32" else row


def whole_input(spec: TensorSpec, row: np.ndarray, axis: int | None) -> np.ndarray:
    """Returns one sample's row as an input of full rank.

    Raises:
        DataError: The row's rank or dtype is not the input's.
    """
    row = cast_row(spec.dtype, np.asarray(row))
    if row.dtype.name != spec.dtype:
        raise DataError(
            f"the data's array '{spec.name}' is {row.dtype.name}, the model's input takes {spec.dtype}.",
            hint=f"save it as {spec.dtype}; {convert_hint(spec, row.dtype)}. Of tables and recordings a "
            f"description file says it: {spec.name}: {{dtype: {spec.dtype}}}",
        )
    if row.ndim == len(spec.shape):
        return row[:1] if axis == 0 and row.shape[0] > 1 else row
    if row.ndim == len(spec.shape) - 1 and axis is not None:
        return np.expand_dims(row, axis)
    raise DataError(
        f"the data's array '{spec.name}' has rows of shape {row.shape}, the model's input is {spec}.",
        hint="the first axis of the array counts samples; each row is one input without the batch axis",
    )


def synthetic_row(spec: TensorSpec, axis: int | None, seed: int, unknown: int = UNKNOWN_SIZES[0]) -> np.ndarray:
    """Returns a seeded random input of batch 1, with values that are safe by the input's name and dtype.

    Floats are standard normal, masks are ones, lengths are the longest size, ids
    and other integers are 0 or 1. Open sizes are `unknown`.
    """
    shape = tuple(1 if a == axis else unknown if isinstance(d, str) else d for a, d in enumerate(spec.shape))
    generator = np.random.default_rng([seed, *spec.name.encode()])
    name = spec.name.lower()
    if spec.dtype == "bool" or "mask" in name:
        return np.ones(shape, spec.dtype)
    if "len" in name and np.issubdtype(np.dtype(spec.dtype), np.integer):
        return np.full(shape, unknown, spec.dtype)
    if np.issubdtype(np.dtype(spec.dtype), np.integer):
        return generator.integers(0, 2, shape).astype(spec.dtype)
    return generator.standard_normal(shape).astype(spec.dtype)


def vary(array: np.ndarray, seed: int) -> np.ndarray:
    """Returns an array like `array` but not equal: floats with noise, integers rolled along the last axis."""
    if seed == 0 or array.size == 0:
        return array
    if np.issubdtype(array.dtype, np.floating):
        noise = np.random.default_rng(seed).standard_normal(array.shape)
        scale = float(np.std(array)) or 1.0
        return (array + _SPREAD * scale * noise).astype(array.dtype)
    if np.issubdtype(array.dtype, np.integer) and array.ndim > 1:
        return np.roll(array, seed, axis=-1)
    return array


def name_varying(inputs: Sequence[TensorSpec], rows: Sequence[Mapping[str, np.ndarray]]) -> tuple[TensorSpec, ...]:
    """Returns the inputs with a symbol on every axis whose size changes over the rows or is not the stated one.

    Axes whose sizes change together share a symbol. Symbols that are there already are kept.
    """
    symbols: dict[tuple[int, ...], str] = {}
    named = []
    for spec in inputs:
        shape = list(spec.shape)
        for axis, size in enumerate(spec.shape):
            seen = tuple(row[spec.name].shape[axis] for row in rows)
            if size == BATCH or not seen:
                continue
            if isinstance(size, str):
                symbols.setdefault(seen, size)
            elif set(seen) != {size}:
                shape[axis] = symbols.setdefault(seen, f"{spec.name}_dim{axis}")
        named.append(TensorSpec(spec.name, spec.dtype, tuple(shape)))
    return tuple(named)
