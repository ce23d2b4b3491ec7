"""Statistics of float tensors over the calibration samples that repairs need, streamed in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgemm.data import Samples
from edgemm.partition import StageGraph
from edgemm.quant.calibrators import calibrator_class
from edgemm.quant.chain import Chain, Tap, fed, feeds
from edgemm.quant.collect import BUDGET, LARGEST_BATCH, group_taps
from edgemm.quant.table import CalibrationTable
from edgemm.quant.tensors import table_key
from edgemm.tensors import IOSpec


def watch(
    stage_graph: StageGraph,
    io: IOSpec,
    samples: Samples,
    taps: Iterable[Tap],
    observe: Callable[[Tap, np.ndarray, int], None],
) -> None:
    """Runs the float stages over the samples; `observe` gets every value with the number of samples in it."""
    taps = list(dict.fromkeys(taps))
    if not taps:
        return
    _, feed = next(feeds(io, samples, 1))
    sizes = {tap: max(1, value.nbytes) for tap, value in Chain(stage_graph, io, taps).taps(feed)}
    for group in group_taps(sizes, BUDGET):
        chain = Chain(stage_graph, io, group)
        size = max(1, min(LARGEST_BATCH, BUDGET // max(1, sum(sizes[k] for k in group))))
        for _, feed in feeds(io, samples, size):
            for tap, value in chain.taps(feed):
                if value.dtype == np.float32 and value.size:
                    observe(tap, value, fed(feed, io))


@dataclass(slots=True)
class Channels:
    """What was seen per channel: extremes, sums of values and of their squares, float64 `[channels]`."""

    low: np.ndarray
    high: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    count: int = 0

    @classmethod
    def none(cls, width: int) -> Channels:
        """Returns the statistics of nothing."""
        return cls(np.zeros(width), np.zeros(width), np.zeros(width), np.zeros(width))

    @property
    def largest(self) -> np.ndarray:
        """Largest magnitude."""
        result: np.ndarray = np.maximum(-self.low, self.high)
        return result

    @property
    def power(self) -> np.ndarray:
        """Mean square."""
        result: np.ndarray = self.squares / max(self.count, 1)
        return result

    @property
    def mean(self) -> np.ndarray:
        """Mean value."""
        result: np.ndarray = self.total / max(self.count, 1)
        return result


def channel_statistics(
    stage_graph: StageGraph,
    io: IOSpec,
    samples: Samples,
    axes: Mapping[Tap, int],
    change: Callable[[Tap, np.ndarray], np.ndarray] | None = None,
) -> dict[Tap, Channels]:
    """Returns statistics along an axis (counted from the end) of each tensor, after `change` if there is one."""
    result: dict[Tap, Channels] = {}

    def observe(tap: Tap, value: np.ndarray, _: int) -> None:
        rows = np.moveaxis(value, axes[tap], -1).reshape(-1, value.shape[axes[tap]])
        if change is not None:
            rows = change(tap, rows)
        rows = rows[np.isfinite(rows).all(axis=1)]
        if tap not in result:
            result[tap] = Channels.none(rows.shape[1])
        found = result[tap]
        if len(rows):
            found.low = np.minimum(found.low, rows.min(axis=0))
            found.high = np.maximum(found.high, rows.max(axis=0))
            found.total = found.total + rows.sum(axis=0, dtype=np.float64)
            found.squares = found.squares + np.einsum("nc,nc->c", rows, rows, dtype=np.float64)
            found.count += len(rows)

    watch(stage_graph, io, samples, axes, observe)
    return result


def recalibrate(
    stage_graph: StageGraph, io: IOSpec, samples: Samples, table: CalibrationTable, changed: Iterable[Tap]
) -> CalibrationTable:
    """Returns the table with new ranges, by its own calibrator, for the tensors that changed."""
    taps = [t for t in changed if table_key(*t) in table.ranges]
    make = calibrator_class(table.calibrator)
    watchers = {t: make() for t in taps}

    def observe(tap: Tap, value: np.ndarray, count: int) -> None:
        rows = value.reshape(count, -1) if value.ndim and value.shape[0] % count == 0 else value.reshape(1, -1)
        watchers[tap].observe(rows)

    watch(stage_graph, io, samples, taps, observe)
    found = {table_key(*t): r for t, w in watchers.items() if (r := w.range()) is not None}
    return replace(table, ranges={**table.ranges, **found})
