"""Whether the calibration samples say enough: statistics per tensor that end in warnings with numbers.

A range is only as good as the samples behind it. For every watched tensor: do the last samples still leave the
range of the first ones, which channels never change, is it constant, were there NaN or Inf. Constant memory: two
numbers per channel and a few per tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

FEW_SAMPLES = 32
"""Fewer than this are warned about whatever they show."""

OPEN_RANGE = 1e-3
"""Share of values outside the range of the first samples from which a range counts as not converged."""

MANY_DEAD = 0.25
"""Share of channels that never change from which a tensor is warned about."""

_MAX_CHANNELS = 1 << 16
_NAMED = 3


@dataclass(slots=True)
class TensorCoverage:
    """What was seen of one tensor.

    Attributes:
        axis: The channels' axis in one sample; negative counts from the end. None where there is none.
        first: Samples that count as the first ones; the others are held against their range.
        seen: Samples seen so far.
        low: Minimum over the first samples.
        high: Maximum over the first samples.
        outside: Values of the later samples outside [low, high].
        later: All values of the later samples.
        skipped: NaN and Inf.
        lows: Minimum of each channel over all samples; None once the number of channels has changed.
        highs: Maximum of each channel.
        ragged: Whether the number of channels has changed.
    """

    axis: int | None
    first: int
    seen: int = 0
    low: float = np.inf
    high: float = -np.inf
    outside: int = 0
    later: int = 0
    skipped: int = 0
    lows: np.ndarray | None = None
    highs: np.ndarray | None = None
    ragged: bool = False

    def observe(self, values: np.ndarray) -> None:
        """Takes values; axis 0 counts samples, the other axes are those of one sample."""
        count = values.shape[0]
        if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
            finite = np.isfinite(values)
            self.skipped += int(values.size - finite.sum())
            values = np.where(finite, values, np.nan)
        self._follow_channels(values)
        cut = max(0, min(count, self.first - self.seen))
        self.seen += count
        head, tail = values[:cut], values[cut:]
        if head.size:
            self.low = float(np.fmin(self.low, np.fmin.reduce(head, axis=None)))
            self.high = float(np.fmax(self.high, np.fmax.reduce(head, axis=None)))
        if tail.size:
            self.later += tail.size
            if not (tail.min() >= self.low and tail.max() <= self.high):  # NaN fails this too
                self.outside += int(((tail < self.low) | (tail > self.high)).sum())

    def _follow_channels(self, values: np.ndarray) -> None:
        if self.axis is None or self.ragged or values.size == 0 or values.ndim < 2:
            return
        axis = self.axis % (values.ndim - 1) + 1
        others = tuple(a for a in range(values.ndim) if a != axis)
        self._take(np.fmin.reduce(values, axis=others), np.fmax.reduce(values, axis=others))

    def _take(self, lows: np.ndarray | None, highs: np.ndarray | None) -> None:
        if lows is None or highs is None or self.ragged:
            return
        if self.lows is None or self.highs is None:
            self.lows, self.highs = lows, highs
        elif self.lows.shape == lows.shape:
            self.lows, self.highs = np.fmin(self.lows, lows), np.fmax(self.highs, highs)
        if self.lows.shape != lows.shape or len(lows) > _MAX_CHANNELS:
            self.ragged, self.lows, self.highs = True, None, None

    def merge(self, other: TensorCoverage) -> None:
        """Takes what another shard has seen; each shard's later samples were held against its own first ones."""
        self.seen, self.first = self.seen + other.seen, self.first + other.first
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.outside, self.later = self.outside + other.outside, self.later + other.later
        self.skipped += other.skipped
        if other.ragged:
            self.ragged, self.lows, self.highs = True, None, None
        self._take(other.lows, other.highs)

    @property
    def saturation(self) -> float:
        """Share of the later samples' values outside the range of the first ones; 0 without later ones."""
        return self.outside / self.later if self.later else 0.0

    @property
    def channels(self) -> int:
        """Number of channels; 0 where there are none to follow."""
        return 0 if self.lows is None else len(self.lows)

    @property
    def dead(self) -> int:
        """Channels that had one value in all samples."""
        if self.lows is None or self.highs is None:
            return 0
        return int((~(self.lows < self.highs)).sum())

    @property
    def constant(self) -> bool:
        """Whether the whole tensor had one value in all samples."""
        if self.lows is not None and self.highs is not None:
            return not bool(np.fmin.reduce(self.lows) < np.fmax.reduce(self.highs))
        return not self.low < self.high and self.outside == 0

    def to_json(self) -> dict[str, Any]:
        """Returns the numbers behind the warnings."""
        return {
            "samples": self.seen,
            "saturation": self.saturation,
            "channels": self.channels,
            "dead_channels": self.dead,
            "constant": self.constant,
            "not_finite": self.skipped,
        }


@dataclass(frozen=True, slots=True)
class Coverage:
    """Statistics of every watched tensor.

    Attributes:
        samples: How many samples were seen.
        tensors: `stage:tensor` -> what was seen of it.
        modalities: `stage:tensor` -> the modalities whose values reach it.
    """

    samples: int
    tensors: Mapping[str, TensorCoverage]
    modalities: Mapping[str, tuple[str, ...]]

    def warnings(self) -> tuple[str, ...]:
        """Returns one sentence per finding, each with numbers, the worst tensors and their modality."""
        found = []
        if self.samples < FEW_SAMPLES:
            found.append(
                f"{self.samples} calibration samples, fewer than {FEW_SAMPLES}: ranges may be too narrow for what "
                "the device will see."
            )
        for modality, members in self._by_modality().items():
            count = len(members)
            found += _say(
                {k: t.saturation for k, t in members.items() if t.saturation > OPEN_RANGE},
                f"{modality}: the range of {{}} of {count} tensors has not converged: the last half of the "
                "samples puts {} outside the range of the first half; give more, or more varied, samples.",
                lambda share: f"{share:.2%}",
            )
            found += _say(
                {k: t.dead / t.channels for k, t in members.items() if t.channels and not t.constant
                 and t.dead / t.channels >= MANY_DEAD},
                f"{modality}: {{}} of {count} tensors have channels that never change: {{}}.",
                lambda share: f"{share:.0%}",
            )  # fmt: skip
            found += _say(
                {k: 1.0 for k, t in members.items() if t.constant},
                f"{modality}: {{}} of {count} tensors are constant over all samples and stay float: {{}}.",
                lambda _: "",
            )
            found += _say(
                {k: float(t.skipped) for k, t in members.items() if t.skipped},
                f"{modality}: {{}} of {count} tensors had NaN or Inf: {{}}; they are not counted.",
                lambda number: f"{number:,.0f} values",
            )
        return tuple(found)

    def _by_modality(self) -> dict[str, dict[str, TensorCoverage]]:
        result: dict[str, dict[str, TensorCoverage]] = {}
        for key, tensor in self.tensors.items():
            result.setdefault("+".join(self.modalities.get(key, ())) or "constants", {})[key] = tensor
        return result

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict: totals per modality, every tensor, the warnings."""
        totals = {}
        for modality, members in self._by_modality().items():
            channels = sum(t.channels for t in members.values())
            totals[modality] = {
                "tensors": len(members),
                "worst_saturation": max((t.saturation for t in members.values()), default=0.0),
                "dead_channels": sum(t.dead for t in members.values()) / channels if channels else 0.0,
                "constant_tensors": sum(t.constant for t in members.values()),
                "not_finite": sum(t.skipped for t in members.values()),
            }
        return {
            "samples": self.samples,
            "modalities": totals,
            "tensors": {k: t.to_json() for k, t in sorted(self.tensors.items())},
            "warnings": list(self.warnings()),
        }


def _say(values: Mapping[str, float], text: str, show: Any) -> list[str]:
    """Returns `text` with how many there are and the worst of them, or nothing."""
    if not values:
        return []
    worst = sorted(values, key=lambda key: (-values[key], key))[:_NAMED]
    names = ", ".join(f"{show(values[key])} of '{key}'".removeprefix(" of ") for key in worst)
    more = len(values) - len(worst)
    return [text.format(len(values), names + (f" and {more} more" if more > 0 else ""))]
