"""Steps for sound: from what a microphone gives to waves at the model's rate.

Waves are `[batch, samples]` float32. What comes of their spectra is in `audio_features`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, gcd
from typing import Any, Literal

import numpy as np

from edgemm.preprocess import spectrum
from edgemm.preprocess.step import expect, refuse
from edgemm.tensors import Dim, TensorSpec

FULL_SCALE = {"uint8": 128, "int8": 128, "int16": 1 << 15, "int32": 1 << 31}
"""dtype of samples -> the value that becomes 1; uint8 has its zero at 128, as in wav files."""


@dataclass(frozen=True, slots=True)
class Pcm:
    """Integer samples (int16, int32, int8, or uint8 around 128) to float32 from -1 to 1: int16 over 32768.

    Attributes:
        bits: Bits of a sample where the dtype has more: 24 in int32, or 16 in int32 for TensorRT, which takes no
            int16. None: all of the dtype.
    """

    bits: int | None = None

    def __post_init__(self) -> None:
        """Checks the bits."""
        expect(self.bits is None or 8 <= self.bits <= 32, self, "bits", "8 to 32")

    def scale(self, dtype: str) -> float:
        """Returns what samples of `dtype` are multiplied with, once 128 is taken from uint8."""
        return 1 / FULL_SCALE[dtype] if self.bits is None else 2.0 ** (1 - self.bits)

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns `batch` as float32 from -1 to 1, in its own shape."""
        scale = np.float32(self.scale(batch.dtype.name))
        middle = np.float32(128 if batch.dtype == np.uint8 else 0)
        return np.asarray((batch.astype(np.float32) - middle) * scale)

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns float32 of the same shape."""
        if spec.dtype not in FULL_SCALE:
            raise refuse(self, spec, f"samples of {', '.join(FULL_SCALE)}", "leave the step out for float samples")
        if self.bits is not None and 2 ** (self.bits - 1) > FULL_SCALE[spec.dtype]:
            raise refuse(self, spec, f"samples of {self.bits} bits", "leave `bits` out, or say the dtype in `raw`")
        return TensorSpec(spec.name, "float32", spec.shape)


@dataclass(frozen=True, slots=True)
class Mono:
    """The mean of the channels of interleaved sound, `[batch, samples, channels]` to `[batch, samples]`."""

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns the mean over the last axis."""
        return np.asarray(batch.mean(axis=-1, dtype=np.float32))

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns the shape without its last axis."""
        if spec.dtype != "float32" or len(spec.shape) != 3:
            raise refuse(self, spec, "float32 [batch, samples, channels]", "put the step `pcm` before it")
        return TensorSpec(spec.name, "float32", spec.shape[:-1])


@dataclass(frozen=True, slots=True)
class FitLength:
    """Cuts or fills `[batch, samples, ...]` to a fixed number of samples; what is filled in is 0.

    Attributes:
        length: Samples that come out.
        keep: Which end stays: the `start` (fills and cuts at the end) or the `end` (at the start).
    """

    length: int
    keep: Literal["start", "end"] = "start"

    def __post_init__(self) -> None:
        """Checks the length."""
        expect(self.length > 0, self, "length", "at least 1 sample")

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns `[batch, length, ...]`."""
        start, missing = self.keep == "start", max(0, self.length - batch.shape[1])
        pads = [(0, 0)] * batch.ndim
        pads[1] = (0, missing) if start else (missing, 0)
        filled = np.pad(batch, pads)
        return filled[:, : self.length] if start else filled[:, -self.length :]

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns `[batch, length, ...]`."""
        if spec.dtype != "float32" or len(spec.shape) < 2:
            raise refuse(self, spec, "float32 [batch, samples, ...]", "put `pcm` or `units` before it")
        return TensorSpec(spec.name, spec.dtype, (spec.shape[0], self.length, *spec.shape[2:]))


@dataclass(frozen=True, slots=True)
class Resample:
    """Another sampling rate, by windowed-sinc interpolation as `torchaudio.functional.resample` has it.

    Attributes:
        source: Samples per second that come in.
        rate: Samples per second that come out; n samples become ceil(n * rate / source).
        zeros: Zero crossings of the filter to each side; more is sharper and slower.
        rolloff: Cut-off as a share of the lower Nyquist frequency.
    """

    source: int
    rate: int
    zeros: int = 6
    rolloff: float = 0.99

    def __post_init__(self) -> None:
        """Checks the rates and the filter."""
        expect(self.source > 0, self, "source", "at least 1 Hz")
        expect(self.rate > 0, self, "rate", "at least 1 Hz")
        expect(1 <= self.zeros <= 256, self, "zeros", "1 to 256")
        expect(0 < self.rolloff <= 1, self, "rolloff", "over 0, at most 1")

    @property
    def ratio(self) -> tuple[int, int]:
        """The rates over their greatest common divisor: before, after."""
        divisor = gcd(self.source, self.rate)
        return self.source // divisor, self.rate // divisor

    def kernels(self) -> tuple[np.ndarray, int]:
        """Returns the filters `[phases, taps]` float32 and the samples that they reach to the left."""
        return _kernels(self)

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns the waves at the new rate."""
        before, after = self.ratio
        if before == after:
            return batch.copy()
        filters, left = self.kernels()
        padded = np.pad(batch, ((0, 0), (left, left + before - 1)))
        frames = np.lib.stride_tricks.sliding_window_view(padded, filters.shape[1], axis=1)[:, ::before]
        result: np.ndarray = (frames @ filters.T).reshape(len(batch), -1)
        return result[:, : ceil(batch.shape[1] * after / before)]

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns `[batch, ceil(samples * rate / source)]`."""
        samples = samples_of(self, spec)
        before, after = self.ratio
        if before == after:
            return spec
        new: Dim = f"{spec.name}_resampled" if isinstance(samples, str) else ceil(samples * after / before)
        return TensorSpec(spec.name, "float32", (spec.shape[0], new))


@dataclass(frozen=True, slots=True)
class PreEmphasis:
    """x[t] - c x[t - 1] lifts high frequencies; the first sample stays (`torchaudio.functional.preemphasis`).

    Attributes:
        coefficient: c.
    """

    coefficient: float = 0.97

    def __post_init__(self) -> None:
        """Checks the coefficient."""
        expect(0 <= self.coefficient <= 1, self, "coefficient", "0 to 1")

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns waves of the same shape."""
        result = batch.astype(np.float32)
        result[:, 1:] -= np.float32(self.coefficient) * batch[:, :-1]
        return result

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns what came in."""
        samples_of(self, spec)
        return spec


@dataclass(frozen=True, slots=True)
class NormalizeClip:
    """Takes loudness out of each clip: (x - mean) / deviation, or x over its largest or mean size, per sample.

    Attributes:
        by: `deviation` (zero mean, unit variance: wav2vec 2.0, cepstral mean and variance normalisation), `mean`
            (subtracted alone), `peak` (over the largest absolute value) or `rms` (over the root mean square).
        axis: Statistics over this axis alone (2: for each band over the frames of `[batch, bands, frames]`); None:
            over the whole clip.
        epsilon: Added to the variance or to the divisor, so that silence stays finite.
    """

    by: Literal["deviation", "mean", "peak", "rms"] = "deviation"
    axis: int | None = None
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        """Checks the axis and epsilon."""
        expect(self.axis is None or self.axis > 0, self, "axis", "1 or more; axis 0 is the batch")
        expect(self.epsilon > 0, self, "epsilon", "over 0")

    def axes(self, rank: int) -> tuple[int, ...]:
        """Returns the axes of a batch with `rank` axes that the statistics are over."""
        return tuple(range(1, rank)) if self.axis is None else (self.axis,)

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns float32 of the same shape."""
        options: dict[str, Any] = {"axis": self.axes(batch.ndim), "keepdims": True}
        epsilon = np.float32(self.epsilon)
        if self.by == "peak":
            return np.asarray(batch / (np.abs(batch).max(**options) + epsilon))
        if self.by == "rms":
            return np.asarray(batch / np.sqrt((batch**2).mean(**options) + epsilon))
        centred = batch - batch.mean(**options)
        if self.by == "deviation":
            centred = centred / np.sqrt((centred**2).mean(**options) + epsilon)
        return np.asarray(centred)

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns what came in."""
        rank = len(spec.shape)
        if spec.dtype != "float32" or rank < 2 or (self.axis or 0) >= rank:
            axes = "[batch, ...]" if self.axis is None else f"[batch, ...] with an axis {self.axis}"
            raise refuse(self, spec, f"float32 {axes}", "put it behind `pcm` or `log_mel`, and count axes from 0")
        return spec


def samples_of(step: Any, spec: TensorSpec) -> Dim:
    """Returns the samples of waves."""
    if spec.dtype != "float32" or len(spec.shape) != 2:
        hint = "put `pcm` before it for integer samples, and `mono` for several channels"
        raise refuse(step, spec, "float32 waves [batch, samples]", hint)
    return spec.shape[1]


@lru_cache(maxsize=16)
def _kernels(step: Resample) -> tuple[np.ndarray, int]:
    filters, left = spectrum.resampling_kernels(*step.ratio, step.zeros, step.rolloff)
    return filters.astype(np.float32), left
