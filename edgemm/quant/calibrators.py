"""Range estimators: what part of a tensor's values an 8-bit scale should cover.

Each keeps a fixed amount of memory per tensor however many samples it sees, and its result does not depend on the
order of the samples, the batch size, or how the samples were divided over calibrators that are merged. To add one:
a class with the methods of `Calibrator`, a row in `CALIBRATORS`; the property tests take it up by themselves.

Every range holds zero, because padding, ReLU and blank samples need an exact zero. NaN and Inf are not counted.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Protocol, TypeVar, cast

import numpy as np

from edgemm.errors import QuantizationError, did_you_mean
from edgemm.quant.arithmetic import activation_scale
from edgemm.quant.histogram import HALF, Histogram
from edgemm.quant.table import TensorRange

CALIBRATORS = {
    "minmax": "edgemm.quant.calibrators:MinMax",
    "moving-average": "edgemm.quant.calibrators:Average",
    "percentile": "edgemm.quant.calibrators:Percentile",
    "entropy": "edgemm.quant.calibrators:Entropy",
    "mse": "edgemm.quant.calibrators:MeanSquaredError",
    "auto": "edgemm.quant.calibrators:Auto",
}

LEVELS = 256

_Self = TypeVar("_Self", contravariant=True)


class Calibrator(Protocol[_Self]):
    """Watches one tensor."""

    def observe(self, array: np.ndarray) -> None:
        """Takes values; axis 0 of `array` counts samples."""
        ...

    def merge(self, other: _Self) -> None:
        """Takes what another calibrator of the same class has observed."""
        ...

    def range(self) -> TensorRange | None:
        """Returns the range to represent, or None when no finite value was observed."""
        ...

    def state(self) -> Mapping[str, np.ndarray]:
        """Returns everything that was observed, as arrays without objects, to be saved."""
        ...

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes the place of the calibrator that gave `state`."""
        ...


def calibrator_class(name: str) -> type[Calibrator[object]]:
    """Returns the calibrator called `name`.

    Raises:
        QuantizationError: No such calibrator.
    """
    if name not in CALIBRATORS:
        raise QuantizationError(
            f"no calibrator '{name}' (calibrators: {', '.join(CALIBRATORS)}).",
            hint=did_you_mean(name, CALIBRATORS, "leave it out for the default"),
        )
    module, _, attribute = CALIBRATORS[name].partition(":")
    return cast("type[Calibrator[object]]", getattr(importlib.import_module(module), attribute))


def _with_zero(low: float, high: float, seen: tuple[float, float]) -> TensorRange:
    low, high = max(low, seen[0]), min(high, seen[1])
    return TensorRange(min(low, 0.0), max(high, 0.0), *seen)


class MinMax:
    """Everything that was seen. One outlier widens the scale for all other values."""

    def __init__(self) -> None:
        self._low, self._high = np.inf, -np.inf

    def observe(self, array: np.ndarray) -> None:
        """Takes values; axis 0 counts samples."""
        values = array[np.isfinite(array)] if not np.isfinite(array).all() else array
        if values.size:
            self._low = min(self._low, float(values.min()))
            self._high = max(self._high, float(values.max()))

    def merge(self, other: MinMax) -> None:
        """Takes what `other` has observed."""
        self._low, self._high = min(self._low, other._low), max(self._high, other._high)

    def range(self) -> TensorRange | None:
        """Returns [minimum, maximum]."""
        if self._low > self._high:
            return None
        return _with_zero(self._low, self._high, (self._low, self._high))

    def state(self) -> dict[str, np.ndarray]:
        """Returns minimum and maximum."""
        return {"seen": np.array([self._low, self._high])}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes minimum and maximum from `state`."""
        self._low, self._high = map(float, state["seen"])


class Average:
    """The mean over samples of each sample's minimum and maximum: an outlier sample counts once.

    Frameworks use an exponential moving average here, whose result depends on the order of the samples; equal
    weights do not. Sums are kept as exact fractions, so neither does rounding.
    """

    def __init__(self) -> None:
        self._seen = MinMax()
        self._low, self._high, self._samples = Fraction(0), Fraction(0), 0

    def observe(self, array: np.ndarray) -> None:
        """Takes values; axis 0 counts samples."""
        if array.size == 0:
            return
        self._seen.observe(array)
        rows = array.reshape(array.shape[0], -1).astype(np.float64)
        bad = ~np.isfinite(rows)
        for low, high in zip(
            np.where(bad, np.inf, rows).min(axis=1, initial=np.inf).tolist(),
            np.where(bad, -np.inf, rows).max(axis=1, initial=-np.inf).tolist(),
            strict=True,
        ):
            if low <= high:
                self._low, self._high = self._low + Fraction(low), self._high + Fraction(high)
                self._samples += 1

    def merge(self, other: Average) -> None:
        """Takes what `other` has observed."""
        self._seen.merge(other._seen)
        self._low, self._high = self._low + other._low, self._high + other._high
        self._samples += other._samples

    def range(self) -> TensorRange | None:
        """Returns [mean of minima, mean of maxima]."""
        seen = self._seen.range()
        if seen is None:
            return None
        low, high = float(self._low / self._samples), float(self._high / self._samples)
        return _with_zero(low, high, (seen.seen_low, seen.seen_high))

    def state(self) -> dict[str, np.ndarray]:
        """Returns the sums, as exact fractions in text, and the extremes."""
        return {**self._seen.state(), "sums": np.array([str(self._low), str(self._high), str(self._samples)])}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes sums and extremes from `state`."""
        self._seen.restore(state)
        low, high, samples = map(str, state["sums"])
        self._low, self._high, self._samples = Fraction(low), Fraction(high), int(samples)


class _FromHistogram:
    """Observes into a histogram; `_choose` picks the range from it."""

    def __init__(self) -> None:
        self.histogram = Histogram()

    def observe(self, array: np.ndarray) -> None:
        """Takes values; axis 0 counts samples."""
        if array.size:
            self.histogram.add(array)

    def merge(self, other: _FromHistogram) -> None:
        """Takes what `other` has observed."""
        self.histogram.merge(other.histogram)

    def range(self) -> TensorRange | None:
        """Returns the chosen range, inside what was seen."""
        h = self.histogram
        if h.count == 0:
            return None
        if h.low == h.high:
            return _with_zero(h.low, h.high, (h.low, h.high))
        return _with_zero(*self._choose(), (h.low, h.high))

    def state(self) -> dict[str, np.ndarray]:
        """Returns the histogram."""
        return self.histogram.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes the histogram from `state`."""
        self.histogram.restore(state)

    def _choose(self) -> tuple[float, float]:
        raise NotImplementedError


class Percentile(_FromHistogram):
    """Cuts 0.005 % of the values at each end."""

    share = 0.9999

    def _choose(self) -> tuple[float, float]:
        h = self.histogram
        below = np.cumsum(h.counts)
        tail = (1 - self.share) / 2 * h.count
        edges = h.edges()
        first = int(np.searchsorted(below, tail, side="right"))
        last = int(np.searchsorted(below, h.count - tail, side="left"))
        return float(edges[first]), float(edges[min(last, 2 * HALF - 1) + 1])


class Entropy(_FromHistogram):
    """The clipping threshold whose 8-bit distribution is closest to the real one (Kullback-Leibler divergence).

    After S. Migacz, "8-bit inference with TensorRT" (GTC 2017), for an asymmetric range: one threshold cuts both
    sides. Good for long-tailed convolution outputs; it may cut rare values that matter. The bins at zero count as
    their neighbours do: zeros are exact at any scale, and after a ReLU they would outweigh everything else.
    """

    candidates = 96

    def _choose(self) -> tuple[float, float]:
        h = self.histogram
        used = np.flatnonzero(h.counts)
        first, last = min(int(used[0]), HALF), max(int(used[-1]) + 1, HALF)
        reach = max(HALF - first, last - HALF)
        smallest = min(reach, LEVELS // 2 if first < HALF < last else LEVELS)
        tried = np.unique(np.linspace(smallest, reach, self.candidates).round().astype(int))
        counts = h.counts.astype(np.float64)
        counts[HALF], counts[HALF - 1] = counts[HALF + 1], counts[HALF - 2]
        scores = [_divergence(counts, max(first, HALF - t), min(last, HALF + t)) for t in tried]
        # Ties go to the widest: it clips least.
        best = int(tried[len(scores) - 1 - int(np.argmin(scores[::-1]))])
        return -best * h.width, best * h.width


class MeanSquaredError(_FromHistogram):
    """The range with the smallest expected squared error: rounding inside it plus clipping outside it."""

    candidates = 128

    def _choose(self) -> tuple[float, float]:
        h = self.histogram
        edges = h.edges()
        middles = (edges[:-1] + edges[1:]) / 2
        counts = h.counts.astype(np.float64)
        used = np.flatnonzero(h.counts)
        lows = self._bounds(min(int(used[0]), HALF))
        highs = self._bounds(max(int(used[-1]) + 1, HALF))
        sums = [np.concatenate([[0.0], np.cumsum(counts * middles**k)]) for k in range(3)]
        rounding = np.concatenate(
            [[0.0], np.cumsum(np.where((middles < -h.width) | (middles > h.width), counts, 0))]
        )

        low, high = edges[lows], edges[highs]
        cut_low = sums[2][lows] - 2 * low * sums[1][lows] + low**2 * sums[0][lows]
        above = [s[-1] - s[highs] for s in sums]
        cut_high = above[2] - 2 * high * above[1] + high**2 * above[0]
        scale = (high[None, :] - low[:, None]) / (LEVELS - 1)
        inside = rounding[highs][None, :] - rounding[lows][:, None]
        error = inside * scale**2 / 12 + cut_low[:, None] + cut_high[None, :]
        error[scale <= 0] = np.inf
        i, j = np.unravel_index(int(np.argmin(error)), error.shape)
        return float(low[i]), float(high[j])

    def _bounds(self, outermost: int) -> np.ndarray:
        return np.unique(np.linspace(HALF, outermost, self.candidates).round().astype(int))


class Auto(_FromHistogram):
    """For each tensor the range with the smallest squared error, of those that the other calibrators choose.

    One pass: they share a histogram, from which the error of quantizing and dequantizing every value with uint8 is
    read off. Ties go to the widest range. Which one was taken is in `TensorRange.by`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._average = Average()

    def observe(self, array: np.ndarray) -> None:
        """Takes values; axis 0 counts samples."""
        super().observe(array)
        self._average.observe(array)

    def merge(self, other: _FromHistogram) -> None:
        """Takes what `other` has observed."""
        super().merge(other)
        self._average.merge(cast("Auto", other)._average)

    def range(self) -> TensorRange | None:
        """Returns the best of the ranges of the other calibrators."""
        seen = MinMax()
        seen.restore({"seen": np.array([self.histogram.low, self.histogram.high])})
        found = {"minmax": seen.range(), "moving-average": self._average.range()}
        for name, kind in (("percentile", Percentile), ("entropy", Entropy), ("mse", MeanSquaredError)):
            other = kind()
            other.histogram = self.histogram
            found[name] = other.range()
        ranges = {name: value for name, value in found.items() if value is not None}
        if not ranges:
            return None
        errors = {name: squared_error(self.histogram, value) for name, value in ranges.items()}
        best = min(ranges, key=lambda name: (errors[name], ranges[name].low - ranges[name].high))
        return replace(ranges[best], by=best)

    def state(self) -> dict[str, np.ndarray]:
        """Returns the histogram and the sums."""
        return {**super().state(), **self._average.state()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes histogram and sums from `state`."""
        super().restore(state)
        self._average.restore(state)


def squared_error(histogram: Histogram, chosen: TensorRange) -> float:
    """Returns the mean squared error of every value that was counted, quantized to uint8 over `chosen`.

    Exact up to the width of a bin, which is below a sixteenth of the scale of the whole range.
    """
    if histogram.count == 0:
        return 0.0
    used = np.flatnonzero(histogram.counts)
    edges = histogram.edges()
    values = np.clip((edges[used] + edges[used + 1]) / 2, histogram.low, histogram.high)
    values = np.where((used == HALF) | (used == HALF - 1), 0.0, values)  # mostly exact zeros, behind a ReLU
    scale = activation_scale(chosen)
    step = float(scale.scale)
    quantized = np.clip(np.rint(values / step) + scale.zero_point, 0, LEVELS - 1)
    errors = ((quantized - scale.zero_point) * step - values) ** 2
    return float((errors * histogram.counts[used]).sum() / histogram.count)


def _divergence(counts: np.ndarray, start: int, stop: int) -> float:
    inside = counts[start:stop]
    if inside.size == 0 or inside.sum() == 0:
        return float("inf")
    clipped = inside.copy()
    clipped[0] += counts[:start].sum()
    clipped[-1] += counts[stop:].sum()
    levels = min(LEVELS, inside.size)
    starts = (np.arange(levels) * inside.size) // levels
    sums = np.add.reduceat(inside, starts)
    filled = np.add.reduceat((inside > 0).astype(np.float64), starts)
    spread = np.repeat(sums / np.maximum(filled, 1), np.diff(np.append(starts, inside.size)))
    spread[inside == 0] = 0.0
    p, q = clipped / clipped.sum(), spread / spread.sum()
    # A clipped value in a bin that quantizes to nothing would be infinitely unlikely; smooth it a little.
    q = np.where(q > 0, q, 1e-10)
    mass = p > 0
    return float(np.sum(p[mass] * np.log(p[mass] / q[mass])))
