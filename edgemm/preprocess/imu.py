"""Steps for inertial sensors, `[batch, time, channels]`, and the windows that they are cut into.

The channels are x, y, z of one sensor, or of several that are mounted together: accelerometer x, y, z, gyroscope
x, y, z. What keeps something from one sample to the next stays on the host: `Windows` turns a stream into windows,
and every step here sees whole windows. All steps can be baked.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import Literal

import numpy as np

from edgemm.errors import DataError
from edgemm.preprocess.step import Step, expect, refuse
from edgemm.tensors import TensorSpec

STANDARD_GRAVITY = 9.80665
"""m/s², as the International Committee for Weights and Measures set it in 1901."""

UNITS: dict[str, tuple[str, float]] = {
    "m/s2": ("acceleration", 1.0),
    "g": ("acceleration", STANDARD_GRAVITY),
    "mg": ("acceleration", STANDARD_GRAVITY / 1000),
    "rad/s": ("angular rate", 1.0),
    "deg/s": ("angular rate", pi / 180),
    "mdeg/s": ("angular rate", pi / 180_000),
    "rad": ("angle", 1.0),
    "deg": ("angle", pi / 180),
    "uT": ("magnetic flux density", 1.0),
    "mT": ("magnetic flux density", 1000.0),
    "gauss": ("magnetic flux density", 100.0),
    "mgauss": ("magnetic flux density", 0.1),
}
"""Unit -> what it measures, and its size in the first unit of that kind."""

Unit = Literal["m/s2", "g", "mg", "rad/s", "deg/s", "mdeg/s", "rad", "deg", "uT", "mT", "gauss", "mgauss"]
AXES = ("x", "y", "z", "-x", "-y", "-z")
_NUMBERS = ("float32", "int8", "uint8", "int16", "uint16", "int32")
_ORDER = "move the channels to the last axis with `transpose`, and leave other channels to their own input"


@dataclass(frozen=True, slots=True)
class Units:
    """Another unit of the same quantity, as float32: deg/s to rad/s, g to m/s2, counts of a sensor to either.

    Attributes:
        source: Unit that comes in: m/s2, g, mg; rad/s, deg/s, mdeg/s; rad, deg; uT, mT, gauss, mgauss.
        target: Unit that comes out.
        counts: What the sensor gives for one `source`: 16384 for 16384 LSB/g in a data sheet.
    """

    source: Unit
    target: Unit
    counts: float = 1.0

    def __post_init__(self) -> None:
        """Checks that both units measure the same."""
        kind = UNITS[self.source][0]
        known = ", ".join(name for name, (of, _) in UNITS.items() if of == kind)
        expect(UNITS[self.target][0] == kind, self, "target", f"a unit of {kind} like '{self.source}': {known}")
        expect(self.counts > 0, self, "counts", "over 0")

    @property
    def factor(self) -> float:
        """What every value is multiplied with."""
        return UNITS[self.source][1] / UNITS[self.target][1] / self.counts

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns float32 of the same shape."""
        return batch.astype(np.float32) * np.float32(self.factor)

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns float32 of the same shape.

        Raises:
            DataError: The values are no numbers of up to 32 bits.
        """
        if spec.dtype not in _NUMBERS:
            raise refuse(self, spec, ", ".join(_NUMBERS), "say the sensor's dtype in `raw`")
        return TensorSpec(spec.name, "float32", spec.shape)


@dataclass(frozen=True, slots=True)
class MountAxes:
    """The model's x, y and z in terms of the sensor's, for a sensor that is mounted in another direction.

    Attributes:
        axes: What becomes x, y and z: `[y, -x, z]` for a sensor turned by 90 degrees. Each axis once; every three
            channels are turned alike.
    """

    axes: tuple[str, str, str]

    def __post_init__(self) -> None:
        """Checks that each axis is there once."""
        letters = sorted(a.lstrip("-") for a in self.axes)
        once = letters == ["x", "y", "z"] and set(self.axes) <= set(AXES)
        expect(once, self, "axes", "x, y and z, each once, some with a minus: [y, -x, z]")

    def order(self, channels: int) -> tuple[list[int], np.ndarray]:
        """Returns the channel that each one is taken from, and its sign, `[channels]` float32."""
        letters = ["xyz".index(a.lstrip("-")) for a in self.axes]
        signs = [-1.0 if a.startswith("-") else 1.0 for a in self.axes]
        sensors = channels // 3
        return [3 * s + i for s in range(sensors) for i in letters], np.array(signs * sensors, np.float32)

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns the channels in the new order with their signs."""
        order, signs = self.order(batch.shape[-1])
        return np.asarray(batch[..., order] * signs)

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns what came in.

        Raises:
            DataError: The last axis is not made of threes, or the values are no floats.
        """
        _triples(self, spec)
        return spec


@dataclass(frozen=True, slots=True)
class Gravity:
    """Takes gravity out of the windows of an accelerometer, or makes it 1.

    Attributes:
        by: `mean`: the mean of the window is subtracted. `low_pass`: what a first-order low-pass filter gives is
            subtracted, g[t] = c g[t - 1] + (1 - c) a[t], begun anew in every window with its first sample (the
            filter of Android's SensorEvent); in a graph for windows of a fixed length only. `unit`: each sensor's
            window is divided by the length of its mean vector, so that sensors with other units or gains agree.
        constant: c of `low_pass`.
    """

    by: Literal["mean", "low_pass", "unit"] = "mean"
    constant: float = 0.8

    def __post_init__(self) -> None:
        """Checks the constant."""
        expect(0 < self.constant < 1, self, "constant", "over 0 and less than 1")

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns windows of the same shape."""
        if self.by == "low_pass":
            return self._high(batch)
        mean = batch.mean(axis=1, keepdims=True)
        if self.by == "mean":
            return np.asarray(batch - mean)
        vectors = mean.reshape(*mean.shape[:2], -1, 3)
        length = np.sqrt((vectors**2).sum(axis=-1, keepdims=True) + np.float32(1e-12))
        return np.asarray((batch.reshape(*batch.shape[:2], -1, 3) / length).reshape(batch.shape))

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns what came in.

        Raises:
            DataError: These are no float32 windows of sensors with three axes.
        """
        _triples(self, spec)
        if len(spec.shape) != 3:
            raise refuse(self, spec, "float32 [batch, time, channels]", _ORDER)
        return spec

    def filter(self, time: int) -> np.ndarray:
        """Returns the `[time, time]` matrix, float32, that takes what `low_pass` gives from a window."""
        steps = np.subtract.outer(np.arange(time), np.arange(time))
        low = np.where(steps >= 0, (1 - self.constant) * self.constant ** np.maximum(steps, 0), 0.0)
        low[:, 0] = self.constant ** np.arange(time)
        return np.asarray((np.eye(time) - low).astype(np.float32))

    def _high(self, batch: np.ndarray) -> np.ndarray:
        keep, gravity = np.float32(self.constant), batch[:, 0]
        result = np.empty_like(batch)
        for t in range(batch.shape[1]):
            gravity = keep * gravity + (1 - keep) * batch[:, t]
            result[:, t] = batch[:, t] - gravity
        return result


@dataclass(frozen=True, slots=True)
class Transpose:
    """Other order of the axes: `[0, 2, 1]` makes `[batch, channels, time]` of `[batch, time, channels]`.

    Attributes:
        order: The axis that each axis is taken from; the batch, 0, stays first.
    """

    order: tuple[int, ...] = (0, 2, 1)

    def __post_init__(self) -> None:
        """Checks that each axis is there once."""
        ordered = sorted(self.order) == list(range(len(self.order)))
        expect(ordered and self.order[:1] == (0,), self, "order", "0, then each other axis once: [0, 2, 1]")

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns the axes in the new order."""
        return np.ascontiguousarray(batch.transpose(self.order))

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns the sizes in the new order.

        Raises:
            DataError: There are more or fewer axes.
        """
        if len(spec.shape) != len(self.order):
            raise refuse(self, spec, f"{len(self.order)} axes", "name every axis in `order`")
        return TensorSpec(spec.name, spec.dtype, tuple(spec.shape[a] for a in self.order))


class Windows:
    """Cuts a stream of samples into overlapping windows; on the host, since it keeps samples between calls.

    A recording is cut for calibration as the device cuts the stream: `Windows(100, 50).push(recording)`.

        windows = Windows(length=100, stride=50)
        for samples in sensor:                       # [n, channels], any n
            for window in windows.push(samples):     # [100, channels]
                stream.push("imu", {"accel": window[None]}, t=...)
    """

    def __init__(self, length: int, stride: int) -> None:
        """Begins an empty window.

        Args:
            length: Samples per window.
            stride: Samples from the start of one window to that of the next; over `length`, samples are skipped.

        Raises:
            DataError: One of them is less than 1.
        """
        if length < 1 or stride < 1:
            raise DataError(
                f"windows of {length} samples every {stride}: expected at least 1.",
                hint="give `length` and `stride` in samples",
            )
        self.length, self.stride = length, stride
        self._kept: np.ndarray | None = None
        self._skip = 0

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Returns the windows `[n, length, ...]` that these samples complete, n from 0 on.

        Args:
            samples: `[count, ...]`, the oldest first; all calls agree on what follows the first axis.

        Raises:
            DataError: The samples have another shape or dtype than those before.
        """
        kept = samples[:0].copy() if self._kept is None else self._kept
        if kept.shape[1:] != samples.shape[1:] or kept.dtype != samples.dtype:
            raise DataError(
                f"windows: got samples of {samples.dtype} {list(samples.shape[1:])}, "
                f"those before are {kept.dtype} {list(kept.shape[1:])}.",
                hint="give each sensor its own Windows, or call reset()",
            )
        skipped = min(self._skip, len(samples))
        self._skip -= skipped
        kept = np.concatenate([kept, samples[skipped:]])
        count = max(0, (len(kept) - self.length) // self.stride + 1)
        starts = np.arange(count)[:, None] * self.stride
        made: np.ndarray = kept[starts + np.arange(self.length)]
        used = count * self.stride
        self._skip += max(0, used - len(kept))
        self._kept = kept[used:].copy()
        return made

    def reset(self) -> None:
        """Forgets the samples, after a gap in the stream for example."""
        self._kept, self._skip = None, 0


def _triples(step: Step, spec: TensorSpec) -> None:
    last = spec.shape[-1] if len(spec.shape) > 1 else 0
    if spec.dtype != "float32" or isinstance(last, str) or last == 0 or last % 3:
        raise refuse(step, spec, "float32 [batch, ..., channels] with x, y, z of one or more sensors", _ORDER)
